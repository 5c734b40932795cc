"""Labels that come late: served examples and their labels, two logs, as one log of examples.

Three clocks: when an example was served and when its label was made (their `timestamp`), and the
watermark, up to which everything has arrived. An example leaves at its label, or as a negative at
the end of its attribution window; see `ofb_tf.streaming.join`, which Flink's job uses too.
"""

import collections
import math
import time

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.checks import check_positive
from ofb_tf.constants import EXAMPLE_ID, LABEL, TIMESTAMP
from ofb_tf.streaming import join
from ofb_tf.streaming.join import EXAMPLES, LABELS, SERIALIZED, LabelConfig, Pending
from ofb_tf.streaming.logs import Directory, Segment

_GRACE = 1.0  # seconds in which a file that has arrived may not be listed yet


class DelayedLabels:
    """A log of labelled examples, made of served examples and of labels that come later.

    Both are directories of TFRecords of tf.Examples with `example_id` and `timestamp` (int64
    microseconds); labels have `label`. Examples leave once an interval: with their label, if one
    came within the attribution window, or else as negatives when the window is over. With
    `early_negatives` every example leaves as a negative at once, and again as a positive if its
    label comes: no wait, but a biased stream, which `FakeNegativeWeighted` corrects in the loss.

    What leaves, and when, is a function of the files and their times of arrival. Files of examples
    and labels must be kept for two attribution windows and `lateness`; examples wait in memory for
    one.

    ```python
    from ofb_tf import streaming

    examples = streaming.DelayedLabels(
        streaming.Directory("served"), streaming.Directory("labels"), attribution_window=1800
    )  # for SampledStream(examples=...)
    ```

    Args:
      examples: the directory of examples, as they were served.
      labels: the directory of labels.
      attribution_window: seconds between an example's timestamp and that of a label that counts.
      lateness: seconds between the timestamp of a label or example and the arrival of its file,
        at most: an example waits so much longer. One that comes later is counted and lost.
      interval: seconds between two looks at what leaves.
      negative: the label of an example without one; None to drop it.
      early_negatives: see above.
      id_dtype: of the ids: tf.int64 or tf.string.
      label_dtype: of the labels: tf.int64 or tf.float32.

    Raises:
      ValueError: an argument out of range.
    """

    element_spec = tf.TensorSpec([], tf.string)

    def __init__(
        self,
        examples: Directory,
        labels: Directory,
        *,
        attribution_window: float,
        lateness: float = 60.0,
        interval: float = 60.0,
        negative: float | None = 0.0,
        early_negatives: bool = False,
        id_dtype: tf.DType = tf.int64,
        label_dtype: tf.DType = tf.int64,
    ) -> None:
        self.config = LabelConfig(
            attribution_window=check_positive(
                "attribution_window", attribution_window, finite=True
            ),
            interval=interval,
            # An early negative that stays one has left already.
            negative=None if early_negatives else negative,
        )
        if early_negatives and negative is None:
            raise ValueError("early_negatives needs the label of a negative. Received: None")
        if not 0.0 <= lateness < math.inf:
            raise ValueError(f"lateness must be finite and at least 0. Received: {lateness!r}")
        self.logs = {EXAMPLES: examples, LABELS: labels}
        self.lateness = lateness
        self.early = negative if early_negatives else None
        self.label_dtype = label_dtype
        self.dtypes = {EXAMPLE_ID: id_dtype, TIMESTAMP: tf.int64, LABEL: label_dtype}

    def follow(self, position: int | None = None) -> "LabelFollower":
        """A reader; its position is the number of an interval since 1970."""
        return LabelFollower(self, position)


class LabelFollower:
    """See `Follower`. A segment is what leaves at the end of one interval.

    What is pending is not saved: another process makes it again from the files of the last two
    attribution windows.

    Args:
      log: what is followed.
      position: the last interval that was taken, or None.
    """

    def __init__(self, log: DelayedLabels, position: int | None) -> None:
        self._log = log
        self._logs = {kind: each.follow() for kind, each in log.logs.items()}
        self._waiting: dict[str, collections.deque[Segment]] = {
            kind: collections.deque() for kind in log.logs
        }
        self._pending = Pending()
        self._last = self._taken = position  # the last interval looked at, and the first state's
        self._intervals: list[int] = []  # of the segments taken
        self._content: tuple[int, list[bytes]] | None = None
        self.counts: collections.Counter[str] = collections.Counter()

    def poll(self) -> list[Segment]:
        """The next interval in which something leaves, if it is over."""
        self._look()
        while (interval := self._next_interval()) is not None:
            if interval * self._log.config.interval > time.time() - _GRACE:
                break
            left = self._leave(interval)
            if left:
                self._content = interval, left
                self._intervals.append(interval)
                return [Segment(str(interval), interval * self._log.config.interval)]
        return []

    def position(self, number: int) -> int | None:
        """The interval of the segment before that number."""
        return self._intervals[number - 1] if number > 0 else self._taken

    def read(self, segment: Segment) -> tf.data.Dataset:
        """What left in an interval: serialized tf.Examples with their labels."""
        self._look()
        if self._content is None or self._content[0] != int(segment.name):
            raise ValueError(f"only the last interval can be read. Received: {segment}")
        return tf.data.Dataset.from_tensor_slices(self._content[1])

    def commit(self, place: object) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def _look(self) -> None:
        """Lists new files; the first time, goes to the position."""
        for kind, log in self._logs.items():
            self._waiting[kind].extend(log.poll())
        if self._taken is None or self._content is not None:
            return
        kept = 2.0 * self._log.config.attribution_window + self._log.lateness
        begin = self._taken * self._log.config.interval - kept
        for waiting in self._waiting.values():
            while waiting and waiting[0].arrived < begin:
                waiting.popleft()
        self._last, left = None, []
        while self._last != self._taken:
            interval = self._next_interval()
            interval = self._taken if interval is None else min(interval, self._taken)
            left = self._leave(interval)
        self._content = self._taken, left
        self.counts.clear()

    def _next_interval(self) -> int | None:
        """The next one at whose end something arrives or leaves; None if nothing is known."""
        config = self._log.config
        times = [waiting[0].arrived for waiting in self._waiting.values() if waiting]
        examples = self._pending.tables.get(EXAMPLES)
        if examples is not None:
            oldest = examples[TIMESTAMP].min() / constants.MICROSECONDS
            times.append(oldest + config.attribution_window + self._log.lateness)
        if not times:
            return None
        interval = math.ceil(min(times) / config.interval)
        return interval if self._last is None else max(interval, self._last + 1)

    def _leave(self, interval: int) -> list[bytes]:
        """Serialized tf.Examples that leave at the end of an interval, with their labels."""
        log, self._last = self._log, interval
        end = interval * log.config.interval
        before = len(self._pending.ids(EXAMPLES))
        for kind, waiting in self._waiting.items():
            while waiting and waiting[0].arrived <= end:
                path = waiting.popleft().name
                for columns in join.read_columns(kind, path, log.dtypes):
                    self._pending.add(kind, columns)
        join.drop_repeated(self._pending)
        early = []
        if log.early is not None and EXAMPLES in self._pending.tables:
            new = self._pending.tables[EXAMPLES][SERIALIZED][before:]
            early = self._labelled(new, np.full(len(new), log.early))
        watermark = round((end - log.lateness) * constants.MICROSECONDS)
        left = join.leave(self._pending, watermark, log.config)
        self.counts.update(left.counts)
        return early + self._labelled(left.serialized, left.labels)

    def _labelled(self, serialized: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """Adds labels to tf.Examples.

        Protocol buffers that follow each other are one, and of a map's entries the last counts.
        """
        suffixes = {label: self._suffix(label) for label in np.unique(labels).tolist()}
        return [
            example + suffixes[label]
            for example, label in zip(serialized.tolist(), labels.tolist(), strict=True)
        ]

    def _suffix(self, label: float) -> bytes:
        if self._log.label_dtype.is_integer:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)]))
        else:
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=[label]))
        features = tf.train.Features(feature={LABEL: feature})
        return tf.train.Example(features=features).SerializeToString()

"""Training without a pause: what follows directories that grow, and one `fit` in a thread."""

import abc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import streaming
from ofb_tf.transforms.sample import OFBSampler

_POLL_SECONDS = 0.02  # between two looks at the directories
_WAIT_SECONDS = 0.005  # between two looks at how far training is


class Feed(abc.ABC):
    """What training reads while files of serialized examples arrive in a directory."""

    @abc.abstractmethod
    def dataset(self, *, only_first: bool = False) -> tf.data.Dataset:
        """Batches. Each iteration begins with the first file, and waits for the next one.

        Args:
          only_first: whether to end after the first batch, which must be there.
        """

    @abc.abstractmethod
    def is_used(self, arrived: int, batches: int) -> bool:
        """Whether so many batches are all that can be had of so many examples.

        Examples that do not fill a window, or a batch, wait for those that follow.
        """

    @abc.abstractmethod
    def end(self) -> None:
        """Has the iteration end with what is there, once `is_used`: with a short batch."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the iteration at once."""


class SampledFeed(Feed):
    """A `SampledStream`, followed for as long as there is training.

    Args:
      sampler: what `ofb_sample` returns, with a batch size.
      examples: a log of examples.
      records: a log of forward records.
    """

    def __init__(self, sampler: OFBSampler, examples: Any, records: streaming.Log) -> None:
        self._stream = streaming.SampledStream(
            sampler, examples=examples, records=records, poll_interval=_POLL_SECONDS
        )

    def dataset(self, *, only_first: bool = False) -> tf.data.Dataset:
        """What the stream selects."""
        return self._stream.dataset().take(1 if only_first else -1)

    def is_used(self, arrived: int, batches: int) -> bool:
        """As the stream's figures say."""
        config, status = self._stream.config, self._stream.status()
        remainder = arrived % config.window_size
        if status["examples"] < arrived - remainder or (remainder and not status["lag_seconds"]):
            return False
        return batches == status["selected"] // (config.batch_size or 1)

    def end(self) -> None:
        """The stream does not wait for more."""
        self._stream.follow = False

    def close(self) -> None:
        """Closes the stream."""
        self._stream.close()


class WholeFeed(Feed):
    """Every example, without a join and without selection.

    Args:
      examples: a directory of files of TFRecords.
      parse: from serialized examples, string `[n]`, to features.
      batch_size: examples in a batch.
    """

    def __init__(
        self, examples: streaming.ExampleDirectory, parse: Callable, batch_size: int
    ) -> None:
        self._examples, self._parse, self._batch_size = examples, parse, batch_size
        self._ended = threading.Event()

    def dataset(self, *, only_first: bool = False) -> tf.data.Dataset:
        """The directory's files, one after the other."""
        # An iterator that is dropped does not end a generator that waits.
        paths = tf.data.Dataset.from_generator(
            lambda: self._paths(follow=not only_first),
            output_signature=tf.TensorSpec([], tf.string),
        )
        batches = paths.flat_map(tf.data.TFRecordDataset).batch(self._batch_size)
        batches = batches.map(self._parse, num_parallel_calls=tf.data.AUTOTUNE)
        return batches.take(1 if only_first else -1)

    def _paths(self, follow: bool) -> Iterator[str]:
        follower, ended = self._examples.follow(), False
        while not ended:
            ended = not follow or self._ended.is_set()  # before the look that is the last
            yield from (segment.name for segment in follower.poll())
            self._ended.wait(_POLL_SECONDS)

    def is_used(self, arrived: int, batches: int) -> bool:
        """Counts."""
        return batches == arrived // self._batch_size

    def end(self) -> None:
        """The iteration looks once more."""
        self._ended.set()

    def close(self) -> None:
        """As `end`."""
        self._ended.set()


def fit(model: keras.Model, dataset: tf.data.Dataset, **settings: Any) -> None:
    """Trains until the dataset ends."""
    with warnings.catch_warnings():
        # Keras warns because it cannot know how many batches a selection has.
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        model.fit(dataset, shuffle=False, verbose=0, **settings)


class Training(keras.callbacks.Callback):
    """One `fit` in a thread, until its dataset ends.

    Args:
      model: compiled.
      dataset: of batches.
    """

    def __init__(self, model: keras.Model, dataset: tf.data.Dataset) -> None:
        super().__init__()
        self.batches = 0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fit, args=(model, dataset), daemon=True)
        self._thread.start()

    def _fit(self, model: keras.Model, dataset: tf.data.Dataset) -> None:
        try:
            fit(model, dataset, callbacks=[self])
        except Exception as error:
            self._error = error

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts."""
        self.batches = batch + 1

    def wait(self, is_done: Callable[[int], bool] = lambda batches: False) -> None:
        """Waits until it is done by the number of batches, or the dataset has ended.

        Raises:
          Exception: what `fit` has raised.
        """
        while self._thread.is_alive() and not is_done(self.batches):
            self._thread.join(_WAIT_SECONDS)
        if self._error is not None:
            raise self._error

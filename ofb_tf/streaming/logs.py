"""Logs that grow: directories in which finished files appear, and what is read from them.

A log is a sequence of segments, each with the time at which it arrived. A log of examples reads a
segment as a `tf.data.Dataset` of elements, a log of records as columns.
"""

import functools
import os
import threading
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from ofb_tf.checks import check_choice
from ofb_tf.records import files
from ofb_tf.records.reader import Columns, ReadCounts, read_columns

_NANOSECONDS = 1e9
_BUFFER_BYTES = 1 << 18
_UNFINISHED = ("*.tmp", "*.open", "*.part", "*.crc", ".*", "_*")


class Segment(NamedTuple):
    """A part of a log that is complete and does not change.

    Attributes:
      name: by which the log finds it again, also in another process.
      arrived: seconds since 1970: when it was complete.
    """

    name: str
    arrived: float


class Follower(Protocol):
    """One reader of a log. Segments are numbered from 0 on, in the order in which it takes them."""

    def poll(self) -> list[Segment]:
        """Takes the segments that are new."""

    def position(self, number: int) -> Any:
        """For `Log.follow`, as JSON: everything before the segment of that number was taken."""

    def read(self, segment: Segment) -> Any:
        """What a segment holds; also one that another reader took.

        Returns:
          Of a log of examples a `tf.data.Dataset` of elements, or all of them in one batch; of a
          log of records `Columns`.
        """

    def commit(self, place: Mapping[str, Any]) -> None:
        """Takes note that a checkpoint is complete that holds this part of a stream's state."""

    def close(self) -> None:
        """Ends the reader."""


class Log(Protocol):
    """What `SampledStream` follows."""

    def follow(self, position: Any = None) -> Follower:
        """A reader that takes what comes after a position; None for everything there is."""


class Directory:
    """A directory in which finished files appear; local, or of any file system of TensorFlow's.

    A file counts from the moment it is listed and must not change any more: write under a name
    that ends in `.tmp`, `.part` or `.open`, or begins with a dot or underscore, and rename. Files
    are taken by modification time, then by name.

    Args:
      path: the directory. It may appear later.
      read: from a file's path to what it holds; by default the elements of a file of TFRecords,
        compressed if its name ends in ".gz".
      pattern: of the files' names, such as "*.tfrecord.gz".

    Raises:
      ValueError: path or pattern is empty.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        read: Callable[[str], Any] | None = None,
        *,
        pattern: str = "*",
    ) -> None:
        self.path = os.fspath(path)
        self.pattern = pattern
        self.read = _tfrecords if read is None else read
        if not self.path or not pattern:
            raise ValueError(
                "path and pattern must not be empty. Received: "
                f"path={self.path!r}, pattern={pattern!r}"
            )

    def follow(self, position: dict[str, Any] | None = None) -> "DirectoryFollower":
        """A reader; its position names the files that were taken, and those known to follow."""
        return DirectoryFollower(self, position)


class DirectoryFollower:
    """See `Follower`.

    Args:
      directory: what is followed.
      position: as `position` gives it, or None.
    """

    def __init__(self, directory: Directory, position: dict[str, Any] | None) -> None:
        self._directory = directory
        position = position or {"taken": [], "ahead": []}
        self._numbers = dict.fromkeys(position["taken"], -1)
        # In its order, and also where a file is gone by now, which reading it will say.
        self._ahead = [Segment(*segment) for segment in position["ahead"]]
        self._segments: dict[int, Segment] = {}  # from the last position on
        self._next = 0
        self._lock = threading.Lock()

    def poll(self) -> list[Segment]:
        """The files that appeared since the last poll."""
        segments, self._ahead = self._ahead, []
        with self._lock:
            self._take(segments)
        segments += self._appeared()
        return segments

    def _take(self, segments: list[Segment]) -> None:
        for segment in segments:
            self._numbers[os.path.basename(segment.name)] = self._next
            self._segments[self._next] = segment
            self._next += 1

    def _appeared(self) -> list[Segment]:
        path, new = self._directory.path, []
        try:
            names = {name.rstrip("/") for name in tf.io.gfile.listdir(path)}
        except tf.errors.NotFoundError:
            return []
        for name in names:
            if name not in self._numbers and self._is_finished(name):
                try:
                    new.append((_modified(os.path.join(path, name)), name))
                except (tf.errors.NotFoundError, FileNotFoundError):
                    continue  # deleted since it was listed
        segments = [
            Segment(os.path.join(path, name), ns / _NANOSECONDS) for ns, name in sorted(new)
        ]
        with self._lock:
            # A name that is gone cannot be taken again, so there is no need to know it.
            self._numbers = {name: n for name, n in self._numbers.items() if name in names}
            self._take(segments)
        return segments

    def position(self, number: int) -> dict[str, Any]:
        """`taken`: names of the files before that number; `ahead`: the segments from it on."""
        with self._lock:
            for past in [n for n in self._segments if n < number]:
                del self._segments[past]
            return {
                "taken": [name for name, n in self._numbers.items() if n < number],
                "ahead": list(self._segments.values()),
            }

    def read(self, segment: Segment) -> Any:
        """What a file holds.

        Raises:
          FileNotFoundError: it was deleted before it was read.
        """
        if not tf.io.gfile.exists(segment.name):
            raise FileNotFoundError(
                f"{segment.name!r} was deleted before it was read, or while a checkpoint still "
                "needs it. Keep files for longer, or start without the checkpoint."
            )
        return self._directory.read(segment.name)

    def commit(self, place: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def _is_finished(self, name: str) -> bool:
        if any(fnmatch(name, pattern) for pattern in _UNFINISHED):
            return False
        return fnmatch(name, self._directory.pattern)


class ExampleDirectory(Directory):
    """Files of examples.

    Args:
      path: as for `Directory`.
      reader: from a file's path to a `tf.data.Dataset` of elements as `ofb_sample` takes them. By
        default TFRecords of serialized tf.Examples.
      pattern: as for `Directory`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        reader: Callable[[str], tf.data.Dataset] | None = None,
        *,
        pattern: str = "*",
    ) -> None:
        super().__init__(path, reader, pattern=pattern)
        self.element_spec = self.read(os.path.join(self.path, "spec")).element_spec


class RecordDirectory(Directory):
    """Files of forward records, as `ForwardRecordWriter` leaves them.

    The writer's `max_file_seconds` is how long a record waits until its file is finished.

    Args:
      path: as for `Directory`.
      on_corrupt: "error", or "skip" to lose what follows the damage in a file and count it.
    """

    def __init__(self, path: str | os.PathLike, *, on_corrupt: str = "error") -> None:
        self.counts = ReadCounts()
        self._on_corrupt = check_choice("on_corrupt", on_corrupt, ("error", "skip"))
        super().__init__(path, self._columns, pattern="*" + files.SUFFIX)

    def _columns(self, path: str) -> Columns:
        return read_columns(path, on_corrupt=self._on_corrupt, counts=self.counts)


def _tfrecords(path: str) -> tf.data.Dataset:
    # `tf.data.TFRecordDataset` would trace a function for each file.
    variant = tf.raw_ops.TFRecordDataset(
        filenames=path,
        compression_type="GZIP" if path.endswith(".gz") else "",
        buffer_size=_BUFFER_BYTES,
    )
    examples = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
    return examples.with_options(_untuned())


@functools.cache
def _untuned() -> tf.data.Options:
    """There is nothing to tune in reading a file, and it takes 20 ms to start and end tuning."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return options


def _modified(path: str) -> int:
    """Nanoseconds since 1970; TensorFlow knows whole seconds alone."""
    if "://" in path:
        return tf.io.gfile.stat(path).mtime_nsec
    return os.stat(path).st_mtime_ns

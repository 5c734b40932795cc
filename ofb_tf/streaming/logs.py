"""Logs that grow: directories in which finished files appear, and what is read from them.

A log is a sequence of segments, each with the time at which it arrived. A log of examples reads a
segment as a `tf.data.Dataset` of elements, a log of records as columns.
"""

import os
import threading
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from ofb_tf.checks import check_choice
from ofb_tf.records import files
from ofb_tf.records.reader import Columns, ReadCounts, read_columns

_NANOSECONDS = 1e9
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
        """What a segment holds; also one that another reader took."""

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
      read: from a file's path to what it holds.
      pattern: of the files' names, such as "*.tfrecord.gz".

    Raises:
      ValueError: path or pattern is empty.
    """

    def __init__(
        self, path: str | os.PathLike, read: Callable[[str], Any], *, pattern: str = "*"
    ) -> None:
        self.path = os.fspath(path)
        self.pattern = pattern
        self.read = read
        if not self.path or not pattern:
            raise ValueError(
                "path and pattern must not be empty. Received: "
                f"path={self.path!r}, pattern={pattern!r}"
            )

    def follow(self, position: Collection[str] | None = None) -> "DirectoryFollower":
        """A reader; its position is the names of files that were taken and are still there."""
        return DirectoryFollower(self, position or ())


class DirectoryFollower:
    """See `Follower`.

    Args:
      directory: what is followed.
      names: of the files that count as taken.
    """

    def __init__(self, directory: Directory, names: Collection[str]) -> None:
        self._directory = directory
        self._numbers = dict.fromkeys(names, -1)
        self._next = 0
        self._lock = threading.Lock()

    def poll(self) -> list[Segment]:
        """The files that appeared since the last poll."""
        path, new = self._directory.path, []
        try:
            names = {name.rstrip("/") for name in tf.io.gfile.listdir(path)}
        except tf.errors.NotFoundError:
            return []
        for name in names:
            if name not in self._numbers and self._is_finished(name):
                try:
                    stat = tf.io.gfile.stat(os.path.join(path, name))
                except tf.errors.NotFoundError:
                    continue  # deleted since it was listed
                new.append((stat.mtime_nsec, name))
        new.sort()
        with self._lock:
            # A name that is gone cannot be taken again, so there is no need to know it.
            self._numbers = {name: n for name, n in self._numbers.items() if name in names}
            self._numbers |= {name: n for n, (_, name) in enumerate(new, self._next)}
            self._next += len(new)
        return [Segment(os.path.join(path, name), time / _NANOSECONDS) for time, name in new]

    def position(self, number: int) -> list[str]:
        """The names of the files before that number."""
        with self._lock:
            return [name for name, n in self._numbers.items() if n < number]

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
        default TFRecords of serialized tf.Examples, compressed if the name ends in ".gz".
      pattern: as for `Directory`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        reader: Callable[[str], tf.data.Dataset] | None = None,
        *,
        pattern: str = "*",
    ) -> None:
        reader = _tfrecords if reader is None else reader
        super().__init__(path, reader, pattern=pattern)
        self.element_spec = reader(os.path.join(self.path, "spec")).element_spec


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
    return tf.data.TFRecordDataset(path, "GZIP" if path.endswith(".gz") else "")

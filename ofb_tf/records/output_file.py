"""One record file while it is being written, and what becomes of it when its writer dies.

On a local file system the writer holds an advisory lock (flock) on its open file. The kernel drops
the lock with the process, so whoever gets it knows that the owner is dead, whatever process ids
and containers are involved.
"""

import contextlib
import os
import time
import uuid

import tensorflow as tf

from ofb_tf.records import blocks as block_format
from ofb_tf.records import paths, tfrecord

try:
    import fcntl
except ImportError:  # Windows: no lock, so open files of dead writers are left alone
    fcntl = None  # type: ignore[assignment]


class OutputFile:
    """A file of blocks, `*.ofbr.open` until `close` completes it as `*.ofbr`.

    Attributes:
      path: its final name.
      num_records: records in whole blocks.
      num_blocks: whole blocks.
      num_bytes: bytes of whole blocks, before compression.
    """

    def __init__(self, directory: str, compression: str = "", name: str | None = None):
        """Creates the open file.

        Args:
          directory: an existing directory.
          compression: "", "GZIP" or "ZLIB".
          name: file name without suffix; a unique one by default.

        Raises:
          OSError, tf.errors.OpError: it cannot be created.
        """
        # Names sort by time: between records of one timestamp the later file wins.
        name = name or f"records-{time.time_ns() // 1000:016d}-{uuid.uuid4().hex[:16]}"
        self.path = os.path.join(directory, name + paths.SUFFIX)
        self.num_records = 0
        self.num_blocks = 0
        self.num_bytes = 0
        self._open_path = os.path.join(directory, name + paths.OPEN_SUFFIX)
        self._compression = compression
        # Before TensorFlow opens the same file, so that at no moment it has content and no lock.
        self._lock = _create_locked(self._open_path)
        self._writer = tf.io.TFRecordWriter(self._open_path, compression)

    def write_block(self, serialized: bytes, num_records: int) -> None:
        """Writes a block and hands it to the operating system.

        Raises:
          OSError, tf.errors.OpError: it could not be written; call `abandon` then.
        """
        self._writer.write(serialized)
        self._writer.flush()
        self.num_records += num_records
        self.num_blocks += 1
        self.num_bytes += len(serialized) + tfrecord.FRAME_BYTES

    def close(self) -> None:
        """Writes the footer and gives the file its final name.

        Raises:
          OSError, tf.errors.OpError: it could not be written; whole blocks stay readable.
        """
        try:
            footer = block_format.Footer(self.num_blocks, self.num_records)
            self._writer.write(block_format.encode_footer(footer))
            self._writer.flush()
            self._writer.close()
            tf.io.gfile.rename(self._open_path, self.path, overwrite=True)
        except (OSError, tf.errors.OpError):
            self.abandon()
            raise
        self._unlock()

    def abandon(self) -> None:
        """Gives up after a failed write and keeps the whole blocks; never raises.

        What cannot be completed now, on a full disk, a later writer finalises.
        """
        with contextlib.suppress(OSError, tf.errors.OpError):
            self._writer.close()
        self._unlock()
        if fcntl is not None and paths.is_local(self._open_path):
            with contextlib.suppress(OSError, tf.errors.OpError, block_format.FormatError):
                _finalise(self._open_path)

    def discard(self) -> None:
        """Removes the file, whatever is in it; never raises."""
        with contextlib.suppress(OSError, tf.errors.OpError):
            self._writer.close()
        with contextlib.suppress(OSError, tf.errors.OpError):
            tf.io.gfile.remove(self._open_path)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def finalise_dead_files(directory: str) -> list[str]:
    """Completes the open files of a local directory whose writers are dead.

    Whole blocks are kept, a partial last one is cut off, the footer is written. A file without a
    whole block is removed; a compressed one keeps its open name, as it cannot be appended to.

    Returns:
      The final names of the files that were completed.
    """
    if fcntl is None or not paths.is_local(directory):
        return []
    finalised = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(paths.OPEN_SUFFIX):
            # Another process may be at it, or there may be no right to write: it stays open then.
            with contextlib.suppress(OSError, tf.errors.OpError, block_format.FormatError):
                path = _finalise(os.path.join(directory, name))
                if path:
                    finalised.append(path)
    return finalised


def _create_locked(path: str) -> int | None:
    if fcntl is None or not paths.is_local(path):
        return None
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _finalise(path: str) -> str | None:
    final_path = path[: -len(paths.OPEN_SUFFIX)] + paths.SUFFIX
    # A link may lead out of the directory: it is left alone.
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino != os.stat(path).st_ino:
            return None
        end = num_blocks = num_records = 0
        for item in tfrecord.read_records(path):
            if isinstance(item, tfrecord.Damage):
                if not item.at_end:
                    return None  # damaged, not cut short: left for `ofb records verify` to show
                break
            offset, data = item
            block = block_format.decode(data)
            if isinstance(block, block_format.Footer):  # killed between footer and rename
                os.rename(path, final_path)
                return final_path
            end = offset + len(data) + tfrecord.FRAME_BYTES
            num_blocks += 1
            num_records += len(block)
        if tfrecord.compression_of(path):
            return None
        if not num_blocks:
            os.remove(path)
            return None
        os.ftruncate(descriptor, end)
        footer = block_format.encode_footer(block_format.Footer(num_blocks, num_records))
        os.write(descriptor, tfrecord.frame(footer))
        os.rename(path, final_path)
        return final_path
    finally:
        os.close(descriptor)

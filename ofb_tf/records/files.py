"""Record files: their names, the TFRecords in them, and where they are damaged.

TensorFlow's reader checks every checksum, but allocates whatever length a TFRecord's header claims,
and decompresses without limit. So `scan` walks the headers first, and TensorFlow only reads
TFRecords that the file holds and that are not longer than `MAX_BLOCK_BYTES`.
"""

import dataclasses
import glob
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from ofb_tf.records.schema import MAX_BLOCK_BYTES

SUFFIX = ".ofbr"
OPEN_SUFFIX = ".ofbr.open"

Pattern = str | os.PathLike | Sequence[str | os.PathLike]

_HEADER_BYTES = 12
FRAME_BYTES = 16  # a TFRecord's header, and the checksum behind its data
_CHUNK_BYTES = 1 << 20
_GZIP_OR_ZLIB = 47  # zlib's wbits: the larger window, either header
_DAMAGE = (
    tf.errors.DataLossError,
    tf.errors.OutOfRangeError,
    tf.errors.InvalidArgumentError,
    tf.errors.InternalError,
    tf.errors.ResourceExhaustedError,
)


@dataclasses.dataclass(frozen=True)
class CorruptBlock:
    """Where a file is damaged; what follows in it is lost."""

    path: str
    offset: int  # bytes from the start (of the uncompressed stream)
    reason: str


class CorruptRecordsError(ValueError):
    """A record file is damaged; the message names file and offset.

    Attributes:
      damage: `CorruptBlock`, the same for programs.
    """

    damage: CorruptBlock


def corrupt(path: str, offset: int, reason: str) -> CorruptRecordsError:
    """The error for a damaged file."""
    error = CorruptRecordsError(
        f"Corrupt record file {path!r} at byte {offset}: {reason}. `ofb records verify` lists all "
        'damaged files; on_corrupt="skip" loads what precedes the damage and counts it.'
    )
    error.damage = CorruptBlock(path, offset, reason)
    return error


def is_record_file(name: str) -> bool:
    """Whether the name is that of a closed or open record file."""
    return name.endswith((SUFFIX, OPEN_SUFFIX))


def is_open(path: str) -> bool:
    """Whether the file is still being written, or its writer died."""
    return path.endswith(OPEN_SUFFIX)


def closed_name(path: str) -> str:
    """The name that an open file gets once it is complete."""
    return path[: -len(OPEN_SUFFIX)] + SUFFIX


def size_of(path: str) -> int:
    """Bytes on disk."""
    return os.path.getsize(path) if is_local(path) else tf.io.gfile.stat(path).length


def is_local(path: str) -> bool:
    """Whether Python's own files reach it."""
    return "://" not in path


def rename(source: str, target: str) -> None:
    """Gives a file another name; what has that name is replaced."""
    if is_local(source):  # TensorFlow holds the GIL, also on a stalled disk
        os.replace(source, target)
    else:
        tf.io.gfile.rename(source, target, overwrite=True)


def remove(path: str) -> None:
    """Deletes a file."""
    if is_local(path):
        os.remove(path)
    else:
        tf.io.gfile.remove(path)


def match_files(pattern: Pattern) -> list[str]:
    """The record files that a file, glob, directory or list of them names, sorted."""
    given = [pattern] if isinstance(pattern, str | os.PathLike) else pattern
    patterns = [os.fspath(each) for each in given]
    if not patterns or not all(patterns):
        raise ValueError(
            "records pattern must name at least one file, glob or directory, none of them empty. "
            f"Received: {patterns}"
        )
    return sorted({file for each in patterns for file in _match_one(each)})


def make_new_directory(directory: str | os.PathLike) -> str:
    """Makes a directory if it is missing; FileExistsError if it holds record files already."""
    directory = os.fspath(directory)
    tf.io.gfile.makedirs(directory)
    if any(map(is_record_file, tf.io.gfile.listdir(directory))):
        raise FileExistsError(
            f"The output directory {directory!r} holds record files already. Name an empty one."
        )
    return directory


def expand(pattern: str) -> list[str]:
    """The paths that a name or glob matches, sorted; brackets in what exists match themselves."""
    if tf.io.gfile.exists(pattern):
        return [pattern]
    directory = os.path.dirname(pattern)
    while directory and directory != os.path.dirname(directory):
        if tf.io.gfile.isdir(directory):
            break
        directory = os.path.dirname(directory)
    return sorted(tf.io.gfile.glob(glob.escape(directory) + pattern[len(directory) :]))


def _match_one(pattern: str) -> list[str]:
    if tf.io.gfile.isdir(pattern):
        matched = [os.path.join(pattern, name) for name in tf.io.gfile.listdir(pattern)]
    else:
        matched = expand(pattern)
    if matched == [pattern]:
        return matched  # a file named in full may have any name
    files = [file for file in matched if is_record_file(file)]
    if not files:
        found = f"{len(matched)} files, none of them a record file" if matched else "nothing"
        raise FileNotFoundError(
            f"The records pattern {pattern!r} matches {found} ({SUFFIX}, {OPEN_SUFFIX}). Check "
            "the directory, and that a writer has flushed or closed its first file."
        )
    return files


@dataclasses.dataclass(frozen=True)
class Scan:
    """What the headers of a file's TFRecords claim."""

    compression: str
    num_whole: int  # TFRecords that the file holds, as far as their headers say
    end: int  # offset behind the last of them
    problem: str  # why the file does not end there
    is_partial: bool  # with a problem: the file just stops, as one being written does


def scan(path: str, limit: int | None = None) -> Scan:
    """Walks the headers of a file's TFRecords, at most `limit`, a chunk in memory; no checksum."""
    compression = compression_of(path)
    num_whole = end = 0
    problem, is_partial = "", True
    with _open(path) as file:
        stream = _Stream(path, file, compression)
        try:
            while num_whole != limit:
                header = stream.read(_HEADER_BYTES)
                if not header and stream.is_complete():
                    break
                length = int.from_bytes(header[:8], "little")
                if len(header) < _HEADER_BYTES:
                    problem = "the file ends inside a header"
                elif length > MAX_BLOCK_BYTES:
                    is_partial = False
                    problem = (
                        f"a TFRecord claims {length} bytes, at most {MAX_BLOCK_BYTES} are read"
                    )
                elif not stream.skip(length + FRAME_BYTES - _HEADER_BYTES):
                    problem = f"the file ends inside a TFRecord of {length} bytes"
                if problem:
                    break
                num_whole += 1
                end += length + FRAME_BYTES
        except zlib.error as error:
            problem = f"{compression} data: {error}"
    return Scan(compression, num_whole, end, problem, is_partial)


def check_headers(path: str) -> str:
    """A file's compression; CorruptRecordsError where TensorFlow's own reader must not see it."""
    found = scan(path)
    if found.problem:
        raise corrupt(path, found.end, found.problem)
    return found.compression


def read_frames(path: str, limit: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields `(offset, data)` of each TFRecord, in bounded memory whatever the file claims.

    A file that is still open ends at its last whole TFRecord; any other raises CorruptRecordsError
    at its damage, after all that precedes it.
    """
    found = scan(path, limit)
    grows = is_open(path)
    offset = 0
    # tf.data.TFRecordDataset of one file, without the function that it traces for each.
    dataset = tf.data.experimental.from_variant(
        tf.raw_ops.TFRecordDataset(
            filenames=[path], compression_type=found.compression, buffer_size=_CHUNK_BYTES
        ),
        tf.TensorSpec([], tf.string),
    )
    try:
        # No further: TensorFlow loses 600 bytes with each error, also that of a dataset's end.
        for serialized in itertools.islice(dataset, found.num_whole):
            data = serialized.numpy()
            yield offset, data
            offset += len(data) + FRAME_BYTES
    except _DAMAGE as error:
        if grows and found.compression:
            return  # its stream has no end yet, and where it breaks off is not for us to tell
        message = str(error.message).splitlines()[0].split("} ")[-1][:200]
        raise corrupt(path, offset, f"a checksum does not match ({message})") from error
    if found.problem and not (grows and found.is_partial):
        raise corrupt(path, found.end, found.problem)


def compression_of(path: str) -> str:
    """The compression that a file's first bytes show: "GZIP", "ZLIB" or "" for none."""
    with _open(path) as file:
        start = file.read(1 << 9)
    if start[:3] == b"\x1f\x8b\x08":
        compression = "GZIP"
    elif start[:1] == b"\x78" and int.from_bytes(start[:2], "big") % 31 == 0:
        compression = "ZLIB"
    else:
        return ""
    # The length of a plain TFRecord may begin with the same bytes, but it does not decompress to
    # the header of another.
    try:
        header = zlib.decompressobj(_GZIP_OR_ZLIB).decompress(start, _HEADER_BYTES)
    except zlib.error:
        return ""
    return "" if any(header[4:8]) else compression


class _Stream:
    """The bytes of a file, which a compressed one gives a decompressed chunk at a time."""

    def __init__(self, path: str, file: Any, compression: str):
        self._file = file
        self._size = 0 if compression else size_of(path)
        self._inflate: Any = zlib.decompressobj(_GZIP_OR_ZLIB) if compression else None
        self._buffer = b""

    def read(self, count: int) -> bytes:
        if self._inflate is None:
            return self._file.read(count)
        while len(self._buffer) < count and (chunk := self._next()):
            self._buffer += chunk
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def skip(self, count: int) -> bool:
        """Whether there were so many bytes."""
        if self._inflate is None:
            end = self._file.tell() + count
            if end <= self._size:
                self._file.seek(end)
            return end <= self._size
        while count and (data := self.read(min(count, _CHUNK_BYTES))):
            count -= len(data)
        return not count

    def is_complete(self) -> bool:
        return self._inflate is None or self._inflate.eof

    def _next(self) -> bytes:
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._file.read(_CHUNK_BYTES)
            chunk = self._inflate.decompress(data, _CHUNK_BYTES)
            if chunk or not data:
                return chunk
        return b""


def _open(path: str) -> Any:
    return open(path, "rb") if is_local(path) else tf.io.gfile.GFile(path, "rb")

"""TFRecords of a file with their offsets, and what to do where the file is damaged.

TensorFlow's own reader checks every checksum and copies every byte. This module only keeps track
of offsets, and after damage finds the next whole record.
"""

import dataclasses
import os
import uuid
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from ofb_tf.records import paths

HEADER_BYTES = 12
FRAME_BYTES = 16  # header and the checksum behind the data
_SCAN_BYTES = 1 << 20
_CHECK_BYTES = 1 << 25
_READ_BUFFER_BYTES = 1 << 20
_DAMAGE = (
    tf.errors.DataLossError,
    tf.errors.OutOfRangeError,
    tf.errors.InvalidArgumentError,
    tf.errors.InternalError,
    tf.errors.ResourceExhaustedError,
)


@dataclasses.dataclass(frozen=True)
class Damage:
    """A place where a file does not read on.

    Attributes:
      offset: bytes from the file's start (of the uncompressed stream in a compressed file).
      reason: what is wrong there.
      at_end: the file just stops inside a record, as one does that is still being written.
    """

    offset: int
    reason: str
    at_end: bool = False


def read_records(path: str) -> Iterator[tuple[int, bytes] | Damage]:
    """Reads a TFRecord file to its end, whatever its state.

    Args:
      path: file on any file system of `tf.io.gfile`; GZIP and ZLIB are detected.

    Yields:
      `(offset, data)` of every whole record; `Damage` in the place of what cannot be read. An
      uncompressed file is read on from the next whole record behind the damage, a compressed one
      ends there.

    Raises:
      tf.errors.NotFoundError: the file does not exist.
    """
    compression = compression_of(path)
    offset = 0
    try:
        for serialized in _dataset(path, compression):
            data = serialized.numpy()
            yield offset, data
            offset += len(data) + FRAME_BYTES
    except _DAMAGE as error:
        if compression:
            reason = f"{compression} data: {_first_line(error)}"
            yield Damage(offset, reason, at_end=True)
            return
    if not compression and offset < size_of(path):
        yield from _read_on(path, offset)


def masked_crc32c(data: np.ndarray) -> np.ndarray:
    """TFRecord's checksum of many short strings at once.

    Args:
      data: uint8 `[n, length]`, length small: it is a loop over the bytes.

    Returns:
      uint32 `[n]`, CRC-32C (Castagnoli), rotated and offset as TFRecord does.
    """
    crc = np.full(len(data), 0xFFFFFFFF, np.uint32)
    for position in range(data.shape[1]):
        crc = _CRC_TABLE[(crc ^ data[:, position]) & 0xFF] ^ (crc >> np.uint32(8))
    crc ^= np.uint32(0xFFFFFFFF)
    rotated = (crc >> np.uint32(15)) | (crc << np.uint32(17))
    return rotated + np.uint32(0xA282EAD8)


def frame(data: bytes) -> bytes:
    """A short record as it stands in an uncompressed TFRecord file."""
    length = len(data).to_bytes(8, "little")
    return b"".join([length, _checksum(length), data, _checksum(data)])


def _checksum(data: bytes) -> bytes:
    return masked_crc32c(np.frombuffer(data, np.uint8)[None]).astype("<u4").tobytes()


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


_CRC_TABLE = _crc_table()


def _dataset(path: str, compression: str) -> tf.data.Dataset:
    # tf.data.TFRecordDataset of one file, without the function that it traces for every one.
    variant = tf.raw_ops.TFRecordDataset(
        filenames=[path], compression_type=compression, buffer_size=_READ_BUFFER_BYTES
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def compression_of(path: str) -> str:
    """The compression that a file's first bytes show: GZIP, ZLIB or none (empty)."""
    with tf.io.gfile.GFile(path, "rb") as file:
        start = file.read(HEADER_BYTES)
    if len(start) == HEADER_BYTES and _valid_headers(np.frombuffer(start, np.uint8)[None])[0]:
        return ""
    if start[:2] == b"\x1f\x8b":
        return "GZIP"
    if start[:1] == b"\x78" and len(start) > 1 and int.from_bytes(start[:2], "big") % 31 == 0:
        return "ZLIB"
    return ""


def size_of(path: str) -> int:
    """Bytes on disk."""
    return os.path.getsize(path) if paths.is_local(path) else tf.io.gfile.stat(path).length


def _valid_headers(candidates: np.ndarray) -> np.ndarray:
    stored = np.ascontiguousarray(candidates[:, 8:12]).view("<u4")[:, 0]
    return masked_crc32c(candidates[:, :8]) == stored


def _read_on(path: str, offset: int) -> Iterator[tuple[int, bytes] | Damage]:
    """Reads on from an offset, over any damage."""
    size = size_of(path)
    with tf.io.gfile.GFile(path, "rb") as file:
        while offset < size:
            frames = []
            damage = None
            start = offset
            while damage is None and offset < size and offset - start < _CHECK_BYTES:
                framed, damage = _read_frame(file, offset, size)
                if damage is None:
                    frames.append((offset, framed))
                    offset += len(framed)
            yield from _checked(frames)
            if damage is not None:
                yield damage
                if damage.at_end:
                    return
                offset = _next_header(file, offset + 1, size)


def _read_frame(file: tf.io.gfile.GFile, offset: int, size: int) -> tuple[bytes, Damage | None]:
    """A record with its header and checksums, or why its extent is unknown."""
    file.seek(offset)
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return b"", Damage(offset, "the file ends inside a record's header", at_end=True)
    if not _valid_headers(np.frombuffer(header, np.uint8)[None])[0]:
        return b"", Damage(offset, "a record's length does not match its checksum")
    length = int.from_bytes(header[:8], "little")
    if offset + FRAME_BYTES + length > size:
        return b"", Damage(offset, "the file ends inside a record", at_end=True)
    return header + file.read(length + FRAME_BYTES - HEADER_BYTES), None


def _checked(frames: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes] | Damage]:
    """The data of framed records, or where TensorFlow finds one damaged.

    TensorFlow checks files only (and cannot start in the middle of one), so the records go
    through its file system in memory.
    """
    path = f"ram://ofb-tf-{uuid.uuid4().hex}"
    while frames:
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(b"".join(framed for _, framed in frames))
        num_good = 0
        try:
            for serialized in _dataset(path, ""):
                yield frames[num_good][0], serialized.numpy()
                num_good += 1
        except _DAMAGE:
            offset = frames[num_good][0]
            yield Damage(offset, "a record's checksum does not match its data")
        finally:
            tf.io.gfile.remove(path)
        frames = frames[num_good + 1 :]


def _next_header(file: tf.io.gfile.GFile, offset: int, size: int) -> int:
    """The next offset with a valid header of a record that fits into the file, or its size."""
    while offset + FRAME_BYTES <= size:
        file.seek(offset)
        chunk = np.frombuffer(file.read(_SCAN_BYTES + HEADER_BYTES), np.uint8)
        if len(chunk) < HEADER_BYTES:
            break
        windows = np.lib.stride_tricks.sliding_window_view(chunk, HEADER_BYTES)
        for start in np.flatnonzero(_valid_headers(windows)):
            length = int.from_bytes(windows[start, :8].tobytes(), "little")
            if offset + int(start) + FRAME_BYTES + length <= size:
                return offset + int(start)
        offset += len(windows)
    return size


def _first_line(error: tf.errors.OpError) -> str:
    return str(error.message).splitlines()[0].split("} ")[-1][:200]

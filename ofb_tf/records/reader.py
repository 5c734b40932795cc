"""Reading forward records: files to sorted columns, one record an id."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import blocks as block_format
from ofb_tf.records import paths, tfrecord

_MAX_READERS = 8
_JOIN_BLOCKS = 128
_DAMAGED = block_format.Footer(-1, -1)  # the file's damage has been counted already


class CorruptRecordsError(ValueError):
    """A record file is damaged; the message names file and offset."""


@dataclasses.dataclass(frozen=True)
class CorruptBlock:
    """A place where a file is damaged.

    Attributes:
      path: file.
      offset: bytes from its start.
      reason: what is wrong there.
    """

    path: str
    offset: int
    reason: str


@dataclasses.dataclass
class ReadCounts:
    """What reading came upon.

    Attributes:
      num_files: files read.
      num_bytes: their size on disk.
      num_blocks: whole blocks read.
      num_read: records in those blocks.
      num_after: of these, records later than `as_of`, left out.
      num_duplicates: of the rest, records that a newer one of the same id replaced.
      num_nonfinite: of those kept, records with a NaN or infinite logit or loss.
      damages: damaged places (`on_corrupt="skip"`), each at least one block lost.
      num_open_files: files that are still being written, or whose writer died.
    """

    num_files: int = 0
    num_bytes: int = 0
    num_blocks: int = 0
    num_read: int = 0
    num_after: int = 0
    num_duplicates: int = 0
    num_nonfinite: int = 0
    num_open_files: int = 0
    damages: list["CorruptBlock"] = dataclasses.field(default_factory=list)

    @property
    def num_corrupt_blocks(self) -> int:
        """Damaged places."""
        return len(self.damages)


@dataclasses.dataclass
class Columns:
    """Records as numpy arrays, in the order of reading.

    Attributes:
      schema: their columns.
      arrays: by name, `[n]` or `[n, k]`; model versions as indices into `version_table`.
      version_table: int64 `[v]`.
    """

    schema: block_format.Schema
    arrays: dict[str, np.ndarray]
    version_table: np.ndarray


def read_blocks(
    path: str, *, on_corrupt: str = "error", counts: ReadCounts | None = None
) -> Iterator[block_format.Block]:
    """Reads the blocks of one file.

    Args:
      path: record file, closed or still open.
      on_corrupt: "error", or "skip" to go on behind the damage and count it.
      counts: counted into.

    Yields:
      The blocks, in order.

    Raises:
      CorruptRecordsError: the file is damaged (`on_corrupt="error"`).
    """
    counts = ReadCounts() if counts is None else counts
    is_open = path.endswith(paths.OPEN_SUFFIX)
    if is_open and not tf.io.gfile.exists(path):  # completed since it was listed
        path, is_open = path[: -len(paths.OPEN_SUFFIX)] + paths.SUFFIX, False
    counts.num_files += 1
    counts.num_bytes += tfrecord.size_of(path)
    counts.num_open_files += is_open
    num_blocks = num_records = end = 0
    footer = None
    for item in tfrecord.read_records(path):
        if isinstance(item, tfrecord.Damage):
            end = item.offset
            if not (is_open and item.at_end):
                _meet(CorruptBlock(path, end, item.reason), on_corrupt, counts)
            footer = _DAMAGED
            continue
        offset, data = item
        end = offset + len(data) + tfrecord.FRAME_BYTES
        try:
            block = block_format.decode(data)
        except block_format.FormatError as error:
            _meet(CorruptBlock(path, offset, str(error)), on_corrupt, counts)
            footer = _DAMAGED
            continue
        if isinstance(block, block_format.Footer):
            footer = footer or block
            continue
        num_blocks += 1
        num_records += len(block)
        counts.num_blocks += 1
        counts.num_read += len(block)
        yield block
    found = block_format.Footer(num_blocks, num_records)
    if footer is None and not is_open:
        _meet(CorruptBlock(path, end, "the footer is missing"), on_corrupt, counts)
    elif footer is not None and footer not in (found, _DAMAGED):
        reason = f"the footer counts {footer}, the file holds {found}"
        _meet(CorruptBlock(path, end, reason), on_corrupt, counts)


def read_schema(pattern: paths.Pattern, *, on_corrupt: str = "error") -> block_format.Schema:
    """The columns that the records under a pattern hold, from the first block of each file.

    Args:
      pattern: a file, a glob, a directory, or a list of them.
      on_corrupt: "error", or "skip" to pass over damaged blocks.

    Returns:
      A `Schema`: names of the columns, number of outputs, logits kept an instance.

    Raises:
      FileNotFoundError: the pattern matches nothing.
      ValueError: the files hold different columns, or no record at all.
    """
    files = paths.match_files(pattern)
    parts = []
    for file in files:
        block = next(read_blocks(file, on_corrupt=on_corrupt), None)
        parts.append(_FilePart(ReadCounts(), block.schema if block else None))
    return _common_schema(files, parts)


def read_columns(
    pattern: paths.Pattern,
    *,
    as_of: int | None = None,
    on_corrupt: str = "error",
    counts: ReadCounts | None = None,
) -> Columns:
    """Reads files in parallel into columns, in the order of file name and position.

    Args:
      pattern: file, glob, directory or a list of them.
      as_of: int64 microseconds; later records are left out and counted.
      on_corrupt: "error" or "skip".
      counts: counted into.

    Raises:
      FileNotFoundError: the pattern matches nothing.
      ValueError: the files hold different columns or numbers of outputs.
      CorruptRecordsError: see `read_blocks`.
    """
    if on_corrupt not in ("error", "skip"):
        raise ValueError(f"on_corrupt must be 'error' or 'skip'. Received: {on_corrupt!r}")
    counts = ReadCounts() if counts is None else counts
    files = paths.match_files(pattern)
    workers = min(len(files), os.cpu_count() or 1, _MAX_READERS)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda file: _read_file(file, as_of, on_corrupt), files))
    schema = _common_schema(files, parts)
    for part in parts:
        for field in dataclasses.fields(ReadCounts):
            total = getattr(counts, field.name) + getattr(part.counts, field.name)
            setattr(counts, field.name, total)
    return _concatenate(schema, parts)


@dataclasses.dataclass
class _FilePart:
    counts: ReadCounts
    schema: block_format.Schema | None = None
    pieces: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    versions: dict[int, int] = dataclasses.field(default_factory=dict)
    num_joined: int = 0

    def join_recent(self) -> None:
        """Joins recent blocks: many small arrays would leave holes in the heap when freed."""
        for pieces in self.pieces.values():
            recent = pieces[self.num_joined :]
            if recent and not isinstance(recent[0], block_format.Runs):
                pieces[self.num_joined :] = [_join(recent)]
        self.num_joined += 1


def _read_file(path: str, as_of: int | None, on_corrupt: str) -> _FilePart:
    part = _FilePart(ReadCounts())
    for block in read_blocks(path, on_corrupt=on_corrupt, counts=part.counts):
        if part.schema is None:
            part.schema = block.schema
            part.pieces = {name: [] for name in block.schema.columns}
        elif block.schema != part.schema:
            raise ValueError(_schema_message(path, part.schema, path, block.schema))
        columns = dict(block.columns)
        columns[constants.MODEL_VERSION] = _index_versions(
            columns[constants.MODEL_VERSION], part.versions
        )
        if as_of is not None:
            kept = columns[constants.TIMESTAMP].expand() <= as_of
            if not kept.all():
                part.counts.num_after += int((~kept).sum())
                columns = {name: _filter(data, kept) for name, data in columns.items()}
        for name, data in columns.items():
            part.pieces[name].append(data)
        if part.counts.num_blocks % _JOIN_BLOCKS == 0:
            part.join_recent()
    part.join_recent()
    return part


def _index_versions(runs: block_format.Runs, versions: dict[int, int]) -> block_format.Runs:
    """The block's versions as indices into the file's table, which grows on the way."""
    unique, inverse = np.unique(runs.values, return_inverse=True)
    indices = np.array([versions.setdefault(int(v), len(versions)) for v in unique], np.int64)
    return block_format.Runs(indices[inverse], runs.lengths)


def _filter(data: Any, kept: np.ndarray) -> Any:
    if isinstance(data, block_format.Runs):
        return block_format.run_lengths(data.expand()[kept])
    return data[kept]


def _common_schema(files: list[str], parts: list[_FilePart]) -> block_format.Schema:
    schema, first = None, ""
    for file, part in zip(files, parts, strict=True):
        if part.schema is None:
            continue
        if schema is None:
            schema, first = part.schema, file
        elif part.schema != schema:
            raise ValueError(_schema_message(first, schema, file, part.schema))
    if schema is None:
        raise ValueError(
            f"The {len(files)} record files (first: {files[0]!r}) hold no whole block. Wait until "
            "the writer has flushed, or name files with records."
        )
    return schema


def _schema_message(
    first: str, expected: block_format.Schema, file: str, got: block_format.Schema
) -> str:
    return (
        f"Records that are loaded together must hold the same columns: {first!r} has {expected}, "
        f"{file!r} has {got}. Load them apart, each by a pattern of its own."
    )


def _concatenate(schema: block_format.Schema, parts: list[_FilePart]) -> Columns:
    table = sorted({version for part in parts for version in part.versions})
    index = {version: position for position, version in enumerate(table)}
    for part in parts:
        mapping: np.ndarray = np.array([index[v] for v in part.versions], index_dtype(len(table)))
        pieces = part.pieces.get(constants.MODEL_VERSION, [])
        pieces[:] = [block_format.Runs(mapping[runs.values], runs.lengths) for runs in pieces]
    arrays = {}
    for name in schema.columns:
        pieces = [piece for part in parts for piece in part.pieces.pop(name, ())]
        arrays[name] = _join(pieces)
    return Columns(schema, arrays, np.array(table, np.int64))


def _join(pieces: list[Any]) -> np.ndarray:
    """One array of the pieces, which are expanded and given up one by one: that bounds memory."""
    values = [p.values if isinstance(p, block_format.Runs) else p for p in pieces]
    dtype = np.result_type(*{v.dtype for v in values}).newbyteorder("=")
    joined = np.empty((sum(len(piece) for piece in pieces), *values[0].shape[1:]), dtype)
    del values
    end = len(joined)
    while pieces:
        piece = pieces.pop()
        data = piece.expand() if isinstance(piece, block_format.Runs) else piece
        joined[end - len(data) : end] = data
        end -= len(data)
    return joined


def index_dtype(num_versions: int) -> type:
    """The smallest dtype of indices into a table of so many versions."""
    if num_versions <= 1 << 8:
        return np.uint8
    return np.uint16 if num_versions <= 1 << 16 else np.int32


def _meet(damage: CorruptBlock, on_corrupt: str, counts: ReadCounts) -> None:
    if on_corrupt == "error":
        raise CorruptRecordsError(
            f"Corrupt record file {damage.path!r} at byte {damage.offset}: {damage.reason}. "
            '`ofb records verify` lists all damage; on_corrupt="skip" leaves it out and counts it.'
        )
    counts.damages.append(damage)

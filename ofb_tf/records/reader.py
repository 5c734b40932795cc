"""Reading forward records: files to sorted columns, one record an id."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from ofb_tf import types
from ofb_tf.records import format as block_format
from ofb_tf.records import paths, tfrecord

_MAX_READERS = 8
_DAMAGED = block_format.Footer(-1, -1)  # the file's damage has been counted already


class CorruptRecordsError(ValueError):
    """A record file is damaged; the message names file and offset."""


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
      num_corrupt_blocks: damaged places (`on_corrupt="skip"`), each at least one block lost.
      num_open_files: files that are still being written, or whose writer died.
    """

    num_files: int = 0
    num_bytes: int = 0
    num_blocks: int = 0
    num_read: int = 0
    num_after: int = 0
    num_duplicates: int = 0
    num_nonfinite: int = 0
    num_corrupt_blocks: int = 0
    num_open_files: int = 0


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
    counts.num_files += 1
    counts.num_open_files += is_open
    num_blocks = num_records = end = 0
    footer = None
    for item in tfrecord.read_records(path):
        if isinstance(item, tfrecord.Damage):
            end = item.offset
            if not (is_open and item.at_end):
                _meet(CorruptRecordsError(_at(path, end, item.reason)), on_corrupt, counts)
            footer = _DAMAGED
            continue
        offset, data = item
        end = offset + len(data) + tfrecord.FRAME_BYTES
        try:
            block = block_format.decode(data)
        except block_format.FormatError as error:
            _meet(CorruptRecordsError(_at(path, offset, str(error))), on_corrupt, counts)
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
    counts.num_bytes += end
    found = block_format.Footer(num_blocks, num_records)
    if footer is None and not is_open:
        _meet(CorruptRecordsError(_at(path, end, "the footer is missing")), on_corrupt, counts)
    elif footer is not None and footer not in (found, _DAMAGED):
        reason = f"the footer counts {footer}, the file holds {found}"
        _meet(CorruptRecordsError(_at(path, end, reason)), on_corrupt, counts)


def read_schema(pattern: paths.Pattern) -> block_format.Schema:
    """The columns that the records under a pattern hold, from the first block of each file.

    Raises:
      FileNotFoundError: the pattern matches nothing.
      ValueError: the files hold different columns, or no record at all.
    """
    files = paths.match_files(pattern)
    parts = []
    for file in files:
        block = next(read_blocks(file), None)
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
    pieces: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    versions: dict[int, int] = dataclasses.field(default_factory=dict)


def _read_file(path: str, as_of: int | None, on_corrupt: str) -> _FilePart:
    part = _FilePart(ReadCounts())
    for block in read_blocks(path, on_corrupt=on_corrupt, counts=part.counts):
        if part.schema is None:
            part.schema = block.schema
            part.pieces = {name: [] for name in block.schema.columns}
        elif block.schema != part.schema:
            raise ValueError(_schema_message(path, part.schema, path, block.schema))
        columns = dict(block.columns)
        columns[types.TIMESTAMP] = columns[types.TIMESTAMP].expand()
        columns[types.MODEL_VERSION] = _version_codes(columns[types.MODEL_VERSION], part.versions)
        if as_of is not None:
            kept = columns[types.TIMESTAMP] <= as_of
            if not kept.all():
                part.counts.num_after += int((~kept).sum())
                columns = {name: data[kept] for name, data in columns.items()}
        for name, data in columns.items():
            part.pieces[name].append(data)
    return part


def _version_codes(runs: block_format.Runs, versions: dict[int, int]) -> np.ndarray:
    """The block's versions as indices into the file's table, which grows on the way."""
    unique, inverse = np.unique(runs.values, return_inverse=True)
    codes = np.array([versions.setdefault(int(v), len(versions)) for v in unique], np.int32)
    dtype = np.uint16 if len(versions) <= 1 << 16 else np.int32
    return runs.expand(codes.astype(dtype)[inverse])


def _common_schema(files: list[str], parts: list[_FilePart]) -> block_format.Schema:
    schema = first = None
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
    index = {version: code for code, version in enumerate(table)}
    for part in parts:
        if part.schema is not None:
            mapping = np.array([index[v] for v in part.versions], code_dtype(len(table)))
            codes = part.pieces[types.MODEL_VERSION]
            codes[:] = [mapping[piece] for piece in codes]
    arrays = {}
    for name in schema.columns:
        pieces = [piece for part in parts for piece in part.pieces.get(name, ())]
        for part in parts:
            part.pieces.pop(name, None)  # so that a column's pieces go before the next is made
        arrays[name] = np.concatenate(pieces)
        del pieces
    return Columns(schema, arrays, np.array(table, np.int64))


def code_dtype(num_versions: int) -> type:
    """The smallest dtype of indices into a table of so many versions."""
    if num_versions <= 1 << 8:
        return np.uint8
    return np.uint16 if num_versions <= 1 << 16 else np.int32


def _meet(error: CorruptRecordsError, on_corrupt: str, counts: ReadCounts) -> None:
    if on_corrupt == "error":
        raise error
    counts.num_corrupt_blocks += 1


def _at(path: str, offset: int, reason: str) -> str:
    return (
        f"Corrupt record file {path!r} at byte {offset}: {reason}. `ofb records verify` lists all "
        'damage; on_corrupt="skip" leaves it out and counts it.'
    )

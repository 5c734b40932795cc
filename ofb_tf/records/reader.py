"""Reading forward records: files to columns sorted by id, the newest record of each id."""

import concurrent.futures
import ctypes
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.checks import check_choice
from ofb_tf.records import blocks, files
from ofb_tf.records.files import CorruptBlock, CorruptRecordsError
from ofb_tf.records.schema import Runs, Schema, expand

MAX_READERS = 8
_JOIN_BLOCKS = 128
# TensorFlow's kernels take buffers that begin on a multiple of this.
_ALIGNMENT = 64


@dataclasses.dataclass
class ReadCounts:
    """Counters collected while reading.

    Attributes:
      num_files: files read.
      num_bytes: their size on disk.
      num_blocks: whole blocks read.
      num_read: records in those blocks.
      num_after: of these, records later than `as_of`, left out.
      num_duplicates: of the rest, records that a newer one of the same id replaced.
      num_nonfinite: of those kept, records with a NaN or infinite logit or loss.
      num_open_files: files that are still being written, or whose writer died.
      damages: damaged files (`on_corrupt="skip"`), with everything behind the damage lost.
    """

    num_files: int = 0
    num_bytes: int = 0
    num_blocks: int = 0
    num_read: int = 0
    num_after: int = 0
    num_duplicates: int = 0
    num_nonfinite: int = 0
    num_open_files: int = 0
    damages: list[CorruptBlock] = dataclasses.field(default_factory=list)

    @property
    def num_corrupt_blocks(self) -> int:
        """Damaged files: reading stops at the first damage in each."""
        return len(self.damages)


@dataclasses.dataclass
class Columns:
    """Records as numpy arrays, in the order of reading."""

    schema: Schema
    arrays: dict[str, np.ndarray]  # `[n]` or `[n, k]`; model versions index the table
    version_table: np.ndarray  # int64 `[v]`, ascending

    @classmethod
    def of(cls, schema: Schema, arrays: dict[str, np.ndarray]) -> "Columns":
        """Columns from arrays with the model versions themselves."""
        table, indices = np.unique(arrays[constants.MODEL_VERSION], return_inverse=True)
        indices = indices.astype(_index_dtype(len(table)))
        return cls(schema, arrays | {constants.MODEL_VERSION: indices}, table)

    def __len__(self) -> int:
        return len(self.arrays[constants.EXAMPLE_ID])

    def rows(self, rows: slice | np.ndarray) -> "Columns":
        """Some of the records."""
        arrays = {name: data[rows] for name, data in self.arrays.items()}
        return dataclasses.replace(self, arrays=arrays)


def _column(name: str, doc: str) -> Any:
    """A read-only attribute of `ForwardRecords`: one of its columns, None where it has none."""
    return property(lambda records: records.columns.get(name), doc=doc)


@dataclasses.dataclass(frozen=True)
class ForwardRecords:
    """Forward records in memory: one dict of columns, sorted by id, ids unique.

    Attributes:
      columns: those that were recorded, by the names of `ofb_tf.constants`; each is an attribute
        below, too.
      version_table: int64 `[v]`, the model versions, ascending.
      num_outputs: outputs of the model, 0 where only losses were recorded; k is `num_outputs`,
        or in the top-k form the number of logits kept.
      counts: counters collected while reading.
    """

    columns: dict[str, tf.Tensor]
    version_table: tf.Tensor
    num_outputs: int
    counts: ReadCounts = dataclasses.field(default_factory=ReadCounts)

    @classmethod
    def load(
        cls, pattern: files.Pattern, *, as_of: int | None = None, on_corrupt: str = "error"
    ) -> "ForwardRecords":
        """Reads record files, in parallel, and keeps the newest record of each id.

        ```python
        import ofb_tf

        with ofb_tf.ForwardRecordWriter("records") as writer:
            writer.write([11, 12], [0.1, 0.2], model_version=1)
            writer.write([12], [0.3], model_version=2)
        records = ofb_tf.ForwardRecords.load("records")
        assert records.columns["example_id"].numpy().tolist() == [11, 12]
        assert records.model_versions.numpy().tolist() == [1, 2]  # the newest of each id
        assert records.counts.num_duplicates == 1
        ```

        Args:
          pattern: a file, a glob, a directory, or a list of them. Files that are still being
            written (`*.ofbr.open`) are read up to their last whole block.
          as_of: microseconds since 1970; later records are left out, as for a join at that time.
          on_corrupt: "error", or "skip" to load what precedes the damage in each file, lose the
            rest of that file and count it.

        Returns:
          The records; equal timestamps are decided by file name, then position: the last wins.

        Raises:
          FileNotFoundError: the pattern matches no record file.
          CorruptRecordsError: a file is damaged; names file and offset.
          ValueError: the files hold different columns or numbers of outputs, or no record at all.
        """
        counts = ReadCounts()
        columns = read_columns(pattern, as_of=as_of, on_corrupt=on_corrupt, counts=counts)
        return cls.sort(columns, counts)

    @classmethod
    def from_columns(
        cls,
        example_ids: Any,
        logits: np.ndarray | None = None,
        losses: np.ndarray | None = None,
        model_versions: np.ndarray | int = 0,
        timestamps: np.ndarray | int = 0,
    ) -> "ForwardRecords":
        """Records from arrays in any order, ids repeated or not.

        Args:
          example_ids: integers or text `[n]`, converted by `hashing.to_int64`.
          logits: float32 or float16 `[n, k]`, or `[n]` for one output.
          losses: float32 `[n]`; at least one of logits and losses.
          model_versions: int64, one or `[n]`.
          timestamps: int64 microseconds, one or `[n]`; the newest record of each id is kept.

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        arrays = {constants.EXAMPLE_ID: hashing.id_vector(example_ids)}
        n = len(arrays[constants.EXAMPLE_ID])
        if logits is not None:
            logits = np.asarray(logits)
            logits = logits[:, None] if logits.ndim == 1 else logits
            if logits.ndim != 2 or len(logits) != n or not logits.shape[1]:
                raise ValueError(f"logits must be [{n}, k]. Received: {list(logits.shape)}")
            narrow = logits.dtype == np.float16
            arrays[constants.LOGITS] = logits.astype(np.float16 if narrow else np.float32)
        if losses is not None:
            losses = np.asarray(losses, np.float32)
            if losses.shape != (n,):
                raise ValueError(f"losses must be [{n}]. Received: {list(losses.shape)}")
            arrays[constants.LOSS] = losses
        if len(arrays) == 1:
            raise ValueError("logits or losses must be given. Received: neither")
        arrays[constants.MODEL_VERSION] = np.broadcast_to(np.asarray(model_versions, np.int64), n)
        arrays[constants.TIMESTAMP] = np.broadcast_to(np.asarray(timestamps, np.int64), n)
        schema = Schema.of(arrays, 0 if logits is None else logits.shape[1])
        return cls.sort(Columns.of(schema, arrays), ReadCounts(num_read=n))

    @classmethod
    def sort(cls, columns: Columns, counts: ReadCounts) -> "ForwardRecords":
        """The newest record of each id; uses the columns' arrays up, and adds to `counts`."""
        arrays = columns.arrays
        order = newest_order(arrays[constants.EXAMPLE_ID], arrays[constants.TIMESTAMP])
        counts.num_duplicates += len(columns) - len(order)
        tensors = {}
        for name in columns.schema.columns:
            # A column at a time, its unsorted form freed before the next, bounds the peak memory.
            unsorted = arrays.pop(name)
            data = _aligned_empty((len(order), *unsorted.shape[1:]), unsorted.dtype)
            np.take(unsorted, order, axis=0, out=data)
            del unsorted
            tensors[name] = as_tensor(data)
        counts.num_nonfinite += count_nonfinite(
            np.asarray(data) for data in tensors.values() if data.dtype.is_floating
        )
        del order
        release_freed()
        table = tf.constant(columns.version_table, tf.int64)
        return cls(tensors, table, columns.schema.num_outputs, counts)

    def to_pandas(self) -> Any:
        """The records as a `pandas.DataFrame`, to look at them; needs pandas.

        ```python
        import ofb_tf

        records = ofb_tf.ForwardRecords.from_columns([2, 1], logits=[0.5, -1.0], timestamps=10**15)
        table = records.to_pandas()
        assert table.example_id.tolist() == [1, 2]
        assert table.logits.tolist() == [-1.0, 0.5]
        assert str(table.timestamp[0]) == "2001-09-09 01:46:40+00:00"
        ```

        Returns:
          A row per record, a column per column: `logits` and `class_ids` are numbers, or arrays
          `[k]` where there are more than one; `timestamp` is in UTC.

        Raises:
          ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        arrays = {name: np.asarray(column) for name, column in self.columns.items()}
        arrays[constants.MODEL_VERSION] = np.asarray(self.model_versions)
        times = pandas.Series(arrays.pop(constants.TIMESTAMP).view("datetime64[us]"))
        columns: dict[str, Any] = {
            name: data if data.ndim == 1 else data[:, 0] if data.shape[1] == 1 else list(data)
            for name, data in arrays.items()
        }
        return pandas.DataFrame(columns | {constants.TIMESTAMP: times.dt.tz_localize("UTC")})

    def __len__(self) -> int:
        return int(self.columns[constants.EXAMPLE_ID].shape[0])

    @property
    def schema(self) -> Schema:
        """Names of the columns, number of outputs, logits kept per record."""
        class_ids = self.class_ids
        top_k = 0 if class_ids is None else int(class_ids.shape[1])
        return Schema.of(self.columns, self.num_outputs, top_k)

    example_ids = _column(constants.EXAMPLE_ID, "int64 `[n]`, ascending.")
    timestamps = _column(constants.TIMESTAMP, "int64 `[n]`, microseconds since 1970.")
    version_indices = _column(
        constants.MODEL_VERSION, "uint8, uint16 or int32 `[n]`, into the table."
    )
    logits = _column(constants.LOGITS, "float32 or float16 `[n, k]`, or None.")
    losses = _column(constants.LOSS, "float32 `[n]`, or None.")
    class_ids = _column(constants.CLASS_IDS, "int32 `[n, k]`, of top-k `logits`, or None.")
    logsumexp = _column(constants.LOGSUMEXP, "float32 `[n]`, over all classes (top-k), or None.")
    sum_squared_probabilities = _column(
        constants.SUM_SQUARED_PROBABILITIES, "float32 `[n]`, over all classes (top-k), or None."
    )

    @property
    def model_versions(self) -> tf.Tensor:
        """int64 `[n]`, computed at each call: in memory they are indices into a table."""
        return tf.gather(self.version_table, tf.cast(self.version_indices, tf.int32))


def newest_order(example_ids: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """int64 positions that sort ids and keep the newest record of each, the last among equals."""
    order = np.argsort(example_ids, kind="stable")
    ids = example_ids[order]
    same = ids[1:] == ids[:-1]
    del ids
    if not same.any():
        return order
    repeated = np.append(False, same) | np.append(same, False)
    group = order[repeated]
    order[repeated] = group[np.lexsort((timestamps[group], example_ids[group]))]
    return order[np.append(~same, True)]


def count_nonfinite(arrays: Iterable[np.ndarray]) -> int:
    """Rows with a NaN or infinite value in one of the float arrays, each `[n]` or `[n, k]`."""
    bad: Any = False
    for data in arrays:
        if data.dtype.kind == "f":
            finite = np.isfinite(data)
            if not finite.all():
                bad = bad | ~finite.reshape(len(data), -1).all(axis=1)
    return int(np.sum(bad))


def read_blocks(
    path: str, *, on_corrupt: str = "error", counts: ReadCounts | None = None
) -> Iterator[blocks.Block]:
    """Yields a file's blocks; damage raises CorruptRecordsError, or is counted ("skip")."""
    check_choice("on_corrupt", on_corrupt, ("error", "skip"))
    counts = ReadCounts() if counts is None else counts
    path = os.fspath(path)
    if files.is_open(path) and not tf.io.gfile.exists(path):  # completed since it was listed
        path = files.closed_name(path)
    counts.num_files += 1
    counts.num_bytes += files.size_of(path)
    counts.num_open_files += files.is_open(path)
    try:
        num_blocks = num_records = end = 0
        footer = None
        for offset, item in _decoded(path):
            end = offset
            if isinstance(item, blocks.Footer):
                footer = item
                continue
            num_blocks += 1
            num_records += len(item)
            counts.num_blocks += 1
            counts.num_read += len(item)
            yield item
        found = blocks.Footer(num_blocks, num_records)
        if footer is None and not files.is_open(path):
            raise files.corrupt(path, end, "the footer is missing")
        if footer not in (None, found):
            raise files.corrupt(path, end, f"the footer counts {footer}, the file holds {found}")
    except CorruptRecordsError as error:
        if on_corrupt == "error":
            raise
        counts.damages.append(error.damage)


def _decoded(path: str, limit: int | None = None) -> Iterator[tuple[int, Any]]:
    """The blocks and footers of a file, each with the offset behind it."""
    for offset, data in files.read_frames(path, limit):
        try:
            item = blocks.decode(data)
        except blocks.FormatError as error:
            raise files.corrupt(path, offset, str(error)) from error
        yield offset + len(data) + files.FRAME_BYTES, item


def read_schema(pattern: files.Pattern, *, on_corrupt: str = "error") -> Schema:
    """The columns that the records under a pattern hold, from the first block of each file.

    Args:
      pattern: a file, a glob, a directory, or a list of them.
      on_corrupt: "error", or "skip" to pass over files with a damaged first block.

    Raises:
      FileNotFoundError: the pattern matches nothing.
      CorruptRecordsError: a file's first block is damaged.
      ValueError: the files hold different columns, or no record at all.
    """
    check_choice("on_corrupt", on_corrupt, ("error", "skip"))
    paths = files.match_files(pattern)
    schemas = []
    for path in paths:
        try:
            first = next(_decoded(path, limit=1), (0, None))[1]
        except CorruptRecordsError:
            if on_corrupt == "error":
                raise
            first = None
        schemas.append(first.schema if isinstance(first, blocks.Block) else None)
    return _common_schema(paths, schemas)


def read_columns(
    pattern: files.Pattern,
    *,
    as_of: int | None = None,
    on_corrupt: str = "error",
    counts: ReadCounts | None = None,
) -> Columns:
    """Reads files in parallel into columns, in the order of file name and position."""
    paths = files.match_files(pattern)
    workers = min(len(paths), os.cpu_count() or 1, MAX_READERS)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda path: _read_file(path, as_of, on_corrupt), paths))
    schema = _common_schema(paths, [part.schema for part in parts])
    if counts is not None:
        for part in parts:
            for field in dataclasses.fields(ReadCounts):
                total = getattr(counts, field.name) + getattr(part.counts, field.name)
                setattr(counts, field.name, total)
    return _concatenate(schema, parts)


def join_blocks(origin: str, found: Iterable[blocks.Block]) -> Columns:
    """Blocks as columns, in their order; ValueError if there are none, or of several schemas."""
    part = _FilePart(ReadCounts())
    for block in found:
        part.add(origin, block.schema, block.columns)
    return _concatenate(_common_schema([origin], [part.schema]), [part])


@dataclasses.dataclass
class _FilePart:
    counts: ReadCounts
    schema: Schema | None = None
    pieces: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    num_joined: int = 0

    def add(self, path: str, schema: Schema, columns: Mapping[str, Any]) -> None:
        """Takes a block of the file."""
        if self.schema is None:
            self.schema = schema
            self.pieces = {name: [] for name in schema.columns}
        _common_schema([path, path], [self.schema, schema])
        for name, data in columns.items():
            self.pieces[name].append(data)

    def join_recent(self) -> None:
        """Joins recent blocks: many small arrays would leave holes in the heap when freed."""
        for pieces in self.pieces.values():
            recent = pieces[self.num_joined :]
            if recent and not isinstance(recent[0], Runs):
                pieces[self.num_joined :] = [_join(recent)]
        self.num_joined += 1


def _read_file(path: str, as_of: int | None, on_corrupt: str) -> _FilePart:
    part = _FilePart(ReadCounts())
    for block in read_blocks(path, on_corrupt=on_corrupt, counts=part.counts):
        columns = block.columns
        if as_of is not None:
            kept = columns[constants.TIMESTAMP].expand() <= as_of
            if not kept.all():
                part.counts.num_after += int((~kept).sum())
                columns = {
                    name: Runs.of(data.expand()[kept]) if isinstance(data, Runs) else data[kept]
                    for name, data in columns.items()
                }
        part.add(path, block.schema, columns)
        if part.counts.num_blocks % _JOIN_BLOCKS == 0:
            part.join_recent()
    part.join_recent()
    return part


def _common_schema(paths: list[str], schemas: list[Schema | None]) -> Schema:
    found = [(path, schema) for path, schema in zip(paths, schemas, strict=True) if schema]
    if not found:
        raise ValueError(
            f"The {len(paths)} record files (first: {paths[0]!r}) hold no whole block. Wait until "
            "the writer has flushed, or name files with records."
        )
    first, expected = found[0]
    for path, schema in found:
        if schema != expected:
            raise ValueError(
                f"Records that are loaded together must hold the same columns: {first!r} has "
                f"{expected}, {path!r} has {schema}. Load them apart, each with its own pattern."
            )
    return expected


def _concatenate(schema: Schema, parts: list[_FilePart]) -> Columns:
    pieces = {
        name: [piece for part in parts for piece in part.pieces.pop(name, ())]
        for name in schema.columns
    }
    versions = pieces[constants.MODEL_VERSION]
    table = np.unique(np.concatenate([np.unique(runs.values) for runs in versions]))
    dtype = _index_dtype(len(table))
    versions[:] = [
        Runs(np.searchsorted(table, runs.values).astype(dtype), runs.lengths) for runs in versions
    ]
    return Columns(schema, {name: _join(pieces[name]) for name in pieces}, table)


def _join(pieces: list[Any]) -> np.ndarray:
    """One array of the pieces, which are expanded and given up one by one: that bounds memory."""
    values = [piece.values if isinstance(piece, Runs) else piece for piece in pieces]
    dtype = np.result_type(*{v.dtype for v in values}).newbyteorder("=")
    joined = np.empty((sum(len(piece) for piece in pieces), *values[0].shape[1:]), dtype)
    del values
    end = len(joined)
    while pieces:
        data = expand(pieces.pop())
        joined[end - len(data) : end] = data
        end -= len(data)
    return joined


def _index_dtype(num_versions: int) -> type:
    """The smallest dtype of indices into a table of so many versions."""
    if num_versions <= 1 << 8:
        return np.uint8
    return np.uint16 if num_versions <= 1 << 16 else np.int32


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array whose buffer a tensor can share."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -buffer.ctypes.data % _ALIGNMENT
    return buffer[begin : begin + size].view(dtype).reshape(shape)


def as_tensor(array: np.ndarray) -> tf.Tensor:
    """A tensor on the array's memory, which must not be written to from then on.

    `tf.convert_to_tensor` would copy it, and hold twice the memory meanwhile. Only an array that
    is not aligned for TensorFlow is copied.
    """
    if not array.size:
        return tf.convert_to_tensor(array)
    if array.ctypes.data % _ALIGNMENT or not array.flags.c_contiguous:
        aligned = _aligned_empty(array.shape, array.dtype)
        aligned[...] = array
        array = aligned
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def release_freed() -> None:
    """Returns freed memory to the system, where the C library can (glibc).

    Sorting frees 15 bytes per record, which would otherwise stay with the process.
    """
    trim = getattr(ctypes.pythonapi, "malloc_trim", None)
    if trim is not None:
        trim(0)

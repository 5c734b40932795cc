"""Parquet and Arrow files: rows of them into records, and records into Parquet.

pyarrow (extra `arrow`) is imported only where a file is read or written.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from ofb_tf import constants
from ofb_tf.checks import check_choice
from ofb_tf.records import files, reader
from ofb_tf.records.blocks import Block
from ofb_tf.records.importers import values
from ofb_tf.records.importers.batches import Batch, UnusableError
from ofb_tf.records.importers.rows import RowFields
from ofb_tf.records.schema import expand

_BATCH_ROWS = 1 << 16  # of records
_PAYLOAD_ROWS = 1 << 10  # that may hold whole requests
_ROW_GROUP_ROWS, _ROW_GROUP_BYTES = 1 << 17, 1 << 26
_SAFE_RELEASE = (14, 0, 1)
_PARQUET, _ARROW = b"PAR1", b"ARROW1"


def require_arrow() -> Any:
    """pyarrow, or an ImportError that says how to install it."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "Parquet and Arrow files need pyarrow: pip install 'ofb-tf[arrow]'"
        ) from error
    if tuple(map(int, pyarrow.__version__.split(".")[:3])) < _SAFE_RELEASE:
        try:  # older releases unpickle what a file holds (CVE-2023-47248)
            import pyarrow_hotfix  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"pyarrow {pyarrow.__version__} executes what a file holds: upgrade it to "
                f"{'.'.join(map(str, _SAFE_RELEASE))}, or pip install pyarrow_hotfix"
            ) from error
    return pyarrow


def is_arrow(path: str) -> bool:
    """Whether a file begins like a Parquet or Arrow file."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read(6).startswith((_PARQUET, _ARROW))


def read_rows(path: str) -> Iterator[tuple[int, Any]]:
    """The number and content of every row, as of `json.loads`; times as integers of their unit."""
    pa = require_arrow()
    for start, batch in _read(path, None):
        if isinstance(batch, UnusableError):
            yield start, batch
            continue
        columns = [
            column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
            for column in batch.columns
        ]
        try:
            rows = pa.Table.from_arrays(columns, names=batch.schema.names).to_pylist()
        except (ValueError, OverflowError, pa.ArrowException) as error:
            yield start, UnusableError(f"rows that Python cannot hold: {str(error)[:100]}")
            continue
        yield from enumerate(rows, start)


def read_records(path: str, fields: RowFields) -> Iterator[Batch]:
    """Reads the records of a Parquet or Arrow file in batches; offsets are numbers of rows.

    Raises:
      ValueError: a column is missing, or of a type that cannot be what it should be.
    """
    now = time.time_ns() // 1000
    for start, table in _read(path, fields):
        if isinstance(table, UnusableError):
            yield Batch([start], str(table))
        else:
            yield from _Decoder(table, start).records(fields, now)


def export_parquet(
    pattern: files.Pattern,
    output_directory: str | os.PathLike,
    *,
    compression: str = "zstd",
    on_corrupt: str = "error",
    show_progress: bool = False,
) -> reader.ReadCounts:
    """Writes a Parquet file for every record file, for the tools that read Parquet.

    Columns are those of the records: `example_id`, `logits` (a number, or a list for more than one
    output), `loss`, `model_version`, `timestamp`, and those of the top-k form. All records are
    written, also those that a newer one of the same id replaces on loading. Needs the extra
    `arrow`.

    Args:
      pattern: a file, a glob, a directory, or a list of them.
      output_directory: created if missing; the files are named like the record files.
      compression: of Parquet: "zstd", "snappy", "gzip" or "none".
      on_corrupt: "error", or "skip" to write what precedes the damage in each file.
      show_progress: show a progress bar over the files.

    Returns:
      What was read, which is what was written.

    Raises:
      FileNotFoundError: the pattern matches nothing.
      ValueError: two record files have one name.
      CorruptRecordsError: a file is damaged.
      ImportError: pyarrow is not installed.
    """
    check_choice("compression", compression, ("zstd", "snappy", "gzip", "none"))
    require_arrow()
    directory = os.fspath(output_directory)
    tf.io.gfile.makedirs(directory)
    counts = reader.ReadCounts()
    outputs: dict[str, str] = {}
    for path in files.match_files(pattern):
        name = os.path.basename(path).removesuffix(".open").removesuffix(files.SUFFIX)
        output = os.path.join(directory, f"{name}.parquet")
        if output in outputs:
            raise ValueError(
                f"record files of one name need separate output directories. Received: "
                f"{outputs[output]!r} and {path!r}"
            )
        outputs[output] = path
    for output, path in tqdm.tqdm(
        outputs.items(), unit="file", disable=None if show_progress else True
    ):
        blocks = reader.read_blocks(path, on_corrupt=on_corrupt, counts=counts)
        _write(output, _row_groups(blocks), compression)
    return counts


def table_of(columns: Mapping[str, np.ndarray]) -> Any:
    """A `pyarrow.Table` of record columns `[n]` or `[n, k]`."""
    pa = require_arrow()
    arrays = {}
    for name, data in columns.items():
        data = data.astype(np.float32 if data.dtype.kind == "f" else data.dtype.newbyteorder("="))
        array = pa.array(data.reshape(-1))
        if name == constants.TIMESTAMP:
            array = array.cast(pa.timestamp("us", "UTC"))
        elif data.ndim == 2 and data.shape[1] != 1:
            offsets = np.arange(len(data) + 1, dtype=np.int32) * np.int32(data.shape[1])
            array = pa.ListArray.from_arrays(offsets, array)
        arrays[name] = array
    return pa.table(arrays)


def _row_groups(blocks: Iterator[Block]) -> Iterator[Any]:
    pa = require_arrow()
    tables: list[Any] = []
    for block in blocks:
        tables.append(table_of({name: expand(data) for name, data in block.columns.items()}))
        if (
            sum(table.num_rows for table in tables) >= _ROW_GROUP_ROWS
            or sum(table.nbytes for table in tables) >= _ROW_GROUP_BYTES
        ):
            yield pa.concat_tables(tables)
            tables = []
    if tables:
        yield pa.concat_tables(tables)


def _write(path: str, tables: Iterator[Any], compression: str) -> None:
    """Writes a file that appears under its name when complete; none where there is no table."""
    from pyarrow import parquet

    temporary = os.path.join(os.path.dirname(path), f".tmp-{uuid.uuid4().hex}")
    try:
        with contextlib.ExitStack() as stack:
            writer = None
            for table in tables:
                if writer is None:
                    filesystem, name = _filesystem(temporary)
                    sink = stack.enter_context(filesystem.open_output_stream(name))
                    writer = parquet.ParquetWriter(sink, table.schema, compression=compression)
                    stack.enter_context(writer)
                writer.write_table(table)
        if writer is not None:
            tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(OSError, tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise


def _filesystem(path: str) -> tuple[Any, str]:
    from pyarrow import fs

    return (fs.LocalFileSystem(), path) if "://" not in path else fs.FileSystem.from_uri(path)


def _read(path: str, fields: RowFields | None) -> Iterator[tuple[int, Any]]:
    """Record batches with the number of their first row; the last may be an `UnusableError`."""
    pa = require_arrow()
    from pyarrow import parquet

    filesystem, name = _filesystem(path)
    size = _BATCH_ROWS if fields else _PAYLOAD_ROWS
    row = 0
    try:
        with filesystem.open_input_file(name) as file:
            start = file.read(len(_ARROW))
            file.seek(0)
            if start.startswith(_PARQUET):
                source = parquet.ParquetFile(file)
                columns = _check(source.schema_arrow, fields)
                batches = source.iter_batches(size, columns=columns)
            else:
                is_file = start == _ARROW
                source = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
                columns = _check(source.schema, fields)
                whole = (
                    map(source.get_batch, range(source.num_record_batches)) if is_file else source
                )
                batches = (
                    batch.slice(begin, size)
                    for batch in map(_validated, whole)
                    for begin in range(0, batch.num_rows, size)
                )
            for batch in batches:
                yield row, batch
                row += batch.num_rows
    except (pa.ArrowException, OSError, MemoryError) as error:
        yield row, UnusableError(f"the file is damaged from here on: {str(error)[:200]}")


def _validated(batch: Any) -> Any:
    """A batch of an Arrow file, whose buffers are used as they are: offsets may point anywhere."""
    batch.validate(full=True)
    return batch


def _check(schema: Any, fields: RowFields | None) -> list[str] | None:
    """The columns to read, all of them for None; ValueError where one is missing."""
    if fields is None:
        return None
    top = {path: path if path in schema.names else path.split(".")[0] for path in fields.paths}
    missing = [path for path in fields.needed if top[path] not in schema.names]
    if missing:
        raise ValueError(
            f"the columns must include {list(fields.needed)}. Missing: {missing}. Received: "
            f"{schema.names[:20]}. Map them with --id_field, --logits_fields, --loss_field."
        )
    if constants.LOGSUMEXP in schema.names and constants.LOGITS in fields.logits:
        raise ValueError(
            "these are records in the top-k form, whose logits are only the largest: they cannot "
            "be imported. Keep the record files."
        )
    return sorted({name for name in top.values() if name in schema.names})


class _Decoder:
    """A record batch into records: rows that hold none are set aside with a reason."""

    def __init__(self, table: Any, start: int):
        self._pa = require_arrow()
        self._table = table
        self._start = start
        self._good = np.ones(table.num_rows, bool)
        self._reasons: dict[str, np.ndarray] = {}  # rows by reason

    def records(self, fields: RowFields, now: int) -> Iterator[Batch]:
        """The batches: one for each reason, and one for each number of logits."""
        if not self._table.num_rows:
            return
        columns = {constants.EXAMPLE_ID: self._ids(fields.example_id)}
        for name, path, default, convert in (
            (constants.MODEL_VERSION, fields.model_version, 0, self._versions),
            (constants.TIMESTAMP, fields.timestamp, now, self._times(fields.timestamp_unit)),
        ):
            column = self._column(path) if path else None
            if path is None or column is None:
                columns[name] = np.full(len(self._good), default, np.int64)
                continue
            found, valid, reason = convert(column, path)
            absent = _nulls(column)
            self._reject(~valid & ~absent, reason)
            columns[name] = np.where(absent, default, found)
        if fields.loss is not None:
            columns[constants.LOSS] = self._floats(fields.loss)
        lists = None
        if len(fields.logits) == 1 and self._is_list(self._column(fields.logits[0])):
            lists = self._lists(fields.logits[0])
        elif fields.logits:
            parts = [self._floats(path) for path in fields.logits]
            columns[constants.LOGITS] = np.stack(parts, axis=1)
        for reason, rows in sorted(self._reasons.items(), key=lambda item: item[1][0]):
            yield Batch(rows + self._start, reason)
        if lists is None:
            rows = np.flatnonzero(self._good)
            if len(rows):
                yield self._batch(columns, rows)
            return
        flat, starts, lengths = lists
        kept, first = np.unique(lengths[self._good], return_index=True)
        for length in kept[np.argsort(first)]:  # the first row says how many outputs there are
            rows = np.flatnonzero(self._good & (lengths == length))
            if len(rows) == len(self._good):
                logits = flat.reshape(-1, length)
            else:
                logits = flat[starts[rows][:, None] + np.arange(length)]
            batch = self._batch(columns, rows)
            batch.columns[constants.LOGITS] = logits
            yield batch

    def _batch(self, columns: dict[str, np.ndarray], rows: np.ndarray) -> Batch:
        whole = len(rows) == len(self._good)
        taken = columns if whole else {name: data[rows] for name, data in columns.items()}
        return Batch(rows + self._start, columns=dict(taken))

    def _column(self, path: str) -> Any:
        """The column at a path, None where there is none."""
        existing = self._table.schema.names
        names = [path] if path in existing else path.split(".")
        if names[0] not in existing:
            return None
        column = self._table.column(existing.index(names[0]))
        for name in names[1:]:
            if not self._pa.types.is_struct(column.type):
                return None
            place = column.type.get_field_index(name)
            if place < 0:
                return None
            column = column.flatten()[place]  # where the struct is null, its fields are
        if self._pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column

    def _needed(self, path: str) -> Any:
        """A column that a record cannot do without: rows where it is null are set aside."""
        column = self._column(path)
        if column is None:
            raise ValueError(f"column {path!r} is missing. Received: {self._table.schema.names}")
        self._reject(_nulls(column), f"field {path!r} is missing")
        return column

    def _reject(self, rows: np.ndarray, reason: str) -> None:
        rows = np.flatnonzero(rows & self._good)
        if len(rows):
            self._good[rows] = False
            self._reasons[reason] = np.union1d(self._reasons.get(reason, rows), rows)

    def _ids(self, path: str) -> np.ndarray:
        pa, column = self._pa, self._needed(path)
        kind = column.type
        if pa.types.is_integer(kind):
            ids = _numpy(column.fill_null(0))
            if kind == pa.uint64():
                self._reject(ids >= np.uint64(2**63), f"field {path!r} must be an int64")
            return ids.astype(np.int64)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            large = pa.types.is_large_string(kind)
            column = column.cast(pa.large_binary() if large else pa.binary())
        elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise self._wrong_type(path, kind, "integers or text")
        ids = np.empty(len(column), object)
        ids[:] = column.fill_null(b"").to_pylist()
        return ids

    def _floats(self, path: str) -> np.ndarray:
        """float32 `[n]`."""
        return self._numbers(self._needed(path), path)

    def _numbers(self, column: Any, path: str) -> np.ndarray:
        types, kind = self._pa.types, column.type
        if types.is_decimal(kind):
            column = column.cast(self._pa.float64())
        elif not (types.is_floating(kind) or types.is_integer(kind)):
            raise self._wrong_type(path, kind, "numbers")
        with np.errstate(over="ignore"):
            return _numpy(column).astype(np.float32, copy=False)

    def _is_list(self, column: Any) -> bool:
        types = self._pa.types
        return column is not None and (
            types.is_list(column.type)
            or types.is_large_list(column.type)
            or types.is_fixed_size_list(column.type)
        )

    def _lists(self, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All elements as float32 `[m]`, and each row's first one and number of them."""
        from pyarrow import compute

        column = self._needed(path)
        if self._pa.types.is_fixed_size_list(column.type):
            lengths = np.where(_nulls(column), 0, column.type.list_size)
            column = column.filter(column.is_valid())
        else:
            lengths = _numpy(compute.list_value_length(column).fill_null(0)).astype(np.int64)
        elements = column.flatten()  # without those of null lists
        unusable = lengths == 0
        if elements.null_count:
            owners = np.repeat(np.arange(len(lengths)), lengths)
            unusable[owners[_nulls(elements)]] = True
        self._reject(unusable, f"field {path!r} must hold numbers")
        return self._numbers(elements, path), np.cumsum(lengths) - lengths, lengths

    def _versions(self, column: Any, path: str) -> tuple[np.ndarray, np.ndarray, str]:
        reason = f"field {path!r} must be an int64"
        if self._pa.types.is_integer(column.type) and column.type != self._pa.uint64():
            found = _numpy(column.fill_null(0)).astype(np.int64)
            return found, np.ones(len(found), bool), reason
        return self._each(column, lambda value: values.int64(value, path), reason)

    def _times(self, unit: str) -> Callable[[Any, str], tuple[np.ndarray, np.ndarray, str]]:
        """Converts a column of times to microseconds; numbers are of the unit."""

        def convert(column: Any, path: str) -> tuple[np.ndarray, np.ndarray, str]:
            pa, kind, of = self._pa, column.type, unit
            if pa.types.is_timestamp(kind):
                column, of = column.cast(pa.int64()), kind.unit
            elif pa.types.is_date32(kind):
                days = _numpy(column.cast(pa.int32()).fill_null(0)).astype(np.int64)
                column, of = pa.array(days * 86_400, mask=_nulls(column)), "s"
            elif pa.types.is_date64(kind):
                column, of = column.cast(pa.int64()), "ms"
            reason = values.not_a_time(path, of, kind)
            if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
                numbers = _numpy(column.fill_null(0))
                wide = np.float64 if numbers.dtype.kind == "f" else np.int64
                return *values.microseconds_of_numbers(numbers.astype(wide), of), reason
            return self._each(column, lambda value: values.microseconds(value, path, of), reason)

        return convert

    def _each(
        self, column: Any, convert: Callable[[Any], int], reason: str
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Converts text and decimals one by one."""
        found = np.zeros(len(column), np.int64)
        valid = np.zeros(len(column), bool)
        for i, value in enumerate(column.to_pylist()):
            with contextlib.suppress(UnusableError):
                found[i], valid[i] = convert(value), True
        return found, valid, reason

    def _wrong_type(self, path: str, kind: Any, wanted: str) -> ValueError:
        return ValueError(f"column {path!r} must hold {wanted}. Received: {kind}")


def _nulls(column: Any) -> np.ndarray:
    return _numpy(column.is_null())


def _numpy(column: Any) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)

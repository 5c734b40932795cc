"""Parquet and Arrow tables: rows of them into records, a record batch at a time."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ofb_tf import constants
from ofb_tf.records import arrow
from ofb_tf.records.importers import values
from ofb_tf.records.importers.batches import Batch, UnusableError
from ofb_tf.records.importers.rows import RowFields

_BATCH_ROWS = 1 << 16  # of records
_PAYLOAD_ROWS = 1 << 10  # that may hold whole requests


def read_rows(path: str) -> Iterator[tuple[int, Any]]:
    """The number and content of every row, as of `json.loads`; times as integers of their unit."""
    pa = arrow.require_arrow()
    try:
        for start, batch in arrow.read_batches(path, _PAYLOAD_ROWS):
            columns = [
                column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
                for column in batch.columns
            ]
            try:
                rows = pa.Table.from_arrays(columns, names=batch.schema.names).to_pylist()
            except (ValueError, OverflowError, pa.ArrowException) as error:
                unusable = UnusableError(f"not text that Python can hold: {str(error)[:100]}")
                rows = [unusable] * batch.num_rows
            yield from enumerate(rows, start)
    except arrow.DamagedTableError as error:
        yield error.row, UnusableError(str(error))


def read_records(path: str, fields: RowFields) -> Iterator[Batch]:
    """Reads the records of a Parquet or Arrow file in batches; offsets are numbers of rows.

    Raises:
      ValueError: a column is missing, or of a type that cannot be what it should be.
    """
    now = time.time_ns() // 1000
    try:
        for start, table in arrow.read_batches(
            path, _BATCH_ROWS, lambda schema: _columns(schema, fields)
        ):
            yield from _Decoder(table, start).records(fields, now)
    except arrow.DamagedTableError as error:
        yield Batch([error.row], str(error))


def _columns(schema: Any, fields: RowFields) -> list[str]:
    """The columns to read; ValueError where one is missing."""
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
        self._pa = arrow.require_arrow()
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

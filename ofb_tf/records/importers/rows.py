"""Rows of JSON lines and CSV files into records, by the paths of their fields."""

import dataclasses
import functools
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ofb_tf import constants
from ofb_tf.checks import check_choice
from ofb_tf.records.importers import text, values
from ofb_tf.records.importers.batches import Batch, UnusableError

_BATCH_ROWS = 4096
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d*)\]", re.ASCII)


@dataclasses.dataclass(frozen=True)
class RowFields:
    """Which field of a row holds what.

    A field is a name or, in JSON, a path: `response.logits`, `outputs[0].data`, and with `[]` for
    a batch `instances[].id`: one record per element. Fields without `[]` hold for the whole batch.
    In Parquet and Arrow files a field is a column, or `struct.field`; in CSV files a name.
    """

    example_id: str = constants.EXAMPLE_ID
    # A field with a number or a list of them (in CSV separated by spaces or semicolons, or a JSON
    # list), or several fields of one number each; empty where there are none.
    logits: tuple[str, ...] = (constants.LOGITS,)
    loss: str | None = None
    model_version: str | None = constants.MODEL_VERSION  # an integer, by default 0
    # ISO 8601 text or a number since 1970, by default the time of the import.
    timestamp: str | None = constants.TIMESTAMP
    timestamp_unit: str = values.AUTO  # or "s", "ms", "us", "ns"; see `values.microseconds`

    def __post_init__(self) -> None:
        check_choice("timestamp_unit", self.timestamp_unit, (values.AUTO, *values.PER_SECOND))
        if not self.logits and self.loss is None:
            raise ValueError("logits or loss must name a field. Received: neither")

    @property
    def needed(self) -> tuple[str, ...]:
        """Fields without which a row is bad."""
        return (self.example_id, *self.logits, *([self.loss] if self.loss else []))

    @property
    def paths(self) -> tuple[str, ...]:
        """All fields."""
        return (*self.needed, *filter(None, (self.model_version, self.timestamp)))

    def expand(self, row: Any) -> list[Any]:
        """One row by field for every record that a row holds; or UnusableError."""
        if not any("." in path or "[" in path for path in self.paths):
            return [row]
        found = {path: _follow(row, path) for path in self.paths}
        lengths = {path: len(value) for path, value in found.items() if "[]" in path}
        if not lengths:
            return [found]
        count = max(lengths.values())
        if not count or set(lengths.values()) != {count}:
            raise UnusableError(f"batches must be equally long, and not empty. Received: {lengths}")
        return [
            {path: value[i] if "[]" in path else value for path, value in found.items()}
            for i in range(count)
        ]

    def parse(self, row: Any, now: int = 0, csv_id_type: str | None = None) -> dict[str, Any]:
        """A record, by the names of `ofb_tf.constants`, from a row by field; or UnusableError."""
        if not isinstance(row, Mapping):
            raise UnusableError(f"not an object: {str(row)[:60]}")
        example_id = _get(row, self.example_id)
        if isinstance(example_id, float):  # beyond 2^53 a float is not the id that was meant
            raise UnusableError(
                f"field {self.example_id!r} must be an integer or text. Received: {example_id}"
            )
        if isinstance(example_id, str) and csv_id_type != "int":
            errors = "surrogateescape" if csv_id_type else "surrogatepass"
            example_id = example_id.encode("utf-8", errors)
        else:
            example_id = values.int64(example_id, self.example_id)
        version, moment = (_optional(row, name) for name in (self.model_version, self.timestamp))
        record = {
            constants.EXAMPLE_ID: example_id,
            constants.MODEL_VERSION: 0,
            constants.TIMESTAMP: now,
        }
        if version is not None:
            record[constants.MODEL_VERSION] = values.int64(version, self.model_version or "")
        if moment is not None:
            record[constants.TIMESTAMP] = values.microseconds(
                moment, self.timestamp or "", self.timestamp_unit
            )
        if self.logits:
            record[constants.LOGITS] = [
                value for name in self.logits for value in values.floats(_get(row, name), name)
            ]
        if self.loss is not None:
            (record[constants.LOSS],) = values.floats(_get(row, self.loss), self.loss, 1)
        return record


def read_rows(path: str, format: str, fields: RowFields, id_type: str = "int") -> Iterator[Batch]:
    """Reads the rows of a JSON lines or CSV file; `*.gz` is decompressed.

    Offsets are those of lines in the uncompressed text, of a CSV row its last line. ValueError if a
    CSV header lacks a field that every row needs.
    """
    is_csv = format == "csv"
    now = time.time_ns() // 1000
    good: list[tuple[int, dict[str, Any]]] = []

    def kind(record: dict[str, Any]) -> tuple:
        return type(record[constants.EXAMPLE_ID]), len(record.get(constants.LOGITS, ()))

    for offset, row in text.csv_rows(path, fields.needed) if is_csv else text.json_rows(path):
        try:
            if isinstance(row, UnusableError):
                raise row
            rows = [row] if is_csv else fields.expand(row)
        except UnusableError as error:
            yield Batch([offset], str(error))
            continue
        for each in rows:
            try:
                record = fields.parse(each, now, id_type if is_csv else None)
            except UnusableError as error:
                yield Batch([offset], str(error))
                continue
            if good and (kind(record) != kind(good[0][1]) or len(good) == _BATCH_ROWS):
                yield _batch(good)
                good = []
            good.append((offset, record))
    if good:
        yield _batch(good)


def _batch(good: list[tuple[int, dict[str, Any]]]) -> Batch:
    columns: dict[str, Any] = {name: [row[name] for _, row in good] for name in good[0][1]}
    with np.errstate(over="ignore"):  # beyond float32's range is infinite, and counted as such
        for name in columns.keys() - {constants.EXAMPLE_ID}:
            is_float = name in (constants.LOGITS, constants.LOSS)
            columns[name] = np.array(columns[name], np.float32 if is_float else np.int64)
    return Batch([offset for offset, _ in good], columns=columns)


@functools.cache
def _steps(path: str) -> tuple[str | int | None, ...]:
    """A path as names, places in lists, and None for every element of a list."""
    matches = list(_STEP.finditer(path))
    if "".join(match[0] for match in matches) != path:
        return (path,)
    return tuple(m[1] or (int(m[2]) if m[2] else None) for m in matches)


def _follow(row: Any, path: str) -> Any:
    """The value at a path, None where there is none; with `[]` in the path a list of them."""
    if isinstance(row, Mapping) and path in row and "[]" not in path:
        return row[path]
    found = [row]
    for step in _steps(path):
        if step is None:
            found = [each for value in found if isinstance(value, list) for each in value]
        elif isinstance(step, int):
            found = [v[step] if isinstance(v, list) and step < len(v) else None for v in found]
        else:
            found = [v.get(step) if isinstance(v, Mapping) else None for v in found]
    return found if "[]" in path else found[0]


def _get(row: Mapping[str, Any], name: str) -> Any:
    value = _optional(row, name)
    if value is None:
        raise UnusableError(f"field {name!r} is missing")
    return value


def _optional(row: Mapping[str, Any], name: str | None) -> Any:
    value = None if name is None else row.get(name)
    return None if value == "" else value

"""Forward records out of the JSON lines and CSV files that gateways write."""

import csv
import dataclasses
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from ofb_tf import constants, hashing

_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_MAX_LINE_BYTES = 1 << 24


class RowError(ValueError):
    """A row that holds no forward record; the message says why."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One record of a text file.

    Attributes:
      example_id: int64.
      logits: floats, or None.
      loss: float, or None.
      model_version: int64.
      timestamp: microseconds since 1970, or None.
    """

    example_id: int
    logits: tuple[float, ...] | None
    loss: float | None
    model_version: int = 0
    timestamp: int | None = None


@dataclasses.dataclass(frozen=True)
class RowFields:
    """Which field of a row holds what.

    Attributes:
      example_id: field with the id: an integer (also as text, in CSV) or any other text, which
        becomes its fingerprint.
      logits: field with a number or a list of them (in CSV separated by spaces or semicolons, or
        a JSON list), or several fields of one number each; empty where there are none.
      loss: field with the loss, or None.
      model_version: field with an integer; a row without it has version 0.
      timestamp: field with a time since 1970; a row without it gets the time of the import.
      timestamp_unit: "s", "ms" or "us".
    """

    example_id: str = constants.EXAMPLE_ID
    logits: tuple[str, ...] = (constants.LOGITS,)
    loss: str | None = None
    model_version: str | None = constants.MODEL_VERSION
    timestamp: str | None = constants.TIMESTAMP
    timestamp_unit: str = "us"

    def __post_init__(self) -> None:
        if self.timestamp_unit not in _UNITS:
            raise ValueError(
                f"timestamp_unit must be one of {sorted(_UNITS)}. Received: {self.timestamp_unit!r}"
            )
        if not self.logits and self.loss is None:
            raise ValueError("logits or loss must name a field. Received: neither")

    def parse(self, row: Mapping[str, Any]) -> Row:
        """A record from a row's values.

        Raises:
          RowError: a field is missing, or holds something else.
        """
        logits = loss = None
        if self.logits:
            values = [value for name in self.logits for value in _floats(_get(row, name), name)]
            logits = tuple(values)
        if self.loss is not None:
            (loss,) = _floats(_get(row, self.loss), self.loss, 1)
        return Row(
            example_id=_example_id(_get(row, self.example_id), self.example_id),
            logits=logits,
            loss=loss,
            model_version=_optional_int(row, self.model_version) or 0,
            timestamp=self._timestamp(row),
        )

    def _timestamp(self, row: Mapping[str, Any]) -> int | None:
        if self.timestamp is None or row.get(self.timestamp) in (None, ""):
            return None
        (value,) = _floats(row[self.timestamp], self.timestamp, 1)
        unit = _UNITS[self.timestamp_unit]
        if unit == 1:
            return _int64(row[self.timestamp], self.timestamp)
        if not math.isfinite(value) or abs(value * unit) >= 2**63:
            raise RowError(f"field {self.timestamp!r} must be a time. Received: {value}")
        return round(value * unit)


def read_jsonl(path: str, fields: RowFields) -> Iterator[tuple[int, Row | RowError]]:
    """Reads a file of one JSON object a line; `*.gz` is decompressed.

    Yields:
      The line's offset in bytes (in the uncompressed text), and its record or what is wrong.
    """
    for offset, line in _lines(path):
        if isinstance(line, RowError):
            yield offset, line
            return
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield offset, RowError(f"not JSON: {str(error)[:100]}")
            continue
        yield offset, _parse(fields, row)


def read_csv(path: str, fields: RowFields) -> Iterator[tuple[int, Row | RowError]]:
    """Reads a CSV file with a header; `*.gz` is decompressed.

    Yields:
      The offset in bytes of the line that the row ends on, and its record or what is wrong.

    Raises:
      RowError: the header lacks a field that every row needs.
    """
    position = 0
    damage = None

    def lines() -> Iterator[str]:
        nonlocal position, damage
        for offset, line in _lines(path):
            position = offset
            if isinstance(line, RowError):
                damage = line
                return
            yield line.decode("utf-8", errors="replace").replace("\0", "")

    reader = csv.DictReader(lines())
    needed = {fields.example_id, *fields.logits} | ({fields.loss} if fields.loss else set())
    header = _next_row(lambda: reader.fieldnames)
    missing = sorted(needed - set(header or ())) if not isinstance(header, RowError) else needed
    if missing:
        raise RowError(
            f"the header must name {sorted(needed)}. Missing: {sorted(missing)}. Map them with "
            "--id_field, --logits_fields, --loss_field."
        )
    while True:
        row = _next_row(lambda: next(reader, None))
        if row is None:
            break
        yield position, row if isinstance(row, RowError) else _parse(fields, row)
    if damage is not None:
        yield position, damage


def _next_row(read: Any) -> Any:
    try:
        return read()
    except csv.Error as error:
        return RowError(f"not CSV: {error}")


def _lines(path: str) -> Iterator[tuple[int, bytes | RowError]]:
    with tf.io.gfile.GFile(path, "rb") as raw:
        # GFile is not an io object; gzip wants one that reads, seeks and tells.
        file = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        offset = 0
        buffered = io.BufferedReader(_Raw(file), 1 << 20)
        try:
            while line := buffered.readline(_MAX_LINE_BYTES):
                yield offset, line
                offset += len(line)
        except (OSError, EOFError, zlib.error) as error:
            yield offset, RowError(f"the file does not read on: {error}")


class _Raw(io.RawIOBase):
    """A raw stream over anything with `read(n)`."""

    def __init__(self, file: Any):
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _parse(fields: RowFields, row: Any) -> Row | RowError:
    if not isinstance(row, dict):
        return RowError(f"not an object: {str(row)[:60]}")
    try:
        return fields.parse(row)
    except RowError as error:
        return error


def _get(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None or value == "":
        raise RowError(f"field {name!r} is missing")
    return value


def _floats(value: Any, name: str, count: int | None = None) -> list[float]:
    if isinstance(value, str):
        text = value.strip()
        value = text.strip("[]").replace(";", " ").replace(",", " ").split()
    values = value if isinstance(value, list) else [value]
    try:
        floats = [float(v) for v in values if not isinstance(v, bool | list | dict)]
    except (TypeError, ValueError, OverflowError):
        floats = []
    if len(floats) != len(values) or not floats or count not in (None, len(floats)):
        wanted = "numbers" if count is None else "one number"
        raise RowError(f"field {name!r} must hold {wanted}. Received: {str(value)[:60]}")
    return floats


def _int64(value: Any, name: str) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not -(2**63) <= number < 2**63:
        raise RowError(f"field {name!r} must be an int64. Received: {str(value)[:60]}")
    return number


def _optional_int(row: Mapping[str, Any], name: str | None) -> int | None:
    if name is None or row.get(name) in (None, ""):
        return None
    return _int64(row[name], name)


def _example_id(value: Any, name: str) -> int:
    if isinstance(value, str):
        try:
            return _int64(value, name)
        except RowError:
            encoded = value.encode("utf-8", errors="surrogatepass")
            return int(hashing.fingerprint(tf.constant(encoded)))
    if isinstance(value, float):  # beyond 2^53 a float is not the id that was meant
        raise RowError(f"field {name!r} must be an integer or text. Received: {value}")
    return _int64(value, name)

"""Other people's files into forward records: PredictionLogs, JSON lines and CSV.

A PredictionLog is a TFRecord file of `tensorflow.serving.PredictionLog`: one example per entry, as
TFX's BulkInferrer writes it, or one request with its whole batch, as a server logs it. The
messages come from `tensorflow-serving-api` (extra `serving`); grpc is not imported.
"""

import contextlib
import csv
import dataclasses
import gzip
import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.checks import check_choice
from ofb_tf.records import files
from ofb_tf.records.writer import ForwardRecordWriter

EXAMPLES = "examples"
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_MAX_ELEMENTS = 1 << 26
_MAX_LINE_BYTES = 1 << 24
_CHUNK_BYTES = 1 << 20
_BATCH_ROWS = 4096


class UnusableError(ValueError):
    """A call or a row that holds no forward record; the message says why."""


class ImportRowError(ValueError):
    """A bad row where `bad_rows="error"`; the message names file and offset."""


@dataclasses.dataclass
class ImportReport:
    """What an import did."""

    num_files: int = 0
    num_rows: int = 0  # rows, or log entries
    num_records: int = 0  # written
    num_bad_rows: int = 0  # without a usable record; a damaged file counts as one
    bad_rows: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)
    sampling_rate: float = 1.0
    num_nonfinite: int = 0  # records with a NaN or infinite number, written as given


@dataclasses.dataclass(frozen=True)
class PredictFields:
    """Where a Predict call holds ids and logits."""

    # Output, or else input, with the ids: integers or strings, one per example. None: the
    # fingerprints of the serialized examples in the input "examples".
    id_output: str | None = constants.EXAMPLE_ID
    logits_output: str = constants.LOGITS  # of the logits `[n, k]`, or `[n]` for one output

    def extract(self, request: Any, response: Any) -> dict[str, Any]:
        """The columns of a `PredictRequest` and its `PredictResponse`, or UnusableError.

        Ids as of `ids`, logits as of `logits`, and the model version, 0 where there is none.
        """
        logits = self.logits(response)
        ids = self.ids(request, response)
        if not len(ids) or len(ids) != len(logits):
            raise UnusableError(
                f"ids and logits must be of one batch. Received: {len(ids)} ids, logits "
                f"{list(logits.shape)}"
            )
        return {
            constants.EXAMPLE_ID: ids,
            constants.LOGITS: logits,
            constants.MODEL_VERSION: response.model_spec.version.value,
        }

    def logits(self, response: Any) -> np.ndarray:
        """float32 `[n, k]` of a `PredictResponse` alone, or UnusableError."""
        logits = _array(response.outputs, self.logits_output, "output")
        if logits.dtype.kind not in "fiu":
            raise UnusableError(f"output {self.logits_output!r} must be floats: {logits.dtype}")
        if not logits.ndim:
            raise UnusableError(f"output {self.logits_output!r} must be [n, k]. Received: a scalar")
        return logits.reshape(len(logits), -1).astype(np.float32) if logits.size else logits

    def ids(self, request: Any, response: Any) -> np.ndarray:
        """Ids of a call alone: `[n]`, integers or, where not yet hashed, text as bytes."""
        if self.id_output is None:
            ids = _array(request.inputs, EXAMPLES, "input").reshape(-1)
            if ids.dtype.kind == "O":
                return hashing.to_int64(ids)  # the id is the fingerprint, under a secret too
        else:
            echoed = self.id_output in response.outputs
            tensors = response.outputs if echoed else request.inputs
            ids = _array(tensors, self.id_output, "output or input").reshape(-1)
        if ids.dtype.kind not in ("O" if self.id_output is None else "iuO"):
            raise UnusableError(f"ids must be integers or strings. Received: {ids.dtype}")
        return ids


@dataclasses.dataclass(frozen=True)
class RowFields:
    """Which field of a row holds what."""

    example_id: str = constants.EXAMPLE_ID
    # A field with a number or a list of them (in CSV separated by spaces or semicolons, or a JSON
    # list), or several fields of one number each; empty where there are none.
    logits: tuple[str, ...] = (constants.LOGITS,)
    loss: str | None = None
    model_version: str | None = constants.MODEL_VERSION  # an integer, by default 0
    timestamp: str | None = constants.TIMESTAMP  # since 1970, by default the time of the import
    timestamp_unit: str = "us"  # or "ms" or "s"

    def __post_init__(self) -> None:
        check_choice("timestamp_unit", self.timestamp_unit, tuple(_UNITS))
        if not self.logits and self.loss is None:
            raise ValueError("logits or loss must name a field. Received: neither")

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
            example_id = _int64(example_id, self.example_id)
        record = {
            constants.EXAMPLE_ID: example_id,
            constants.MODEL_VERSION: _optional(row, self.model_version, _int64, 0),
            constants.TIMESTAMP: _optional(row, self.timestamp, self._microseconds, now),
        }
        if self.logits:
            record[constants.LOGITS] = [
                value for name in self.logits for value in _floats(_get(row, name), name)
            ]
        if self.loss is not None:
            (record[constants.LOSS],) = _floats(_get(row, self.loss), self.loss, 1)
        return record

    def _microseconds(self, value: Any, name: str) -> int:
        (number,) = _floats(value, name, 1)
        unit = _UNITS[self.timestamp_unit]
        if unit == 1:
            return _int64(value, name)
        if not math.isfinite(number) or abs(number * unit) >= 2**63:
            raise UnusableError(f"field {name!r} must be a time. Received: {number}")
        return round(number * unit)


def import_records(
    patterns: str | os.PathLike | Sequence[str],
    output_directory: str | os.PathLike,
    *,
    format: str,
    fields: Any = None,
    bad_rows: str = "count",
    num_outputs: int | None = None,
    secret_file: str | None = None,
    compression: str | None = None,
    id_type: str = "int",
    from_logits: bool = True,
) -> ImportReport:
    """Reads files and writes their records.

    Args:
      patterns: files or globs.
      output_directory: where the record files go.
      format: "prediction_log", "jsonl" or "csv".
      fields: where ids, logits and the rest are; `PredictFields` for a log, else `RowFields`.
      bad_rows: "count", "list" or "error".
      num_outputs: outputs of the model; None takes it from the first row. Rows with another
        number are bad.
      secret_file: hash the ids with the secret in this file, see `hashing.keyed_ids`. Text is
        hashed as it is.
      compression: None, "GZIP" or "ZLIB".
      id_type: what the ids of a CSV file are, which has only text: "int", where any other text
        makes a bad row, or "string". The other formats have typed ids: integers stay, text
        becomes its fingerprint even if it looks like a number.
      from_logits: False where the files hold probabilities, whose logits are then recorded.

    Raises:
      ValueError: an argument is out of range.
      FileNotFoundError: a pattern matches nothing.
      ImportRowError: a bad row (`bad_rows="error"`); what precedes it has been written.
    """
    check_choice("format", format, ("prediction_log", "jsonl", "csv"))
    check_choice("bad_rows", bad_rows, ("count", "list", "error"))
    check_choice("id_type", id_type, ("int", "string"))
    paths = _match(patterns)
    secret = None if secret_file is None else hashing.read_secret(secret_file)
    report = ImportReport(num_files=len(paths))
    num_served = 0.0
    with ForwardRecordWriter(
        output_directory, num_outputs=num_outputs, compression=compression
    ) as writer:
        for path in paths:
            if format == "prediction_log":
                batches = read_prediction_log(path, fields or PredictFields())
            else:
                batches = read_rows(path, format, fields or RowFields(), id_type)
            for batch in batches:
                report.num_rows += len(batch.offsets)
                num_served += len(batch.offsets) / batch.sampling_rate
                if not from_logits and constants.LOGITS in batch.columns:
                    batch.columns["probabilities"] = batch.columns.pop(constants.LOGITS)
                error = _write(writer, batch, secret)
                if not error:
                    continue
                if bad_rows == "error":
                    raise ImportRowError(
                        f"{path!r} at byte {batch.offsets[0]}: {error}. --bad_rows=list or count "
                        "continues after it."
                    )
                report.num_bad_rows += len(batch.offsets)
                if bad_rows == "list":
                    report.bad_rows += [(path, offset, error) for offset in batch.offsets]
    report.num_records = writer.counts.num_written
    report.num_nonfinite = writer.counts.num_nonfinite
    if num_served:
        report.sampling_rate = report.num_rows / num_served
    return report


@dataclasses.dataclass(frozen=True)
class _Batch:
    """The records of some rows, as columns, or what is wrong with them."""

    offsets: Sequence[int]
    error: str = ""
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    sampling_rate: float = 1.0


def _match(patterns: str | os.PathLike | Sequence[str]) -> list[str]:
    matched: list[str] = []
    given = [patterns] if isinstance(patterns, str | os.PathLike) else patterns
    for pattern in [os.fspath(each) for each in given]:
        paths = [path for path in files.expand(pattern) if not tf.io.gfile.isdir(path)]
        if not paths:
            raise FileNotFoundError(f"No file matches {pattern!r}. Name files, not directories.")
        matched += paths
    return matched


def _write(writer: ForwardRecordWriter, batch: _Batch, secret: tuple[int, int] | None) -> str:
    """Writes a batch, whose columns have the names of `write`'s arguments; or what is wrong."""
    if batch.error:
        return batch.error
    columns = dict(batch.columns)
    ids = columns.pop(constants.EXAMPLE_ID)
    try:
        writer.write(ids if secret is None else hashing.keyed_ids(ids, secret), **columns)
    except ValueError as error:
        return str(error)
    return ""


def read_messages(path: str) -> Iterator[tuple[int, Any, str]]:
    """Reads a TFRecord file of `PredictionLog`, GZIP or plain, up to any damage.

    Yields `(offset, PredictionLog, "")` for every Predict call, `(offset, None, why)` for every
    other TFRecord, and for the damage, which is the last.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "Reading prediction logs needs tensorflow-serving-api: pip install 'ofb-tf[serving]'"
        ) from error
    try:
        for offset, data in files.read_frames(path):
            try:
                log = prediction_log_pb2.PredictionLog.FromString(data)
            except Exception:  # the parser's class differs between protobuf releases
                yield offset, None, "not a PredictionLog"
                continue
            kind = log.WhichOneof("log_type")
            if kind == "predict_log":
                yield offset, log, ""
            else:
                yield offset, None, f"a {kind or 'PredictionLog without content'}"
    except files.CorruptRecordsError as error:
        yield error.damage.offset, None, error.damage.reason


def read_prediction_log(path: str, fields: PredictFields) -> Iterator[_Batch]:
    """Reads a log's records: a batch, or what is wrong, for every TFRecord of `read_messages`."""
    for offset, log, reason in read_messages(path):
        if log is None:
            yield _Batch([offset], reason)
            continue
        rate = log.log_metadata.sampling_config.sampling_rate
        rate = rate if 0.0 < rate <= 1.0 else 1.0
        try:
            columns = fields.extract(log.predict_log.request, log.predict_log.response)
        except UnusableError as error:
            yield _Batch([offset], str(error), sampling_rate=rate)
        else:
            columns[constants.TIMESTAMP] = timestamp_of(log)
            yield _Batch([offset], columns=columns, sampling_rate=rate)


def timestamp_of(log: Any) -> int | None:
    """Microseconds since 1970 at which the server answered, or None where the log does not say."""
    # Older releases of the protocol do not have the field; its type has changed too.
    seconds = getattr(log.log_metadata, "timestamp_secs", 0)
    seconds = seconds if isinstance(seconds, int) else getattr(seconds, "seconds", 0)
    return seconds * constants.MICROSECONDS if seconds else None


def _array(tensors: Any, name: str, kind: str) -> np.ndarray:
    if name not in tensors:
        raise UnusableError(f"{kind} {name!r} is missing. Received: {sorted(tensors)}")
    # One value may stand for a whole tensor: a few malformed bytes must not fill the memory.
    num_elements = math.prod(dim.size for dim in tensors[name].tensor_shape.dim)
    if not 0 <= num_elements <= _MAX_ELEMENTS:
        raise UnusableError(f"{kind} {name!r} claims {num_elements} elements")
    try:
        return tf.make_ndarray(tensors[name])
    except Exception as error:  # whatever a malformed tensor raises
        raise UnusableError(f"{kind} {name!r} is not a tensor: {error}") from error


def read_rows(path: str, format: str, fields: RowFields, id_type: str = "int") -> Iterator[_Batch]:
    """Reads the rows of a JSON lines or CSV file; `*.gz` is decompressed.

    Offsets are those of lines in the uncompressed text, of a CSV row its last line. ValueError if a
    CSV header lacks a field that every row needs.
    """
    is_csv = format == "csv"
    now = time.time_ns() // 1000
    good: list[tuple[int, dict[str, Any]]] = []

    def kind(record: dict[str, Any]) -> tuple:
        return type(record[constants.EXAMPLE_ID]), len(record.get(constants.LOGITS, ()))

    for offset, row in _csv_rows(path, fields) if is_csv else _json_rows(path):
        try:
            if isinstance(row, UnusableError):
                raise row
            record = fields.parse(row, now, id_type if is_csv else None)
        except UnusableError as error:
            yield _Batch([offset], str(error))
            continue
        if good and (kind(record) != kind(good[0][1]) or len(good) == _BATCH_ROWS):
            yield _batch(good)
            good = []
        good.append((offset, record))
    if good:
        yield _batch(good)


def _json_rows(path: str) -> Iterator[tuple[int, Any]]:
    for offset, line in _lines(path):
        if isinstance(line, UnusableError):
            yield offset, line
        elif line.strip():
            try:
                yield offset, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield offset, UnusableError(f"not JSON: {str(error)[:100]}")


def _csv_rows(path: str, fields: RowFields) -> Iterator[tuple[int, Any]]:
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for offset, line in _lines(path):
            position = offset
            if isinstance(line, UnusableError):
                raise line
            yield line.decode("utf-8", errors="surrogateescape")

    reader = csv.DictReader(lines())
    needed = {fields.example_id, *fields.logits} | ({fields.loss} if fields.loss else set())
    missing: Any = needed
    with contextlib.suppress(csv.Error, UnusableError):
        missing = needed - set(reader.fieldnames or ())
    if missing:
        raise ValueError(
            f"the header must name {sorted(needed)}. Missing: {sorted(missing)}. Map them with "
            "--id_field, --logits_fields, --loss_field."
        )
    row: Any = {}
    while row is not None:
        try:
            row = next(reader, None)
        except (csv.Error, UnusableError) as error:
            row = UnusableError(f"not CSV: {error}")
        if row is not None:
            yield position, row


def _lines(path: str) -> Iterator[tuple[int, Any]]:
    """The lines of a text file with their offsets; the last may be an `UnusableError`."""
    offset = 0
    with tf.io.gfile.GFile(path, "rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        rest = b""
        try:
            while chunk := file.read(_CHUNK_BYTES):
                *lines, rest = (rest + chunk).splitlines(keepends=True)
                for line in lines:
                    yield offset, line
                    offset += len(line)
                if len(rest) > _MAX_LINE_BYTES:
                    raise OSError(f"a line of more than {_MAX_LINE_BYTES} bytes")
        except (OSError, EOFError, zlib.error) as error:
            yield offset, UnusableError(f"the file is damaged from here on: {error}")
        else:
            yield offset, rest


def _batch(good: list[tuple[int, dict[str, Any]]]) -> _Batch:
    columns: dict[str, Any] = {name: [row[name] for _, row in good] for name in good[0][1]}
    with np.errstate(over="ignore"):  # beyond float32's range is infinite, and counted as such
        for name in columns.keys() - {constants.EXAMPLE_ID}:
            is_float = name in (constants.LOGITS, constants.LOSS)
            columns[name] = np.array(columns[name], np.float32 if is_float else np.int64)
    return _Batch([offset for offset, _ in good], columns=columns)


def _get(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None or value == "":
        raise UnusableError(f"field {name!r} is missing")
    return value


def _optional(row: Mapping[str, Any], name: str | None, parse: Any, default: int) -> int:
    value = None if name is None else row.get(name)
    return default if value is None or value == "" else parse(value, name)


def _floats(value: Any, name: str, count: int | None = None) -> list[float]:
    if isinstance(value, str):
        value = value.strip().strip("[]").replace(";", " ").replace(",", " ").split()
    values = value if isinstance(value, list) else [value]
    try:
        floats = [float(v) for v in values if not isinstance(v, bool | list | dict)]
    except (TypeError, ValueError, OverflowError):
        floats = []
    if len(floats) != len(values) or not floats or count not in (None, len(floats)):
        wanted = "numbers" if count is None else "one number"
        raise UnusableError(f"field {name!r} must hold {wanted}. Received: {str(value)[:60]}")
    return floats


def _int64(value: Any, name: str) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not -(2**63) <= number < 2**63:
        raise UnusableError(f"field {name!r} must be an int64. Received: {str(value)[:60]}")
    return number

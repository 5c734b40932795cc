"""Other people's files into forward records."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import hashing
from ofb_tf.records import prediction_log, text_rows
from ofb_tf.records.writer import ForwardRecordWriter

FORMATS = ("prediction_log", "jsonl", "csv")
BAD_ROWS = ("count", "list", "error")
_BATCH_ROWS = 4096


class ImportRowError(ValueError):
    """A bad row where `bad_rows="error"`; the message names file and offset."""


@dataclasses.dataclass
class ImportReport:
    """What an import did.

    Attributes:
      num_files: files read.
      num_rows: rows, or log entries.
      num_records: records written.
      num_bad_rows: rows without a record in them.
      bad_rows: `(file, offset, reason)` of each (`bad_rows="list"`).
      sampling_rate: share of its requests that the server logged, over all entries; what is
        missing from the log is missing from the join.
      num_nonfinite: records with a NaN or infinite logit or loss, written as given.
    """

    num_files: int = 0
    num_rows: int = 0
    num_records: int = 0
    num_bad_rows: int = 0
    bad_rows: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)
    sampling_rate: float = 1.0
    num_nonfinite: int = 0


@dataclasses.dataclass(frozen=True)
class _Item:
    """Records, or what is wrong, at the offsets of their rows."""

    offsets: Sequence[int]
    error: str = ""
    example_ids: np.ndarray | Sequence[int] = ()
    logits: np.ndarray | None = None
    loss: np.ndarray | None = None
    model_versions: np.ndarray | int = 0
    timestamps: np.ndarray | int | None = None
    sampling_rate: float = 1.0


def import_records(
    patterns: str | os.PathLike | Sequence[str],
    output_directory: str | os.PathLike,
    *,
    format: str,
    fields: prediction_log.PredictFields | text_rows.RowFields | None = None,
    bad_rows: str = "count",
    num_outputs: int | None = None,
    secret_file: str | None = None,
    compression: str | None = None,
) -> ImportReport:
    """Reads files and writes their records.

    Args:
      patterns: files or globs.
      output_directory: where the record files go.
      format: "prediction_log", "jsonl" or "csv".
      fields: where ids, logits and the rest stand; `PredictFields` for a log, else `RowFields`.
      bad_rows: "count", "list" or "error".
      num_outputs: outputs of the model; None takes it from the first row. Rows with another
        number are bad.
      secret_file: hash the ids with the secret in this file, see `hashing.keyed_ids`.
      compression: None, "GZIP" or "ZLIB".

    Raises:
      ValueError: an argument is out of range.
      FileNotFoundError: a pattern matches nothing.
      ImportRowError: a bad row (`bad_rows="error"`); what came before it has been written.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}. Received: {format!r}")
    if bad_rows not in BAD_ROWS:
        raise ValueError(f"bad_rows must be one of {BAD_ROWS}. Received: {bad_rows!r}")
    files = _match(patterns)
    secret = None if secret_file is None else hashing.read_secret(secret_file)
    read = _reader(format, fields)
    report = ImportReport(num_files=len(files))
    num_served = 0.0
    with ForwardRecordWriter(
        output_directory, num_outputs=num_outputs, compression=compression
    ) as writer:
        for file in files:
            for item in read(file):
                report.num_rows += len(item.offsets)
                num_served += len(item.offsets) / item.sampling_rate
                error = item.error or _write(writer, item, secret)
                if error:
                    _count_bad(report, bad_rows, file, item.offsets, error)
    report.num_records = writer.counts.num_written
    report.num_nonfinite = writer.counts.num_nonfinite
    if num_served:
        report.sampling_rate = report.num_rows / num_served
    return report


def _match(patterns: str | os.PathLike | Sequence[str]) -> list[str]:
    files: list[str] = []
    given = [patterns] if isinstance(patterns, str | os.PathLike) else patterns
    for pattern in [os.fspath(each) for each in given]:
        matched = sorted(f for f in tf.io.gfile.glob(pattern) if not tf.io.gfile.isdir(f))
        if not matched:
            raise FileNotFoundError(f"No file matches {pattern!r}. Name files, not directories.")
        files += matched
    return files


def _reader(format: str, fields: Any) -> Callable[[str], Iterator[_Item]]:
    if format == "prediction_log":
        fields = fields or prediction_log.PredictFields()
        return lambda path: _log_items(path, fields)
    read = text_rows.read_jsonl if format == "jsonl" else text_rows.read_csv
    fields = fields or text_rows.RowFields()
    return lambda path: _row_items(read(path, fields))


def _log_items(path: str, fields: prediction_log.PredictFields) -> Iterator[_Item]:
    for entry in prediction_log.read_prediction_log(path, fields):
        if entry.batch is None:
            yield _Item([entry.offset], entry.error, sampling_rate=entry.sampling_rate)
            continue
        batch = entry.batch
        yield _Item(
            [entry.offset],
            example_ids=batch.example_ids,
            logits=batch.logits,
            model_versions=batch.model_version,
            timestamps=entry.timestamp,
            sampling_rate=entry.sampling_rate,
        )


def _row_items(rows: Iterator[tuple[int, text_rows.Row | text_rows.RowError]]) -> Iterator[_Item]:
    now = time.time_ns() // 1000
    good: list[tuple[int, text_rows.Row]] = []

    def shape(row: text_rows.Row) -> tuple:
        return (row.logits is None or len(row.logits), row.loss is None)

    for offset, row in rows:
        if isinstance(row, text_rows.RowError):
            yield _Item([offset], str(row))
            continue
        if good and (shape(row) != shape(good[0][1]) or len(good) == _BATCH_ROWS):
            yield _batch(good, now)
            good = []
        good.append((offset, row))
    if good:
        yield _batch(good, now)


def _batch(good: list[tuple[int, text_rows.Row]], now: int) -> _Item:
    rows = [row for _, row in good]
    first = rows[0]
    with np.errstate(over="ignore"):  # beyond float32's range is infinite, and counted as such
        logits = None if first.logits is None else np.array([r.logits for r in rows], np.float32)
        loss = None if first.loss is None else np.array([r.loss for r in rows], np.float32)
    times = [now if row.timestamp is None else row.timestamp for row in rows]
    return _Item(
        [offset for offset, _ in good],
        example_ids=np.array([row.example_id for row in rows], np.int64),
        logits=logits,
        loss=loss,
        model_versions=np.array([row.model_version for row in rows], np.int64),
        timestamps=np.array(times, np.int64),
    )


def _write(writer: ForwardRecordWriter, item: _Item, secret: tuple[int, int] | None) -> str:
    ids = np.asarray(item.example_ids)
    if secret is not None:
        ids = hashing.keyed_ids(ids, secret).numpy()
    try:
        writer.write(
            ids,
            item.logits,
            loss=item.loss,
            model_version=item.model_versions,
            timestamp=item.timestamps,
        )
    except ValueError as error:
        return str(error)
    return ""


def _count_bad(
    report: ImportReport, bad_rows: str, file: str, offsets: Sequence[int], error: str
) -> None:
    if bad_rows == "error":
        raise ImportRowError(
            f"{file!r} at byte {offsets[0]}: {error}. --bad_rows=list or count goes on past it."
        )
    report.num_bad_rows += len(offsets)
    if bad_rows == "list":
        report.bad_rows += [(file, offset, error) for offset in offsets]

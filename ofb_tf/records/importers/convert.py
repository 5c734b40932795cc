"""The import: files of any format through their importer into a writer, with a report."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tqdm

from ofb_tf import constants, hashing
from ofb_tf.checks import check_choice
from ofb_tf.records import arrow, files
from ofb_tf.records.importers import calls, tables
from ofb_tf.records.importers.batches import Batch
from ofb_tf.records.importers.prediction_log import PredictFields, read_prediction_log
from ofb_tf.records.importers.rows import RowFields, read_rows
from ofb_tf.records.writer import ForwardRecordWriter

TABLES = ("parquet", "arrow")
FORMATS = ("prediction_log", "jsonl", "csv", *TABLES, *calls.FORMATS)
_OTHER_REASONS = "other reasons"
_MAX_REASONS = 50
# What follows in a reason is of its row.
_DETAIL = re.compile(r"\. Received|: |, got ")


class ImportRowError(ValueError):
    """A bad row where `bad_rows="error"`; the message names file and offset."""


@dataclasses.dataclass
class ImportReport:
    """What an import did."""

    num_files: int = 0
    num_rows: int = 0  # rows, log entries or calls
    num_records: int = 0  # written
    num_bad_rows: int = 0  # without a usable record; a damaged file counts as one
    bad_rows: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)
    sampling_rate: float = 1.0
    num_nonfinite: int = 0  # records with a NaN or infinite number, written as given
    first_bad_row: tuple[str, int, str] | None = None  # file, offset, reason
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)  # bad rows by reason

    @property
    def bad_fraction(self) -> float:
        """Bad rows among the rows."""
        return self.num_bad_rows / max(self.num_rows, 1)

    def add_bad_rows(self, path: str, batch: Batch, reason: str, listed: bool) -> None:
        """Counts the rows of a batch that has no record."""
        count = len(batch.offsets)
        self.num_bad_rows += count
        if self.first_bad_row is None:
            self.first_bad_row = (path, int(batch.offsets[0]), reason)
        if listed:
            self.bad_rows += [(path, int(offset), reason) for offset in batch.offsets]
        kind = _DETAIL.split(reason, maxsplit=1)[0][:100]
        if kind not in self.reasons and len(self.reasons) >= _MAX_REASONS:
            kind = _OTHER_REASONS
        self.reasons[kind] = self.reasons.get(kind, 0) + count


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
    max_rows: int | None = None,
    show_progress: bool = False,
) -> ImportReport:
    """Reads files and writes their records.

    Args:
      patterns: files or globs.
      output_directory: where the record files go.
      format: "prediction_log", "jsonl", "csv", "parquet", "arrow", "cloudevents", "triton",
        "vertex" or "mlflow"; see docs/importing.md.
      fields: where ids, logits and the rest are: `RowFields` for jsonl, csv, parquet and arrow,
        otherwise `PredictFields`.
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
      max_rows: stop after so many rows, at the end of a batch of them.
      show_progress: show a progress bar over the files, on a terminal.

    Returns:
      What was read and written. An import that writes nothing is not an error here: look at
      `num_records`, `bad_fraction` and `reasons`.

    Raises:
      ValueError: an argument is out of range, or a table lacks a column.
      FileNotFoundError: a pattern matches nothing.
      ImportRowError: a bad row (`bad_rows="error"`); what precedes it has been written.
      ImportError: the format needs an extra that is not installed.
    """
    check_choice("format", format, FORMATS)
    check_choice("bad_rows", bad_rows, ("count", "list", "error"))
    check_choice("id_type", id_type, ("int", "string"))
    paths = _match(patterns)
    secret = None if secret_file is None else hashing.read_secret(secret_file)
    read, finish = _importer(format, fields, id_type)
    report = ImportReport(num_files=len(paths))
    num_served = 0.0

    def batches() -> Iterator[tuple[str, Batch]]:
        for path in tqdm.tqdm(paths, unit="file", disable=None if show_progress else True):
            yield from ((batch.path or path, batch) for batch in read(path))
        yield from ((batch.path, batch) for batch in finish())

    with ForwardRecordWriter(
        output_directory, num_outputs=num_outputs, compression=compression
    ) as writer:
        for path, batch in batches():
            report.num_rows += len(batch.offsets)
            num_served += len(batch.offsets) / batch.sampling_rate
            if not from_logits and constants.LOGITS in batch.columns:
                batch.columns["probabilities"] = batch.columns.pop(constants.LOGITS)
            error = _printable(_write(writer, batch, secret))
            if error and bad_rows == "error":
                raise ImportRowError(
                    f"{path!r} at {offset_unit(format)} {batch.offsets[0]}: {error}. "
                    "--bad_rows=list or count continues after it."
                )
            if error:
                report.add_bad_rows(path, batch, error, bad_rows == "list")
            if max_rows is not None and report.num_rows >= max_rows:
                break
    report.num_records = writer.counts.num_written
    report.num_nonfinite = writer.counts.num_nonfinite
    report.reasons = dict(sorted(report.reasons.items(), key=lambda item: -item[1]))
    if num_served:
        report.sampling_rate = report.num_rows / num_served
    return report


def offset_unit(format: str) -> str:
    """What offsets count in a format."""
    return "row" if format in TABLES else "byte"


def _importer(
    format: str, fields: Any, id_type: str
) -> tuple[Callable[[str], Iterator[Batch]], Callable[[], Iterable[Batch]]]:
    """What reads a file, and what is left after the last one."""
    kind: Any = RowFields if format in ("jsonl", "csv", *TABLES) else PredictFields
    fields = kind() if fields is None else fields
    if not isinstance(fields, kind):
        raise ValueError(
            f"fields must be {kind.__name__} for format={format!r}. Received: {fields!r}"
        )
    if format in calls.FORMATS:
        reader = calls.CallReader(format, fields)
        return reader.read, reader.finish
    if format in TABLES:
        arrow.require_arrow()
        return lambda path: tables.read_records(path, fields), tuple
    if format == "prediction_log":
        return lambda path: read_prediction_log(path, fields), tuple
    return lambda path: read_rows(path, format, fields, id_type), tuple


def _match(patterns: str | os.PathLike | Sequence[str]) -> list[str]:
    matched: list[str] = []
    given = [patterns] if isinstance(patterns, str | os.PathLike) else patterns
    for pattern in [os.fspath(each) for each in given]:
        paths = [path for path in files.expand(pattern) if not tf.io.gfile.isdir(path)]
        if not paths:
            raise FileNotFoundError(f"No file matches {pattern!r}. Name files, not directories.")
        matched += paths
    return matched


def _printable(reason: str) -> str:
    """What a log holds must not command the terminal that shows it."""
    return "".join(c if c.isprintable() else "?" for c in reason)


def _write(writer: ForwardRecordWriter, batch: Batch, secret: tuple[int, int] | None) -> str:
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

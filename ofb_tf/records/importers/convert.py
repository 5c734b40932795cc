"""The import: files of any format through their importer into a writer, with a report."""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import tensorflow as tf
import tqdm

from ofb_tf import constants, hashing
from ofb_tf.checks import check_choice
from ofb_tf.records import arrow, files
from ofb_tf.records.importers import calls, tables
from ofb_tf.records.importers.batches import Batch
from ofb_tf.records.importers.calls import Half
from ofb_tf.records.importers.prediction_log import PredictFields, read_prediction_log
from ofb_tf.records.importers.rows import RowFields, read_rows
from ofb_tf.records.writer import ForwardRecordWriter

TABLES = ("parquet", "arrow")
FORMATS = ("prediction_log", "jsonl", "csv", *TABLES, *calls.FORMATS)
_OTHER_REASONS = "other reasons"
_MAX_REASONS = 50
# What follows in a reason is of its row.
_DETAIL = re.compile(r"\. Received|: |, got | \[\d")


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

    def add_bad_rows(self, batch: Batch, reason: str, listed: bool) -> None:
        """Counts the rows of a batch that has no record."""
        count = len(batch.offsets)
        self.num_bad_rows += count
        if self.first_bad_row is None:
            self.first_bad_row = (batch.path, int(batch.offsets[0]), reason)
        if listed:
            self.bad_rows += [(batch.path, int(offset), reason) for offset in batch.offsets]
        self._count(_DETAIL.split(reason, maxsplit=1)[0][:100], count)

    def failure(self, max_bad_fraction: float) -> str:
        """Why the import has failed, empty if it has not."""
        if not self.num_records:
            return "no record was written"
        if self.bad_fraction <= max_bad_fraction:
            return ""
        return (
            f"{self.bad_fraction:.2%} of the rows are bad, more than --max_bad_fraction="
            f"{max_bad_fraction:g}; the records of the others are written"
        )

    @classmethod
    def merge(cls, reports: "Iterable[ImportReport]") -> "ImportReport":
        """What several imports did together; the first bad row is that of the first with one."""
        merged, num_served = cls(), 0.0
        for report in reports:
            for name in ("num_files", "num_rows", "num_records", "num_bad_rows", "num_nonfinite"):
                setattr(merged, name, getattr(merged, name) + getattr(report, name))
            merged.bad_rows += report.bad_rows
            merged.first_bad_row = merged.first_bad_row or report.first_bad_row
            num_served += report.num_rows / report.sampling_rate
            for kind, count in report.reasons.items():
                merged._count(kind, count)
        if num_served:
            merged.sampling_rate = merged.num_rows / num_served
        merged.reasons = _most_frequent_first(merged.reasons)
        return merged

    def _count(self, kind: str, count: int) -> None:
        if kind not in self.reasons and len(self.reasons) >= _MAX_REASONS:
            kind = _OTHER_REASONS
        self.reasons[kind] = self.reasons.get(kind, 0) + count


def _most_frequent_first(reasons: dict[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: -item[1]))


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
    settings = ImportSettings(
        format, fields, bad_rows, num_outputs, secret_file, compression, id_type, from_logits
    )
    paths = match_logs(patterns)

    def parts() -> Iterator[Batch | Half]:
        for path in tqdm.tqdm(paths, unit="file", disable=None if show_progress else True):
            yield from settings.read(path)

    with ImportWriter(settings, output_directory) as writer:
        for batch in settings.join(parts()):
            writer.write(batch)
            if max_rows is not None and writer.report.num_rows >= max_rows:
                break
    writer.report.num_files = len(paths)
    return writer.report


@dataclasses.dataclass(frozen=True)
class ImportSettings:
    """How files are read and written: those arguments of `import_records`, which documents them."""

    format: str
    fields: Any = None
    bad_rows: str = "count"
    num_outputs: int | None = None
    secret_file: str | None = None
    compression: str | None = None
    id_type: str = "int"
    from_logits: bool = True

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)
        check_choice("bad_rows", self.bad_rows, ("count", "list", "error"))
        check_choice("id_type", self.id_type, ("int", "string"))
        kind: Any = RowFields if self.format in ("jsonl", "csv", *TABLES) else PredictFields
        if self.fields is None:
            object.__setattr__(self, "fields", kind())
        elif not isinstance(self.fields, kind):
            raise ValueError(
                f"fields must be {kind.__name__} for format={self.format!r}. Received: "
                f"{self.fields!r}"
            )
        if self.format in TABLES:
            arrow.require_arrow()

    @property
    def joins(self) -> bool:
        """Whether a file may hold halves of calls."""
        return self.format in calls.FORMATS

    def read(self, path: str) -> Iterator[Batch | Half]:
        """The batches in a file, and the halves of calls, which `join` takes."""
        if self.joins:
            parts: Iterable[Batch | Half] = calls.CallReader(self.format, self.fields).read(path)
        elif self.format in TABLES:
            parts = tables.read_records(path, self.fields)
        elif self.format == "prediction_log":
            parts = read_prediction_log(path, self.fields)
        else:
            parts = read_rows(path, self.format, self.fields, self.id_type)
        return (part if part.path else dataclasses.replace(part, path=path) for part in parts)

    def join(self, parts: Iterable[Batch | Half]) -> Iterator[Batch]:
        """Batches only: calls in halves are joined."""
        if self.joins:
            return calls.CallReader(self.format, self.fields).join(parts)
        return cast(Iterator[Batch], iter(parts))


class ImportWriter:
    """Writes batches to record files, and counts what it does.

    Args:
      settings: what `import_records` was asked for.
      directory: where the record files go.
      **options: of `ForwardRecordWriter`.

    Attributes:
      report: what was read and written, complete when the writer is closed.

    Raises:
      ValueError, OSError: `secret_file` holds no secret.
    """

    def __init__(
        self, settings: ImportSettings, directory: str | os.PathLike, **options: Any
    ) -> None:
        self.report = ImportReport()
        self._settings = settings
        self._num_served = 0.0
        secret_file = settings.secret_file
        self._secret = None if secret_file is None else hashing.read_secret(secret_file)
        self._writer = ForwardRecordWriter(
            directory,
            num_outputs=settings.num_outputs,
            compression=settings.compression,
            **options,
        )

    def write(self, batch: Batch) -> None:
        """Writes a batch of records, or counts its rows as bad.

        Raises:
          ImportRowError: its rows are bad, with `bad_rows="error"`.
        """
        settings, report = self._settings, self.report
        report.num_rows += len(batch.offsets)
        self._num_served += len(batch.offsets) / batch.sampling_rate
        if not settings.from_logits and constants.LOGITS in batch.columns:
            batch.columns["probabilities"] = batch.columns.pop(constants.LOGITS)
        error = _printable(_write(self._writer, batch, self._secret))
        if error and settings.bad_rows == "error":
            raise ImportRowError(
                f"{batch.path!r} at {offset_unit(settings.format)} {batch.offsets[0]}: {error}. "
                "--bad_rows=list or count continues after it."
            )
        if error:
            report.add_bad_rows(batch, error, settings.bad_rows == "list")

    def __enter__(self) -> "ImportWriter":
        return self

    def __exit__(self, *unused: object) -> None:
        self._writer.close()
        report, counts = self.report, self._writer.counts
        report.num_records, report.num_nonfinite = counts.num_written, counts.num_nonfinite
        report.reasons = _most_frequent_first(report.reasons)
        if self._num_served:
            report.sampling_rate = report.num_rows / self._num_served


def offset_unit(format: str) -> str:
    """What offsets count in a format."""
    return "row" if format in TABLES else "byte"


def match_logs(patterns: str | os.PathLike | Sequence[str]) -> list[str]:
    """The files of an import; FileNotFoundError where a pattern matches none."""
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
        return str(error).removeprefix("write: ")
    return ""

"""Logs and tables of many files → forward records, a file per worker at a time."""

import os
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf

from ofb_tf.beam.examples import TEMPORARY_PREFIX
from ofb_tf.checks import check_ranges
from ofb_tf.records import importers
from ofb_tf.records.files import SUFFIX

_HALVES = "halves"
_Placed = tuple[tuple[int, int], importers.Half]  # number of the file and place in it, half
_Report = tuple[int, importers.ImportReport]  # number of the output, what is in it


class ImportRecords(beam.PTransform):
    """Logs and tables → record files, as `ofb_tf.records.import_records` writes them.

    Applied to a pipeline, it reads the files in parallel and writes at least one record file for
    every file that holds records; `PartitionRecords` makes partitions of them. Records and counters
    are those of `import_records`, except for times: a row without one gets that of its worker.
    Requests and responses in separate events are shuffled by the call's id and joined in the order
    of the files. Its output is one `ImportReport`.

    Args:
      patterns: files or globs.
      output_directory: where the record files go; created if missing. Their names are new in every
        run, and a bundle that is retried replaces its files.
      num_outputs: outputs of the model, as no worker sees the first row; None for losses alone.
      max_bad_fraction: the pipeline fails if more than this fraction of the rows is bad, or if
        there is no record; the records of the other rows stay.
      num_shards: parts into which halves of calls are dealt, each joined in memory (about 1 kB per
        half); None for as many as files.
      **settings: `format` and, optionally, `fields`, `bad_rows`, `secret_file`, `compression`,
        `id_type` and `from_logits` of `import_records`. Workers read `secret_file` themselves.

    Raises:
      ValueError: an argument is out of range.
      FileNotFoundError: a pattern matches nothing.
      ImportError: the format needs an extra that is not installed.
    """

    def __init__(
        self,
        patterns: str | os.PathLike | Sequence[str],
        output_directory: str | os.PathLike,
        *,
        num_outputs: int | None,
        max_bad_fraction: float = 1.0,
        num_shards: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._settings = importers.ImportSettings(num_outputs=num_outputs, **settings)
        if num_outputs is None and getattr(self._settings.fields, "logits", True):
            raise ValueError("num_outputs must be given for records with logits. Received: None")
        self._paths = importers.match_logs(patterns)
        num_shards = len(self._paths) if num_shards is None else num_shards
        values = {"max_bad_fraction": max_bad_fraction, "num_shards": num_shards}
        check_ranges({"max_bad_fraction": (0, 1), "num_shards": (1, float("inf"))}, values)
        self._num_shards, self._max_bad_fraction = num_shards, max_bad_fraction
        directory = os.fspath(output_directory)
        tf.io.gfile.makedirs(directory)
        # Names sort like those of `ForwardRecordWriter`.
        name = f"records-{time.time_ns() // 1000:016d}-{uuid.uuid4().hex[:16]}"
        self._stem = os.path.join(directory, name)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Applies it to a pipeline."""
        first_shard = len(self._paths)
        files = (
            pipeline
            | "Files" >> beam.Create(list(enumerate(self._paths)))
            | "Spread" >> beam.Reshuffle()
            | "Import"
            >> beam.FlatMap(
                _import_file, self._settings, self._stem, self._num_shards
            ).with_outputs(_HALVES, main="reports")
        )
        joined = (
            files[_HALVES]
            | "ByShard" >> beam.GroupByKey()
            | "Join" >> beam.Map(_join_shard, self._settings, self._stem, first_shard)
        )
        return (
            (files["reports"], joined)
            | "AllReports" >> beam.Flatten()
            | "ToList" >> beam.combiners.ToList()
            | "Merge" >> beam.Map(_merge, self._max_bad_fraction)
        )


def _import_file(
    element: tuple[int, str], settings: importers.ImportSettings, stem: str, num_shards: int
) -> Iterator[Any]:
    """(number, path of a file) → its report, once what it holds is written; halves of calls."""
    number, path = element
    with _Output(settings, stem, number) as output:
        for place, part in enumerate(settings.read(path)):
            if isinstance(part, importers.Half):
                shard = zlib.crc32(part.call_id.encode("utf-8", "surrogatepass")) % num_shards
                yield beam.pvalue.TaggedOutput(_HALVES, (shard, ((number, place), part)))
            else:
                output.write(part)
    output.report.num_files = 1
    yield number, output.report


def _join_shard(
    element: tuple[int, Iterable[_Placed]],
    settings: importers.ImportSettings,
    stem: str,
    first_number: int,
) -> _Report:
    """(shard, halves) → the report of the calls that they make."""
    shard, halves = element
    ordered = [half for _, half in sorted(halves, key=lambda item: item[0])]
    number = first_number + shard
    with _Output(settings, stem, number) as output:
        for batch in settings.join(ordered):
            output.write(batch)
    return number, output.report


def _merge(reports: list[_Report], max_bad_fraction: float) -> importers.ImportReport:
    ordered = [report for _, report in sorted(reports, key=lambda item: item[0])]
    merged = importers.ImportReport.merge(ordered)
    failure = merged.failure(max_bad_fraction)
    if failure:
        raise ValueError(
            f"ImportRecords: {failure}. Reasons: {merged.reasons}. First bad row: "
            f"{merged.first_bad_row}"
        )
    return merged


class _Output(importers.ImportWriter):
    """Writes into a directory of its attempt; the files get their names when all are complete."""

    def __init__(self, settings: importers.ImportSettings, stem: str, number: int) -> None:
        parent = os.path.dirname(stem)
        self._attempt = os.path.join(parent, f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        self._stem = f"{stem}-{number:05d}"
        # Files end by their size alone, so that another attempt writes as many.
        super().__init__(settings, self._attempt, flush_seconds=None, max_file_seconds=float("inf"))

    def __exit__(self, *error: object) -> None:
        try:
            super().__exit__(*error)
            complete = sorted(tf.io.gfile.listdir(self._attempt)) if error[0] is None else []
            for place, name in enumerate(complete):
                target = f"{self._stem}-{place:05d}{SUFFIX}"
                tf.io.gfile.rename(os.path.join(self._attempt, name), target, overwrite=True)
        finally:
            tf.io.gfile.rmtree(self._attempt)

"""Any source of forward records → partitions, with the newest record of each id."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from ofb_tf import constants
from ofb_tf.beam.columns import Columns, by_partition, check_schemas, concatenate
from ofb_tf.beam.reports import Manifest
from ofb_tf.beam.sources import read_record_file
from ofb_tf.checks import check_count
from ofb_tf.records import ForwardRecords, files
from ofb_tf.records.partitioned import partition_path
from ofb_tf.records.writer import write_record_file


class PartitionRecords(beam.PTransform):
    """Files of forward records → the newest record of each id, a sorted file per partition.

    Applied to a pipeline, it writes `partition-*-of-*.ofbr` and `manifest.json`; a partition
    without records has no file. `SampleExamples`, `ofb_tf.PartitionedRecords` and
    `ofb_tf.ForwardRecords.load` read the directory. Its output is one `Manifest`, once everything
    is written.

    Args:
      patterns: files, globs or directories; those of record files may be open.
      output_directory: holds no record files yet; created if missing.
      num_partitions: at least 1. A partition is sorted and joined in memory, at about 100 bytes
        per example and record: a million of each is a good size.
      read: turns the path of a file into batches of columns: `read_record_file`, or
        `read_prediction_logs` with its settings as a `functools.partial`.

    Raises:
      ValueError: num_partitions is out of range.
      FileExistsError: the output directory holds record files already.
      FileNotFoundError: a pattern matches nothing.
    """

    def __init__(
        self,
        patterns: files.Pattern,
        output_directory: str | os.PathLike,
        *,
        num_partitions: int,
        read: Callable[[str], Iterator[Columns]] = read_record_file,
    ) -> None:
        super().__init__()
        self._num_partitions = check_count("num_partitions", num_partitions)
        self._paths = files.match_files(patterns)
        self._read = read
        self._directory = files.make_new_directory(output_directory)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Applies it to a pipeline."""
        return (
            pipeline
            | "Files" >> beam.Create(self._paths)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read_file, self._read, self._num_partitions)
            | "ByPartition" >> beam.GroupByKey()
            | "WritePartition" >> beam.Map(_write_partition, self._directory, self._num_partitions)
            | "AllPartitions" >> beam.combiners.ToList()
            | "WriteManifest" >> beam.Map(_write_manifest, self._directory, self._num_partitions)
        )


def _read_file(
    path: str, read: Callable[[str], Iterator[Columns]], num_partitions: int
) -> Iterator[tuple[int, Columns]]:
    for partition, _, columns in by_partition(read(path), num_partitions):
        yield partition, columns


def _write_partition(
    element: tuple[int, Iterable[Columns]], directory: str, num_partitions: int
) -> dict[str, Any]:
    """Writes one partition's file; returns its counts."""
    partition, chunks = element
    columns = concatenate(list(chunks))
    # Of records with the same id and timestamp the last wins: an order that is not the runner's.
    keys = [
        columns[name] if columns[name].ndim == 1 else columns[name][:, 0]
        for name in (constants.LOGITS, constants.LOSS, constants.MODEL_VERSION, constants.TIMESTAMP)
        if name in columns
    ]
    order = np.lexsort([*keys, columns[constants.EXAMPLE_ID]])
    columns = {name: data[order] for name, data in columns.items()}
    records = ForwardRecords.from_columns(
        columns[constants.EXAMPLE_ID],
        columns.get(constants.LOGITS),
        columns.get(constants.LOSS),
        columns[constants.MODEL_VERSION],
        columns[constants.TIMESTAMP],
    )
    write_record_file(partition_path(directory, partition, num_partitions), records)
    versions = np.unique(records.model_versions.numpy(), return_counts=True)
    return {
        "partition": partition,
        "schema": records.schema,
        "num_read": records.counts.num_read,
        "versions": collections.Counter(dict(zip(*(v.tolist() for v in versions), strict=True))),
        "timestamps": (int(np.min(records.timestamps)), int(np.max(records.timestamps))),
    }


def _write_manifest(parts: list[dict[str, Any]], directory: str, num_partitions: int) -> Manifest:
    if not parts:
        raise ValueError(
            "there is no forward record in the files. Check that serving records, and flushes or "
            "closes its writer."
        )
    schema = check_schemas(part["schema"] for part in parts)
    kept = {part["partition"]: part["versions"].total() for part in parts}
    versions: collections.Counter[int] = collections.Counter()
    for part in parts:
        versions.update(part["versions"])
    num_read, num_records = sum(part["num_read"] for part in parts), sum(kept.values())
    manifest = Manifest(
        num_partitions=num_partitions,
        num_outputs=schema.num_outputs,
        num_read=num_read,
        num_duplicates=num_read - num_records,
        num_records=num_records,
        records_by_partition=[kept.get(k, 0) for k in range(num_partitions)],
        records_by_version={str(version): count for version, count in versions.items()},
        oldest_timestamp=min(part["timestamps"][0] for part in parts),
        newest_timestamp=max(part["timestamps"][1] for part in parts),
    )
    manifest.write(directory)
    return manifest

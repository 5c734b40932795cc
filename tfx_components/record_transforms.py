"""Forward records as Beam transforms: any source → partitions, one record an id, the newest."""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import ForwardRecords, ForwardRecordWriter, partition_of
from tfx_components import manifest
from tfx_components.record_sources import Columns

_CHUNK = 1 << 18  # records that a reader gathers before it splits them into partitions


class WritePartitions(beam.PTransform):
    """Reads record sources and writes the partitions and the manifest of an artifact.

    Input: the pipeline. Output: one `manifest.Manifest`, written.

    Args:
      read: a file's path → batches of columns.
      files: paths.
      uri: where the artifact goes.
      num_partitions: at least 1.
    """

    def __init__(
        self,
        read: Callable[[str], Iterator[Columns]],
        files: Sequence[str],
        uri: str,
        num_partitions: int,
    ) -> None:
        super().__init__()
        self._read = read
        self._files = list(files)
        self._uri = uri
        self._num_partitions = num_partitions

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """The manifest, once the files are written; called by Beam."""
        return (
            pipeline
            | "Files" >> beam.Create(self._files)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_Read(self._read, self._num_partitions))
            | "ByPartition" >> beam.GroupByKey()
            | "WritePartition" >> beam.ParDo(_Write(self._uri, self._num_partitions))
            | "Count" >> beam.CombineGlobally(merge_manifests)
            | "WriteManifest" >> beam.Map(_write_manifest, self._uri)
        )


def merge_manifests(parts: Iterable[manifest.Manifest | None]) -> manifest.Manifest | None:
    """The manifest of all partitions; None of none.

    Raises:
      ValueError: partitions differ in the number of outputs.
    """
    found = [part for part in parts if part is not None]
    if not found:
        return None
    check_width({part.num_outputs for part in found})
    versions: dict[str, int] = {}
    for part in found:
        for version, count in part.records_by_version.items():
            versions[version] = versions.get(version, 0) + count
    return manifest.Manifest(
        num_partitions=found[0].num_partitions,
        num_outputs=found[0].num_outputs,
        num_read=sum(part.num_read for part in found),
        num_duplicates=sum(part.num_duplicates for part in found),
        num_records=sum(part.num_records for part in found),
        records_by_partition=np.sum([part.records_by_partition for part in found], 0).tolist(),
        records_by_version=versions,
        oldest_timestamp=min(part.oldest_timestamp for part in found),
        newest_timestamp=max(part.newest_timestamp for part in found),
    )


def check_width(widths: set[int]) -> None:
    """Raises ValueError unless all records have the same number of outputs."""
    if len(widths) > 1:
        raise ValueError(
            f"the records have num_outputs {sorted(widths)}: they come from different models. "
            "Generate records from each on its own."
        )


class _Read(beam.DoFn):
    """path → (partition, columns)."""

    def __init__(self, read: Callable[[str], Iterator[Columns]], num_partitions: int) -> None:
        self._read = read
        self._num_partitions = num_partitions

    def process(self, path: str) -> Iterator[tuple[int, Columns]]:
        batches, count = [], 0
        for columns in self._read(path):
            batches.append(columns)
            count += len(columns[constants.EXAMPLE_ID])
            if count >= _CHUNK:
                yield from self._split(batches)
                batches, count = [], 0
        if count:
            yield from self._split(batches)

    def _split(self, batches: list[Columns]) -> Iterator[tuple[int, Columns]]:
        columns = _concatenate(batches)
        partitions = partition_of(columns[constants.EXAMPLE_ID], self._num_partitions)
        order = np.argsort(partitions, kind="stable")
        bounds = np.searchsorted(partitions[order], np.arange(self._num_partitions + 1))
        for partition in np.flatnonzero(np.diff(bounds)).tolist():
            rows = order[bounds[partition] : bounds[partition + 1]]
            yield partition, {name: data[rows] for name, data in columns.items()}


class _Write(beam.DoFn):
    """(partition, columns) → the partition's file, and its manifest."""

    def __init__(self, uri: str, num_partitions: int) -> None:
        self._uri = uri
        self._num_partitions = num_partitions

    def process(self, element: tuple[int, Iterable[Columns]]) -> Iterator[manifest.Manifest]:
        partition, chunks = element
        columns = _concatenate(list(chunks))
        records = ForwardRecords.from_columns(
            columns[constants.EXAMPLE_ID],
            columns.get(constants.LOGITS),
            columns.get(constants.LOSS),
            columns[constants.MODEL_VERSION],
            columns[constants.TIMESTAMP],
        )
        self._write_file(partition, records)
        counts = [0] * self._num_partitions
        counts[partition] = len(records)
        versions = np.bincount(
            records.version_indices.numpy(), minlength=len(records.version_table)
        )
        yield manifest.Manifest(
            num_partitions=self._num_partitions,
            num_outputs=records.num_outputs,
            num_read=records.counts.num_read,
            num_duplicates=records.counts.num_duplicates,
            num_records=len(records),
            records_by_partition=counts,
            records_by_version={
                str(version): int(count)
                for version, count in zip(records.version_table.numpy(), versions, strict=True)
                if count
            },
            oldest_timestamp=int(records.timestamps.numpy().min()),
            newest_timestamp=int(records.timestamps.numpy().max()),
        )

    def _write_file(self, partition: int, records: ForwardRecords) -> None:
        # In a directory of its own until complete: a retry replaces the file by the same.
        temporary = os.path.join(self._uri, f".tmp-{uuid.uuid4().hex}")
        with ForwardRecordWriter(
            temporary, flush_seconds=None, max_file_bytes=1 << 62, max_file_records=1 << 62
        ) as writer:
            writer.write(
                records.example_ids.numpy(),
                None if records.logits is None else records.logits.numpy(),
                loss=None if records.losses is None else records.losses.numpy(),
                model_version=records.model_versions.numpy(),
                timestamp=records.timestamps.numpy(),
            )
        (name,) = tf.io.gfile.listdir(temporary)
        destination = manifest.partition_path(self._uri, partition, self._num_partitions)
        tf.io.gfile.rename(os.path.join(temporary, name), destination, overwrite=True)
        tf.io.gfile.rmtree(temporary)


def _write_manifest(merged: manifest.Manifest | None, uri: str) -> manifest.Manifest:
    if merged is None:
        raise ValueError(
            "there is no forward record in the files. Check that serving records, and flushes or "
            "closes its writer."
        )
    merged.write(uri)
    return merged


def _concatenate(batches: list[Columns]) -> Columns:
    """Batches of columns as one, in an order that no runner decides."""
    names = {tuple(sorted(columns)) for columns in batches}
    if len(names) > 1:
        raise ValueError(
            f"the records have different columns: {sorted(names)}. Generate records from each "
            "kind on its own."
        )
    if constants.LOGITS in batches[0]:
        check_width({columns[constants.LOGITS].shape[1] for columns in batches})
    columns = {
        name: np.concatenate([batch[name] for batch in batches]) for name in sorted(batches[0])
    }
    # Of records of one id and timestamp the last wins, so their order must not be the runner's.
    keys = [
        columns[name] if columns[name].ndim == 1 else columns[name][:, 0]
        for name in (constants.LOGITS, constants.LOSS, constants.MODEL_VERSION, constants.TIMESTAMP)
        if name in columns
    ]
    order = np.lexsort([*keys, columns[constants.EXAMPLE_ID]])
    return {name: data[order] for name, data in columns.items()}

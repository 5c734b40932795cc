"""Forward records as Beam transforms: any source → partitions, the newest record of each id."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

from ofb_tf import constants, hashing
from ofb_tf.records import ForwardRecords
from ofb_tf.records.partitioned import partition_path
from ofb_tf.records.writer import write_record_file
from tfx_components.artifacts import Manifest
from tfx_components.component_utils import in_chunks
from tfx_components.forward_record_gen.sources import Columns


@beam.ptransform_fn
def WritePartitions(
    pipeline: beam.Pipeline,
    read: Callable[[str], Iterator[Columns]],
    files: Sequence[str],
    uri: str,
    num_partitions: int,
) -> beam.PCollection:
    """Writes the partitions and the manifest of an artifact; returns the one `Manifest`.

    `read` turns the path of a file into batches of columns; `uri` is the artifact's directory.
    """
    return (
        pipeline
        | "Files" >> beam.Create(list(files))
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(_read_file, read, num_partitions)
        | "ByPartition" >> beam.GroupByKey()
        | "WritePartition" >> beam.Map(_write_partition, uri, num_partitions)
        | "Count" >> beam.CombineGlobally(_merge_manifests)
        | "WriteManifest" >> beam.Map(_write_manifest, uri)
    )


def _read_file(
    path: str, read: Callable[[str], Iterator[Columns]], num_partitions: int
) -> Iterator[tuple[int, Columns]]:
    for batches in in_chunks(read(path)):
        columns = _concatenate(batches)
        ids = columns[constants.EXAMPLE_ID]
        for partition, rows in hashing.rows_by_partition(ids, num_partitions):
            yield partition, {name: data[rows] for name, data in columns.items()}


def _concatenate(batches: list[Columns]) -> Columns:
    """Batches of columns as one, in an order that does not depend on the runner."""
    names = {tuple(sorted(columns)) for columns in batches}
    if len(names) > 1:
        raise ValueError(
            f"the records have different columns: {sorted(names)}. Generate records from each "
            "kind separately."
        )
    if constants.LOGITS in batches[0]:
        _check_width({columns[constants.LOGITS].shape[1] for columns in batches})
    columns = {
        name: np.concatenate([batch[name] for batch in batches]) for name in sorted(batches[0])
    }
    # Of records with the same id and timestamp the last wins, so the order must be their own.
    keys = [
        columns[name] if columns[name].ndim == 1 else columns[name][:, 0]
        for name in (constants.LOGITS, constants.LOSS, constants.MODEL_VERSION, constants.TIMESTAMP)
        if name in columns
    ]
    order = np.lexsort([*keys, columns[constants.EXAMPLE_ID]])
    return {name: data[order] for name, data in columns.items()}


def _check_width(widths: set[int]) -> None:
    if len(widths) > 1:
        raise ValueError(
            f"the records have num_outputs {sorted(widths)}: they come from different models. "
            "Generate records from each separately."
        )


def _write_partition(
    element: tuple[int, Iterable[Columns]], uri: str, num_partitions: int
) -> Manifest:
    partition, chunks = element
    columns = _concatenate(list(chunks))
    records = ForwardRecords.from_columns(
        columns[constants.EXAMPLE_ID],
        columns.get(constants.LOGITS),
        columns.get(constants.LOSS),
        columns[constants.MODEL_VERSION],
        columns[constants.TIMESTAMP],
    )
    write_record_file(partition_path(uri, partition, num_partitions), records)
    counts = [0] * num_partitions
    counts[partition] = len(records)
    versions = np.unique(records.model_versions.numpy(), return_counts=True)
    timestamps = records.timestamps.numpy()
    return Manifest(
        num_partitions=num_partitions,
        num_outputs=records.num_outputs,
        num_read=records.counts.num_read,
        num_duplicates=records.counts.num_duplicates,
        num_records=len(records),
        records_by_partition=counts,
        records_by_version={str(v): int(count) for v, count in zip(*versions, strict=True)},
        oldest_timestamp=int(timestamps.min()),
        newest_timestamp=int(timestamps.max()),
    )


def _merge_manifests(parts: Iterable[Manifest | None]) -> Manifest | None:
    """The manifest of all partitions; None of none."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    _check_width({part.num_outputs for part in found})
    versions: collections.Counter[str] = collections.Counter()
    for part in found:
        versions.update(part.records_by_version)
    return Manifest(
        num_partitions=found[0].num_partitions,
        num_outputs=found[0].num_outputs,
        num_read=sum(part.num_read for part in found),
        num_duplicates=sum(part.num_duplicates for part in found),
        num_records=sum(part.num_records for part in found),
        records_by_partition=np.sum([part.records_by_partition for part in found], 0).tolist(),
        records_by_version=dict(versions),
        oldest_timestamp=min(part.oldest_timestamp for part in found),
        newest_timestamp=max(part.newest_timestamp for part in found),
    )


def _write_manifest(merged: Manifest | None, uri: str) -> Manifest:
    if merged is None:
        raise ValueError(
            "there is no forward record in the files. Check that serving records, and flushes or "
            "closes its writer."
        )
    merged.write(uri)
    return merged

"""Forward records as Beam transforms: any source → partitions, the newest record of each id."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from ofb_tf import constants
from ofb_tf.records import ForwardRecords
from ofb_tf.records.partitioned import partition_path
from ofb_tf.records.writer import write_record_file
from tfx_components.artifacts import Manifest
from tfx_components.component_utils import Columns, by_partition, check_schemas, concatenate


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
        | "AllPartitions" >> beam.combiners.ToList()
        | "WriteManifest" >> beam.Map(_write_manifest, uri, num_partitions)
    )


def _read_file(
    path: str, read: Callable[[str], Iterator[Columns]], num_partitions: int
) -> Iterator[tuple[int, Columns]]:
    for partition, _, columns in by_partition(read(path), num_partitions):
        yield partition, columns


def _write_partition(
    element: tuple[int, Iterable[Columns]], uri: str, num_partitions: int
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
    write_record_file(partition_path(uri, partition, num_partitions), records)
    versions = np.unique(records.model_versions.numpy(), return_counts=True)
    return {
        "partition": partition,
        "schema": records.schema,
        "num_read": records.counts.num_read,
        "versions": collections.Counter(dict(zip(*(v.tolist() for v in versions), strict=True))),
        "timestamps": (int(np.min(records.timestamps)), int(np.max(records.timestamps))),
    }


def _write_manifest(parts: list[dict[str, Any]], uri: str, num_partitions: int) -> Manifest:
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
    manifest.write(uri)
    return manifest

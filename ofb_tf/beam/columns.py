"""Batches of columns: dealt to partitions, and put together."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ofb_tf import constants, hashing
from ofb_tf.records.schema import Schema

CHUNK = 1 << 18  # examples or records that a reader gathers before it deals them to partitions

Columns = dict[Any, Any]


def by_partition(
    batches: Iterable[Columns], num_partitions: int
) -> Iterator[tuple[int, np.ndarray, Columns]]:
    """Deals consecutive batches of columns to partitions, at least `CHUNK` ids at a time.

    Yields a partition, the positions of its rows among all, int64 `[m]` ascending, and the rows.
    """
    first = 0
    for chunk in _chunks(batches):
        ids = chunk[constants.EXAMPLE_ID]
        for partition, rows in hashing.rows_by_partition(ids, num_partitions):
            yield partition, first + rows, {name: data[rows] for name, data in chunk.items()}
        first += len(ids)


def _chunks(batches: Iterable[Columns]) -> Iterator[Columns]:
    group, count = [], 0
    for batch in batches:
        group.append(batch)
        count += len(batch[constants.EXAMPLE_ID])
        if count >= CHUNK:
            yield concatenate(group)
            group, count = [], 0
    if count:
        yield concatenate(group)


def concatenate(batches: Sequence[Columns]) -> Columns:
    """Batches of columns as one; ValueError unless they have the same columns."""
    widths = [
        batch[constants.LOGITS].shape[1] if constants.LOGITS in batch else 0 for batch in batches
    ]
    check_schemas(map(Schema.of, batches, widths))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def check_schemas(schemas: Iterable[Schema]) -> Schema:
    """The schema that all records have; ValueError where they differ."""
    first, *others = set(schemas)
    if others:
        raise ValueError(
            f"the records have {' and '.join(sorted(map(str, (first, *others))))}: they come from "
            "different models. Generate records from each separately."
        )
    return first

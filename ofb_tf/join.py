"""Records + stream → stream with record fields: a lookup by id, in tensor operations."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import hashing, types
from ofb_tf.elements import Layout
from ofb_tf.records import ForwardRecords

KEEP, DROP, ERROR = "keep", "drop", "error"
_JOIN_BATCH = 4096
# Buckets are a power of two, at most this many records to a bucket on average.
_RECORDS_PER_BUCKET = 2.4


class RecordIndex:
    """Finds records by id: a table of bucket offsets, then a binary search in the bucket.

    The records' ids are sorted; their leading bits (over the range of ids) give the bucket, and
    a fixed number of halving steps, enough for the fullest bucket, gives the row. The graph
    holds no mutable state, so it works under the tf.data service and iterator checkpoints.
    Evenly spread ids (hashes, counters) need few steps; clustered ones at most log2(n).

    Args:
      example_ids: int64 `[n]`, ascending, unique, n at least 1.
    """

    def __init__(self, example_ids: tf.Tensor) -> None:
        ids = np.asarray(example_ids)
        self._ids = example_ids
        first, last = int(ids[0]), int(ids[-1])
        bucket_bits = int(np.ceil(np.log2(max(ids.size / _RECORDS_PER_BUCKET, 1.0))))
        self._shift = min(max((last - first).bit_length() - bucket_bits, 0), 63)
        num_buckets = ((last - first) >> self._shift) + 1
        starts = np.uint64(first % 2**64) + (
            np.arange(num_buckets, dtype=np.uint64) << np.uint64(self._shift)
        )
        offsets = np.searchsorted(ids, starts.view(np.int64))
        fullest = int(np.max(np.diff(offsets, append=ids.size)))
        self._steps = [2**k for k in reversed(range((fullest - 1).bit_length()))]
        self._offsets = tf.constant(offsets, tf.int32)
        self._first, self._last = first, last

    def find(self, example_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows of the records with these ids.

        Args:
          example_ids: int64 `[n]`.

        Returns:
          int32 `[n]` rows, 0 where there is none, and bool `[n]`: whether there is one.
        """
        in_range = (example_ids >= self._first) & (example_ids <= self._last)
        offset = tf.where(in_range, example_ids - self._first, 0)
        bucket = tf.bitcast(
            tf.bitwise.right_shift(
                tf.bitcast(offset, tf.uint64), tf.constant(self._shift, tf.uint64)
            ),
            tf.int64,
        )
        row = tf.gather(self._offsets, bucket)
        # From the bucket's first row, steps of falling powers of two for as long as the id there
        # is not above the one sought. Ids are sorted throughout, so no step needs the bucket's
        # end as a bound.
        for step in self._steps:
            ahead = tf.minimum(row + step, self._ids.shape[0] - 1)
            row = tf.where(tf.gather(self._ids, ahead) <= example_ids, ahead, row)
        found = in_range & (tf.gather(self._ids, row) == example_ids)
        return tf.where(found, row, 0), found


class RecordLookup:
    """Record fields for a batch of ids.

    Args:
      records: `ForwardRecords`, or a pattern, directory, file or list of them to load.
      max_age: in seconds; a record older than this at construction (or at `as_of`) counts as
        missing. None for no limit.
      as_of: microseconds since 1970, the time from which ages count; None for now.

    Raises:
      ValueError: `max_age` is not positive, or nothing matches the pattern.
    """

    def __init__(
        self,
        records: ForwardRecords | str | Sequence[str],
        *,
        max_age: float | None = None,
        as_of: int | None = None,
    ) -> None:
        if max_age is not None and not max_age > 0:
            raise ValueError(f"max_age must be positive seconds or None. Received: {max_age!r}")
        if not isinstance(records, ForwardRecords):
            records = ForwardRecords.load(records, as_of=as_of)
        if not len(records):
            raise ValueError("records must hold at least one record. Received: none")
        self.records = records
        self._index = RecordIndex(records.example_ids)
        columns = {
            types.LOGITS: records.logits,
            types.LOSS: records.losses,
            types.CLASS_IDS: records.class_ids,
            types.LOGSUMEXP: records.logsumexp,
            types.SUM_SQUARED_PROBABILITIES: records.sum_squared_probabilities,
        }
        self._columns = {name: column for name, column in columns.items() if column is not None}
        self._oldest = None
        if max_age is not None:
            now = int(time.time() * types.MICROSECONDS) if as_of is None else as_of
            self._oldest = now - int(max_age * types.MICROSECONDS)

    def fields(self, example_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The fields of these examples' records.

        Args:
          example_ids: int64 `[n]`.

        Returns:
          `has_record` bool `[n]`; `logits` `[n, k]` and / or `loss` float32 `[n]`, as the
          records have them, not-a-number where there is no record; `model_version` and
          `timestamp` int64 `[n]`, -1 there; the columns of the top-k form where they have it.
        """
        row, found = self._index.find(example_ids)
        records = self.records
        timestamp = tf.gather(records.timestamps, row)
        if self._oldest is not None:
            found &= timestamp >= self._oldest
        version = tf.gather(
            records.version_table, tf.cast(tf.gather(records.version_indices, row), tf.int32)
        )
        fields = {
            types.HAS_RECORD: found,
            types.MODEL_VERSION: tf.where(found, version, -1),
            types.TIMESTAMP: tf.where(found, timestamp, -1),
        }
        for name, column in self._columns.items():
            values = tf.gather(column, row)
            mask = found[:, None] if values.shape.rank == 2 else found
            nothing = float("nan") if column.dtype.is_floating else -1
            fields[name] = tf.where(mask, values, tf.constant(nothing, column.dtype))
        return fields


def join_forward_records(
    records: ForwardRecords | str | Sequence[str],
    *,
    id_key: str = types.EXAMPLE_ID,
    missing: str = KEEP,
    max_age: float | None = None,
    as_of: int | None = None,
) -> types.DatasetTransform:
    """Adds each example's forward record to it.

    ```python
    joined = examples.apply(ofb_tf.join_forward_records("records/*"))
    ```

    Args:
      records: `ForwardRecords`, or a pattern, directory, file or list of them to load. Of
        several records of an id the newest counts.
      id_key: the field with the example's id: int64, int32 or string (by its fingerprint).
      missing: what becomes of an example without a record: "keep" it with `has_record` False,
        "drop" it, or "error".
      max_age: in seconds; an older record counts as missing. None for no limit.
      as_of: microseconds since 1970: records written later are left out, ages count from here.
        None for all records, and ages from now.

    Returns:
      A function from a dataset of dicts (or of tuples that begin with a dict) to one in which the
      dict has `has_record` (bool),
      `model_version`, `timestamp` (int64, microseconds) and, as the records have them,
      `logits` (`[k]`) and `loss` (float32) added; logits and loss are not-a-number and version
      and timestamp -1 where there is no record.

    Raises:
      ValueError: an argument out of range or no file matches; at application, elements that
        are not single dicts with an id.
    """
    if missing not in (KEEP, DROP, ERROR):
        raise ValueError(f"missing must be 'keep', 'drop' or 'error'. Received: {missing!r}")
    lookup = RecordLookup(records, max_age=max_age, as_of=as_of)

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        layout = Layout("join_forward_records", dataset.element_spec, id_key)
        layout.check_id("Set id_key to the field that holds the example's id.")

        def join(*parts: Any) -> Any:
            batch = parts[0] if len(parts) == 1 else parts
            example_ids = hashing.as_example_ids(layout.fields(batch)[id_key])
            record = lookup.fields(example_ids)
            if missing == ERROR:
                with tf.control_dependencies(
                    [assert_joined(record[types.HAS_RECORD], example_ids)]
                ):
                    record = {name: tf.identity(value) for name, value in record.items()}
            return layout.with_fields(batch, layout.fields(batch) | record)

        joined = dataset.batch(_JOIN_BATCH).map(join, num_parallel_calls=tf.data.AUTOTUNE)
        joined = joined.unbatch()
        if missing == DROP:
            joined = joined.filter(
                lambda *parts: layout.fields(parts[0] if len(parts) == 1 else parts)[
                    types.HAS_RECORD
                ]
            )
        return joined

    return transform


def assert_joined(has_record: tf.Tensor, example_ids: tf.Tensor) -> tf.Operation:
    """An op that fails, naming up to three ids, where an example has no record."""
    lost = tf.boolean_mask(example_ids, ~has_record)
    return tf.debugging.Assert(
        tf.equal(tf.size(lost), 0),
        [
            "No forward record for",
            tf.size(lost),
            "of",
            tf.size(example_ids),
            "examples of this window, among them example_id",
            lost[:3],
            "; record more, widen max_age, or set missing='uniform', 'keep' or 'drop'.",
        ],
    )

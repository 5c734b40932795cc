"""Records + stream → stream with record fields: an index over sorted ids, and the join.

Tensor operations without mutable state, so that all of it works under the tf.data service and
across iterator checkpoints.
"""

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import ForwardRecords
from ofb_tf.records.reader import as_tensor, release_freed
from ofb_tf.transforms.element_spec import DatasetTransform, ElementSpec, IdKey, check_free

MISSING_FLAG = "flag"
_MISSING = (MISSING_FLAG, constants.MISSING_DROP, constants.MISSING_ERROR)
_JOIN_BATCH = 4096
# Buckets are a power of two, at most this many records to a bucket on average.
_RECORDS_PER_BUCKET = 2.4
_VERSION_TABLE = "version_table"
_OLDEST = "oldest"
Find = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


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
        # The search starts one row before the bucket's first, so that a row it ends on is one
        # whose id it has read; and early enough that no step leads past the last row.
        offsets = np.minimum(offsets - 1, ids.size - 1 - fullest)
        self._steps = _halving_steps(fullest)
        self._offsets = as_tensor(offsets.astype(np.int32))
        self._first, self._last_bucket = first, num_buckets - 1
        del starts, offsets
        release_freed()

    def find(self, example_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows of ids `[n]`: int32 `[n]`, 0 where there is none, and bool `[n]`: is there one?"""
        # As an unsigned number, an id below the first is far above the last: it looks in the last
        # bucket, as one above does, and is not found there.
        distance = tf.bitcast(example_ids - self._first, tf.uint64)
        bucket = tf.minimum(
            tf.bitwise.right_shift(distance, tf.constant(self._shift, tf.uint64)),
            tf.constant(self._last_bucket, tf.uint64),
        )
        row = tf.gather(self._offsets, tf.bitcast(bucket, tf.int64))
        # Steps forward for as long as the id there is not above the one sought. Ids are sorted
        # throughout, so no step needs the bucket's end as a bound.
        nearest = None
        for step in self._steps:
            ahead = row + step
            there = tf.gather(self._ids, ahead)
            forward = there <= example_ids
            row = tf.where(forward, ahead, row)
            nearest = there if nearest is None else tf.where(forward, there, nearest)
        found = nearest == example_ids
        return tf.where(found, row, 0), found


def _halving_steps(length: int) -> list[int]:
    """Steps of a binary search over that many rows; their sum is the length."""
    steps = []
    while length:
        steps.append((length + 1) // 2)
        length -= steps[-1]
    return steps


def search(sorted_ids: tf.Tensor) -> Find:
    """The same lookup by plain binary search, for ids that are only known in the graph."""

    def find(example_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = tf.minimum(tf.searchsorted(sorted_ids, example_ids), tf.size(sorted_ids) - 1)
        return row, tf.gather(sorted_ids, row) == example_ids

    return find


class RecordLookup:
    """Record fields for a batch of ids.

    Args:
      find: from int64 ids `[n]` to int32 rows `[n]` and bool `[n]`: whether there is one.
      columns: the record fields by name; each leads with the number of records, or is one scalar
        for all of them.
      version_table: int64 `[v]` to which the column `model_version` holds indices, or None.
      oldest: microseconds since 1970: an older record counts as missing. None for no limit.
    """

    def __init__(
        self,
        find: Find,
        columns: dict[str, tf.Tensor],
        version_table: tf.Tensor | None,
        oldest: int | tf.Tensor | None,
    ) -> None:
        self._find = find
        self._columns = columns
        self._version_table = version_table
        self._oldest = oldest

    def fields(
        self, example_ids: tf.Tensor, leave_out: Collection[str] = ()
    ) -> dict[str, tf.Tensor]:
        """The fields of the records of these ids, by name, each leading with their number.

        Where `has_record` is false, floats are not-a-number and integers -1. The fields in
        `leave_out` are not looked up.
        """
        row, found = self._find(example_ids)
        if self._oldest is not None:
            found &= tf.gather(self._columns[constants.TIMESTAMP], row) >= self._oldest
        fields = {constants.HAS_RECORD: found}
        for name, column in self._columns.items():
            if name in leave_out:
                continue
            if column.shape.rank == 0:
                fields[name] = tf.fill(tf.shape(row), column)
                continue
            values = tf.gather(column, row)
            if name == constants.MODEL_VERSION and self._version_table is not None:
                values = tf.gather(self._version_table, tf.cast(values, tf.int32))
            mask = tf.expand_dims(found, 1) if values.shape.rank == 2 else found
            nothing = float("nan") if values.dtype.is_floating else -1
            fields[name] = tf.where(mask, values, tf.constant(nothing, values.dtype))
        return fields


def oldest_timestamp(max_age: float | None, as_of: int | None) -> int | None:
    """The timestamp, in microseconds, below which a record is too old; None for no limit."""
    if max_age is None:
        return None
    if not max_age > 0:
        raise ValueError(f"max_age must be positive seconds or None. Received: {max_age!r}")
    now = int(time.time() * constants.MICROSECONDS) if as_of is None else as_of
    return now - int(max_age * constants.MICROSECONDS)


def load_records(
    records: ForwardRecords | str | Sequence[str], as_of: int | None
) -> ForwardRecords:
    """Records as they are, or loaded from a pattern."""
    if not isinstance(records, ForwardRecords):
        records = ForwardRecords.load(records, as_of=as_of)
    if not len(records):
        raise ValueError("records must hold at least one record. Received: none")
    return records


def lookup_in_memory(records: ForwardRecords, oldest: int | None) -> RecordLookup:
    """A lookup in records that are in memory, which the graph captures."""
    find = RecordIndex(records.example_ids).find
    return RecordLookup(find, _columns(records), records.version_table, oldest)


class UpdatableRecords:
    """Records in memory that can be replaced while iterators read them.

    All columns are one variable that holds a variant: an update is seen as a whole or not at all,
    and nothing is copied. An iterator's checkpoint does not hold it.

    Args:
      records: the first records.
      oldest: microseconds since 1970: an older record counts as missing. None for no limit.

    Raises:
      ValueError: in the scope of a `tf.distribute.Strategy`, which would mirror the variable.
    """

    def __init__(self, records: ForwardRecords, oldest: int | None) -> None:
        if tf.distribute.has_strategy():
            raise ValueError(
                "Updatable records must be made outside the scope of a tf.distribute.Strategy. "
                "Received: ofb_sample(updatable=True) inside it"
            )
        self._schema = records.schema
        parts = self._parts(records, oldest)
        self._specs = {
            name: tf.TensorSpec([None, *part.shape[1:]] if part.shape.rank else [], part.dtype)
            for name, part in parts.items()
        }
        with tf.device("CPU:0"):
            self._variable = tf.Variable(
                self._pack(parts), dtype=tf.variant, shape=[], trainable=False
            )

    def update(self, records: ForwardRecords, oldest: int | None) -> None:
        """Replaces the records.

        Args:
          records: of the same columns and width as the first.
          oldest: as at construction, and None if it was None then.

        Raises:
          ValueError: the records have other columns or another width.
        """
        parts = self._parts(records, oldest)
        if records.schema != self._schema or not all(
            self._specs[name].is_compatible_with(part) for name, part in parts.items()
        ):
            raise ValueError(
                f"update() needs records like the first ({self._schema}, the same dtypes). "
                f"Received: {records.schema}. Make another sampler for them."
            )
        self._variable.assign(self._pack(parts))
        release_freed()

    def fields(
        self, example_ids: tf.Tensor, leave_out: Collection[str] = ()
    ) -> dict[str, tf.Tensor]:
        """As `RecordLookup.fields`, of the records at the time the graph runs."""
        values = tf.raw_ops.OptionalGetValue(
            optional=self._variable.read_value(),
            output_types=[spec.dtype for spec in self._specs.values()],
            output_shapes=[spec.shape for spec in self._specs.values()],
        )
        columns = dict(zip(self._specs, values, strict=True))
        versions, oldest = columns.pop(_VERSION_TABLE), columns.pop(_OLDEST, None)
        find = search(columns.pop(constants.EXAMPLE_ID))
        return RecordLookup(find, columns, versions, oldest).fields(example_ids, leave_out)

    def _parts(self, records: ForwardRecords, oldest: int | None) -> dict[str, tf.Tensor]:
        parts = _columns(records) | {
            constants.EXAMPLE_ID: records.example_ids,
            # In memory the dtype of the indices depends on the number of versions.
            constants.MODEL_VERSION: tf.cast(records.version_indices, tf.int32),
            _VERSION_TABLE: records.version_table,
        }
        return parts if oldest is None else parts | {_OLDEST: tf.constant(oldest, tf.int64)}

    def _pack(self, parts: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.device("CPU:0"):
            return tf.raw_ops.OptionalFromValue(components=list(parts.values()))


def _columns(records: ForwardRecords) -> dict[str, tf.Tensor]:
    """What is looked up of records in memory."""
    columns = {name: c for name, c in records.columns.items() if name != constants.EXAMPLE_ID}
    if constants.CLASS_IDS in columns:
        columns[constants.NUM_OUTPUTS] = tf.constant(records.num_outputs, tf.int32)
    return columns


def lookup_in_columns(loaded: dict[str, tf.Tensor], oldest: int | None) -> RecordLookup:
    """A lookup in one partition's columns, an element of `PartitionedRecords.dataset`."""
    # A row of nothing at the end keeps lookups legal in an empty partition: its id is the last
    # one there is, and `found` is false beyond the true rows.
    columns = {
        name: tf.concat([column, tf.zeros([1, *column.shape[1:]], column.dtype)], axis=0)
        if column.shape.rank
        else column
        for name, column in loaded.items()
        if name != constants.EXAMPLE_ID
    }
    ids = loaded[constants.EXAMPLE_ID]
    num_records = tf.size(ids)
    find = search(tf.concat([ids, tf.constant([2**63 - 1], tf.int64)], axis=0))

    def find_true_row(example_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row, found = find(example_ids)
        return row, found & (row < num_records)

    return RecordLookup(find_true_row, columns, None, oldest)


def join_forward_records(
    records: ForwardRecords | str | Sequence[str],
    *,
    id_key: IdKey = constants.EXAMPLE_ID,
    missing: str = MISSING_FLAG,
    max_age: float | None = None,
    as_of: int | None = None,
) -> DatasetTransform:
    """Adds each example's forward record to it.

    ```python
    import tensorflow as tf

    import ofb_tf

    with ofb_tf.ForwardRecordWriter("records") as writer:
        writer.write([1, 2], [0.5, -1.5], model_version=7)
    examples = tf.data.Dataset.from_tensor_slices({"example_id": [1, 2, 3]})
    joined = list(examples.apply(ofb_tf.join_forward_records("records/*")))
    assert joined[1]["logits"] == [-1.5] and joined[1]["model_version"] == 7
    assert not joined[2]["has_record"]
    ```

    Args:
      records: `ForwardRecords`, or a pattern, directory, file or list of them to load. Of
        several records of an id the newest counts.
      id_key: the field with the example's id: int64, int32 or string (by its fingerprint); or a
        list of fields that tell examples apart, see `ofb_sample`.
      missing: what becomes of an example without a record: "flag" leaves it in with
        `has_record` False, "drop" leaves it out, "error" raises. "keep" is the deprecated name
        of "flag".
      max_age: in seconds; an older record counts as missing. None for no limit.
      as_of: microseconds since 1970: records written later are left out, ages count from here.
        None for all records, and ages from now.

    Returns:
      A function from a dataset of dicts (or of tuples that begin with a dict) to one in which the
      dict has `has_record` (bool), `model_version`, `timestamp` (int64, microseconds) and, as the
      records have them, `logits` (`[k]`) and `loss` (float32) added; logits and loss are
      not-a-number and version and timestamp -1 where there is no record.

    Raises:
      ValueError: an argument out of range; at application, elements that are not single dicts
        with an id.
      FileNotFoundError: no record file matches.
      CorruptRecordsError: a record file is damaged.
      tf.errors.InvalidArgumentError: when run, with `missing="error"`, an example has no record.
    """
    if missing == constants.MISSING_KEEP:
        warnings.warn(
            "join_forward_records: missing='keep' is deprecated, use missing='flag'.",
            DeprecationWarning,
            stacklevel=2,
        )
        missing = MISSING_FLAG
    if missing not in _MISSING:
        raise ValueError(f"missing must be one of {_MISSING}. Received: {missing!r}")
    oldest = oldest_timestamp(max_age, as_of)
    lookup = lookup_in_memory(load_records(records, as_of), oldest)

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        elements = ElementSpec("join_forward_records", dataset.element_spec, id_key)
        elements.check_id()
        if not elements.fields(elements.spec):
            raise ValueError(
                "join_forward_records: record fields need a dict, as the element or as x, got "
                f"{elements.spec}. Make x a dict."
            )

        # TensorFlow 2.16's autograph calls methods of `elements` without their instance.
        @tf.autograph.experimental.do_not_convert
        def join(*parts: Any) -> Any:
            batch = parts[0] if len(parts) == 1 else parts
            example_ids = hashing.to_int64(elements.ids(batch))
            record = lookup.fields(example_ids)
            check_free("join_forward_records", elements.fields(batch), record)
            if missing == constants.MISSING_ERROR:
                with tf.control_dependencies(
                    [assert_joined(record[constants.HAS_RECORD], example_ids)]
                ):
                    record = {name: tf.identity(value) for name, value in record.items()}
            return elements.with_fields(batch, elements.fields(batch) | record)

        joined = dataset.batch(_JOIN_BATCH).map(join, num_parallel_calls=tf.data.AUTOTUNE)
        joined = joined.unbatch()
        if missing == constants.MISSING_DROP:
            joined = joined.filter(
                lambda *parts: elements.fields(parts[0] if len(parts) == 1 else parts)[
                    constants.HAS_RECORD
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

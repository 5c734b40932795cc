"""Records + stream → stream with record fields: a lookup by id, in tensor operations."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import ForwardRecords
from ofb_tf.transforms.element_spec import DatasetTransform, Layout
from ofb_tf.transforms.lookup import load_records, lookup_in_memory, oldest_timestamp

KEEP, DROP, ERROR = "keep", "drop", "error"
_JOIN_BATCH = 4096


def join_forward_records(
    records: ForwardRecords | str | Sequence[str],
    *,
    id_key: str = constants.EXAMPLE_ID,
    missing: str = KEEP,
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
      ValueError: an argument out of range; at application, elements that are not single dicts
        with an id.
      FileNotFoundError: no record file matches.
      CorruptRecordsError: a record file is damaged.
      tf.errors.InvalidArgumentError: when run, with `missing="error"`, an example has no record.
    """
    if missing not in (KEEP, DROP, ERROR):
        raise ValueError(f"missing must be 'keep', 'drop' or 'error'. Received: {missing!r}")
    oldest = oldest_timestamp(max_age, as_of)
    lookup = lookup_in_memory(load_records(records, as_of), oldest)

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        layout = Layout("join_forward_records", dataset.element_spec, id_key)
        layout.check_id("Set id_key to the field that holds the example's id.")

        # TensorFlow 2.16's autograph calls methods of `layout` without their instance.
        @tf.autograph.experimental.do_not_convert
        def join(*parts: Any) -> Any:
            batch = parts[0] if len(parts) == 1 else parts
            example_ids = hashing.to_int64(layout.fields(batch)[id_key])
            record = lookup.fields(example_ids)
            if missing == ERROR:
                with tf.control_dependencies(
                    [assert_joined(record[constants.HAS_RECORD], example_ids)]
                ):
                    record = {name: tf.identity(value) for name, value in record.items()}
            return layout.with_fields(batch, layout.fields(batch) | record)

        joined = dataset.batch(_JOIN_BATCH).map(join, num_parallel_calls=tf.data.AUTOTUNE)
        joined = joined.unbatch()
        if missing == DROP:
            joined = joined.filter(
                lambda *parts: layout.fields(parts[0] if len(parts) == 1 else parts)[
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

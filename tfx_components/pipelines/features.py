"""Tabular tf.Examples as model inputs: the same code in training and in the served graph."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from ofb_tf import constants
from ofb_tf.evaluation.tfrecords import read_tfrecords

NUMBERS = "numbers"
BUCKETS = "buckets"


@dataclasses.dataclass(frozen=True)
class TabularSpec:
    """Which features a model reads, and the `dtypes` of all features of the schema, by name.

    `numeric` become a signed log, with an indicator where the value is missing; `categorical` are
    hashed to `num_buckets`.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    dtypes: dict[str, str]
    num_buckets: int = 256

    def feature_spec(self) -> dict[str, tf.io.RaggedFeature]:
        """How the inputs are parsed: any number of values, as CsvExampleGen writes none."""
        return {
            name: tf.io.RaggedFeature(tf.dtypes.as_dtype(self.dtypes[name]))
            for name in (*self.numeric, *self.categorical)
        }

    def inputs(self, parsed: dict[str, tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        """Parsed features → float32 `numbers` `[n, d]`, int64 `buckets` `[n, c]`."""
        inputs = {}
        if self.numeric:
            inputs[NUMBERS] = tf.concat([_numbers(parsed[name]) for name in self.numeric], axis=1)
        if self.categorical:
            hashed = [
                tf.strings.to_hash_bucket_fast(_text(parsed[name]), self.num_buckets)
                for name in self.categorical
            ]
            inputs[BUCKETS] = tf.stack(hashed, axis=1)
        return inputs


def dataset(
    files: Sequence[str],
    spec: TabularSpec,
    label_feature: str,
    batch_size: int,
    seed: int,
    num_outputs: int = 0,
) -> tf.data.Dataset:
    """Batches of `(inputs, label, importance_weight)`; the weight is 1 where there is none.

    With `num_outputs`, inputs hold `log_inclusion`, `[n, num_outputs]`, 0 where there is none. A
    buffer of 100,000 examples is reshuffled each epoch, by `seed`.
    """
    records = read_tfrecords(sorted(files)).shuffle(100_000, seed=seed)
    fields = spec.feature_spec() | {
        label_feature: tf.io.FixedLenFeature([], tf.dtypes.as_dtype(spec.dtypes[label_feature])),
        constants.IMPORTANCE_WEIGHT: tf.io.FixedLenFeature([], tf.float32, 1.0),
    }
    if num_outputs:
        fields[constants.LOG_INCLUSION] = tf.io.FixedLenFeature(
            [num_outputs], tf.float32, [0.0] * num_outputs
        )

    def parse(serialized: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        parsed = tf.io.parse_example(serialized, fields)
        inputs = spec.inputs(parsed)
        if num_outputs:
            inputs[constants.LOG_INCLUSION] = parsed[constants.LOG_INCLUSION]
        return inputs, parsed[label_feature], parsed[constants.IMPORTANCE_WEIGHT]

    return records.batch(batch_size).map(parse, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _numbers(values: tf.RaggedTensor) -> tf.Tensor:
    """Signed logarithm, 0 where absent, and an indicator of absence: float32 `[n, 2]`."""
    first = _first(tf.cast(values, tf.float32), 0.0)
    absent = tf.cast(values.row_lengths() == 0, tf.float32)
    return tf.stack([tf.sign(first) * tf.math.log1p(tf.abs(first)), absent], axis=1)


def _text(values: tf.RaggedTensor) -> tf.Tensor:
    if values.dtype != tf.string:
        values = tf.ragged.map_flat_values(tf.strings.as_string, values)
    return _first(values, "")


def _first(values: tf.RaggedTensor, default: float | str) -> tf.Tensor:
    """The first value of each example: `[n]`."""
    return values.to_tensor(default_value=default, shape=[None, 1])[:, 0]

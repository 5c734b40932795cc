"""Examples of any workload as tf.Examples, as a log of examples holds them."""

from collections.abc import Callable, Iterator, Mapping

import tensorflow as tf

_NATIVE = (tf.float32, tf.int64, tf.string)  # what a tf.Example holds; else bytes of the array


def serialize(fields: Mapping[str, tf.Tensor]) -> Iterator[bytes]:
    """A serialized tf.Example for each row of fields `[n, ...]`, of any dtype.

    One message is refilled for every row, which is faster than one message each.
    """
    example = tf.train.Example()
    columns, rows = [], []
    for name, values in fields.items():
        feature, array = example.features.feature[name], values.numpy()
        if values.dtype not in _NATIVE:
            columns.append(feature.bytes_list.value)
            rows.append([[row.tobytes()] for row in array])
            continue
        lists = {tf.float32: feature.float_list, tf.int64: feature.int64_list}
        columns.append(lists.get(values.dtype, feature.bytes_list).value)
        rows.append(array.reshape(len(array), -1).tolist())
    for row in zip(*rows, strict=True):
        for column, value in zip(columns, row, strict=True):
            column[:] = value
        yield example.SerializeToString()


def feature_spec(fields: Mapping[str, tf.Tensor]) -> dict[str, tf.io.FixedLenFeature]:
    """What `tf.io.parse_example` needs for them."""
    return {
        name: tf.io.FixedLenFeature(values.shape[1:], values.dtype)
        if values.dtype in _NATIVE
        else tf.io.FixedLenFeature([], tf.string)
        for name, values in fields.items()
    }


def parser(fields: Mapping[str, tf.Tensor]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A function from serialized examples, string `[n]`, to fields like these."""
    spec = feature_spec(fields)
    decoded = {
        name: (values.dtype, [-1, *values.shape[1:]])
        for name, values in fields.items()
        if values.dtype not in _NATIVE
    }

    def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(serialized, spec)
        for name, (dtype, shape) in decoded.items():
            parsed[name] = tf.reshape(tf.io.decode_raw(parsed[name], dtype), shape)
        return parsed

    return parse

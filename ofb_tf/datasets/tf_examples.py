"""Columns of any dtype and shape as tf.Examples, as a log of examples holds them, and back."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

_NATIVE = (tf.float32, tf.int64, tf.string)  # what a tf.Example holds; else bytes of the array


def serialize(fields: Mapping[str, np.ndarray | tf.Tensor]) -> Iterator[bytes]:
    """A serialized tf.Example for each row of fields `[n, ...]`.

    One message is refilled for every row, and a scalar set in its place: a new message per row
    takes four times as long, and a new list per scalar ten times.
    """
    example = tf.train.Example()
    columns, places, rows = [], [], []
    for name, values in fields.items():
        feature, array = example.features.feature[name], np.asarray(values)
        dtype = tf.as_dtype(array.dtype)
        if dtype not in _NATIVE:
            array = np.array([row.tobytes() for row in array], object)
        lists = {tf.float32: feature.float_list, tf.int64: feature.int64_list}
        column = lists.get(dtype, feature.bytes_list).value
        is_scalar = array.ndim == 1
        if is_scalar:
            column.extend(array[:1].tolist())
        columns.append(column)
        places.append(0 if is_scalar else slice(None))
        rows.append((array if is_scalar else array.reshape(len(array), -1)).tolist())
    for row in zip(*rows, strict=True):
        for column, place, value in zip(columns, places, row, strict=True):
            column[place] = value
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

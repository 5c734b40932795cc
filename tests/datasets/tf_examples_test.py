"""Columns → tf.Examples → columns, and what the messages hold."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.datasets import tf_examples

_COLUMNS = {
    "id": np.array([1, -(2**63), 2**63 - 1]),
    "x": np.array([0.5, -np.inf, 1e-30], np.float32),
    "vector": np.arange(6, dtype=np.float32).reshape(3, 2),
    "matrix": np.arange(12).reshape(3, 2, 2),
    "one": np.array([[1], [2], [3]]),
    "text": np.array([b"a", b"", b"\0b\0"], object),
    "texts": np.array([[b"a", b"b"], [b"c", b""], [b"d", b"e"]], object),
    "small": np.array([1, 2, 250], np.uint8),
    "image": np.arange(24, dtype=np.uint8).reshape(3, 2, 4),
    "double": np.array([0.1, 0.2, 0.3]),
    "flag": np.array([True, False, True]),
}


def test_columns_come_back_with_dtype_and_shape():
    columns = {name: tf.constant(values) for name, values in _COLUMNS.items()}
    parse = tf.function(tf_examples.parser(columns))
    parsed = parse(list(tf_examples.serialize(columns)))
    assert set(parsed) == set(columns)
    for name, values in columns.items():
        assert parsed[name].dtype == values.dtype
        np.testing.assert_array_equal(parsed[name], values, err_msg=name)


@pytest.mark.parametrize("of_tensors", [False, True])
def test_a_row_holds_its_values_alone(of_tensors):
    columns = {name: _COLUMNS[name] for name in ("id", "x", "vector", "text", "image")}
    if of_tensors:
        columns = {name: tf.constant(values) for name, values in columns.items()}
    rows = [tf.train.Example.FromString(row) for row in tf_examples.serialize(columns)]
    assert len(rows) == 3
    for number, row in enumerate(rows):
        feature = row.features.feature
        assert set(feature) == set(columns)
        assert list(feature["id"].int64_list.value) == [_COLUMNS["id"][number]]
        assert list(feature["x"].float_list.value) == [_COLUMNS["x"][number]]
        assert list(feature["vector"].float_list.value) == _COLUMNS["vector"][number].tolist()
        assert list(feature["text"].bytes_list.value) == [_COLUMNS["text"][number]]
        assert list(feature["image"].bytes_list.value) == [_COLUMNS["image"][number].tobytes()]


def test_no_rows():
    assert (
        list(tf_examples.serialize({"id": np.zeros(0, np.int64), "flag": np.zeros(0, bool)})) == []
    )

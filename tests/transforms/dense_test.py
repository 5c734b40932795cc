"""`dense` gives what tf.data's own methods give."""

import gc

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.testing import assert_checkpoint_roundtrip
from ofb_tf.transforms import dense


def stream(n=23):
    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return tf.data.Dataset.from_tensor_slices({"x": x, "y": (np.arange(n), x[:, 0] > 7)})


def assert_same(a, b):
    assert a.element_spec == b.element_spec
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for got, expected in zip(a, b, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("size", [3, 5, 40])
def test_rebatch(size, drop_remainder):
    batches = stream().batch(5)
    got = dense.rebatch(batches, size, drop_remainder)
    assert_same(got, batches.rebatch(size, drop_remainder=drop_remainder))
    assert_checkpoint_roundtrip(dense.rebatch(batches, 3))


def test_rebatch_of_ragged_elements():
    ragged = tf.data.Dataset.from_tensor_slices(tf.ragged.range([3, 0, 2, 1])).batch(3)
    got = [batch.to_list() for batch in dense.rebatch(ragged, 2)]
    assert got == [[[0, 1, 2], []], [[0, 1], [0]]]


def test_map_is_traced_once_and_captures():
    traces = []
    table = tf.range(1000)  # too long to become a constant of the graph

    def double(element, number):
        traces.append(1)
        return {"doubled": element["x"] * 2, "y": element["y"]}, tf.gather(table, number)

    zipped = tf.data.Dataset.zip(stream(), tf.data.Dataset.range(23))
    traced = dense.Traced(double, zipped.element_spec)
    first = traced.map(zipped)
    again = traced.map(zipped.skip(4))
    assert len(traces) == 1
    expected = zipped.map(double)
    del traced
    gc.collect()
    assert_same(first, expected)
    assert_same(again, expected.skip(4))
    assert int(first.cardinality()) == 23
    assert_checkpoint_roundtrip(first)


def test_sources_are_known():
    source = stream()
    assert dense.rebatch(source.batch(5), 3)._inputs()[0]._inputs() == [source]

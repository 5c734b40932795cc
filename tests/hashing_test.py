"""Keyed hashes and ids: known values, the same in TensorFlow and numpy, uniform draws."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ofb_tf import hashing

int64 = hnp.arrays(np.int64, st.integers(1, 50), elements=st.integers(-(2**63), 2**63 - 1))


def splitmix64(state: int) -> int:
    """The reference in Python's unbounded integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(int64)
def test_mix64_is_splitmix64_in_tensorflow_and_numpy(values):
    expected = [splitmix64(int(value) % 2**64) for value in values]
    assert hashing.mix64(tf.constant(values)).numpy().tolist() == expected
    assert hashing.mix64(values).tolist() == expected
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # as published


@given(int64, st.integers(-(2**63), 2**63 - 1))
def test_hash01_is_the_same_in_numpy(ids, key):
    got = hashing.hash01(tf.constant(ids), tf.constant(key, tf.int64)).numpy()
    np.testing.assert_array_equal(got, hashing.hash01(ids, np.int64(key)))
    assert ((got >= 0) & (got < 1)).all()


def test_draws_of_consecutive_ids_and_keys_are_uniform_and_uncorrelated():
    n = 100_000
    ids = np.arange(n)
    draws = [hashing.hash01(ids, np.int64(key)) for key in (0, 1)]
    for u in draws:
        counts = np.bincount((u * 20).astype(int), minlength=20)
        chi_square = ((counts - n / 20) ** 2 / (n / 20)).sum()
        assert chi_square < 19 + 5 * np.sqrt(2 * 19)
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(*draws)[0, 1]) < 5 / np.sqrt(n)


@given(st.integers(-(2**63), 2**63 - 1))
def test_uniform_start_lies_strictly_between_zero_and_one(key):
    start = float(hashing.uniform_start(tf.constant(key, tf.int64)))
    assert 0.0 < start < 1.0
    assert (start * 2**25) % 2 == 1


@given(st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=6)), min_size=1, max_size=9))
@example(["007", "7", "1_000", " 12", "١٢", b"id\0"])
def test_text_is_fingerprinted_wherever_it_comes_from(texts):
    as_bytes = [text if isinstance(text, bytes) else text.encode() for text in texts]
    # FarmHash64 modulo 2^63 - 1: pinned, since records on disk depend on it.
    expected = [int(tf.strings.to_hash_bucket_fast(text, 2**63 - 1)) for text in as_bytes]
    for values in (texts, np.array(texts, object), tf.constant(as_bytes)):
        assert np.asarray(hashing.to_int64(values)).tolist() == expected
    assert [int(hashing.to_int64(text)) for text in texts] == expected


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_integers_stay(dtype):
    values = np.array([0, 3, 100], dtype)
    assert hashing.to_int64(values).tolist() == [0, 3, 100]
    assert hashing.to_int64(values).dtype == np.int64
    assert hashing.to_int64(tf.constant(values)).numpy().tolist() == [0, 3, 100]


@pytest.mark.parametrize(
    ("values", "received"),
    [
        ([1.5], "float64"),
        (tf.constant([1.5]), "float32"),
        (np.array([2**63], np.uint64), "uint64 with 9223372036854775808"),
        (np.array(["a", 1], object), "int and str"),
        ([None], "NoneType"),
    ],
)
def test_what_is_no_id_is_refused(values, received):
    with pytest.raises(ValueError, match=f"must be integers .* or strings. Received: {received}"):
        hashing.to_int64(values)


def test_rows_by_partition_are_those_of_partition_of():
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000)
    dealt = dict(hashing.rows_by_partition(ids, 7))
    for partition in range(7):
        rows = np.flatnonzero(hashing.partition_of(ids, 7) == partition)
        np.testing.assert_array_equal(dealt[partition], rows)

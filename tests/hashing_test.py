"""Keyed hashes: known values, TensorFlow and numpy alike, uniform and independent draws."""

import numpy as np
import tensorflow as tf
from hypothesis import given
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
    assert hashing.mix64_numpy(values).tolist() == expected


def test_the_first_output_of_splitmix64_with_seed_zero_is_the_published_one():
    assert int(hashing.mix64_numpy(np.array([0]))[0]) == 0xE220A8397B1DCDAF


@given(int64, st.integers(-(2**63), 2**63 - 1))
def test_hash01_is_the_same_in_numpy(ids, key):
    got = hashing.hash01(tf.constant(ids), tf.constant(key, tf.int64)).numpy()
    np.testing.assert_array_equal(got, hashing.hash01_numpy(ids, np.int64(key)))
    assert ((got >= 0) & (got < 1)).all()


def test_draws_of_consecutive_ids_and_keys_are_uniform_and_uncorrelated():
    n = 100_000
    ids = np.arange(n)
    draws = [hashing.hash01_numpy(ids, np.int64(key)) for key in (0, 1)]
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


def test_string_ids_become_stable_int64():
    ids = hashing.to_int64(tf.constant(["a", "b", "a"]))
    assert ids.dtype == tf.int64
    assert ids[0] == ids[2] != ids[1]
    # FarmHash64 of "a" modulo 2^63 - 1: pinned, since records on disk depend on it.
    assert int(ids[0]) == int(tf.strings.to_hash_bucket_fast("a", 2**63 - 1))
    assert hashing.to_int64(tf.constant([1, 2], tf.int32)).dtype == tf.int64

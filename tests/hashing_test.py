"""Keyed hashes and ids: known values, the same in TensorFlow and numpy, uniform draws."""

import uuid

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


def test_example_ids_of_columns_are_the_same_everywhere():
    users = ["ann", "bob", "ann", "é\0"]
    prices = np.array([1.5, -0.0, np.nan, 3.0])
    counts, flags = np.array([1, 2, 3, 2**40]), np.array([True, False, True, True])
    ids = hashing.example_id_of(np.array(users, object), prices, counts, flags)
    assert ids.dtype == np.int64
    assert len(set(ids.tolist())) == 4
    columns = [tf.constant(users), tf.constant(prices), tf.constant(counts), tf.constant(flags)]
    np.testing.assert_array_equal(hashing.example_id_of(*columns), ids)
    dataset = tf.data.Dataset.from_tensor_slices(tuple(columns)).map(hashing.example_id_of)
    assert [int(i) for i in dataset] == ids.tolist()
    rows = zip(users, prices.tolist(), counts.tolist(), flags.tolist(), strict=True)
    assert [int(hashing.example_id_of(*row)) for row in rows] == ids.tolist()  # as in Beam
    # A value that changes would change every id that users have recorded.
    assert int(hashing.example_id_of("ann", 1.5, 1)) == 5281690485275557027


def test_example_ids_of_columns_tell_types_places_and_zeros_apart():
    of = hashing.example_id_of
    assert len({int(of(v)) for v in (7, 7.0, "7", 0.0, True)}) == 5
    assert of(1, 2) != of(2, 1)
    assert of(-0.0) == of(0.0)
    assert of(np.float32(0.1)) != of(0.1)
    with pytest.raises(ValueError, match="at least one column"):
        of()
    with pytest.raises(ValueError, match="NoneType"):
        of(np.array(["a", None], object))


def test_example_ids_of_pandas_columns():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {"user": ["ann", "bob"], "day": pandas.to_datetime(["2026-01-01"] * 2)}
    )
    days = np.array(["2026-01-01"] * 2, "datetime64[us]").view(np.int64)
    expected = hashing.example_id_of(tf.constant(["ann", "bob"]), tf.constant(days))
    np.testing.assert_array_equal(hashing.example_id_of(table["user"], table["day"]), expected)


def test_uuids_and_times_are_ids():
    ids = [uuid.UUID(int=i) for i in range(3)]
    expected = hashing.to_int64([str(i) for i in ids])
    np.testing.assert_array_equal(hashing.to_int64(ids), expected)
    np.testing.assert_array_equal(hashing.to_int64(np.array(ids, object)), expected)
    assert hashing.to_int64(ids[0]) == expected[0]
    times = np.array(["1970-01-02", "1970-01-01T00:00:01"], "datetime64[s]")
    np.testing.assert_array_equal(hashing.to_int64(times), [86_400_000_000, 1_000_000])
    with pytest.raises(ValueError, match="NaT"):
        hashing.to_int64(np.array(["NaT"], "datetime64[s]"))

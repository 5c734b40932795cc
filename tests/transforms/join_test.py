"""The join against a Python dict."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import ofb_tf
from ofb_tf.records import maintenance, partition_of
from ofb_tf.transforms.join import (
    RecordIndex,
    lookup_in_columns,
    lookup_in_memory,
    oldest_timestamp,
)

any_id = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-20, 20),
    st.sampled_from([-(2**63), 2**63 - 1, 0]),
)


@settings(max_examples=300)
@given(st.sets(any_id, min_size=1, max_size=200), st.lists(any_id, max_size=60))
def test_find_equals_a_dict(stored, others):
    ids = np.array(sorted(stored), np.int64)
    index = RecordIndex(tf.constant(ids))
    queries = np.array([*others, *ids[::3]], np.int64)
    row, found = (t.numpy() for t in index.find(tf.constant(queries)))
    place = {value: i for i, value in enumerate(ids.tolist())}
    assert found.tolist() == [q in place for q in queries.tolist()]
    assert row.tolist() == [place.get(q, 0) for q in queries.tolist()]


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(10_000),
        np.arange(10_000) * 1024,
        np.concatenate([np.arange(5000), 2**62 + np.arange(5000)]),
        np.cumsum(2 ** np.minimum(np.arange(3000) // 60, 50)),
        np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 10_000),
    ],
    ids=["counter", "strided", "two clusters", "exponential", "hashes"],
)
def test_find_in_even_and_clustered_ids(ids):
    ids = np.unique(ids).astype(np.int64)
    index = RecordIndex(tf.constant(ids))
    row, found = index.find(tf.constant(ids))
    assert found.numpy().all()
    np.testing.assert_array_equal(row, np.arange(len(ids)))
    absent = np.setdiff1d(ids + 1, ids)
    assert not index.find(tf.constant(absent))[1].numpy().any()


def records(**changes):
    arguments = {
        "example_ids": np.array([30, 10, 20]),
        "logits": np.array([[3.0, 0], [1, 0], [2, 0]], np.float32),
        "model_versions": np.array([7, 8, 7]),
        "timestamps": np.array([300, 100, 200]),
    }
    return ofb_tf.ForwardRecords.from_columns(**arguments | changes)


def test_fields_of_a_batch():
    fields = lookup_in_memory(records(), None).fields(tf.constant([20, 40, 10], tf.int64))
    assert fields["has_record"].numpy().tolist() == [True, False, True]
    np.testing.assert_array_equal(fields["logits"], [[2, 0], [np.nan] * 2, [1, 0]])
    assert fields["model_version"].numpy().tolist() == [7, -1, 8]
    assert fields["timestamp"].numpy().tolist() == [200, -1, 100]


def test_losses_join_too():
    losses = np.array([0.3, 0.1, 0.2], np.float32)
    lookup = lookup_in_memory(records(logits=None, losses=losses), None)
    fields = lookup.fields(tf.constant([10, 11], tf.int64))
    np.testing.assert_array_equal(fields["loss"], np.array([0.1, np.nan], np.float32))
    assert "logits" not in fields


def stream():
    return tf.data.Dataset.from_tensor_slices({"example_id": [10, 11, 30], "x": [1.0, 2.0, 3.0]})


def test_join_keeps_drops_or_fails():
    kept = list(stream().apply(ofb_tf.join_forward_records(records())))
    assert [bool(e["has_record"]) for e in kept] == [True, False, True]
    dropped = list(stream().apply(ofb_tf.join_forward_records(records(), missing="drop")))
    assert [int(e["example_id"]) for e in dropped] == [10, 30]
    joined = stream().apply(ofb_tf.join_forward_records(records(), missing="error"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="No forward record for.*11"):
        list(joined)


def test_join_puts_fields_into_the_features_of_a_tuple():
    pairs = stream().map(lambda e: (e, 1))
    x, y = next(iter(pairs.apply(ofb_tf.join_forward_records(records()))))
    assert float(x["logits"][0]) == 1.0
    assert int(y) == 1
    dropped = pairs.apply(ofb_tf.join_forward_records(records(), missing="drop"))
    assert len(list(dropped)) == 2


def test_bad_arguments():
    with pytest.raises(ValueError, match="missing must be one of .*'flag'"):
        ofb_tf.join_forward_records(records(), missing="uniform")
    with pytest.raises(ValueError, match="'id' is missing from the elements"):
        stream().apply(ofb_tf.join_forward_records(records(), id_key="id"))
    with pytest.raises(ValueError, match="max_age must be positive"):
        oldest_timestamp(0, None)


def test_a_partitions_lookup_gives_the_same_fields_of_top_k_records(tmp_path):
    logits = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    with ofb_tf.ForwardRecordWriter(tmp_path / "in", top_k=5) as writer:
        writer.write(np.arange(300), logits)
    maintenance.partition(tmp_path / "in", tmp_path / "out", 3)
    partitioned = ofb_tf.PartitionedRecords(str(tmp_path / "out"))
    in_memory = lookup_in_memory(ofb_tf.ForwardRecords.load(tmp_path / "in"), None)
    ids = np.arange(300)
    for partition in range(3):
        here = tf.constant(ids[partition_of(ids, 3) == partition])
        (columns,) = partitioned.dataset(partition)
        got = lookup_in_columns(columns, None).fields(here)
        expected = in_memory.fields(here)
        assert set(got) == set(expected)
        assert (got["num_outputs"].numpy() == 40).all()
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_keep_is_the_deprecated_name_of_flag():
    with pytest.warns(DeprecationWarning, match="use missing='flag'"):
        old = ofb_tf.join_forward_records(records(), missing="keep")
    new = ofb_tf.join_forward_records(records())
    ofb_tf.testing.assert_same_elements(stream().apply(old), stream().apply(new))

import os

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import (
    CorruptRecordsError,
    ForwardRecords,
    PartitionedRecords,
    partition,
    partition_of,
)
from ofb_tf.records.partitioned import partition_path
from tests.records.record_files import flip, write


@pytest.fixture
def directory(tmp_path):
    write(tmp_path / "in", np.arange(500), np.random.default_rng(0).normal(size=(500, 2)))
    partition(tmp_path / "in", tmp_path / "out", 5)
    return str(tmp_path / "out")


def test_partitions_agree_between_graph_and_numpy_and_are_even():
    ids = np.arange(-50_000, 50_000)
    for n in (1, 7, 16):
        got = partition_of(ids, n)
        np.testing.assert_array_equal(tf.function(partition_of)(tf.constant(ids), n), got)
        share = np.bincount(got, minlength=n) / len(ids)
        tolerance = 5 * np.sqrt(1 / n * (1 - 1 / n) / len(ids))
        np.testing.assert_allclose(share, 1 / n, atol=tolerance + 1e-12)
    with pytest.raises(ValueError, match="num_partitions must be at least 1"):
        partition_of(ids, 0)


def test_a_missing_partition_is_empty(directory):
    everything = ForwardRecords.load(directory)
    expected = [partition_of(everything.example_ids.numpy(), 5) == p for p in range(5)]
    for missing in (4, 1):  # the last, and one in the middle
        os.remove(partition_path(directory, missing, 5))
        expected[missing][:] = False
        records = PartitionedRecords(directory)
        assert (records.num_partitions, records.num_outputs) == (5, 2)
        elements = list(tf.data.Dataset.range(5).flat_map(records.dataset))
        assert len(elements) == 5
        for columns, rows in zip(elements, expected, strict=True):
            np.testing.assert_array_equal(
                columns["example_id"], everything.example_ids.numpy()[rows]
            )
            np.testing.assert_array_equal(columns["logits"], everything.logits.numpy()[rows])
            assert columns["logits"].dtype == tf.float32
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(records.dataset(tf.constant(5, tf.int64)))


def test_every_partition_may_have_its_own_compression(directory, tmp_path):
    partition(tmp_path / "in", tmp_path / "gz", 5, compression="GZIP")
    os.replace(partition_path(tmp_path / "gz", 2, 5), partition_path(directory, 2, 5))
    elements = list(tf.data.Dataset.range(5).flat_map(PartitionedRecords(directory).dataset))
    ids = np.sort(np.concatenate([columns["example_id"] for columns in elements]))
    np.testing.assert_array_equal(ids, np.arange(500))


def test_sets_that_are_none_are_refused(directory):
    first = partition_path(directory, 0, 5)
    for other in ("partition-00000-of-00004.ofbr", "partition-00007-of-00005.ofbr", "more.ofbr"):
        os.link(first, os.path.join(directory, other))
        with pytest.raises(ValueError, match="one set of files"):
            PartitionedRecords(directory)
        os.remove(os.path.join(directory, other))
    os.mkdir(os.path.join(directory, "spool-0123"))
    with pytest.raises(ValueError, match="still running or was interrupted"):
        PartitionedRecords(directory)


def test_a_header_is_checked_at_construction(directory):
    flip(partition_path(directory, 3, 5), 5, 1)  # the first TFRecord now claims 2^40 bytes
    with pytest.raises(CorruptRecordsError, match="partition-00003.*claims"):
        PartitionedRecords(directory)

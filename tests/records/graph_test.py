import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import (
    ForwardRecords,
    ForwardRecordWriter,
    partition_of,
    read_schema,
    sorted_file_dataset,
)

COLUMNS = {"example_id": "example_ids", "logits": "logits", "timestamp": "timestamps"}


def write(directory, ids, **arguments):
    rng = np.random.default_rng(0)
    with ForwardRecordWriter(directory, block_records=64, **arguments) as w:
        w.write(
            ids,
            rng.normal(size=(len(ids), 3)),
            model_version=np.repeat(np.arange(len(ids)) // 100, 1),
            timestamp=rng.integers(-(2**62), 2**62, len(ids)),
        )
    return os.path.join(directory, os.listdir(directory)[0])


@pytest.mark.parametrize("logits_dtype", ["float32", "float16"])
@pytest.mark.parametrize("compression", [None, "GZIP"])
def test_the_graph_reads_what_the_reader_reads(tmp_path, logits_dtype, compression):
    path = write(tmp_path, np.arange(1000) * 3, logits_dtype=logits_dtype, compression=compression)
    schema = read_schema(path)

    def load(name):
        columns = sorted_file_dataset(
            name, schema, compression=compression or ""
        ).get_single_element()
        return tf.data.Dataset.from_tensors(columns)

    columns = next(iter(tf.data.Dataset.from_tensors(path).flat_map(load)))
    records = ForwardRecords.load(path)
    for name, attribute in COLUMNS.items():
        np.testing.assert_array_equal(columns[name], getattr(records, attribute))
    np.testing.assert_array_equal(columns["model_version"], records.model_versions)


def test_unsorted_repeated_damaged_and_other_files_are_refused(tmp_path):
    for name, ids in {"unsorted": [2, 1], "repeated": [1, 1]}.items():
        path = write(tmp_path / name, np.array(ids))
        with pytest.raises(tf.errors.InvalidArgumentError, match="strictly increasing"):
            sorted_file_dataset(path, read_schema(path)).get_single_element()
    path = write(tmp_path / "other", np.arange(100))
    schema = read_schema(path)
    with pytest.raises(tf.errors.InvalidArgumentError):
        sorted_file_dataset(path, type(schema)(7, 0, schema.columns)).get_single_element()
    data = bytearray(pathlib.Path(path).read_bytes())
    data[500] ^= 1
    with open(path, "wb") as file:
        file.write(data)
    with pytest.raises(tf.errors.DataLossError):
        sorted_file_dataset(path, schema).get_single_element()
    blocks = list(tf.data.TFRecordDataset(write(tmp_path / "cut", np.arange(100))))
    with tf.io.TFRecordWriter(path) as w:
        w.write(blocks[0].numpy())
    with pytest.raises(tf.errors.InvalidArgumentError, match="not complete"):
        sorted_file_dataset(path, schema).get_single_element()


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

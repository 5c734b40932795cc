import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import CorruptRecordsError, ForwardRecords, read_schema, sorted_file_dataset
from tests.records import record_files


def write(directory, ids, **writer):
    rng = np.random.default_rng(0)
    return record_files.write(
        directory,
        ids,
        rng.normal(size=(len(ids), 3)),
        block_records=64,
        writer=writer,
        model_version=np.arange(len(ids)) // 100,
        timestamp=rng.integers(-(2**62), 2**62, len(ids)),
    )


@pytest.mark.parametrize("logits_dtype", ["float32", "float16"])
@pytest.mark.parametrize("compression", [None, "GZIP"])
def test_the_graph_reads_what_the_reader_reads(tmp_path, logits_dtype, compression):
    path = write(tmp_path, np.arange(1000) * 3, logits_dtype=logits_dtype, compression=compression)
    schema = read_schema(path)

    def load(name):
        return sorted_file_dataset(name, schema, compression=compression or "")

    columns = next(iter(tf.data.Dataset.from_tensors(path).flat_map(load)))
    records = ForwardRecords.load(path)
    assert set(columns) == set(records.columns)
    for name in set(columns) - {"model_version"}:
        np.testing.assert_array_equal(columns[name], records.columns[name])
    np.testing.assert_array_equal(columns["model_version"], records.model_versions)


def test_no_file_reads_as_no_records(tmp_path):
    path = write(tmp_path, np.arange(10), top_k=2)
    schema = read_schema(path)
    there = sorted_file_dataset(path, schema)
    missing = sorted_file_dataset("", schema)
    assert missing.element_spec == there.element_spec
    (columns,) = missing
    assert all(columns[name].shape[0] == 0 for name in schema.columns)
    assert columns["logits"].shape == [0, 2]
    assert columns["num_outputs"] == 3


def test_columns_of_a_block_that_differ_in_length_are_refused(tmp_path):
    path = write(tmp_path, np.arange(128))
    schema = read_schema(path)
    blocks = [tf.train.Example.FromString(block) for block in raw_blocks(path)]
    first, second = (block.features.feature["logits"].bytes_list.value for block in blocks[:2])
    size = len(first[0]) // 64
    first[0], second[0] = first[0] + second[0][:size], second[0][size:]  # as many in all
    with tf.io.TFRecordWriter(path) as writer:
        for block in blocks:
            writer.write(block.SerializeToString())
    with pytest.raises(tf.errors.InvalidArgumentError, match="one record per id"):
        sorted_file_dataset(path, schema).get_single_element()


def raw_blocks(path):
    return list(tf.data.TFRecordDataset(path).as_numpy_iterator())


def test_unsorted_repeated_and_incomplete_files_and_other_schemas_are_refused(tmp_path):
    for name, ids in {"unsorted": [2, 1], "repeated": [1, 1]}.items():
        path = write(tmp_path / name, np.array(ids))
        with pytest.raises(tf.errors.InvalidArgumentError, match="strictly increasing"):
            sorted_file_dataset(path, read_schema(path)).get_single_element()
    path = write(tmp_path / "other", np.arange(100))
    schema = read_schema(path)
    with pytest.raises(tf.errors.InvalidArgumentError):
        sorted_file_dataset(path, type(schema)(7, 0, schema.columns)).get_single_element()
    block = next(iter(tf.data.TFRecordDataset(path))).numpy()
    for blocks in ([block], []):
        record_files.write_tfrecords(path, blocks)
        with pytest.raises(tf.errors.InvalidArgumentError, match="not complete"):
            sorted_file_dataset(path, schema).get_single_element()


def test_damage_is_an_error_when_run_and_a_wrong_length_before(tmp_path):
    path = write(tmp_path, np.arange(100))
    schema = read_schema(path)
    record_files.flip(path, 500)
    with pytest.raises(tf.errors.DataLossError):
        sorted_file_dataset(path, schema).get_single_element()
    record_files.flip(path, 5, 1)  # the first TFRecord now claims 2^40 bytes
    with pytest.raises(CorruptRecordsError, match="at byte 0: a TFRecord claims 1099511"):
        sorted_file_dataset(path, schema)

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import CorruptRecordsError, ForwardRecords, ForwardRecordWriter, read_schema
from ofb_tf.records.reader import newest_order
from ofb_tf.records.schema import Schema


def write(directory, ids, logits=None, **arguments):
    with ForwardRecordWriter(directory, block_records=10) as w:
        logits = np.zeros((len(ids), 1)) if logits is None else logits
        w.write(ids, logits, **arguments)
    return max((os.path.join(directory, name) for name in os.listdir(directory)), key=mtime)


def mtime(path):
    return os.stat(path).st_mtime_ns


@pytest.mark.parametrize("seed", range(5))
def test_the_newest_record_of_each_id_is_kept(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 50, 300)
    times = rng.integers(0, 4, 300)  # many ties: the last one wins
    expected = {}
    for position, (i, t) in enumerate(zip(ids, times, strict=True)):
        if i not in expected or t >= times[expected[i]]:
            expected[i] = position
    np.testing.assert_array_equal(newest_order(ids, times), [expected[i] for i in sorted(expected)])


def test_newest_of_several_files_and_as_of(tmp_path):
    write(tmp_path, [1, 2, 3], [1.0, 1.0, 1.0], timestamp=100, model_version=7)
    write(tmp_path, [2, 3], [2.0, 2.0], timestamp=200, model_version=8)
    write(tmp_path, [3], [3.0], timestamp=[300], model_version=9)
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.logits[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(records.model_versions, [7, 8, 9])
    assert (records.counts.num_read, records.counts.num_duplicates) == (6, 3)
    assert records.counts.num_files == 3
    records = ForwardRecords.load(tmp_path, as_of=200)
    np.testing.assert_array_equal(records.logits[:, 0], [1, 2, 2])
    assert (records.counts.num_after, records.counts.num_duplicates) == (1, 2)


def test_other_numbers_of_outputs_name_both_files(tmp_path):
    first = write(tmp_path, [1], [[1.0, 2.0]])
    second = write(tmp_path, [1], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="num_outputs=2.*num_outputs=3.*Load them apart") as error:
        ForwardRecords.load([first, second])
    assert first in str(error.value)
    assert second in str(error.value)


def test_float16_and_float32_files_load_together(tmp_path):
    write(tmp_path, [1], [1.5])
    with ForwardRecordWriter(tmp_path, logits_dtype="float16") as w:
        w.write([2], [2.5])
    records = ForwardRecords.load(tmp_path)
    assert records.logits.dtype == tf.float32
    np.testing.assert_array_equal(records.logits[:, 0], [1.5, 2.5])


def test_a_truncated_file_is_an_error_or_a_counted_skip(tmp_path):
    path = write(tmp_path, np.arange(40))
    data = pathlib.Path(path).read_bytes()
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
    with pytest.raises(CorruptRecordsError, match="at byte [1-9].*on_corrupt") as error:
        ForwardRecords.load(path)
    assert path in str(error.value)
    records = ForwardRecords.load(path, on_corrupt="skip")
    assert 0 < len(records) < 40
    assert records.counts.num_corrupt_blocks == 1


def test_a_flipped_byte_loses_the_rest_of_its_file(tmp_path):
    path = write(tmp_path, np.arange(40))
    write(tmp_path, np.arange(100, 110))
    data = bytearray(pathlib.Path(path).read_bytes())
    data[len(data) // 2] ^= 4
    pathlib.Path(path).write_bytes(data)
    with pytest.raises(CorruptRecordsError) as error:
        ForwardRecords.load(tmp_path)
    records = ForwardRecords.load(tmp_path, on_corrupt="skip")
    np.testing.assert_array_equal(records.example_ids, [*range(20), *range(100, 110)])
    assert records.counts.num_corrupt_blocks == 1
    assert records.counts.damages == [error.value.damage]
    assert error.value.damage.path == path
    with pytest.raises(ValueError, match="on_corrupt must be"):
        ForwardRecords.load(tmp_path, on_corrupt="ignore")


def test_a_file_cut_between_blocks_misses_its_footer(tmp_path):
    path = write(tmp_path, np.arange(40))
    blocks = [r.numpy() for r in tf.data.TFRecordDataset(path)]
    with tf.io.TFRecordWriter(path) as w:
        for block in blocks[:2]:
            w.write(block)
    with pytest.raises(CorruptRecordsError, match="footer is missing"):
        ForwardRecords.load(path)
    with tf.io.TFRecordWriter(path) as w:
        for block in [blocks[0], *blocks[2:]]:
            w.write(block)
    with pytest.raises(CorruptRecordsError, match="num_records=40"):
        ForwardRecords.load(path)
    assert len(ForwardRecords.load(path, on_corrupt="skip")) == 30


def test_tfrecords_of_something_else(tmp_path):
    path = str(tmp_path / "other.ofbr")
    with tf.io.TFRecordWriter(path) as w:
        w.write(tf.train.Example().SerializeToString())
    with pytest.raises(CorruptRecordsError, match="format_version"):
        ForwardRecords.load(path)
    with pytest.raises(ValueError, match="hold no whole block"):
        ForwardRecords.load(path, on_corrupt="skip")


def test_read_schema(tmp_path):
    write(tmp_path, [1], [[1.0, 2.0]], loss=[1.0])
    names = ("example_id", "logits", "loss", "model_version", "timestamp")
    assert read_schema(tmp_path) == Schema(2, 0, names)


@pytest.mark.parametrize("name", ["plain", "gzip", "narrow", "open", "top_k"])
def test_files_of_the_first_release_still_load(name):
    (path,) = (pathlib.Path(__file__).parent / "format_v1").glob(f"{name}.*")
    records = ForwardRecords.load(path)
    ids = np.arange(20) * 7919 - 50_000
    np.testing.assert_array_equal(records.example_ids, ids)
    np.testing.assert_array_equal(records.model_versions, ids // 100_000)
    np.testing.assert_array_equal(records.timestamps, ids * 1_000_003)
    np.testing.assert_array_equal(records.losses, (ids / 100).astype(np.float32))
    logits = np.stack([ids / 1000, -ids / 700, ids * 0 + 1.5], 1).astype(np.float32)
    if name == "top_k":
        assert records.class_ids.shape == [20, 2]
        logits = np.take_along_axis(logits, records.class_ids.numpy().astype(int), 1)
    np.testing.assert_array_equal(
        records.logits, logits.astype(np.float16 if name == "narrow" else np.float32)
    )


def test_one_dict_of_columns_and_its_attributes(tmp_path):
    write(tmp_path, [1, 2], [[3.0, 1.0, 2.0]] * 2, loss=[0.5, 1.0])
    records = ForwardRecords.load(tmp_path)
    assert list(records.columns) == ["example_id", "logits", "loss", "model_version", "timestamp"]
    assert records.logits is records.columns["logits"]
    assert records.version_indices is records.columns["model_version"]
    assert records.class_ids is records.logsumexp is records.sum_squared_probabilities is None
    assert records.schema == read_schema(tmp_path)
    with pytest.raises(AttributeError):
        records.logits = None


def test_from_columns_sorts_and_keeps_the_newest():
    records = ForwardRecords.from_columns(
        [5, 3, 5], [[1.0], [2.0], [3.0]], model_versions=[1, 70_000, 3], timestamps=[9, 1, 8]
    )
    np.testing.assert_array_equal(records.example_ids, [3, 5])
    np.testing.assert_array_equal(records.logits, [[2.0], [1.0]])
    np.testing.assert_array_equal(records.model_versions, [70_000, 1])
    assert records.counts.num_duplicates == 1
    assert ForwardRecords.from_columns([1], losses=[0.5]).num_outputs == 0
    (example_id,) = ForwardRecords.from_columns(["7"], losses=[0.5]).example_ids
    assert example_id == tf.strings.to_hash_bucket_fast("7", 2**63 - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"example_ids": [1.0], "logits": [1.0]}, "example_ids must be integers"),
        ({"example_ids": [1], "logits": [[1.0], [2.0]]}, r"logits must be \[1, k\]"),
        ({"example_ids": [1], "losses": [1.0, 2.0]}, r"losses must be \[1\]"),
        ({"example_ids": [1]}, "logits or losses must be given"),
    ],
)
def test_from_columns_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForwardRecords.from_columns(**arguments)


def test_many_versions_stay_exact_and_small(tmp_path):
    ids = np.arange(1000)
    write(tmp_path, ids, model_version=ids * 10**15 - 5)
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.model_versions, ids * 10**15 - 5)
    assert records.version_indices.dtype == tf.uint16

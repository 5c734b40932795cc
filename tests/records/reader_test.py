import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import CorruptRecordsError, ForwardRecords, ForwardRecordWriter, read_schema
from ofb_tf.records import schema as block_format
from ofb_tf.records.reader import newest_order


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


def test_patterns(tmp_path):
    first = write(tmp_path, [1])
    second = write(tmp_path, [2])
    (tmp_path / "README").write_text("not records")
    for pattern in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/*.ofbr", [first, second]):
        assert len(ForwardRecords.load(pattern)) == 2
    assert len(ForwardRecords.load(first)) == 1
    os.rename(first, tmp_path / "any_name")
    assert len(ForwardRecords.load(tmp_path / "any_name")) == 1


def test_patterns_that_name_nothing(tmp_path):
    (tmp_path / "README").write_text("not records")
    with pytest.raises(FileNotFoundError, match="holds no record files.*ForwardRecordWriter"):
        ForwardRecords.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="matches nothing"):
        ForwardRecords.load(tmp_path / "*.ofbr")
    with pytest.raises(FileNotFoundError, match="none of them a record file"):
        ForwardRecords.load(f"{tmp_path}/R*")
    with pytest.raises(ValueError, match="at least one"):
        ForwardRecords.load([])
    with pytest.raises(ValueError, match="on_corrupt must be"):
        ForwardRecords.load(tmp_path, on_corrupt="ignore")


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


def test_a_flipped_byte_costs_its_block_only(tmp_path):
    path = write(tmp_path, np.arange(40))
    data = bytearray(pathlib.Path(path).read_bytes())
    data[len(data) // 2] ^= 4
    with open(path, "wb") as file:
        file.write(data)
    with pytest.raises(CorruptRecordsError):
        ForwardRecords.load(path)
    records = ForwardRecords.load(path, on_corrupt="skip")
    assert len(records) == 30
    assert records.counts.num_corrupt_blocks == 1


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
    assert read_schema(tmp_path) == block_format.Schema(2, 0, names)


def test_from_columns_sorts_and_keeps_the_newest():
    records = ForwardRecords.from_columns(
        [5, 3, 5], [[1.0], [2.0], [3.0]], model_versions=[1, 70_000, 3], timestamps=[9, 1, 8]
    )
    np.testing.assert_array_equal(records.example_ids, [3, 5])
    np.testing.assert_array_equal(records.logits, [[2.0], [1.0]])
    np.testing.assert_array_equal(records.model_versions, [70_000, 1])
    assert records.counts.num_duplicates == 1
    assert ForwardRecords.from_columns([1], losses=[0.5]).num_outputs == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"example_ids": [1.0], "logits": [1.0]}, "example_ids must be int64"),
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

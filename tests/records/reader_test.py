import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import CorruptRecordsError, ForwardRecords, read_schema
from ofb_tf.records.reader import newest_order
from ofb_tf.records.schema import Schema
from tests.records.record_files import cut, flip, write, write_tfrecords


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
    write(tmp_path, [2], [2.5], writer={"logits_dtype": "float16"})
    records = ForwardRecords.load(tmp_path)
    assert records.logits.dtype == tf.float32
    np.testing.assert_array_equal(records.logits[:, 0], [1.5, 2.5])


@pytest.mark.parametrize("damage", [flip, lambda path: cut(path, 700)])
def test_damage_loses_the_rest_of_its_file(tmp_path, damage):
    path = write(tmp_path, np.arange(40))
    write(tmp_path, np.arange(100, 110))
    damage(path)
    with pytest.raises(CorruptRecordsError, match="at byte [1-9].*on_corrupt") as error:
        ForwardRecords.load(tmp_path)
    assert path in str(error.value)
    assert error.value.damage.path == path
    records = ForwardRecords.load(tmp_path, on_corrupt="skip")
    np.testing.assert_array_equal(records.example_ids, [*range(20), *range(100, 110)])
    assert records.counts.num_corrupt_blocks == 1
    assert records.counts.damages == [error.value.damage]
    with pytest.raises(ValueError, match="on_corrupt must be"):
        ForwardRecords.load(tmp_path, on_corrupt="ignore")


def test_a_file_cut_between_blocks_misses_its_footer(tmp_path):
    path = write(tmp_path, np.arange(40))
    blocks = [r.numpy() for r in tf.data.TFRecordDataset(path)]
    for kept, message in (
        (blocks[:2], "footer is missing"),
        ([blocks[0], *blocks[2:]], "num_records=40"),
    ):
        write_tfrecords(path, kept)
        with pytest.raises(CorruptRecordsError, match=message):
            ForwardRecords.load(path)
    assert len(ForwardRecords.load(path, on_corrupt="skip")) == 30


def test_tfrecords_of_something_else(tmp_path):
    path = write_tfrecords(tmp_path / "other.ofbr", [tf.train.Example().SerializeToString()])
    with pytest.raises(CorruptRecordsError, match="format_version"):
        ForwardRecords.load(path)
    with pytest.raises(ValueError, match="hold no whole block"):
        ForwardRecords.load(path, on_corrupt="skip")


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
    assert records.schema == read_schema(tmp_path) == Schema(3, 0, tuple(records.columns))
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

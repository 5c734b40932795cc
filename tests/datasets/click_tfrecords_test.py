"""The click stream written as TFRecords comes back bit for bit."""

import pathlib

import pytest
import tensorflow as tf

from ofb_tf import testing
from ofb_tf.datasets import ClickStream


@pytest.mark.parametrize(("num_shards", "compression"), [(1, None), (3, "GZIP"), (9, None)])
def test_roundtrip(tmp_path, num_shards, compression):
    stream = ClickStream(num_examples=1000, positive_rate=0.3)
    paths = stream.write_tfrecords(
        tmp_path / "new", num_shards=num_shards, start=3, count=500, compression=compression
    )
    assert [pathlib.Path(path).name for path in paths] == [
        f"click_stream-{shard:05d}-of-{num_shards:05d}.tfrecord" for shard in range(num_shards)
    ]
    assert sorted(map(str, (tmp_path / "new").iterdir())) == paths
    serialized = tf.data.TFRecordDataset(paths, compression_type=compression or "")
    read = serialized.batch(64).map(stream.parse_fn).unbatch()
    expected = stream.dataset(start=3, count=500)
    assert read.element_spec == expected.element_spec
    testing.assert_same_elements(read.as_numpy_iterator(), expected.as_numpy_iterator())


def test_every_shard_has_its_share(tmp_path):
    paths = ClickStream(num_examples=10).write_tfrecords(tmp_path, num_shards=4)
    lengths = [len(list(tf.data.TFRecordDataset(path))) for path in paths]
    assert sum(lengths) == 10
    assert set(lengths) == {2, 3}


def test_feature_spec_names_39_scalars(tmp_path):
    (path,) = ClickStream(num_examples=2).write_tfrecords(tmp_path)
    spec = ClickStream.feature_spec()
    features = [name for name in spec if name.split("_")[0] in ("dense", "categorical")]
    assert len(features) == 39
    assert set(spec) - set(features) == {"example_id", "label", "click_probability"}
    example = tf.train.Example.FromString(next(tf.data.TFRecordDataset(path).as_numpy_iterator()))
    assert set(example.features.feature) == set(spec)
    one = tf.io.parse_single_example(example.SerializeToString(), spec)
    assert all(value.shape == [] for value in one.values())
    assert float(one["dense_3"]) == float(ClickStream().generate([0])["dense"][0, 3])


def test_shards_are_never_mixed_with_earlier_ones(tmp_path):
    stream = ClickStream(num_examples=5)
    stream.write_tfrecords(tmp_path, num_shards=2)
    with pytest.raises(FileExistsError, match="Found 2 in .*delete them or write elsewhere"):
        stream.write_tfrecords(tmp_path)

"""TFDS datasets with stable ids, on tiny ones that TFDS writes with the real names and features."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from ofb_tf import testing
from ofb_tf.datasets import describe_tfds, load_tfds

_DIAMOND_FEATURES = {
    **dict.fromkeys(("carat", "depth", "table", "x", "y", "z"), tf.float32),
    "clarity": tfds.features.ClassLabel(num_classes=8),
    "color": tfds.features.ClassLabel(num_classes=7),
    "cut": tfds.features.ClassLabel(num_classes=5),
}


def _image(row):
    return np.random.default_rng(row).integers(256, size=(28, 28, 1), dtype=np.uint8)


def _digit(row):
    return {"image": _image(row), "label": row % 10}


def _click(row):
    return {"nested": {"example_id": row}, "label": row % 2}


def _diamond(row):
    return {
        "features": {
            name: row % 5 if isinstance(dtype, tfds.features.ClassLabel) else row + 0.5
            for name, dtype in _DIAMOND_FEATURES.items()
        },
        "price": 100.0 + row,
    }


def _prepare(data_dir, name, features, supervised_keys, splits, example, version="1.0.0", shards=1):
    """Writes a dataset as TFDS stores it, from `example(row)`."""

    class TinyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        pkg_dir_path = pathlib.Path(__file__).parent

        def _info(self):
            dictionary = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(
                builder=self, features=dictionary, supervised_keys=supervised_keys
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in splits.items()}

        def _generate_examples(self, count):
            yield from ((row, example(row)) for row in range(count))

    TinyBuilder.name = name
    settings = tfds.download.DownloadConfig(num_shards=shards, try_download_gcs=False)
    TinyBuilder(data_dir=data_dir).download_and_prepare(download_config=settings)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Tiny `mnist` (three shards of 20), `diamonds`, and datasets that cannot be used."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    mnist = {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    splits = {"train": 60, "test": 20}
    _prepare(directory, "mnist", mnist, ("image", "label"), splits, _digit, "3.0.1", shards=3)
    diamonds = {"features": _DIAMOND_FEATURES, "price": tf.float32}
    _prepare(directory, "diamonds", diamonds, ("features", "price"), {"train": 40}, _diamond)
    pair = {"a": tf.int64, "b": tf.int64}
    for name, keys in (("unsupervised", None), ("counted", ("a", "b"))):
        _prepare(directory, name, pair, keys, {"train": 3}, lambda r: {"a": r, "b": r})
    clicks = {"nested": {"example_id": tf.int64}, "label": tfds.features.ClassLabel(num_classes=2)}
    _prepare(directory, "clashing", clicks, ("nested", "label"), {"train": 3}, _click)
    return directory


def _images_by_id(data_dir, split, **arguments):
    elements = load_tfds("mnist", split, data_dir=data_dir, **arguments).as_numpy_iterator()
    return {int(element["example_id"]): element["image"].tobytes() for element in elements}


def test_mnist(data_dir):
    dataset = load_tfds("mnist", "train", data_dir=data_dir)
    assert dataset.element_spec == {
        "example_id": tf.TensorSpec([], tf.int64),
        "image": tf.TensorSpec([28, 28, 1], tf.uint8),
        "label": tf.TensorSpec([], tf.int64),
    }
    elements = list(dataset.as_numpy_iterator())
    written = {_image(row).tobytes(): row % 10 for row in range(60)}
    assert {e["image"].tobytes(): e["label"] for e in elements} == written
    assert all(element["example_id"] >= 0 for element in elements)


def test_diamonds_learns_the_logarithm_of_the_price(data_dir):
    elements = list(load_tfds("diamonds", "train", data_dir=data_dir).as_numpy_iterator())
    assert set(elements[0]) == {"example_id", "label", *_DIAMOND_FEATURES}
    expected = {row + 0.5: np.log(100.0 + row) for row in range(40)}
    for element in elements:
        assert element["label"].dtype == np.float32
        np.testing.assert_allclose(element["label"], expected.pop(element["carat"]), rtol=1e-6)
    assert not expected


def test_ids_are_unique_over_the_splits(data_dir):
    ids = [
        int(element["example_id"])
        for name, split in (("mnist", "train"), ("mnist", "test"), ("diamonds", "train"))
        for element in load_tfds(name, split, data_dir=data_dir).as_numpy_iterator()
    ]
    assert len(set(ids)) == len(ids) == 120


@pytest.mark.parametrize(
    "arguments",
    [
        {"read_config": tfds.ReadConfig(interleave_cycle_length=1)},
        {"read_config": tfds.ReadConfig(interleave_cycle_length=3, interleave_block_length=1)},
        {"shuffle_files": True, "read_config": tfds.ReadConfig(num_parallel_calls_for_decode=2)},
    ],
)
def test_ids_do_not_depend_on_how_files_are_read(data_dir, arguments):
    in_order_of_the_files = _images_by_id(data_dir, "train")
    assert _images_by_id(data_dir, "train", **arguments) == in_order_of_the_files
    parts = [_images_by_id(data_dir, split) for split in ("train[:35%]", "train[35%:]")]
    assert parts[0] | parts[1] == in_order_of_the_files


def test_undecoded_images_decode_to_the_same(data_dir):
    dataset = load_tfds("mnist", "test", data_dir=data_dir, decode_images=False)
    assert dataset.element_spec["image"] == tf.TensorSpec([], tf.string)
    decoded = dataset.map(lambda element: element | {"image": tf.io.decode_png(element["image"])})
    testing.assert_same_elements(
        decoded.as_numpy_iterator(),
        load_tfds("mnist", "test", data_dir=data_dir).as_numpy_iterator(),
    )


def test_checkpoint(data_dir):
    testing.assert_checkpoint_roundtrip(load_tfds("diamonds", "train", data_dir=data_dir).batch(9))


def test_describe(data_dir):
    mnist = describe_tfds("mnist", data_dir=data_dir)
    assert (mnist.name, mnist.task, mnist.num_classes) == ("mnist/3.0.1", "multiclass", 10)
    assert mnist.feature_names == ("image",)
    assert mnist.num_examples == {"train": 60, "test": 20}
    diamonds = describe_tfds("diamonds", data_dir=data_dir)
    assert (diamonds.task, diamonds.num_classes) == ("regression", 0)
    assert diamonds.feature_names == tuple(sorted(_DIAMOND_FEATURES))


@pytest.mark.parametrize(
    ("name", "split", "error", "message"),
    [
        ("mnits", "train", ValueError, "must be a TFDS dataset. Received: 'mnits'.*Did you mean"),
        ("mnist", "trian", ValueError, r"split must be .*\['test', 'train'\].*Received: 'trian'"),
        ("iris", "train", FileNotFoundError, "'iris' is not prepared in .*download=True"),
        ("unsupervised", "train", ValueError, "supervised keys with one target.*tfds.load"),
        ("clashing", "train", ValueError, r"Repeated: \['example_id'\]"),
    ],
)
def test_rejects(data_dir, name, split, error, message):
    with pytest.raises(error, match=message):
        load_tfds(name, split, data_dir=data_dir)


def test_describe_rejects_integers_that_are_no_classes(data_dir):
    with pytest.raises(ValueError, match="must be a ClassLabel or a float"):
        describe_tfds("counted", data_dir=data_dir)


def test_an_empty_directory_is_not_filled_unasked(tmp_path):
    with pytest.raises(FileNotFoundError, match="Pass download=True, or the data_dir"):
        load_tfds("mnist", "train", data_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())

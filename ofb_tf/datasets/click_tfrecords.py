"""The click stream as sharded TFRecord files of tf.Examples with 39 scalar features."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from ofb_tf.checks import check_choice
from ofb_tf.constants import EXAMPLE_ID, LABEL
from ofb_tf.datasets import tf_examples
from ofb_tf.datasets.click_function import NUM_CATEGORICAL, NUM_DENSE

DENSE = "dense"
CATEGORICAL = "categorical"
CLICK_PROBABILITY = "click_probability"
DENSE_NAMES = tuple(f"{DENSE}_{column}" for column in range(NUM_DENSE))
CATEGORICAL_NAMES = tuple(f"{CATEGORICAL}_{column}" for column in range(NUM_CATEGORICAL))

_FILE_PREFIX = "click_stream"


def feature_spec() -> dict[str, tf.io.FixedLenFeature]:
    """What `tf.io.parse_example` needs: 13 float32 and 26 int64 scalars, id, label, probability."""
    floats = dict.fromkeys(DENSE_NAMES, tf.io.FixedLenFeature([], tf.float32))
    integers = (*CATEGORICAL_NAMES, EXAMPLE_ID, LABEL)
    spec = floats | dict.fromkeys(integers, tf.io.FixedLenFeature([], tf.int64))
    return spec | {CLICK_PROBABILITY: tf.io.FixedLenFeature([], tf.float32)}


def parse_fn(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Examples as `ClickStream.generate` returns them, from the bytes of many, string `[n]`."""
    scalars = tf.io.parse_example(serialized, feature_spec())
    return {
        EXAMPLE_ID: scalars[EXAMPLE_ID],
        LABEL: scalars[LABEL],
        DENSE: tf.stack([scalars[name] for name in DENSE_NAMES], axis=1),
        CATEGORICAL: tf.stack([scalars[name] for name in CATEGORICAL_NAMES], axis=1),
        CLICK_PROBABILITY: scalars[CLICK_PROBABILITY],
    }


def write_shards(
    shards: Sequence[tf.data.Dataset], directory: str | os.PathLike, compression: str | None
) -> list[str]:
    """Writes `click_stream-00000-of-00004.tfrecord` and so on, a file per dataset of windows.

    A file appears under its name once it is complete. Shards that are there already are an error,
    because a pattern such as `DIR/*` would mix these with them.
    """
    check_choice("compression", compression, (None, "GZIP"))
    directory = os.fspath(directory)
    tf.io.gfile.makedirs(directory)
    present = tf.io.gfile.glob(os.path.join(directory, f"{_FILE_PREFIX}-*.tfrecord"))
    if present:
        raise FileExistsError(
            f"directory must hold no shards of a click stream. Found {len(present)} in "
            f"{directory!r}: delete them or write elsewhere."
        )
    paths = []
    for number, shard in enumerate(shards):
        name = f"{_FILE_PREFIX}-{number:05d}-of-{len(shards):05d}.tfrecord"
        path = os.path.join(directory, name)
        with tf.io.TFRecordWriter(path + ".open", compression) as writer:
            for window in shard.as_numpy_iterator():
                for serialized in tf_examples.serialize(_columns(window)):
                    writer.write(serialized)
        tf.io.gfile.rename(path + ".open", path)
        paths.append(path)
    return paths


def _columns(window: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields of a window, with a field for each of the scalar features."""
    scalars = {name: window[name] for name in (CLICK_PROBABILITY, EXAMPLE_ID, LABEL)}
    dense = dict(zip(DENSE_NAMES, window[DENSE].T, strict=True))
    categorical = dict(zip(CATEGORICAL_NAMES, window[CATEGORICAL].T, strict=True))
    return scalars | dense | categorical

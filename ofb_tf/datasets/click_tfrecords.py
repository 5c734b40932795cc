"""The click stream as sharded TFRecord files of tf.Examples with 39 scalar features."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from ofb_tf.constants import EXAMPLE_ID, LABEL
from ofb_tf.datasets.click_function import NUM_CATEGORICAL, NUM_DENSE

if TYPE_CHECKING:
    from ofb_tf.datasets.click_stream import ClickStream

DENSE = "dense"
CATEGORICAL = "categorical"
CLICK_PROBABILITY = "click_probability"
DENSE_NAMES = tuple(f"{DENSE}_{column}" for column in range(NUM_DENSE))
CATEGORICAL_NAMES = tuple(f"{CATEGORICAL}_{column}" for column in range(NUM_CATEGORICAL))

_FILE_PREFIX = "click_stream"


def feature_spec() -> dict[str, tf.io.FixedLenFeature]:
    """For `tf.io.parse_example`: 13 float32 and 26 int64 scalars, id, label and probability."""
    scalars = {name: tf.io.FixedLenFeature([], tf.float32) for name in DENSE_NAMES}
    scalars |= {name: tf.io.FixedLenFeature([], tf.int64) for name in CATEGORICAL_NAMES}
    scalars |= {name: tf.io.FixedLenFeature([], tf.int64) for name in (EXAMPLE_ID, LABEL)}
    return scalars | {CLICK_PROBABILITY: tf.io.FixedLenFeature([], tf.float32)}


def parse_fn(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses a batch of serialized examples to what `ClickStream.generate` returns.

    Args:
      serialized: string `[n]`, tf.Examples of `write_tfrecords`.

    Returns:
      `example_id`, `label`, `click_probability` `[n]`, `dense` `[n, 13]`, `categorical` `[n, 26]`.
    """
    scalars = tf.io.parse_example(serialized, feature_spec())
    return {
        EXAMPLE_ID: scalars[EXAMPLE_ID],
        LABEL: scalars[LABEL],
        DENSE: tf.stack([scalars[name] for name in DENSE_NAMES], axis=1),
        CATEGORICAL: tf.stack([scalars[name] for name in CATEGORICAL_NAMES], axis=1),
        CLICK_PROBABILITY: scalars[CLICK_PROBABILITY],
    }


def write_tfrecords(
    stream: "ClickStream",
    directory: str | os.PathLike,
    *,
    num_shards: int = 1,
    start: int = 0,
    count: int | None = None,
    compression: str | None = None,
) -> list[str]:
    """Writes a part of the stream to `click_stream-00000-of-00004.tfrecord` and so on.

    A shard gets its name once it is complete. Each holds a contiguous stretch of time.

    Args:
      stream: the examples to write.
      directory: output directory; made if missing.
      num_shards: number of files, at least 1; their lengths differ by at most one example.
      start: first id.
      count: number of examples; by default all that follow.
      compression: None or "GZIP".

    Returns:
      The paths of the shards in the order of time.

    Raises:
      ValueError: `num_shards` or `compression` is out of range.
      FileExistsError: the directory already holds shards of a click stream, which a pattern such
        as `DIR/*` would mix with these.
    """
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1. Received: {num_shards}")
    if compression not in (None, "GZIP"):
        raise ValueError(f'compression must be None or "GZIP". Received: {compression!r}')
    directory = os.fspath(directory)
    tf.io.gfile.makedirs(directory)
    present = tf.io.gfile.glob(os.path.join(directory, f"{_FILE_PREFIX}-*.tfrecord"))
    if present:
        raise FileExistsError(
            f"directory must not hold shards of a click stream. Found {len(present)} in "
            f"{directory!r}: delete them or write elsewhere."
        )
    count = stream.num_examples - start if count is None else count
    bounds = [start + count * shard // num_shards for shard in range(num_shards + 1)]
    paths = []
    for shard in range(num_shards):
        name = f"{_FILE_PREFIX}-{shard:05d}-of-{num_shards:05d}.tfrecord"
        path = os.path.join(directory, name)
        part = stream.dataset(
            start=bounds[shard], count=bounds[shard + 1] - bounds[shard], batched=True
        )
        with tf.io.TFRecordWriter(path + ".open", compression) as writer:
            for window in part.as_numpy_iterator():
                for serialized in _serialize(window):
                    writer.write(serialized)
        tf.io.gfile.rename(path + ".open", path)
        paths.append(path)
    return paths


def _serialize(window: dict[str, np.ndarray]) -> Iterator[bytes]:
    """A tf.Example for each row of a window.

    Reuses one message: building 42 features for every row takes four times as long.
    """
    example = tf.train.Example()
    feature = example.features.feature
    columns = []
    for name in (CLICK_PROBABILITY, *DENSE_NAMES):
        columns.append(feature[name].float_list.value)
    for name in (EXAMPLE_ID, LABEL, *CATEGORICAL_NAMES):
        columns.append(feature[name].int64_list.value)
    for column in columns:
        column.append(0)
    rows = zip(
        window[CLICK_PROBABILITY].tolist(),
        window[DENSE].tolist(),
        window[EXAMPLE_ID].tolist(),
        window[LABEL].tolist(),
        window[CATEGORICAL].tolist(),
        strict=True,
    )
    for probability, dense, example_id, label, categorical in rows:
        values = (probability, *dense, example_id, label, *categorical)
        for column, value in zip(columns, values, strict=True):
            column[0] = value
        yield example.SerializeToString()

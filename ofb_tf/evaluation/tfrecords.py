"""TFRecord files of tf.Examples: which there are, their features, the columns of an evaluation."""

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf

from ofb_tf.evaluation.stream import STAGE
from ofb_tf.records.files import compression_of, expand

_BATCH = 4096
_KINDS = {"int64_list": tf.int64, "float_list": tf.float32, "bytes_list": tf.string}


def read_examples(
    pattern: str,
    *,
    id_key: str,
    label_key: str | Mapping[str, str],
    timestamp_key: str | None = None,
    slice_keys: Sequence[str] = (),
) -> tf.data.Dataset:
    """Reads some features of tf.Examples, in batches, for `evaluate(batched_input=True)`.

    Args:
      pattern: a file, glob or directory of TFRecord files, each compressed in its own way.
      id_key: feature with one int64 or bytes value in every example.
      label_key: feature with one number; a NaN, float64, where there is none or are several. Of
        several heads, a feature for each by its name.
      timestamp_key: feature with one int64 value in every example, or None.
      slice_keys: features of which the first value counts, empty text where there is none.

    Returns:
      A dataset of dicts with these keys, `[n]` each.

    Raises:
      FileNotFoundError: no file matches.
      ValueError: the first 4096 examples lack id, label or time, or have them in another type.
      tf.errors.InvalidArgumentError: when run, a later example does.
    """
    paths = match_examples(pattern)
    labels = (label_key,) if isinstance(label_key, str) else tuple(label_key.values())
    needed: dict[str, tuple] = {id_key: (tf.int64, tf.string)}
    needed |= dict.fromkeys(labels, (tf.int64, tf.float32))
    if timestamp_key is not None:
        needed[timestamp_key] = (tf.int64,)
    kinds = kinds_of_first(paths, needed)
    for name, allowed in needed.items():
        if kinds.get(name) not in allowed:
            kind = kinds[name].name if name in kinds else "none"
            raise ValueError(
                f"{STAGE}: feature {name!r} must be {' or '.join(t.name for t in allowed)}, got "
                f"{kind} in the first examples of {paths[0]}, which have {sorted(kinds)}."
            )
    # A feature that the first example lacks is read as text.
    spec = {
        name: tf.io.RaggedFeature(kinds.get(name, tf.string), row_splits_dtype=tf.int64)
        for name in (*needed, *slice_keys)
    }

    @tf.autograph.experimental.do_not_convert
    def parse(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(batch, spec)
        columns = {name: _one_each(parsed[name], name) for name in needed if name not in labels}
        columns |= {name: _first(tf.as_string(parsed[name]), "") for name in slice_keys}
        for name in labels:
            values = _first(tf.cast(parsed[name], tf.float64), float("nan"))
            is_one = parsed[name].row_lengths() == 1
            columns[name] = tf.where(is_one, values, float("nan"))
        return columns

    return read_tfrecords(paths).batch(_BATCH).map(parse, num_parallel_calls=tf.data.AUTOTUNE)


def match_examples(pattern: str) -> list[str]:
    """The files of a name, glob or directory, sorted; FileNotFoundError if there is none."""
    if tf.io.gfile.isdir(pattern):
        paths = [os.path.join(pattern, name) for name in sorted(tf.io.gfile.listdir(pattern))]
    else:
        paths = expand(pattern)
    paths = [path for path in paths if not os.path.basename(path).startswith((".", "_"))]
    if not paths:
        raise FileNotFoundError(f"The examples pattern {pattern!r} matches no file.")
    return paths


def read_tfrecords(paths: Sequence[str]) -> tf.data.Dataset:
    """Serialized records of TFRecord files, file after file, each compressed in its own way."""
    files = tf.data.Dataset.from_tensor_slices((paths, [compression_of(path) for path in paths]))
    return files.flat_map(tf.data.TFRecordDataset)


def kinds_of_first(paths: Sequence[str], wanted: Collection[str] = ()) -> dict[str, tf.DType]:
    """The types of the features of the first example, and of those up to where all wanted are.

    Raises:
      ValueError: there is no tf.Example.
    """
    every = (one for path in paths for one in read_tfrecords([path]).as_numpy_iterator())
    kinds: dict[str, tf.DType] | None = None
    for serialized in itertools.islice(every, _BATCH):
        try:
            features = tf.train.Example.FromString(serialized).features.feature
        except Exception as error:  # the parser's class differs between protobuf releases
            raise ValueError(
                f"{paths[0]} does not hold tf.Examples: convert the payload, or name other files."
            ) from error
        found = {name: feature.WhichOneof("kind") for name, feature in features.items()}
        kinds = {name: _KINDS[kind] for name, kind in found.items() if kind} | (kinds or {})
        if kinds.keys() >= set(wanted):
            break
    if kinds is None:
        raise ValueError(f"there is no example in {len(paths)} files, such as {paths[0]}.")
    return kinds


def _first(values: tf.RaggedTensor, default: Any) -> tf.Tensor:
    return tf.squeeze(values[:, :1].to_tensor(default, shape=[None, 1]), 1)


def _one_each(values: tf.RaggedTensor, name: str) -> tf.Tensor:
    message = f"feature {name} must have one value in every example: leave out those without"
    with tf.control_dependencies(
        [tf.debugging.assert_equal(values.row_lengths(), tf.constant(1, tf.int64), message)]
    ):
        return tf.identity(values.flat_values)

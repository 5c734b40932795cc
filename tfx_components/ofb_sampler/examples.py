"""TFRecord files of tf.Examples: key columns read in batches, selected examples written."""

import os
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records.files import compression_of
from tfx_components.component_utils import (
    TEMPORARY_PREFIX,
    Columns,
    example_fingerprints,
    read_tfrecords,
)

_BATCH = 4096
_KINDS = {"int64_list": tf.int64, "float_list": tf.float32, "bytes_list": tf.string}


class KeySpec(NamedTuple):
    """Which features the sampler reads, and their `dtypes`: feature → "int64", "float32", "string".

    `id_feature` may be "", for `example_fingerprints`.
    """

    id_feature: str
    label_feature: str
    slice_features: tuple[str, ...]
    dtypes: dict[str, str]


def probe(
    paths: Sequence[str], id_feature: str, label_feature: str, slice_features: Sequence[str]
) -> KeySpec:
    """Finds the features' types on the first example of a split; ValueError for unusable ones."""
    every = (one for path in paths for one in read_tfrecords([path]).as_numpy_iterator())
    serialized = next(every, None)
    if serialized is None:
        raise ValueError(f"the split is empty: no example in {len(paths)} files.")
    try:
        features = tf.train.Example.FromString(serialized).features.feature
    except Exception as error:  # the parser's class differs between protobuf releases
        raise ValueError(
            f"{paths[0]} does not hold tf.Examples: sample tf.Examples, or convert the payload."
        ) from error
    dtypes = {}
    for name in filter(None, (label_feature, id_feature, *slice_features)):
        kind = features[name].WhichOneof("kind") if name in features else None
        if kind is None and name not in slice_features:
            role = "label" if name == label_feature else "id"
            raise ValueError(
                f"the first example has no {role} feature {name!r}; its features are "
                f"{sorted(features)}. Set {role}_feature, or join the {role}s first."
            )
        # A slice feature that the first example lacks is read as text.
        dtypes[name] = _KINDS[kind or "bytes_list"].name
    if dtypes[label_feature] == "string":
        raise ValueError(f"label feature {label_feature!r} must be a number. Received: bytes")
    if id_feature and dtypes[id_feature] == "float32":
        raise ValueError(
            f"id feature {id_feature!r} must be int64 or bytes. Received: float, which does not "
            "hold 64-bit ids."
        )
    for name in {constants.IMPORTANCE_WEIGHT, constants.LOG_INCLUSION} & set(features):
        raise ValueError(
            f"the examples have {name!r} already: they are a sample. Sample "
            "the Examples that ExampleGen made."
        )
    return KeySpec(id_feature, label_feature, tuple(slice_features), dtypes)


def read_keys(path: str, spec: KeySpec) -> Iterator[Columns]:
    """Reads the key columns of a file in order, in batches of n examples.

    Columns are `example_id` int64 `[n]`, `label` int64 or float32 `[n]`, and under
    ("slice", feature) bytes `[n]`. Errors name the file and the example.
    """
    parsing = {
        name: tf.io.VarLenFeature(tf.dtypes.as_dtype(dtype)) for name, dtype in spec.dtypes.items()
    }
    position = 0
    try:
        for serialized in read_tfrecords([path]).batch(_BATCH):
            columns = tf.io.parse_example(serialized, parsing)
            where, n = f"{path}, examples {position} and following", len(serialized)
            if spec.id_feature:
                ids = _one_each(columns[spec.id_feature], spec.id_feature, n, where)
                ids = hashing.to_int64(ids).numpy()
            else:
                ids = example_fingerprints(serialized.numpy())
            label = _one_each(columns[spec.label_feature], spec.label_feature, n, where)
            yield {constants.EXAMPLE_ID: ids, constants.LABEL: label.numpy()} | {
                ("slice", name): _first_as_text(columns[name], n) for name in spec.slice_features
            }
            position += n
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"{path}, examples {position} and following, do not have the types of the split's "
            f"first example ({spec.dtypes}): {error.message}. Make the schema of all files the "
            "same."
        ) from error
    except tf.errors.OpError as error:
        raise ValueError(
            f"{path} is damaged after example {position}: {error.message}. Write it again."
        ) from error


def write_selected(
    source: str, destination: str, positions: np.ndarray, feature: str, values: np.ndarray
) -> None:
    """Writes the examples of a file at ascending positions, int64 `[m]`, with one more feature.

    It has float values, `[m, k]`. The file gets its name when it is complete, so a retry replaces
    it by the same bytes.
    """
    temporary = f"{os.path.dirname(destination)}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    with tf.io.TFRecordWriter(temporary, compression_of(source)) as writer:
        start = 0
        for batch in read_tfrecords([source]).batch(_BATCH).as_numpy_iterator():
            rows = slice(*np.searchsorted(positions, [start, start + len(batch)]))
            chosen = batch[positions[rows] - start]
            for serialized, of_example in zip(chosen, values[rows].tolist(), strict=True):
                example = tf.train.Example.FromString(serialized)
                example.features.feature[feature].float_list.value[:] = of_example
                writer.write(example.SerializeToString(deterministic=True))
            if rows.stop == len(positions):
                break
            start += len(batch)
    tf.io.gfile.rename(temporary, destination, overwrite=True)


def _one_each(values: tf.SparseTensor, name: str, n: int, where: str) -> tf.Tensor:
    """The only value of each example: `[n]`."""
    counts = np.bincount(values.indices[:, 0].numpy(), minlength=n)
    if (counts != 1).any():
        raise ValueError(
            f"{where}: {int((counts == 0).sum())} of {n} have no {name!r}, "
            f"{int((counts > 1).sum())} have several; each example must have one. Fill the "
            "feature in, or leave those examples out before sampling."
        )
    return values.values


def _first_as_text(values: tf.SparseTensor, n: int) -> np.ndarray:
    """The first value of each example as bytes, empty where there is none: object `[n]`."""
    text = np.full(n, b"", object)
    rows, first = np.unique(values.indices[:, 0].numpy(), return_index=True)
    found = values.values.numpy()[first]
    text[rows] = found if found.dtype == object else [str(value).encode() for value in found]
    return text

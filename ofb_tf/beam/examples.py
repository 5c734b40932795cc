"""TFRecord files of tf.Examples: key columns read in batches, selected examples written."""

import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.beam.columns import Columns
from ofb_tf.evaluation.tfrecords import kinds_of_first, read_tfrecords
from ofb_tf.records.files import compression_of

TEMPORARY_PREFIX = ".tmp-"
_BATCH = 4096


class KeySpec(NamedTuple):
    """Which features the sampler reads, and their `dtypes`: feature → "int64", "float32", "string".

    `id_feature` may be "", for `example_fingerprints`.
    """

    id_feature: str
    label_feature: str
    slice_features: tuple[str, ...]
    dtypes: dict[str, str]


def single_value(serialized: bytes, parameter: str, feature: str) -> int | float | bytes:
    """The only value of the feature that a parameter names; ValueError where there is not one."""
    features = tf.train.Example.FromString(serialized).features.feature
    kind = features[feature].WhichOneof("kind") if feature in features else None
    values: Sequence[Any] = getattr(features[feature], kind).value if kind else ()
    if len(values) != 1:
        raise ValueError(
            f"{parameter} {feature!r} must be one value in every example. Received: {len(values)} "
            f"values; the features are {sorted(features)}. Set {parameter}."
        )
    return values[0]


def example_fingerprints(serialized: Sequence[bytes]) -> np.ndarray:
    """Ids for examples without an id feature: int64 `[n]`, the fingerprints of their content.

    The bytes of a tf.Example depend on who serialized it, as its features have no order; TFX's
    BulkInferrer, for one, serializes again. So the example is serialized with its features sorted.
    """
    canonical = [
        tf.train.Example.FromString(example).SerializeToString(deterministic=True)
        for example in serialized
    ]
    return hashing.fingerprint(tf.constant(canonical, tf.string)).numpy()


def probe(
    paths: Sequence[str], id_feature: str, label_feature: str, slice_features: Sequence[str]
) -> KeySpec:
    """Finds the features' types on the first example of a split; ValueError for unusable ones."""
    kinds = kinds_of_first(paths)
    dtypes = {}
    for name in filter(None, (label_feature, id_feature, *slice_features)):
        if name not in kinds and name not in slice_features:
            role = "label" if name == label_feature else "id"
            raise ValueError(
                f"the first example has no {role} feature {name!r}; its features are "
                f"{sorted(kinds)}. Set {role}_feature, or join the {role}s first."
            )
        # A slice feature that the first example lacks is read as text.
        dtypes[name] = kinds.get(name, tf.string).name
    if dtypes[label_feature] == "string":
        raise ValueError(f"label feature {label_feature!r} must be a number. Received: bytes")
    if id_feature and dtypes[id_feature] == "float32":
        raise ValueError(
            f"id feature {id_feature!r} must be int64 or bytes. Received: float, which does not "
            "hold 64-bit ids."
        )
    for name in {constants.IMPORTANCE_WEIGHT, constants.LOG_INCLUSION} & set(kinds):
        raise ValueError(
            f"the examples have {name!r} already: they are a sample. Sample "
            "the examples that it was drawn from."
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

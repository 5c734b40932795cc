"""Any supervised TFDS dataset as dicts of features with a label and a stable int64 id.

The id is a fingerprint of the `tfds_id` that TFDS assigns: the name of the example's file and its
position there. It is known when the bytes are read, so it does not depend on reading order,
shuffling of files, parallelism or sub-splits, unlike a counter over the pipeline. It changes if the
dataset is prepared again with another number of shards.
"""

import collections
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from ofb_tf import hashing
from ofb_tf.constants import BINARY, EXAMPLE_ID, LABEL, MULTICLASS, REGRESSION

_TFDS_ID = "tfds_id"

# Labels that are learnt on a different scale from the one they are stored on.
_LABEL_TRANSFORMS = {"diamonds": lambda price: tf.math.log(tf.cast(price, tf.float32))}


@dataclasses.dataclass(frozen=True)
class TfdsDescription:
    """What a model needs to know before the first example.

    Attributes:
      name: TFDS name with its version.
      task: "multiclass", "binary" (two classes) or "regression".
      num_classes: number of classes; 0 for regression.
      feature_names: sorted names of the features, without `example_id` and `label`.
      num_examples: examples of each split.
    """

    name: str
    task: str
    num_classes: int
    feature_names: tuple[str, ...]
    num_examples: Mapping[str, int]


def describe_tfds(
    name: str, *, data_dir: str | None = None, download: bool | None = None
) -> TfdsDescription:
    """Task, classes, features and sizes of a dataset, before the first example is read.

    Args:
      name: a TFDS name such as "mnist" or "diamonds:1.0.0".
      data_dir: directory of prepared datasets; by default that of TFDS.
      download: as of `load_tfds`.

    Raises:
      ValueError: unknown name, or a dataset without supervised keys or with an integer target
        that is not a class.
      FileNotFoundError: the dataset is not prepared and may not be downloaded.
    """
    builder = _prepared_builder(name, data_dir, download)
    inputs, target = _supervised_names(builder)
    label = builder.info.features[target]
    num_classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
    is_integer = tf.as_dtype(label.dtype).is_integer
    if is_integer and not num_classes:
        raise ValueError(
            f"load_tfds: target {target!r} of {name!r} must be a ClassLabel or a float. Received: "
            f"{label}. Map the integers to classes or to a float yourself."
        )
    task = {0: REGRESSION, 2: BINARY}.get(num_classes, MULTICLASS)
    features = _flatten({key: builder.info.features[key] for key in inputs}, builder.name)
    return TfdsDescription(
        name=builder.info.full_name,
        task=task,
        num_classes=num_classes,
        feature_names=tuple(sorted(features)),
        num_examples={split: info.num_examples for split, info in builder.info.splits.items()},
    )


def load_tfds(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    download: bool | None = None,
    decode_images: bool = True,
    shuffle_files: bool = False,
    read_config: tfds.ReadConfig | None = None,
) -> tf.data.Dataset:
    """A supervised TFDS dataset whose examples carry ids.

    Args:
      name: a TFDS name such as "mnist" or "diamonds:1.0.0".
      split: a split or part of one, such as "train" or "train[10%:]".
      data_dir: directory of prepared datasets; by default that of TFDS.
      download: whether to download and prepare a missing dataset; by default only if `data_dir`
        is not given.
      decode_images: False keeps images as the stored bytes (a string scalar), to be decoded by
        `tf.io.decode_image` after selection.
      shuffle_files: as in `tfds.load`.
      read_config: as in `tfds.load`; its `add_tfds_id` is set.

    Returns:
      A dataset of dicts: int64 `example_id` in [0, 2^63), the supervised inputs under their names
      (a dict of features is merged into the element), and `label`, which is the target as stored,
      except for "diamonds": the natural logarithm of the price in dollars, float32.

    Raises:
      ValueError: unknown name or split, or a dataset without supervised keys.
      FileNotFoundError: the dataset is not prepared and may not be downloaded.
    """
    builder = _prepared_builder(name, data_dir, download)
    inputs, target = _supervised_names(builder)
    read_config = dataclasses.replace(read_config or tfds.ReadConfig(), add_tfds_id=True)
    features = builder.info.features
    images = [name for name in features if isinstance(features[name], tfds.features.Image)]
    decoders = None if decode_images else dict.fromkeys(images, tfds.decode.SkipDecoding())
    label_transform = _LABEL_TRANSFORMS.get(builder.name, tf.identity)
    try:
        examples = builder.as_dataset(
            split=split, decoders=decoders, shuffle_files=shuffle_files, read_config=read_config
        )
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"load_tfds: split must be a part of one of {sorted(builder.info.splits)} of {name!r}. "
            f"Received: {split!r}"
        ) from error

    def with_id(example: dict) -> dict[str, tf.Tensor]:
        features = _flatten({key: example[key] for key in inputs}, builder.name)
        example_id, label = hashing.fingerprint(example[_TFDS_ID]), label_transform(example[target])
        return {EXAMPLE_ID: example_id, **features, LABEL: label}

    return examples.map(with_id, num_parallel_calls=tf.data.AUTOTUNE)


def _prepared_builder(
    name: str, data_dir: str | None, download: bool | None
) -> tfds.core.DatasetBuilder:
    """The builder of a prepared dataset, which is prepared now if that is allowed."""
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        close = difflib.get_close_matches(name.split("/")[0].split(":")[0], tfds.list_builders())
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"load_tfds: name must be a TFDS dataset. Received: {name!r}, which is neither "
            f"registered nor prepared in {data_dir or 'the default directory'!r}.{hint}"
        ) from error
    if not builder.is_prepared():
        if not (data_dir is None if download is None else download):
            raise FileNotFoundError(
                f"load_tfds: {name!r} is not prepared in {builder.data_dir!r}. Pass download=True, "
                "or the data_dir that holds it."
            )
        builder.download_and_prepare()
    return builder


def _supervised_names(builder: tfds.core.DatasetBuilder) -> tuple[list[str], str]:
    """Names of the input features and of the target."""
    keys = builder.info.supervised_keys
    targets = tf.nest.flatten(keys[1]) if keys else []
    if len(targets) != 1:
        raise ValueError(
            f"load_tfds: {builder.name!r} must have supervised keys with one target. Received: "
            f"supervised_keys={keys}. Its features are {sorted(builder.info.features)}: load it "
            "with tfds.load and map it to a dict with 'example_id' and 'label'."
        )
    return tf.nest.flatten(keys[0]), targets[0]


def _flatten(features: Mapping, dataset_name: str) -> dict:
    """Features by name, with those of nested dicts merged in."""
    pairs: list[tuple[str, Any]] = []
    for name, value in features.items():
        nested = isinstance(value, (Mapping, tfds.features.FeaturesDict))
        pairs.extend(value.items() if nested else [(name, value)])
    names = collections.Counter([name for name, _ in pairs] + [EXAMPLE_ID, LABEL])
    repeated = sorted(name for name, count in names.items() if count > 1)
    if repeated:
        raise ValueError(
            f"load_tfds: the inputs of {dataset_name!r} must have unique names other than "
            f"{EXAMPLE_ID!r} and {LABEL!r}. Repeated: {repeated}. Load it with tfds.load and "
            "rename them."
        )
    return dict(pairs)

"""Any supervised TFDS dataset as a workload: features flattened to one vector."""

import functools

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.datasets import describe_tfds, load_tfds
from ofb_tf.experiments import config as configs
from ofb_tf.experiments.workloads import ArrayWorkload

TEST_FRACTION = 0.1
_MAX_CATEGORIES = 100
_HOLDOUT_KEY = 7


def load(config: configs.SimulationConfig, seed: int) -> ArrayWorkload:
    """Loads a dataset whole and prepares it; a second call takes it from memory.

    Held out is the split "test" where there is one, and otherwise a tenth of "train", chosen by a
    hash of the ids. Images are flattened and scaled to [0, 1]; real features are standardised,
    integer features with at most 100 values become one-hot.

    Args:
      config: names the dataset, its directory and how many examples are used.
      seed: of the data order.

    Returns:
      The workload.

    Raises:
      ValueError: features that are text, or of varying shape; or too few examples.
    """
    train, test, num_classes, feature_scale = _prepare(
        config.dataset, config.data_dir, config.num_examples, config.test_examples
    )
    return ArrayWorkload(
        train, test, num_classes=num_classes, seed=seed, feature_scale=feature_scale
    )


@functools.lru_cache(maxsize=2)
def _prepare(
    name: str, data_dir: str | None, num_examples: int | None, test_examples: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int | None, float]:
    """Training and test fields, number of classes (None for regression), and feature scale."""
    description = describe_tfds(name, data_dir=data_dir)
    train = _read(name, data_dir, "train")
    if "test" in description.num_examples:
        test = _read(name, data_dir, "test")
    else:
        is_test = hashing.hash01_numpy(train[constants.EXAMPLE_ID], _HOLDOUT_KEY) < TEST_FRACTION
        test = {name: values[is_test] for name, values in train.items()}
        train = {name: values[~is_test] for name, values in train.items()}
    train = {name: values[:num_examples] for name, values in train.items()}
    test = {name: values[:test_examples] for name, values in test.items()}
    if not len(train[constants.LABEL]) or not len(test[constants.LABEL]):
        raise ValueError(
            f"{name!r} must have examples to train on and to test on. Received: "
            f"{len(train[constants.LABEL])} and {len(test[constants.LABEL])}"
        )
    is_image = _is_image(train, description.feature_names)
    flatten = _flat_images if is_image else _tabular
    features, test_features = flatten(train, test, description.feature_names)
    return (
        _with_features(train, features),
        _with_features(test, test_features),
        description.num_classes or None,
        1 / 255 if is_image else 1.0,
    )


def _read(name: str, data_dir: str | None, split: str) -> dict[str, np.ndarray]:
    dataset = load_tfds(name, split, data_dir=data_dir)
    for field, spec in dataset.element_spec.items():
        if spec.dtype == tf.string or not spec.shape.is_fully_defined():
            raise ValueError(
                f"{name!r}: feature {field!r} must be numbers of a fixed shape. Received: "
                f"{spec}. Map it to such, and call ofb_sample on the dataset yourself."
            )
    batches = list(dataset.batch(4096).as_numpy_iterator())
    return {field: np.concatenate([b[field] for b in batches]) for field in dataset.element_spec}


def _is_image(fields: dict[str, np.ndarray], names: tuple[str, ...]) -> bool:
    return len(names) == 1 and fields[names[0]].dtype == np.uint8 and fields[names[0]].ndim == 4


def _with_features(fields: dict[str, np.ndarray], features: np.ndarray) -> dict[str, np.ndarray]:
    return {
        constants.EXAMPLE_ID: fields[constants.EXAMPLE_ID],
        "features": features,
        constants.LABEL: fields[constants.LABEL],
    }


def _flat_images(
    train: dict[str, np.ndarray], test: dict[str, np.ndarray], names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    name = names[0]
    return train[name].reshape(len(train[name]), -1), test[name].reshape(len(test[name]), -1)


def _tabular(
    train: dict[str, np.ndarray], test: dict[str, np.ndarray], names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    columns: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name in names:
        for part, column in zip(columns, _column(train[name], test[name]), strict=True):
            part.append(column.reshape(len(column), -1).astype(np.float32))
    return np.concatenate(columns[0], axis=1), np.concatenate(columns[1], axis=1)


def _column(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One feature of both parts, scaled by what the training part holds."""
    largest = int(train.max()) if np.issubdtype(train.dtype, np.integer) else _MAX_CATEGORIES
    if train.ndim == 1 and largest < _MAX_CATEGORIES and train.min() >= 0:
        categories = np.arange(largest + 1)
        return train[:, None] == categories, test[:, None] == categories
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return (train - mean) / deviation, (test - mean) / deviation

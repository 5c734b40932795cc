"""The workloads by name: the click stream, TFDS datasets, New York's flights, and your own."""

import functools
import hashlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.datasets import ClickStream, describe_tfds, load_tfds
from ofb_tf.datasets.click_stream import (
    CLICK_PROBABILITY,
    CONVERSION,
    CONVERSION_PROBABILITY,
)
from ofb_tf.experiments import config as configs
from ofb_tf.experiments import flights, models
from ofb_tf.experiments.workload import ArrayWorkload, Workload, as_columns

FEATURES = "features"
TEST_FRACTION = 0.1
"""Share of the examples that is held out where a dataset has no split "test"."""

_MAX_CATEGORIES = 100
_HOLDOUT_KEY = 7  # of the draw that holds out TEST_FRACTION
_GENERATED_AT_ONCE = 25_600  # examples of the click stream
_CONVERSION_RATE = 0.2  # of clicks
_HIDDEN = (CLICK_PROBABILITY, CONVERSION_PROBABILITY)
# The settings that the data and the model depend on.
_DATA_FIELDS = (
    "dataset", "data_dir", "passes", "num_examples", "test_examples", "positive_rate", "model",
)  # fmt: skip


class ClickWorkload(Workload):
    """The generated click stream, evaluated against its hidden click probability.

    The test examples follow the stream in time. In memory, it is generated at once and kept.
    """

    task: str | dict[str, str] = constants.BINARY
    metric = "excess_kl"
    metric_text = "mean KL divergence from the true click probability to the predicted one, in nats"
    num_outputs = 1
    conversion_rate: float | None = None

    def __init__(self, config: configs.SimulationConfig, seed: int, *, in_memory: bool = False):
        self.num_examples = config.num_examples or 600_000
        length = self.num_examples * config.passes
        total, rate = length + config.test_examples, config.positive_rate
        self._positive_rate = rate
        self._model = models.CLICK[config.model]
        stream = ClickStream(total, rate, seed=seed, conversion_rate=self.conversion_rate)
        ids = tf.TensorSpec([None], tf.int64)
        self._generate = tf.function(stream.generate, [ids], autograph=False)
        self.test = self._generate(tf.range(length, total, dtype=tf.int64))
        self.label_deviation = math.sqrt(rate * (1 - rate))
        self._kept: dict[str, tf.Tensor] | None = None
        if in_memory:
            parts = [
                self.examples(start, min(_GENERATED_AT_ONCE, length - start))
                for start in range(0, length, _GENERATED_AT_ONCE)
            ]
            self._kept = {name: tf.concat([p[name] for p in parts], 0) for name in parts[0]}

    def examples(self, start: int, count: int) -> dict[str, tf.Tensor]:
        """A part of the stream; further passes continue in time instead of repeating."""
        if self._kept is not None:
            return {name: values[start : start + count] for name, values in self._kept.items()}
        fields = self._generate(tf.range(start, start + count, dtype=tf.int64))
        return {name: value for name, value in fields.items() if name not in _HIDDEN}

    def random_labels(self, draws: np.ndarray) -> np.ndarray:
        """Positives at the stream's rate."""
        return (draws < self._positive_rate).astype(np.int64)

    def build(self) -> keras.Model:
        """A click model; it starts from the share of positives."""
        inputs = models.click_inputs()
        hidden = self._model(inputs)
        base_rate = math.log(self._positive_rate / (1 - self._positive_rate))
        bias = keras.initializers.Constant(base_rate)
        outputs = keras.layers.Dense(1, bias_initializer=bias, name="logit")(hidden)
        return keras.Model(inputs, outputs)

    def evaluate(self, examples: Mapping[str, Any], outputs: np.ndarray) -> dict[str, float]:
        """Excess KL, and mean prediction over mean click probability."""
        logits = outputs[:, 0].astype(np.float64)
        truth = np.asarray(examples[CLICK_PROBABILITY]).astype(np.float64)
        calibration = float(np.mean(1 / (1 + np.exp(-logits))) / truth.mean())
        return {self.metric: float(_divergence(truth, logits).mean()), "calibration": calibration}


class ConversionWorkload(ClickWorkload):
    """The click stream with a second head: whether a click converts, which clicks alone show."""

    task = dict.fromkeys(("click", CONVERSION), constants.BINARY)
    label_key = {"click": constants.LABEL, CONVERSION: CONVERSION}
    further_metrics = {
        "conversion_excess_kl": "the same of conversions, over clicks (weighted by the true click "
        "probability)"
    }
    num_outputs = 2
    conversion_rate = _CONVERSION_RATE

    def build(self) -> keras.Model:
        """The click model, whose last layers are one for each head."""
        inputs = models.click_inputs()
        hidden, outputs = self._model(inputs), {}
        for head, rate in (("click", self._positive_rate), (CONVERSION, _CONVERSION_RATE)):
            bias = keras.initializers.Constant(math.log(rate / (1 - rate)))
            outputs[head] = keras.layers.Dense(1, bias_initializer=bias, name=head)(hidden)
        return keras.Model(inputs, outputs)

    def evaluate(self, examples: Mapping[str, Any], outputs: np.ndarray) -> dict[str, float]:
        """As of clicks, and the excess KL of conversions over clicks."""
        truth = np.asarray(examples[CONVERSION_PROBABILITY]).astype(np.float64)
        divergence = _divergence(truth, outputs[:, 1].astype(np.float64))
        mean = np.average(divergence, weights=np.asarray(examples[CLICK_PROBABILITY]))
        return super().evaluate(examples, outputs) | {"conversion_excess_kl": float(mean)}


def _divergence(truth: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL divergence `[n]` from true probabilities to those that are predicted."""
    of_one = truth * (np.log(truth) + np.logaddexp(0, -logits))
    return of_one + (1 - truth) * (np.log1p(-truth) + np.logaddexp(0, logits))


def flat_workload(
    train: dict[str, np.ndarray],
    test: dict[str, np.ndarray],
    *,
    num_classes: int | None,
    seed: int,
    feature_scale: float = 1.0,
    hidden_units: tuple[int, ...] = (128, 128),
    image_shape: tuple[int, ...] | None = None,
    model: str = configs.SMALL,
) -> ArrayWorkload:
    """An MLP on flat features, with examples that the seed shuffles in every pass.

    `train` and `test`: `example_id` int64 `[n]`, `features` `[n, d]`, `label` int64 or float32
    `[n]`. `num_classes` is None for regression; the model multiplies features by `feature_scale`.
    A deep model of images, whose features are flat too, has convolutions over `image_shape`.
    """
    features = train[FEATURES]
    mean = 0.0 if num_classes else float(train[constants.LABEL].mean())

    def build() -> keras.Model:
        """The model of this name; a regression starts from the mean label."""
        inputs = keras.Input(features.shape[1:], name=FEATURES, dtype=features.dtype.name)
        hidden = keras.layers.Rescaling(feature_scale)(inputs)
        if model == configs.DEEP and image_shape:
            hidden = models.convolutions(keras.layers.Reshape(image_shape)(hidden))
        else:
            hidden = models.mlp_of(model, hidden, hidden_units)
        bias = keras.initializers.Constant(mean)
        outputs = keras.layers.Dense(num_classes or 1, bias_initializer=bias)(hidden)
        return keras.Model({FEATURES: inputs}, outputs)

    task = constants.MULTICLASS if num_classes else constants.REGRESSION
    return ArrayWorkload(train, test, task=task, build=build, shuffle_seed=seed)


def get_workload(
    config: configs.SimulationConfig, seed: int, *, in_memory: bool = False
) -> Workload:
    """The workload that a configuration names, for one seed; the last two are kept.

    Raises ValueError if the dataset is unknown, has features that are text or of varying shape, or
    too few examples, and ImportError if a package or a module of the user is lacking.
    """
    data = configs.SimulationConfig(**{name: getattr(config, name) for name in _DATA_FIELDS})
    return _workload(data, seed, in_memory)


def task_of(config: configs.SimulationConfig) -> str | dict[str, str]:
    """The task, before data is read where that is possible; raises as `get_workload` does."""
    if config.dataset in configs.CLICKS:
        is_plain = config.dataset == configs.CLICK_STREAM
        return ClickWorkload.task if is_plain else ConversionWorkload.task
    if config.dataset in flights.TASKS:
        flights.tables()
        return flights.TASKS[config.dataset].task
    if configs.is_own(config.dataset):
        return get_workload(config, 0).task
    return describe_tfds(config.dataset, data_dir=config.data_dir).task


@functools.lru_cache(maxsize=2)
def fingerprint(name: str) -> str:
    """Of the user's workload `module:function`: it changes with the module's source or the data."""
    workload = _own(name)
    digest = hashlib.sha256(inspect.getsource(importlib.import_module(name.split(":")[0])).encode())
    parts = [workload.test, {"served": workload.served(0, workload.num_examples)}]
    parts += [
        workload.examples(start, min(_GENERATED_AT_ONCE, workload.num_examples - start))
        for start in range(0, workload.num_examples, _GENERATED_AT_ONCE)
    ]
    for field, values in (pair for part in parts for pair in sorted(part.items())):
        array = np.asarray(values)
        is_text = array.dtype == object
        content = b"\0".join(array.ravel()) if is_text else np.ascontiguousarray(array).tobytes()
        digest.update(f"{field}{array.dtype}{array.shape}".encode() + content)
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=2)
def _workload(data: configs.SimulationConfig, seed: int, in_memory: bool) -> Workload:
    if data.dataset in configs.CLICKS:
        kind = ClickWorkload if data.dataset == configs.CLICK_STREAM else ConversionWorkload
        return kind(data, seed, in_memory=in_memory)
    if data.dataset in flights.TASKS:
        return flights.workload(data.dataset, data.num_examples, data.test_examples, data.model)
    if configs.is_own(data.dataset):
        if data.num_examples or data.model != configs.SMALL:
            raise ValueError(
                "num_examples and model must not be given for a workload of your own, whose "
                f"function decides. Received: num_examples={data.num_examples}, model={data.model}"
            )
        return _own(data.dataset)
    arrays = _load_arrays(data.dataset, data.data_dir, data.num_examples, data.test_examples)
    return flat_workload(**arrays, seed=seed, model=data.model)


@functools.lru_cache(maxsize=2)
def _own(name: str) -> Workload:
    """What the user's function returns, found as `python -m` finds modules."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"workload must be module:function, found from here ({os.getcwd()}) or installed. "
            f"Received: {name!r}, of which: {error}"
        ) from error
    made = make()
    if not isinstance(made, Workload):
        raise ValueError(
            f"{name!r} must return an ofb_tf.experiments.ArrayWorkload or another Workload. "
            f"Received: {type(made).__name__}"
        )
    return made


@functools.lru_cache(maxsize=2)
def _load_arrays(
    name: str, data_dir: str | None, num_examples: int | None, test_examples: int
) -> dict[str, Any]:
    """A TFDS dataset as arguments of `ArrayWorkload`, except the seed.

    Held out is the split "test" if there is one, and otherwise a tenth of "train", chosen by a hash
    of the ids. Images are flattened and scaled to [0, 1]; real features are standardised, integer
    features with at most 100 values become one-hot.
    """
    description = describe_tfds(name, data_dir=data_dir)
    train = _read(name, data_dir, "train")
    if "test" in description.num_examples:
        test = _read(name, data_dir, "test")
    else:
        is_test = hashing.hash01(train[constants.EXAMPLE_ID], _HOLDOUT_KEY) < TEST_FRACTION
        test = {name: values[is_test] for name, values in train.items()}
        train = {name: values[~is_test] for name, values in train.items()}
    train = {name: values[:num_examples] for name, values in train.items()}
    test = {name: values[:test_examples] for name, values in test.items()}
    if not len(train[constants.LABEL]) or not len(test[constants.LABEL]):
        raise ValueError(
            f"{name!r} must have examples to train on and to test on. Received: "
            f"{len(train[constants.LABEL])} and {len(test[constants.LABEL])}"
        )
    names = description.feature_names
    first = train[names[0]]
    is_image = len(names) == 1 and first.dtype == np.uint8 and first.ndim == 4
    if is_image:
        features = [part[names[0]].reshape(len(part[names[0]]), -1) for part in (train, test)]
    else:
        columns = [_column(train[name], test[name]) for name in names]
        features = [np.concatenate(part, axis=1) for part in zip(*columns, strict=True)]
    kept = (constants.EXAMPLE_ID, constants.LABEL)
    train, test = (
        {name: part[name] for name in kept} | {FEATURES: values}
        for part, values in zip((train, test), features, strict=True)
    )
    return {
        "train": train,
        "test": test,
        "num_classes": description.num_classes or None,
        "feature_scale": 1 / 255 if is_image else 1.0,
        "image_shape": first.shape[1:] if is_image else None,
    }


def _read(name: str, data_dir: str | None, split: str) -> dict[str, np.ndarray]:
    dataset = load_tfds(name, split, data_dir=data_dir)
    for field, spec in dataset.element_spec.items():
        if spec.dtype == tf.string or not spec.shape.is_fully_defined():
            raise ValueError(
                f"{name!r}: feature {field!r} must be numbers of a fixed shape. Received: "
                f"{spec}. Convert it, and call ofb_sample on the dataset yourself."
            )
    return as_columns(dataset)


def _column(train: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """One feature of both parts, float32 `[n, d]`, scaled by statistics of the training part."""
    largest = int(train.max()) if np.issubdtype(train.dtype, np.integer) else _MAX_CATEGORIES
    if train.ndim == 1 and largest < _MAX_CATEGORIES and train.min() >= 0:
        scaled = [part[:, None] == np.arange(largest + 1) for part in (train, test)]
    else:
        mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
        scaled = [(part - mean) / np.where(deviation > 0, deviation, 1.0) for part in (train, test)]
    return [part.reshape(len(part), -1).astype(np.float32) for part in scaled]

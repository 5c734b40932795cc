"""Workloads: a stream with labels, a model for it, and how the model is evaluated."""

import abc
import functools
import math
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
from ofb_tf.experiments import models

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


class Workload(abc.ABC):
    """What a simulation needs to know about a dataset."""

    task: str | dict[str, str]  # of several heads, a task for each by its name
    label_key: str | dict[str, str] = constants.LABEL  # of several heads, a field for each
    metric: str  # name of the reported metric; less is better
    metric_text: str  # what the metric is, in words
    further_metrics: dict[str, str] = {}  # whose gap closure is reported too: words by name
    num_examples: int  # length of one pass
    num_outputs: int  # width of the model's last layer, or of those of all heads
    label_deviation: float  # standard deviation of the training labels
    loss: Any  # as for `compile`, with Keras's default reduction
    test: dict[str, tf.Tensor]  # the held-out examples' fields, leading dimension `[n]`

    @abc.abstractmethod
    def examples(self, start: int, count: int) -> dict[str, tf.Tensor]:
        """`example_id`, `label` and inputs, `[count, ...]`, from a position over all passes."""

    @abc.abstractmethod
    def random_labels(self, draws: np.ndarray) -> np.ndarray:
        """Labels `[n]` from their distribution, by uniform draws: float64 `[n]` in [0, 1)."""

    @abc.abstractmethod
    def build(self) -> tuple[dict[str, keras.KerasTensor], Any]:
        """Inputs, named after fields, and outputs: logits or predictions, of heads by name."""

    def initial_weights(self, seed: int) -> list[np.ndarray]:
        """The untrained model's weights; the same for every policy of a seed."""
        keras.utils.set_random_seed(seed)
        return keras.Model(*self.build()).get_weights()

    @abc.abstractmethod
    def evaluate(self, outputs: np.ndarray) -> dict[str, float]:
        """`metric`, further ones and `calibration` from outputs on `test`, `[n, num_outputs]`."""

    @property
    def label_fields(self) -> list[str]:
        """The field with the label; of several heads, those of all in the order of their names."""
        keys = self.label_key
        return [keys] if isinstance(keys, str) else [keys[head] for head in sorted(keys)]


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
        self.loss = keras.losses.BinaryCrossentropy(from_logits=True)
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

    def build(self) -> tuple[dict[str, keras.KerasTensor], keras.KerasTensor]:
        """The small or the deep click model; it starts from the share of positives."""
        inputs = models.click_inputs()
        hidden = self._model(inputs)
        base_rate = math.log(self._positive_rate / (1 - self._positive_rate))
        bias = keras.initializers.Constant(base_rate)
        return inputs, keras.layers.Dense(1, bias_initializer=bias, name="logit")(hidden)

    def evaluate(self, outputs: np.ndarray) -> dict[str, float]:
        """Excess KL, and mean prediction over mean click probability."""
        logits = outputs[:, 0].astype(np.float64)
        truth = self.test[CLICK_PROBABILITY].numpy().astype(np.float64)
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

    def __init__(self, config: configs.SimulationConfig, seed: int, *, in_memory: bool = False):
        super().__init__(config, seed, in_memory=in_memory)
        self.loss = dict.fromkeys(self.task, self.loss)

    def build(self) -> tuple[dict[str, keras.KerasTensor], dict[str, keras.KerasTensor]]:
        """The click model, whose last layers are one for each head."""
        inputs = models.click_inputs()
        hidden, outputs = self._model(inputs), {}
        for head, rate in (("click", self._positive_rate), (CONVERSION, _CONVERSION_RATE)):
            bias = keras.initializers.Constant(math.log(rate / (1 - rate)))
            outputs[head] = keras.layers.Dense(1, bias_initializer=bias, name=head)(hidden)
        return inputs, outputs

    def evaluate(self, outputs: np.ndarray) -> dict[str, float]:
        """As of clicks, and the excess KL of conversions over clicks."""
        truth = self.test[CONVERSION_PROBABILITY].numpy().astype(np.float64)
        divergence = _divergence(truth, outputs[:, 1].astype(np.float64))
        mean = np.average(divergence, weights=self.test[CLICK_PROBABILITY].numpy())
        return super().evaluate(outputs) | {"conversion_excess_kl": float(mean)}


def _divergence(truth: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL divergence `[n]` from true probabilities to those that are predicted."""
    of_one = truth * (np.log(truth) + np.logaddexp(0, -logits))
    return of_one + (1 - truth) * (np.log1p(-truth) + np.logaddexp(0, logits))


class ArrayWorkload(Workload):
    """Examples in memory, shuffled in every pass by the seed; an MLP on flat features.

    `train` and `test`: `example_id` int64 `[n]`, `features` `[n, d]`, `label` int64 or float32
    `[n]`. `num_classes` is None for regression; the model multiplies features by `feature_scale`.
    A deep model of images, whose features are flat too, has convolutions over `image_shape`.
    """

    def __init__(
        self,
        train: dict[str, np.ndarray],
        test: dict[str, np.ndarray],
        *,
        num_classes: int | None,
        seed: int,
        feature_scale: float = 1.0,
        hidden_units: tuple[int, ...] = (128, 128),
        image_shape: tuple[int, ...] | None = None,
        is_deep: bool = False,
    ):
        self._train = train
        self.test = {name: tf.constant(values) for name, values in test.items()}
        self.num_examples = len(train[constants.LABEL])
        self.label_deviation = float(np.std(train[constants.LABEL], dtype=np.float64))
        self.num_outputs = num_classes or 1
        self._is_regression = num_classes is None
        if self._is_regression:
            self.task, self.metric = constants.REGRESSION, "test_rmse"
            self.metric_text = "root mean squared error on held-out examples"
            self.loss = keras.losses.MeanSquaredError()
        else:
            self.task, self.metric = constants.MULTICLASS, "test_loss"
            self.metric_text = "mean cross-entropy on held-out examples, in nats"
            self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self._seed = seed
        self._scale = feature_scale
        self._hidden_units = hidden_units
        self._image_shape = image_shape
        self._is_deep = is_deep

    def examples(self, start: int, count: int) -> dict[str, tf.Tensor]:
        """A part of the concatenated passes."""
        positions = np.arange(start, start + count)
        passes = positions // self.num_examples
        rows = np.empty(count, np.int64)
        for number in np.unique(passes):
            order = np.random.default_rng([self._seed, number]).permutation(self.num_examples)
            here = passes == number
            rows[here] = order[positions[here] % self.num_examples]
        return {name: tf.constant(values[rows]) for name, values in self._train.items()}

    def random_labels(self, draws: np.ndarray) -> np.ndarray:
        """Labels of training examples."""
        return self._train[constants.LABEL][(draws * self.num_examples).astype(np.int64)]

    def build(self) -> tuple[dict[str, keras.KerasTensor], keras.KerasTensor]:
        """The small or the deep model; a regression starts from the mean label."""
        features = self._train[FEATURES]
        inputs = keras.Input(features.shape[1:], name=FEATURES, dtype=features.dtype.name)
        hidden = keras.layers.Rescaling(self._scale)(inputs)
        if not self._is_deep:
            hidden = models.mlp(hidden, self._hidden_units)
        elif self._image_shape:
            hidden = models.convolutions(keras.layers.Reshape(self._image_shape)(hidden))
        else:
            hidden = models.mlp(hidden)
        mean = float(self._train[constants.LABEL].mean()) if self._is_regression else 0.0
        bias = keras.initializers.Constant(mean)
        outputs = keras.layers.Dense(self.num_outputs, bias_initializer=bias)(hidden)
        return {FEATURES: inputs}, outputs

    def evaluate(self, outputs: np.ndarray) -> dict[str, float]:
        """RMSE or cross-entropy; mean prediction over mean label, or confidence over accuracy."""
        labels = self.test[constants.LABEL].numpy()
        if self._is_regression:
            predicted = outputs[:, 0].astype(np.float64)
            rmse = np.sqrt(np.mean((predicted - labels) ** 2))
            calibration = float(predicted.mean() / labels.mean())
            return {self.metric: float(rmse), "calibration": calibration}
        logits = outputs.astype(np.float64)
        log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        chosen = log_probabilities[np.arange(len(labels)), labels]
        accuracy = float(np.mean(logits.argmax(1) == labels))
        confidence = float(np.exp(log_probabilities.max(1)).mean())
        calibration = confidence / max(accuracy, 1e-12)
        mean = float(-chosen.mean())
        return {self.metric: mean, "calibration": calibration, "test_accuracy": accuracy}


def get_workload(
    config: configs.SimulationConfig, seed: int, *, in_memory: bool = False
) -> Workload:
    """The workload that a configuration names, for one seed; the last two are kept.

    Raises ValueError if the dataset is unknown, has features that are text or of varying shape, or
    too few examples.
    """
    data = configs.SimulationConfig(**{name: getattr(config, name) for name in _DATA_FIELDS})
    return _workload(data, seed, in_memory)


@functools.lru_cache(maxsize=2)
def _workload(data: configs.SimulationConfig, seed: int, in_memory: bool) -> Workload:
    if data.dataset in configs.CLICKS:
        kind = ClickWorkload if data.dataset == configs.CLICK_STREAM else ConversionWorkload
        return kind(data, seed, in_memory=in_memory)
    arrays = _load_arrays(data.dataset, data.data_dir, data.num_examples, data.test_examples)
    return ArrayWorkload(**arrays, seed=seed, is_deep=data.model == configs.DEEP)


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
    batches = list(dataset.batch(4096).as_numpy_iterator())
    return {field: np.concatenate([b[field] for b in batches]) for field in dataset.element_spec}


def _column(train: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """One feature of both parts, float32 `[n, d]`, scaled by statistics of the training part."""
    largest = int(train.max()) if np.issubdtype(train.dtype, np.integer) else _MAX_CATEGORIES
    if train.ndim == 1 and largest < _MAX_CATEGORIES and train.min() >= 0:
        scaled = [part[:, None] == np.arange(largest + 1) for part in (train, test)]
    else:
        mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
        scaled = [(part - mean) / np.where(deviation > 0, deviation, 1.0) for part in (train, test)]
    return [part.reshape(len(part), -1).astype(np.float32) for part in scaled]

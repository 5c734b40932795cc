"""What is streamed: labelled examples in the order of time, a model for them, and a metric."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.checks import check_choice

_LOSSES = {
    constants.BINARY: lambda: keras.losses.BinaryCrossentropy(from_logits=True),
    constants.MULTICLASS: lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    constants.REGRESSION: keras.losses.MeanSquaredError,
}
_METRICS = {
    constants.BINARY: ("test_loss", "mean cross-entropy on held-out examples, in nats"),
    constants.MULTICLASS: ("test_loss", "mean cross-entropy on held-out examples, in nats"),
    constants.REGRESSION: ("test_rmse", "root mean squared error on held-out examples"),
}
_SMALLEST = 1e-12  # denominator of a calibration


class Workload(abc.ABC):
    """A stream of labelled examples, a model for it, and how the model is evaluated.

    `ArrayWorkload` is one of arrays; a subclass may generate its examples. Positions count the
    examples over all passes, in the order in which their labels are known.

    Attributes:
      task: "binary" (one logit), "multiclass" (a logit for each class) or "regression"; of several
        heads, a task for each by its name.
      label_key: the field with the label; of several heads, a field for each.
      num_examples: length of one pass.
      num_outputs: width of the model's output, or of those of all heads.
      label_deviation: standard deviation of the training labels.
      test: the held-out examples' fields, with leading dimension `[n]`.
      metric: name of the reported metric; less is better.
      metric_text: what the metric is, in words.
      further_metrics: others whose gap closure is reported, as of other heads: words by name.
      is_progressive: whether what the models answered while they served is evaluated too.
    """

    task: str | dict[str, str]
    label_key: str | dict[str, str] = constants.LABEL
    num_examples: int
    num_outputs: int
    label_deviation: float
    test: dict[str, tf.Tensor]
    metric: str
    metric_text: str
    further_metrics: dict[str, str] = {}
    is_progressive: bool = False

    @property
    def loss(self) -> Any:
        """The task's loss, of logits, with Keras's default reduction; of heads by name."""
        if isinstance(self.task, str):
            return _LOSSES[self.task]()
        return {head: _LOSSES[task]() for head, task in self.task.items()}

    @property
    def label_fields(self) -> list[str]:
        """The field with the label; of several heads, those of all in the order of their names."""
        keys = self.label_key
        return [keys] if isinstance(keys, str) else [keys[head] for head in sorted(keys)]

    @abc.abstractmethod
    def examples(self, start: int, count: int) -> dict[str, tf.Tensor]:
        """`example_id`, `label` and inputs, `[count, ...]`, from a position on."""

    def served(self, start: int, count: int) -> np.ndarray:
        """How many labels were known when each of these examples was served: int64 `[count]`.

        At most the example's position, which is what it is here: labels without delay.
        """
        return np.arange(start, start + count)

    @abc.abstractmethod
    def random_labels(self, draws: np.ndarray) -> np.ndarray:
        """Labels `[n]` from their distribution, by uniform draws: float64 `[n]` in [0, 1)."""

    @abc.abstractmethod
    def build(self) -> keras.Model:
        """A new functional model: inputs named after fields, one output `[n, num_outputs]`.

        Of several heads, an output for each, from a layer of its name.
        """

    def initial_weights(self, seed: int) -> list[np.ndarray]:
        """The untrained model's weights; the same for every policy of a seed."""
        keras.utils.set_random_seed(seed)
        return keras.Model(*graph(self.build())).get_weights()

    @abc.abstractmethod
    def evaluate(self, examples: Mapping[str, Any], outputs: np.ndarray) -> dict[str, float]:
        """`metric`, further ones and `calibration` of outputs on examples, `[n, num_outputs]`."""


def graph(model: keras.Model) -> tuple[dict[str, keras.KerasTensor], Any]:
    """The inputs of a functional model by name, and its output, or several by name."""
    outputs = dict(zip(model.output_names, model.outputs, strict=True))
    inputs = {tensor.name: tensor for tensor in model.inputs}
    return inputs, outputs if len(outputs) > 1 else model.outputs[0]


class ArrayWorkload(Workload):
    """Examples in memory, in the order of time: what `ofb compare --workload` runs.

    Where it is known when an example was served and when its label was known, examples are
    trained on in the order of the labels, and a record is what the snapshot of the time of serving
    computed. Those answers are also evaluated, all together, as `progressive`: every example by a
    model that was trained on earlier labels alone.

    Args:
      train: `label` `[n]`, the model's inputs `[n, ...]` by name, and, where there are ids,
        `example_id` `[n]`, unique integers or text; the oldest label first. Arrays, or a finite
        `tf.data.Dataset` of single examples as dicts.
      test: the same, held out. `example_id` is not needed.
      task: "binary" for labels 0 and 1, "multiclass" for integers from 0, "regression".
      build: returns a new functional `keras.Model`, uncompiled, whose inputs are named after
        fields: one output of shape `[n, 1]`, a logit or a prediction, or of `[n, classes]` logits.
      metric: from labels `[n]` and outputs float64 `[n, k]` to a float, less is better; reported
        under the function's name. By default mean cross-entropy or root mean squared error.
      serving_time: field of `train` with the time of serving, numbers or `datetime64`.
      label_time: field of `train` with the time at which the label was known.
      shuffle_seed: shuffles every pass, for data without an order of time; not progressive.

    Raises:
      ValueError: fields, labels, times or model do not fit together; the message names them.

    Reference: Grzenda, Gomes & Bifet, "Delayed labelling evaluation for data streams", Data
    Mining and Knowledge Discovery 34, 2020.
    """

    def __init__(
        self,
        train: Mapping[str, Any] | tf.data.Dataset,
        test: Mapping[str, Any] | tf.data.Dataset,
        *,
        task: str,
        build: Callable[[], keras.Model],
        metric: Callable[[np.ndarray, np.ndarray], float] | None = None,
        serving_time: str | None = None,
        label_time: str | None = None,
        shuffle_seed: int | None = None,
    ):
        self.task = check_choice("task", task, constants.TASKS)
        self._build, self._metric, self._seed = build, metric, shuffle_seed
        self.is_progressive = shuffle_seed is None
        dtypes, self.num_outputs = _signature(build(), task)
        columns = {"train": as_columns(train), "test": as_columns(test)}
        fields = {
            name: _checked(name, part, dtypes, task, self.num_outputs)
            for name, part in columns.items()
        }
        self._train = fields["train"]
        self._served: np.ndarray | None = None
        if serving_time is not None or label_time is not None:
            order, self._served = _delays(columns["train"], serving_time, label_time)
            self._train = {name: values[order] for name, values in self._train.items()}
        self.test = {name: tf.constant(values) for name, values in fields["test"].items()}
        labels = self._train[constants.LABEL]
        self.num_examples = len(labels)
        self.label_deviation = float(np.std(labels, dtype=np.float64))
        self.metric, self.metric_text = _METRICS[task]
        if metric is not None:
            self.metric = getattr(metric, "__name__", type(metric).__name__)
            self.metric_text = (metric.__doc__ or "as the workload defines it").split("\n")[0]
            self.metric_text = self.metric_text.rstrip(".")

    def examples(self, start: int, count: int) -> dict[str, tf.Tensor]:
        """A part of the concatenated passes."""
        positions = np.arange(start, start + count)
        rows = positions % self.num_examples
        if self._seed is not None:
            passes = positions // self.num_examples
            for number in np.unique(passes):
                order = np.random.default_rng([self._seed, number]).permutation(self.num_examples)
                here = passes == number
                rows[here] = order[rows[here]]
        return {name: tf.constant(values[rows]) for name, values in self._train.items()}

    def served(self, start: int, count: int) -> np.ndarray:
        """As the times of serving and of labels say."""
        positions = np.arange(start, start + count)
        if self._served is None:
            return positions
        rows = positions % self.num_examples
        return positions - rows + self._served[rows]

    def random_labels(self, draws: np.ndarray) -> np.ndarray:
        """Labels of training examples."""
        return self._train[constants.LABEL][(draws * self.num_examples).astype(np.int64)]

    def build(self) -> keras.Model:
        """The model of `build`."""
        return self._build()

    def evaluate(self, examples: Mapping[str, Any], outputs: np.ndarray) -> dict[str, float]:
        """The metric; mean prediction over mean label, or for classes confidence over accuracy."""
        labels, outputs = np.asarray(examples[constants.LABEL]), outputs.astype(np.float64)
        more: dict[str, float] = {}
        if self.task == constants.MULTICLASS:
            log_probabilities = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)
            value = -log_probabilities[np.arange(len(labels)), labels].mean()
            predicted = np.exp(log_probabilities.max(1)).mean()
            observed = np.mean(outputs.argmax(1) == labels)
            more["test_accuracy"] = float(observed)
        else:
            predictions = outputs[:, 0]
            if self.task == constants.REGRESSION:
                value = np.sqrt(np.mean((predictions - labels) ** 2))
            else:
                value = np.mean(np.logaddexp(0, predictions) - labels * predictions)
                predictions = np.exp(-np.logaddexp(0, -predictions))
            predicted, observed = predictions.mean(), labels.mean(dtype=np.float64)
        if self._metric is not None:
            value = self._metric(labels, outputs)
        if abs(observed) < _SMALLEST:
            observed = _SMALLEST
        return {self.metric: float(value), "calibration": float(predicted / observed), **more}


def as_columns(fields: Mapping[str, Any] | tf.data.Dataset) -> dict[str, np.ndarray]:
    """Arrays by name; of a dataset of dicts, all of its elements."""
    if not isinstance(fields, tf.data.Dataset):
        return {name: np.asarray(values) for name, values in fields.items()}
    if not isinstance(fields.element_spec, dict):
        raise ValueError(f"a dataset must have dicts as elements. Received: {fields.element_spec}")
    batches = list(fields.batch(4096).as_numpy_iterator())
    if not batches:
        raise ValueError("a dataset must have elements. Received: none")
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _signature(model: Any, task: str) -> tuple[dict[str, str], int]:
    """Dtypes of a functional model's inputs, by name, and the width of its output."""
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not isinstance(model, keras.Model) or not inputs or not outputs:
        raise ValueError(
            f"build must return a functional keras.Model. Received: {type(model).__name__}. Write "
            "keras.Model(inputs, outputs), with keras.Input(shape, name=FIELD) for each input."
        )
    is_multiclass = task == constants.MULTICLASS
    shapes = [list(tensor.shape) for tensor in outputs]
    width = shapes[0][-1] or 0
    fits = width > 1 if is_multiclass else width == 1
    if len(shapes) != 1 or len(shapes[0]) != 2 or not fits:
        expected = "[n, classes]" if is_multiclass else "[n, 1]"
        raise ValueError(
            f"build must return a model with one output of shape {expected} for task={task!r}. "
            f"Received: outputs of shape {shapes}"
        )
    return {tensor.name: tensor.dtype for tensor in inputs}, width


def _checked(
    part: str, columns: dict[str, np.ndarray], dtypes: dict[str, str], task: str, num_outputs: int
) -> dict[str, np.ndarray]:
    """Ids, labels and inputs of `train` or `test`, in the dtypes that training needs."""
    lacking = {constants.LABEL, *dtypes} - set(columns)
    if lacking:
        raise ValueError(
            f"{part} must have {constants.LABEL!r} and the model's inputs. Lacking: "
            f"{sorted(lacking)}. Received: {sorted(columns)}"
        )
    labels = columns[constants.LABEL]
    names = [constants.EXAMPLE_ID] if constants.EXAMPLE_ID in columns else []
    counts = {name: len(columns[name]) for name in (*names, constants.LABEL, *dtypes)}
    if labels.ndim != 1 or len(set(counts.values())) > 1 or not len(labels):
        raise ValueError(
            f"{part} must have label [n] and as many of every field, at least one. Received: "
            f"label of shape {list(labels.shape)}, counts {counts}"
        )
    if task == constants.REGRESSION:
        labels = labels.astype(np.float32)
        fits, expected = np.isfinite(labels).all(), "finite"
    else:
        classes = 2 if task == constants.BINARY else num_outputs
        fits = np.isin(labels, np.arange(classes)).all()
        expected = f"integers in [0, {classes})"
        labels = labels.astype(np.int64) if fits else labels
    if not fits:
        raise ValueError(
            f"{part}: label must be {expected} for task={task!r}. Received: "
            f"{np.unique(labels)[:5].tolist()}, ..., dtype {labels.dtype}"
        )
    ids = hashing.id_vector(columns[constants.EXAMPLE_ID]) if names else np.arange(len(labels))
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"{part}: example_id must be unique. Received: repeated ids")
    inputs = {
        name: columns[name] if dtype == "string" else columns[name].astype(dtype, copy=False)
        for name, dtype in dtypes.items()
    }
    return {constants.EXAMPLE_ID: ids, constants.LABEL: labels} | inputs


def _delays(
    columns: dict[str, np.ndarray], serving_time: str | None, label_time: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """The order of the labels, int64 `[n]`, and how many were known at each one's serving."""
    times = [columns.get(name) for name in (serving_time, label_time) if name is not None]
    if len(times) < 2 or any(time is None for time in times):
        raise ValueError(
            "serving_time and label_time must both name a field of train. Received: "
            f"serving_time={serving_time!r}, label_time={label_time!r}, fields {sorted(columns)}"
        )
    served, known = (np.asarray(time) for time in times)
    if not np.all(served <= known):  # also where one is not a time
        row = int(np.argmin(served <= known))
        raise ValueError(
            f"{serving_time} must be a time at or before {label_time}. Received: {served[row]} and "
            f"{known[row]} in row {row}"
        )
    order = np.argsort(known, kind="stable")
    return order, np.searchsorted(known[order], served[order], side="left")

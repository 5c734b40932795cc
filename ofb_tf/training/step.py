"""What the training step needs to select: how a model's outputs are read, sizes and keys."""

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.selection import scores
from ofb_tf.selection.heads import Heads, combine, side_by_side
from ofb_tf.selection.policy import GRADIENT_NORM_BOUND, LOSS

_TASK_OF_LOSS = {
    "categorical_crossentropy": constants.MULTICLASS,
    "sparse_categorical_crossentropy": constants.MULTICLASS,
    "binary_crossentropy": constants.BINARY,
    "mean_squared_error": constants.REGRESSION,
    "mean_absolute_error": constants.REGRESSION,
    "huber": constants.REGRESSION,
    "log_cosh": constants.REGRESSION,
}


@dataclasses.dataclass(frozen=True)
class OutputReading:
    """How a model's outputs are to be read.

    Attributes:
      task: "multiclass", "binary" or "regression".
      from_logits: whether a classifier's outputs are logits; otherwise they are probabilities.
    """

    task: str
    from_logits: bool = True

    def logits(self, outputs: tf.Tensor) -> tf.Tensor:
        """float32 logits (or predictions) `[n, k]` from outputs `[n, k]` or `[n]`."""
        if not tf.is_tensor(outputs):
            raise ValueError(
                "OFBModel: selection and record statistics need a model with one output tensor, "
                "or a dict of them by the names of heads. "
                f"Received: {type(outputs).__name__}"
            )
        values = tf.cast(outputs, tf.float32)
        values = values[:, None] if values.shape.rank == 1 else values
        if values.shape.rank != 2 or (self.task != constants.MULTICLASS and values.shape[1] != 1):
            expected = "[n, k]" if self.task == constants.MULTICLASS else "[n] or [n, 1]"
            raise ValueError(
                f"OFBModel: outputs must be {expected} for task={self.task!r}. "
                f"Received: {outputs.shape}"
            )
        if self.from_logits or self.task == constants.REGRESSION:
            return values
        tiny = 1e-30
        if self.task == constants.BINARY:
            return tf.math.log(values + tiny) - tf.math.log1p(-values + tiny)
        return tf.math.log(values + tiny)

    def labels(self, y: tf.Tensor) -> tf.Tensor:
        """Labels `[n]` from class ids `[n]`, `[n, 1]` or one-hot rows `[n, k]`, or targets."""
        if y.shape.rank == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.shape.rank == 2 and self.task == constants.MULTICLASS:
            return tf.argmax(y, 1)
        if y.shape.rank != 1:
            raise ValueError(
                f"OFBModel: labels must be [n] or [n, 1] for task={self.task!r}. "
                f"Received: {y.shape}"
            )
        return tf.cast(y, tf.int64) if self.task == constants.MULTICLASS else y


def read_outputs(loss: Any, task: str | None) -> OutputReading:
    """What the compiled loss says of the outputs.

    Args:
      loss: the `loss` given to `compile`: a name, a function or a `keras.losses.Loss`.
      task: overrules what the loss says; with a loss that is not known, outputs count as logits.

    Raises:
      ValueError: `task` is None and the loss is not known.
    """
    known = task_of_loss(loss)
    task = task or known
    if task is None:
        raise ValueError(
            f"OFBModel: task must be given for loss={loss!r}: one of {constants.TASKS}. "
            "Received: None"
        )
    from_logits = known is None
    if isinstance(loss, keras.losses.Loss):
        from_logits = loss.get_config().get("from_logits", from_logits)
    return OutputReading(task, bool(from_logits))


def read_cross_entropy(loss: Any) -> OutputReading:
    """What the compiled loss says of the outputs, where log-odds are corrected.

    Args:
      loss: as for `read_outputs`.

    Raises:
      ValueError: it is not a cross-entropy of hard labels.
    """
    smoothing = 0.0
    if isinstance(loss, keras.losses.Loss):
        smoothing = loss.get_config().get("label_smoothing", 0.0)
    if not _name(loss).endswith("_crossentropy") or task_of_loss(loss) is None or smoothing:
        raise ValueError(
            "OFBModel: estimator='log_odds' needs the loss 'binary_crossentropy', "
            "'categorical_crossentropy' or 'sparse_categorical_crossentropy', without label "
            f"smoothing. Received: {loss!r}. Use estimator='weights' with other losses."
        )
    return read_outputs(loss, None)


def task_of_loss(loss: Any) -> str | None:
    """The task that a loss of Keras is for; None for another one."""
    return _TASK_OF_LOSS.get(_name(loss))


def _name(loss: Any) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = name if name.islower() else _snake_case(name)
    return {"mse": "mean_squared_error", "mae": "mean_absolute_error"}.get(name, name)


def align_weights(loss: Any, y: Any, y_pred: Any, weight: Any) -> Any:
    """Weights `[n]` with as many dimensions as the losses have, so that row i belongs to example i.

    Keras aligns weights with losses on the last axis: of losses `[n, t]`, one for each token, it
    would weight tokens by the weights of examples where t is n, and fail elsewhere.

    Args:
      loss: what was given to `compile`.
      y: labels, as the loss takes them.
      y_pred: outputs.
      weight: weights `[n]` or with more dimensions; None, or a dict with one for each output.

    Returns:
      The weights; `[n, 1, ...]` for losses with more dimensions.
    """
    if weight is None or y is None:
        return weight
    if isinstance(y_pred, dict | list | tuple):
        names = list(y_pred) if isinstance(y_pred, dict) else range(len(y_pred))
        given = (loss, y, y_pred, weight)
        parts = {name: [part(each, name) for each in given] for name in names}
        aligned = {name: align_weights(*each) for name, each in parts.items()}
        if all(aligned[name] is each[3] for name, each in parts.items()):
            return weight
        return aligned if isinstance(y_pred, dict) else list(aligned.values())
    if not (tf.is_tensor(y_pred) and tf.is_tensor(weight)) or weight.shape.rank != 1:
        return weight
    further = _rank_of_losses(loss, y, y_pred) - 1
    if further < 1:
        return weight
    return tf.reshape(weight, tf.concat([tf.shape(weight), [1] * further], axis=0))


def part(value: Any, name: Any) -> Any:
    """What belongs to one output: the entry of its name or place, or what stands for all."""
    if isinstance(value, Mapping):
        return value.get(name)
    if isinstance(value, list | tuple):
        return value[name] if isinstance(name, int) else None
    return value


def _rank_of_losses(loss: Any, y: tf.Tensor, y_pred: tf.Tensor) -> int:
    """The rank of what a loss gives before its reduction: 1 for a loss for each example."""
    rank = y_pred.shape.rank or 1
    if loss is None or rank < 2:
        return 1
    loss = keras.losses.get(loss)
    if rank == 2 and loss.__module__.startswith("keras.src."):
        return 1  # Keras's own losses reduce the last axis
    # Only its shape is used; in a graph the operations are pruned.
    return unreduced(loss, y, y_pred).shape.rank or 1


def unreduced(loss: Any, y: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """The losses `[n]` or `[n, ...]` that a loss of Keras or a function gives before reduction."""
    loss = keras.losses.get(loss)
    function = loss.call if isinstance(loss, keras.losses.Loss) else loss
    return tf.convert_to_tensor(function(y, y_pred))


def of_examples(weight: tf.Tensor) -> tf.Tensor:
    """Weights `[n]` from weights `[n, ...]`: their mean over the other axes."""
    rank = weight.shape.rank or 1
    return tf.reduce_mean(weight, axis=range(1, rank)) if rank > 1 else weight


def largest(weights: Any) -> tf.Tensor:
    """The importance weights `[n]` of heads: of a head whose label is not known it is 0."""
    return functools.reduce(tf.maximum, map(of_examples, keras.tree.flatten(weights)))


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def warn_of_biased_reduction(loss: Any) -> None:
    """Warns of a compiled loss that divides by the sum of weights."""
    for each in keras.tree.flatten(loss):
        if getattr(each, "reduction", None) == "mean_with_sample_weight":
            warnings.warn(
                "OFBModel: the loss has reduction='mean_with_sample_weight', which divides by the "
                "sum of weights: the gradient is then biased. Use the default, "
                "'sum_over_batch_size'.",
                stacklevel=3,
            )


def figures(
    reading: tuple[str | Heads, tf.Tensor, Any], seen: dict[str, Any]
) -> tuple[tf.Tensor | None, tf.Tensor, tf.Tensor]:
    """What record and model say of each example: recorded loss, loss and gradient norm now.

    Args:
      reading: what `read_step` gives.
      seen: the step's record fields.

    Returns:
      float32 `[n]` each. The recorded loss is None where there is none.
    """
    task, logits, labels = reading

    def measure(record: dict[str, tf.Tensor], by: str) -> tf.Tensor:
        if isinstance(task, Heads):
            return combine(task, record, labels, by).record[constants.LOSS]
        bound = by == GRADIENT_NORM_BOUND
        return (scores.gradient_norm_bound if bound else scores.example_loss)(record, labels, task)

    now, recorded = {constants.LOGITS: logits}, seen.get(constants.LOSS)
    if recorded is None and constants.LOGITS in seen:
        recorded = measure(seen, LOSS)
    return recorded, measure(now, LOSS), measure(now, GRADIENT_NORM_BOUND)


def read_step(
    loss: Any, task: Any, loss_weights: Any, y: Any, y_pred: Any, weight: Any
) -> tuple[str | Heads, tf.Tensor, Any]:
    """A batch as selection takes it: the task or the heads, logits `[n, k]`, and labels.

    Args:
      loss: what was given to `compile`.
      task: of the model, of its heads by name, or None.
      loss_weights: what was given to `compile`; counts where it is a dict by the names of heads.
      y: labels; a dict for a model with a dict of outputs.
      y_pred: outputs.
      weight: weights; a dict where heads have weights, 0 for a label that is not known.

    Raises:
      ValueError: the task of an output is neither given nor known from its loss, or outputs are a
        list.
    """
    one_task = task if isinstance(task, str) else task_of_loss(loss)
    several = tf.is_tensor(y_pred) and y_pred.shape.rank == 2 and y_pred.shape[1] != 1
    if several and one_task == constants.BINARY:  # a head for each label
        names = [f"{i:06d}" for i in range(y_pred.shape[1])]
        y, y_pred = (dict(zip(names, tf.unstack(v, axis=1), strict=True)) for v in (y, y_pred))
    if not isinstance(y_pred, dict):
        reading = read_outputs(loss, task if isinstance(task, str) else None)
        return reading.task, tf.stop_gradient(reading.logits(y_pred)), reading.labels(y)
    own: dict[str, Any] = {}
    logits, labels = {}, {}
    for name, output in y_pred.items():
        reading = read_outputs(part(loss, name), part(task, name))
        logits[name] = tf.stop_gradient(reading.logits(output))
        labels[name] = reading.labels(y[name])
        width = logits[name].shape[1]
        own[name] = (reading.task, width) if reading.task == constants.MULTICLASS else reading.task
        if isinstance(weight, dict) and name in weight:
            known = of_examples(weight[name]) > 0
            labels[name] = tf.where(known, tf.cast(labels[name], tf.float32), float("nan"))
    weights = loss_weights if isinstance(loss_weights, Mapping) else {}
    heads = Heads.of(own, {name: weights[name] for name in own if weights.get(name) is not None})
    return heads, side_by_side(logits), labels


def sizes(logits: tf.Tensor, rate: float) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """How many examples a batch has, and how many of them are selected, at least 1.

    Integers where the batch size is static, otherwise int32 scalars.
    """
    n = logits.shape[0]
    if n is not None:
        return n, max(1, round(rate * n))
    n = tf.shape(logits)[0]
    return n, tf.maximum(tf.cast(tf.round(rate * tf.cast(n, tf.float32)), tf.int32), 1)


def step_key(seed: int, iterations: tf.Variable) -> tf.Tensor:
    """The key of one step's draw, from a seed and the optimiser's step count: int64 scalar."""
    step = tf.cast(tf.convert_to_tensor(iterations), tf.int64)
    return hashing.fold_in(tf.constant(seed, tf.int64), step)

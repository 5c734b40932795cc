"""What the training step needs to select: how a model's outputs are read, sizes and keys."""

import dataclasses
import warnings
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants, hashing

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
                "OFBModel: selection and record statistics need a model with one output tensor. "
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
    known = _TASK_OF_LOSS.get(_name(loss))
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
    if not _name(loss).endswith("_crossentropy") or _name(loss) not in _TASK_OF_LOSS or smoothing:
        raise ValueError(
            "OFBModel: estimator='log_odds' needs the loss 'binary_crossentropy', "
            "'categorical_crossentropy' or 'sparse_categorical_crossentropy', without label "
            f"smoothing. Received: {loss!r}. Use estimator='weights' with other losses."
        )
    return read_outputs(loss, None)


def _name(loss: Any) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = name if name.islower() else _snake_case(name)
    return {"mse": "mean_squared_error", "mae": "mean_absolute_error"}.get(name, name)


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

"""Selection inside a training step: which of a large batch go on to the backward pass.

Everything has a fixed size, so that it compiles under XLA: `count` of n examples, always.
"""

import dataclasses
import warnings
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.selection import Policy, Window, designs, scores
from ofb_tf.selection import policy as base

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
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = name if name.islower() else _snake_case(name)
    name = {"mse": "mean_squared_error", "mae": "mean_absolute_error"}.get(name, name)
    known = _TASK_OF_LOSS.get(name)
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


def select_fixed_count(
    policy: Policy,
    count: int | tf.Tensor,
    task: str,
    logits: tf.Tensor,
    labels: tf.Tensor,
    key: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Selects exactly `count` of n examples by systematic sampling.

    An example without a usable score (non-finite logits, label out of range) gets the mean score
    of the others, or all are alike where none has one.

    Args:
      policy: gives inclusion probabilities; they are rescaled to sum to `count` if they do not.
      count: in [1, n], an integer or an int32 scalar.
      task: "multiclass", "binary" or "regression".
      logits: float32 `[n, k]`.
      labels: `[n]`.
      key: int64 scalar: the draw is a function of it.

    Returns:
      int32 `[count]` indices, and float32 `[count]` weights: (count / n) / p, or the policy's own.
    """
    n = tf.size(labels)
    rate = tf.cast(count, tf.float64) / tf.cast(n, tf.float64)
    losses = scores.example_loss(logits, labels, task)
    values = losses
    if policy.score == base.GRADIENT_NORM_BOUND:
        values = scores.gradient_norm_bound(logits, labels, task)
    ids = tf.range(tf.cast(n, tf.int64))
    if callable(policy.score):
        values = policy.score(Window(ids, labels, logits, losses, losses, key))
    usable = scores.valid_examples(logits, labels, task) & tf.math.is_finite(values)
    usable &= tf.math.is_finite(losses) & (values >= 0.0)
    window = Window(
        ids, labels, logits, _mean_where_not(usable, losses), _mean_where_not(usable, values), key
    )
    inclusion = policy.inclusion(window, tf.cast(count, tf.float64))
    probabilities = designs.capped_pps(
        tf.cast(inclusion.probabilities, tf.float64), tf.cast(count, tf.float64)
    )
    if policy.needs_records:
        strata = scores.stratification_key(logits, labels, window.losses, window.scores, task)
        strata = tf.where(usable, strata, tf.constant(float("inf"), strata.dtype))
    else:
        strata = hashing.hash01(ids, key)
    order = tf.argsort(strata, stable=True)
    cumulative = tf.cumsum(tf.gather(probabilities, order))
    cumulative *= tf.cast(count, tf.float64) / cumulative[-1]
    steps = tf.range(1, count + 1)
    start = hashing.uniform_start(hashing.fold_in(key, tf.constant(3, tf.int64)))
    positions = tf.searchsorted(cumulative, tf.cast(steps, tf.float64) - start)
    indices = tf.gather(order, tf.minimum(positions, n - 1))
    if inclusion.weights is not None:
        return indices, tf.cast(tf.gather(inclusion.weights, indices), tf.float32)
    return indices, tf.cast(rate / tf.gather(probabilities, indices), tf.float32)


def _mean_where_not(usable: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    kept = tf.where(usable, values, tf.zeros_like(values))
    mean = tf.math.divide_no_nan(tf.reduce_sum(kept), tf.reduce_sum(tf.cast(usable, values.dtype)))
    return tf.where(usable, values, mean)

"""Several heads: one record, one score and one selection for a model with several outputs.

A record holds the outputs of all heads side by side, `[n, T]`, heads in the order of their names.
With `g_t` the gradient-norm bound of head t, `ω_t` its weight in the loss and `m_t` 1 where its
label is known and 0 where it is not, the score of an example is `sqrt(Σ_t ω_t² m_t g_t²)`: the
norm of the whole loss's gradient at the last layers' outputs, since heads have outputs of their
own. The example is selected once, with probability p, and head t's loss has the weight
`(rate / p) m_t`, which leaves the estimate of every head's loss unbiased.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from ofb_tf import constants
from ofb_tf.selection import scores
from ofb_tf.selection.policy import GRADIENT_NORM_BOUND

# Strata beyond this many are not told apart: float64 must still hold the score next to them.
_MAX_STRATA = 1 << 20


class Head(NamedTuple):
    """One output of a model with several.

    Attributes:
      name: as in the model's dict of outputs and in the labels.
      task: "multiclass", "binary" or "regression".
      num_outputs: how many logits it has; 1 unless multiclass.
      loss_weight: its factor in the loss, at least 0.
    """

    name: str
    task: str
    num_outputs: int = 1
    loss_weight: float = 1.0


class Heads(tuple[Head, ...]):
    """The heads of a model, in the order of their names."""

    @classmethod
    def of(cls, tasks: Mapping[str, Any], loss_weights: Mapping[str, float] | None) -> "Heads":
        """Heads from the arguments of `ofb_sample`.

        Args:
          tasks: "binary", "regression" or ("multiclass", number of classes), by name of the head.
          loss_weights: as for `keras.Model.compile`; None for ones.

        Raises:
          ValueError: an argument is out of range; the message names the head.
        """
        weights = dict(loss_weights or {})
        if unknown := sorted(set(weights) - set(tasks)):
            raise ValueError(
                f"loss_weights must name heads of {sorted(tasks)}. Received: {unknown}"
            )
        heads = []
        for name in sorted(tasks):
            task, width = tasks[name], 1
            if isinstance(task, list | tuple) and len(task) == 2:
                task, width = task
            fits = isinstance(width, int) and (width > 1) == (task == constants.MULTICLASS)
            if not isinstance(task, str) or task not in constants.TASKS or not fits:
                raise ValueError(
                    f"task[{name!r}] must be 'binary', 'regression' or ('multiclass', number of "
                    f"classes). Received: {tasks[name]!r}"
                )
            weight = float(weights.get(name, 1.0))
            if not 0.0 <= weight < float("inf"):
                raise ValueError(
                    f"loss_weights[{name!r}] must be finite and at least 0. Received: {weight!r}"
                )
            heads.append(Head(name, task, width, weight))
        if not heads:
            raise ValueError("task must name at least one head. Received: none")
        return cls(heads)

    @property
    def num_outputs(self) -> int:
        """How many logits a record of all heads has."""
        return sum(head.num_outputs for head in self)

    def split(self, logits: Any) -> list[Any]:
        """The logits of each head, `[n, k]`, of those of all, `[n, num_outputs]`."""
        ends = itertools.accumulate(head.num_outputs for head in self)
        places = zip(self, ends, strict=True)
        return [logits[:, end - head.num_outputs : end] for head, end in places]


def of_arguments(
    task: Any, loss_weights: Mapping[str, float] | None, label_key: Any
) -> tuple[Any, Any]:
    """Task and label key as they were given, or where task is a dict: of several heads.

    Args:
      task: as for `ofb_sample`.
      loss_weights: of the heads; None for ones.
      label_key: the label's field; of heads a dict, by default their names.

    Returns:
      `Heads` and a dict with the label's field of each; otherwise `task` and `label_key`.

    Raises:
      ValueError: an argument is out of range or does not fit the others.
    """
    if not isinstance(task, Mapping):
        if loss_weights is not None:
            raise ValueError(
                "loss_weights is for several heads: give task as a dict by their names."
            )
        return task, label_key
    heads = Heads.of(task, loss_weights)
    names = [head.name for head in heads]
    keys = dict(zip(names, names, strict=True)) if label_key == constants.LABEL else label_key
    if not isinstance(keys, Mapping) or sorted(keys) != names:
        raise ValueError(
            f"label_key must name a field for each of the heads {names}. Received: {label_key!r}"
        )
    return heads, dict(keys)


def present(labels: tf.Tensor, task: str | None) -> tf.Tensor:
    """Where a label is known: not a NaN, and for a classification not negative.

    Args:
      labels: `[n]` or `[n, 1]`.
      task: "multiclass", "binary" or "regression"; None for one that is not known.

    Returns:
      bool of the same shape.
    """
    known = tf.ones_like(labels, tf.bool)
    if labels.dtype.is_floating:
        known = ~tf.math.is_nan(labels)
    signed = labels.dtype != tf.bool and not labels.dtype.is_unsigned
    if task in (constants.BINARY, constants.MULTICLASS) and signed:
        known &= ~(labels < 0)
    return known


class Joint(NamedTuple):
    """Several heads as one.

    Attributes:
      record: its `loss` is the joint score or loss, float32 `[n]`, not-a-number where a logit is
        not finite or a label out of range. No `loss` where there were no logits.
      strata: int64 `[n]`: examples with equal labels.
      valid_labels: bool `[n, T]`: where a head's label is in range or not known; None without
        logits.
    """

    record: dict[str, tf.Tensor]
    strata: tf.Tensor
    valid_labels: tf.Tensor | None


def side_by_side(outputs: Any) -> Any:
    """A model's outputs as records hold them, `[n, k]`: of heads in the order of their names."""
    if not isinstance(outputs, Mapping):
        return outputs
    return tf.concat([outputs[name] for name in sorted(outputs)], axis=1)


def combine(
    heads: Heads,
    record: Mapping[str, tf.Tensor],
    labels: Mapping[str, tf.Tensor] | list[tf.Tensor],
    score: Any = GRADIENT_NORM_BOUND,
) -> Joint:
    """Several heads as one number for each example, which `window.select` takes as a record.

    Args:
      heads: T heads.
      record: `logits` `[n, heads.num_outputs]`, and `has_record` `[n]` where some are missing.
        Without logits only the strata are made.
      labels: `[n]` for each head, by its name or in the order of heads; where `present` is false
        the head has no part in the loss and in the score.
      score: what the policy scores by; for anything but the gradient-norm bound it is the loss.

    Raises:
      ValueError: the records keep the largest logits alone.
    """
    if constants.CLASS_IDS in record:
        raise ValueError(
            "Records with top_k keep the largest of all heads' logits, not those of each head. "
            "Write them without top_k."
        )
    if not isinstance(labels, Mapping):
        labels = {head.name: label for head, label in zip(heads, labels, strict=True)}
    logits = record.get(constants.LOGITS)
    by_norm = score == GRADIENT_NORM_BOUND
    total, strata, num_strata, valid = None, None, 1, []
    parts = [None] * len(heads) if logits is None else heads.split(logits)
    for head, part in zip(heads, parts, strict=True):
        label = labels[head.name]
        label = tf.cast(label, tf.int64) if label.dtype == tf.bool else label
        known = present(label, head.task)
        label = tf.where(known, label, tf.zeros_like(label))
        stratum, count = _stratum(head, label, known)
        if strata is None:
            strata, num_strata = stratum, count
        elif num_strata * count <= _MAX_STRATA:
            strata, num_strata = strata * count + stratum, num_strata * count
        if part is None:
            continue
        own = {constants.LOGITS: part}
        measure = scores.gradient_norm_bound if by_norm else scores.example_loss
        value = measure(own, label, head.task)
        valid.append(scores.valid_labels(own, label, head.task))
        usable = scores.with_finite_outputs(own, valid[-1], head.task)
        value = tf.where(usable, value, float("nan"))
        value = head.loss_weight * tf.where(known, value, 0.0)
        value = tf.square(value) if by_norm else value
        total = value if total is None else total + value
    combined = {name: record[name] for name in (constants.HAS_RECORD,) if name in record}
    if total is not None:
        combined[constants.LOSS] = tf.sqrt(total) if by_norm else total
    assert strata is not None
    return Joint(combined, strata, tf.stack(valid, axis=1) if valid else None)


def _stratum(head: Head, label: tf.Tensor, known: tf.Tensor) -> tuple[tf.Tensor, int]:
    """Which of how many groups a label belongs to; an unknown label has one for itself."""
    if head.task == constants.REGRESSION:
        group, count = tf.zeros_like(label, tf.int64), 1
    elif head.task == constants.BINARY:
        group, count = tf.cast(tf.cast(label, tf.float32) > 0.5, tf.int64), 2
    else:
        group, count = tf.cast(label, tf.int64) % head.num_outputs, head.num_outputs
    return tf.where(known, group, tf.constant(count, tf.int64)), count + 1

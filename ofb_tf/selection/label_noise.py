"""Whether labels look noisy: how often they contradict the served model where it is confident.

Wrong labels put a floor under the error of any model: however confident it is, it contradicts
that share of the labels. So the error is looked at where the model is most confident, in the
quarter of the examples with the largest probability of the predicted class. A model that is
calibrated has an error there of 1 minus that probability, on average. More than that means labels
that contradict it; the same, but high, means that the model has learnt of the floor, or that it is
not good yet. Either way a selection that prefers large losses selects many such labels, and
weights are then the safer estimator.

The idea of reading label noise off confident predictions: Northcutt, Jiang & Chuang, "Confident
learning: estimating uncertainty in dataset labels", Journal of Artificial Intelligence Research
70, 2021.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from ofb_tf import constants

CONFIDENT_SHARE = 0.25
MAX_CONFIDENT_ERROR = 0.02


class ConfidentErrors(NamedTuple):
    """Counts over confident predictions, int64 and float64 scalars, to be added over windows.

    Attributes:
      count: confident predictions.
      errors: of these, those that the label contradicts.
      expected: sum of 1 minus the probability of the predicted class.
    """

    count: tf.Tensor
    errors: tf.Tensor
    expected: tf.Tensor


def predictions(record: dict[str, tf.Tensor], task: str) -> tuple[tf.Tensor, tf.Tensor]:
    """The predicted class and its probability.

    Args:
      record: as for `scores.example_loss`.
      task: "multiclass" or "binary".

    Returns:
      int64 `[n]`, and float32 `[n]` in [1 / num_outputs, 1], at least 0.5 for binary.
    """
    logits = tf.cast(record[constants.LOGITS], tf.float32)
    if task == constants.BINARY:
        logits = tf.reshape(logits, [-1])
        return tf.cast(logits > 0.0, tf.int64), tf.sigmoid(tf.abs(logits))
    best = tf.argmax(logits, axis=-1)
    predicted, log_total = best, record.get(constants.LOGSUMEXP)
    if log_total is None:
        log_total = tf.reduce_logsumexp(logits, axis=-1)
    else:
        class_ids = tf.cast(record[constants.CLASS_IDS], tf.int64)
        predicted = tf.gather(class_ids, best, axis=1, batch_dims=1)
    return predicted, tf.exp(tf.reduce_max(logits, axis=-1) - log_total)


def confident_errors(
    record: dict[str, tf.Tensor], labels: tf.Tensor, usable: tf.Tensor, task: str
) -> ConfidentErrors:
    """Counts the errors among the most confident quarter of a window.

    Args:
      record: as for `scores.example_loss`.
      labels: `[n]`.
      usable: bool `[n]`: the others are left out.
      task: "multiclass" or "binary".

    Returns:
      `ConfidentErrors` of `n / 4` of the usable examples, rounded down.
    """
    predicted, confidence = predictions(record, task)
    confidence = tf.where(usable, confidence, -1.0)
    count = tf.cast(CONFIDENT_SHARE * tf.cast(tf.math.count_nonzero(usable), tf.float64), tf.int32)
    confidence, places = tf.math.top_k(confidence, count)
    wrong = tf.gather(predicted != tf.cast(labels, tf.int64), places)
    return ConfidentErrors(
        tf.cast(count, tf.int64),
        tf.math.count_nonzero(wrong),
        tf.reduce_sum(1.0 - tf.cast(confidence, tf.float64)),
    )


def looks_noisy(count: int, errors: int) -> bool:
    """Whether more than 2% of the labels contradict confident predictions, beyond doubt.

    Args:
      count: confident predictions.
      errors: of these, those that the label contradicts.

    Returns:
      Whether the error is above 0.02 by three standard errors.
    """
    if not count:
        return False
    error = errors / count
    return error - 3.0 * math.sqrt(error * (1.0 - error) / count) > MAX_CONFIDENT_ERROR

"""Scores from the top-k form of a record, which stays constant-size whatever the classes.

A record keeps the k largest of C logits with their class ids, `logsumexp` over all and
`S = sum p^2` over all. For a label among the k both scores are exact. For another one, the mass
`R` of the classes outside the k is spread evenly: `p_y = R / (C - k)`.

How far the bound `g = sqrt(S - 2 p_y + 1)` can be off then: the true `p_y` and its estimate both
lie in [0, min(p_k, R)], where `p_k <= 1/k` is the smallest kept probability, so the squares differ
by at most `2 min(p_k, R)`; and as `g >= 1 - p_y >= 1 - 1/(k + 1)`, the difference of the roots is
at most `min(p_k, R) (k + 1) / k`. Records in float32 add rounding of about 1e-3 at most, where g
is close to 0. The loss has no such bound: a label's true probability may be arbitrarily small.
"""

from typing import NamedTuple

import tensorflow as tf

from ofb_tf import constants

# Below the rounding of float32 the mass outside the k is not known.
_MIN_RESIDUAL = 1e-7


class TopKRecord(NamedTuple):
    """The top-k form of n records.

    Attributes:
      logits: floating `[n, k]`, the largest of each row.
      class_ids: int32 `[n, k]`, their classes.
      logsumexp: float32 `[n]`, over all classes.
      sum_squared_probabilities: float32 `[n]`, over all classes.
      num_outputs: int32 `[n]`, all classes, more than k.
    """

    logits: tf.Tensor
    class_ids: tf.Tensor
    logsumexp: tf.Tensor
    sum_squared_probabilities: tf.Tensor
    num_outputs: tf.Tensor

    @classmethod
    def from_fields(cls, fields: dict[str, tf.Tensor]) -> "TopKRecord":
        """From the fields that the join adds to a window."""
        return cls(
            tf.cast(fields[constants.LOGITS], tf.float32),
            fields[constants.CLASS_IDS],
            fields[constants.LOGSUMEXP],
            fields[constants.SUM_SQUARED_PROBABILITIES],
            fields[constants.NUM_OUTPUTS],
        )


def example_loss(record: TopKRecord, labels: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy: float32 `[n]`, exact where the label is among the k.

    Args:
      record: top-k records.
      labels: integers `[n]` in [0, num_outputs).
    """
    is_label = _is_label(record, labels)
    label_logit = tf.reduce_sum(tf.where(is_label, record.logits, 0.0), axis=-1)
    kept = record.logsumexp - label_logit
    spread = -tf.math.log(_spread_probability(record))
    return tf.where(tf.reduce_any(is_label, axis=-1), kept, spread)


def gradient_norm_bound(record: TopKRecord, labels: tf.Tensor) -> tf.Tensor:
    """Norm of the softmax cross-entropy's gradient at the logits: float32 `[n]` in [0, sqrt(2)].

    Args:
      record: top-k records.
      labels: integers `[n]` in [0, num_outputs).

    Reference: Katharopoulos & Fleuret, ICML 2018; the error of the top-k form is derived above.
    """
    is_label = _is_label(record, labels)
    label_probability = tf.where(
        tf.reduce_any(is_label, axis=-1),
        tf.reduce_sum(tf.where(is_label, _probabilities(record), 0.0), axis=-1),
        _spread_probability(record),
    )
    # (1 - p_y)^2 and the squares of the other classes: neither is negative, though rounding of
    # the recorded sum may say so.
    others = record.sum_squared_probabilities - tf.square(label_probability)
    return tf.sqrt(tf.square(1.0 - label_probability) + tf.maximum(others, 0.0))


def valid_examples(record: TopKRecord, labels: tf.Tensor) -> tf.Tensor:
    """Where everything recorded is finite and the label is a class: bool `[n]`."""
    labels = tf.cast(labels, tf.int64)
    return (
        (labels >= 0)
        & (labels < tf.cast(record.num_outputs, tf.int64))
        & tf.reduce_all(tf.math.is_finite(record.logits), axis=-1)
        & tf.math.is_finite(record.logsumexp)
        & tf.math.is_finite(record.sum_squared_probabilities)
    )


def _is_label(record: TopKRecord, labels: tf.Tensor) -> tf.Tensor:
    return record.class_ids == tf.cast(labels, record.class_ids.dtype)[:, None]


def _probabilities(record: TopKRecord) -> tf.Tensor:
    return tf.exp(record.logits - record.logsumexp[:, None])


def _spread_probability(record: TopKRecord) -> tf.Tensor:
    num_kept = tf.shape(record.logits)[1]
    residual = 1.0 - tf.reduce_sum(_probabilities(record), axis=-1)
    num_others = tf.cast(tf.maximum(record.num_outputs - num_kept, 1), tf.float32)
    return tf.clip_by_value(residual, _MIN_RESIDUAL, 1.0) / num_others

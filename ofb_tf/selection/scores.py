"""What a record and its label say of an example: its loss, and how large its gradient is.

| task | loss | gradient-norm bound |
|---|---|---|
| multiclass | softmax cross-entropy | norm of softmax(z) - onehot(y) |
| binary | sigmoid cross-entropy | abs(sigmoid(z) - y) |
| regression | squared error | abs(prediction - y) |

The bound is the norm of the loss's gradient at the last layer's output: Katharopoulos & Fleuret,
"Not All Samples Are Created Equal", ICML 2018. For the squared error it leaves out the factor 2,
which no policy sees since only the ratios of scores count.

The top-k form of a record stays constant-size whatever the number of classes C: the k largest
logits with their class ids, `logsumexp` over all and `S = sum p^2` over all. For a label among
the k both scores are exact. For another one, the mass `R` of the classes outside the k is spread
evenly: `p_y = R / (C - k)`. How far the bound `g = sqrt(S - 2 p_y + 1)` can be off then: the true
`p_y` and its estimate both lie in [0, min(p_k, R)], where `p_k <= 1/k` is the smallest kept
probability, so the squares differ by at most `2 min(p_k, R)`; and as
`g >= 1 - p_y >= 1 - 1/(k + 1)`, the difference of the roots is at most `min(p_k, R) (k + 1) / k`.
Records in float32 add rounding of about 1e-3 at most, where g is close to 0. The loss has no such
bound: a label's true probability may be arbitrarily small.

A `record` is a dict keyed by `ofb_tf.constants`: `logits` floating `[n, k]` (binary and
regression also `[n]`); in the top-k form also `class_ids` int32 `[n, k]`, `logsumexp` and
`sum_squared_probabilities` float32 `[n]` and `num_outputs` int32 `[n]`.
"""

from typing import Any

import tensorflow as tf

from ofb_tf import constants

# Below the rounding of float32 the mass outside the k is not known.
_MIN_RESIDUAL = 1e-7


def example_loss(record: dict[str, tf.Tensor], labels: tf.Tensor, task: str) -> tf.Tensor:
    """Loss of each example under the model that served it.

    Args:
      record: with `logits`; see above.
      labels: multiclass: integers `[n]` in [0, num_outputs). Binary: `[n]` in [0, 1].
        Regression: `[n]`.
      task: "multiclass", "binary" or "regression".

    Returns:
      float32 `[n]`, at least 0. Not a number where `valid_examples` is false.
    """
    logits = record[constants.LOGITS]
    if task != constants.MULTICLASS:
        outputs, labels = _scalar_outputs(logits), tf.cast(labels, tf.float32)
        if task == constants.BINARY:
            return tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=outputs)
        return tf.square(outputs - labels)
    logits = tf.cast(logits, tf.float32)
    if constants.CLASS_IDS not in record:
        # Labels out of range are marked by valid_examples; clipping keeps the gather legal.
        last = tf.shape(logits, tf.int64)[-1] - 1
        classes = tf.clip_by_value(tf.cast(labels, tf.int64), 0, last)
        return tf.reduce_logsumexp(logits, axis=-1) - tf.gather(
            logits, classes, axis=-1, batch_dims=1
        )
    is_label = _is_label(record, labels)
    kept = record[constants.LOGSUMEXP] - tf.reduce_sum(tf.where(is_label, logits, 0.0), axis=-1)
    spread = -tf.math.log(_spread_probability(record))
    return tf.where(tf.reduce_any(is_label, axis=-1), kept, spread)


def sequence_loss(token_losses: Any, mask: Any = None, *, reduction: str = "mean") -> tf.Tensor:
    """The loss of each sequence from those of its tokens: what a record of it holds.

    ```python
    import numpy as np

    import ofb_tf

    token_losses, mask = np.array([[1.0, 3.0, 9.0]]), np.array([[True, True, False]])
    with ofb_tf.ForwardRecordWriter("records") as writer:
        writer.write([7], loss=ofb_tf.sequence_loss(token_losses, mask).numpy())
    assert ofb_tf.ForwardRecords.load("records").losses == [2.0]
    ```

    Args:
      token_losses: floats `[n, t, ...]`.
      mask: which tokens count, bool or floats of the same shape; None for all.
      reduction: "mean" over the tokens that count, 0 where none does, or "sum": as the loss that
        is trained on weights its tokens.

    Returns:
      float32 `[n]`.

    Raises:
      ValueError: reduction is neither.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum'. Received: {reduction!r}")
    losses = tf.cast(tf.convert_to_tensor(token_losses), tf.float32)
    counted = tf.ones_like(losses) if mask is None else tf.cast(mask, tf.float32)
    axes = list(range(1, losses.shape.rank or 2))
    # A masked token's loss may be anything, also not a number.
    total = tf.reduce_sum(tf.where(counted != 0.0, losses * counted, 0.0), axis=axes)
    if reduction == "sum":
        return total
    return tf.math.divide_no_nan(total, tf.reduce_sum(counted, axis=axes))


def gradient_norm_bound(record: dict[str, tf.Tensor], labels: tf.Tensor, task: str) -> tf.Tensor:
    """Norm of the loss's gradient at the last layer's output.

    Args:
      record: as for `example_loss`.
      labels: as for `example_loss`.
      task: "multiclass", "binary" or "regression".

    Returns:
      float32 `[n]`: in [0, sqrt(2)] for multiclass, [0, 1] for binary, [0, inf) for regression.

    Reference: Katharopoulos & Fleuret, ICML 2018; the error of the top-k form is derived above.
    """
    logits = record[constants.LOGITS]
    if task != constants.MULTICLASS:
        return tf.abs(signed_residual(logits, labels, task))
    if constants.CLASS_IDS not in record:
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32), axis=-1)
        # Without the label's own entry, 1 - p_y is the sum of the others: nothing cancels where
        # p_y is close to 1.
        is_label = tf.one_hot(
            tf.cast(labels, tf.int64), tf.shape(logits)[-1], on_value=True, off_value=False
        )
        others = tf.where(is_label, 0.0, probabilities)
        return tf.sqrt(
            tf.reduce_sum(tf.square(others), axis=-1) + tf.square(tf.reduce_sum(others, axis=-1))
        )
    is_label = _is_label(record, labels)
    label_probability = tf.where(
        tf.reduce_any(is_label, axis=-1),
        tf.reduce_sum(tf.where(is_label, _kept_probabilities(record), 0.0), axis=-1),
        _spread_probability(record),
    )
    # (1 - p_y)^2 and the squares of the other classes: neither is negative, though rounding of
    # the recorded sum may say so.
    others = record[constants.SUM_SQUARED_PROBABILITIES] - tf.square(label_probability)
    return tf.sqrt(tf.square(1.0 - label_probability) + tf.maximum(others, 0.0))


def signed_residual(logits: tf.Tensor, labels: tf.Tensor, task: str) -> tf.Tensor:
    """Prediction minus label for binary (as a probability) and regression: float32 `[n]`."""
    outputs, labels = _scalar_outputs(logits), tf.cast(labels, tf.float32)
    if task == constants.BINARY:
        outputs = tf.sigmoid(outputs)
    return outputs - labels


def valid_examples(record: dict[str, tf.Tensor], labels: tf.Tensor, task: str) -> tf.Tensor:
    """Where logits are finite and the label is in the task's range.

    Args:
      record: as for `example_loss`, or without `logits` where only a loss was recorded.
      labels: `[n]`.
      task: "multiclass", "binary" or "regression".

    Returns:
      bool `[n]`.
    """
    return with_finite_outputs(record, valid_labels(record, labels, task), task)


def with_finite_outputs(record: dict[str, tf.Tensor], valid: tf.Tensor, task: str) -> tf.Tensor:
    """`valid_examples` from `valid_labels`."""
    logits = record.get(constants.LOGITS)
    if logits is None:
        return valid
    if task != constants.MULTICLASS:
        return valid & tf.math.is_finite(_scalar_outputs(logits))
    if constants.CLASS_IDS in record:
        valid &= tf.math.is_finite(record[constants.LOGSUMEXP])
        valid &= tf.math.is_finite(record[constants.SUM_SQUARED_PROBABILITIES])
    return valid & tf.reduce_all(tf.math.is_finite(logits), axis=-1)


def valid_labels(record: dict[str, tf.Tensor], labels: tf.Tensor, task: str) -> tf.Tensor:
    """Where the label is in the task's range, whatever the record says.

    Args:
      record: as for `valid_examples`.
      labels: `[n]`.
      task: "multiclass", "binary" or "regression".

    Returns:
      bool `[n]`.
    """
    if task == constants.BINARY:
        labels = tf.cast(labels, tf.float32)
        return (labels >= 0.0) & (labels <= 1.0)
    if labels.dtype.is_floating:
        valid = tf.math.is_finite(labels)
    else:
        valid = tf.ones_like(labels, tf.bool)
    logits = record.get(constants.LOGITS)
    if task == constants.REGRESSION or logits is None:
        return valid
    labels = tf.cast(labels, tf.int64)
    num_classes = tf.shape(logits, tf.int64)[-1]
    if constants.CLASS_IDS in record:
        num_classes = tf.cast(tf.reduce_max(record[constants.NUM_OUTPUTS]), tf.int64)
    return valid & (labels >= 0) & (labels < num_classes)


def stratification_key(
    logits: tf.Tensor | None, labels: tf.Tensor, losses: tf.Tensor, scores: tf.Tensor, task: str
) -> tf.Tensor:
    """A sort key that puts similar examples next to each other: the order of the systematic design.

    By (label, predicted class, score) for multiclass and by signed residual for binary and
    regression; a record without logits is ordered by its label and its loss.

    Args:
      logits: as for `example_loss`, or None.
      labels: `[n]`, all valid.
      losses: float32 `[n]`, finite.
      scores: float32 `[n]`, finite, at least 0.
      task: "multiclass", "binary" or "regression".

    Returns:
      float64 `[n]`, finite.
    """
    if task == constants.MULTICLASS:
        stratum = tf.cast(labels, tf.float64)
        if logits is not None:
            num_classes = tf.shape(logits, tf.int64)[-1]
            predicted = tf.argmax(logits, axis=-1, output_type=tf.int64)
            stratum = tf.cast(tf.cast(labels, tf.int64) * num_classes + predicted, tf.float64)
        scores = tf.cast(scores, tf.float64)
        return stratum + scores / (1.0 + scores)
    if logits is not None:
        return tf.cast(signed_residual(logits, labels, task), tf.float64)
    losses = tf.cast(losses, tf.float64)
    if task == constants.BINARY:
        return tf.where(tf.cast(labels, tf.float64) > 0.5, -losses, losses)
    return losses


def _scalar_outputs(logits: tf.Tensor) -> tf.Tensor:
    logits = tf.cast(logits, tf.float32)
    return tf.squeeze(logits, axis=-1) if logits.shape.rank == 2 else logits


def _is_label(record: dict[str, tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
    class_ids = record[constants.CLASS_IDS]
    return class_ids == tf.cast(labels, class_ids.dtype)[:, None]


def _kept_probabilities(record: dict[str, tf.Tensor]) -> tf.Tensor:
    logits = tf.cast(record[constants.LOGITS], tf.float32)
    return tf.exp(logits - record[constants.LOGSUMEXP][:, None])


def _spread_probability(record: dict[str, tf.Tensor]) -> tf.Tensor:
    num_kept = tf.shape(record[constants.LOGITS])[1]
    residual = 1.0 - tf.reduce_sum(_kept_probabilities(record), axis=-1)
    num_others = tf.cast(tf.maximum(record[constants.NUM_OUTPUTS] - num_kept, 1), tf.float32)
    return tf.clip_by_value(residual, _MIN_RESIDUAL, 1.0) / num_others

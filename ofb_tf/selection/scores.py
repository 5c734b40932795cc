"""What a record and its label say of an example: its loss and how hard it pulls on the model.

| task | loss | gradient-norm bound |
|---|---|---|
| multiclass | softmax cross-entropy | norm of softmax(z) - onehot(y) |
| binary | sigmoid cross-entropy | abs(sigmoid(z) - y) |
| regression | squared error | abs(prediction - y) |

The bound is the norm of the loss's gradient at the last layer's output: Katharopoulos & Fleuret,
"Not All Samples Are Created Equal", ICML 2018. For the squared error it leaves out the factor 2,
which no policy sees since only the ratios of scores count.
"""

import tensorflow as tf

from ofb_tf import constants


def example_loss(logits: tf.Tensor, labels: tf.Tensor, task: str) -> tf.Tensor:
    """Loss of each example under the model that served it.

    Args:
      logits: floating `[n, k]`; for binary and regression also `[n]` (k = 1).
      labels: multiclass: integers `[n]` in [0, k). Binary: `[n]` in [0, 1]. Regression: `[n]`.
      task: "multiclass", "binary" or "regression".

    Returns:
      float32 `[n]`, at least 0. Not a number where `valid_examples` is false.
    """
    if task == constants.MULTICLASS:
        logits = tf.cast(logits, tf.float32)
        return tf.reduce_logsumexp(logits, axis=-1) - _label_logit(logits, labels)
    outputs, labels = _scalar_outputs(logits), tf.cast(labels, tf.float32)
    if task == constants.BINARY:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=outputs)
    return tf.square(outputs - labels)


def gradient_norm_bound(logits: tf.Tensor, labels: tf.Tensor, task: str) -> tf.Tensor:
    """Norm of the loss's gradient at the last layer's output.

    Args:
      logits: as for `example_loss`.
      labels: as for `example_loss`.
      task: "multiclass", "binary" or "regression".

    Returns:
      float32 `[n]`: in [0, sqrt(2)] for multiclass, [0, 1] for binary, [0, inf) for regression.

    Reference: Katharopoulos & Fleuret, ICML 2018.
    """
    if task == constants.MULTICLASS:
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32), axis=-1)
        # Without the label's own entry, 1 - p_y is the sum of the others: nothing cancels where
        # p_y is close to 1.
        is_label = tf.one_hot(labels, tf.shape(logits)[-1], on_value=True, off_value=False)
        others = tf.where(is_label, 0.0, probabilities)
        return tf.sqrt(
            tf.reduce_sum(tf.square(others), axis=-1) + tf.square(tf.reduce_sum(others, axis=-1))
        )
    return tf.abs(signed_residual(logits, labels, task))


def signed_residual(logits: tf.Tensor, labels: tf.Tensor, task: str) -> tf.Tensor:
    """Prediction minus label for binary (as a probability) and regression: float32 `[n]`."""
    outputs, labels = _scalar_outputs(logits), tf.cast(labels, tf.float32)
    if task == constants.BINARY:
        outputs = tf.sigmoid(outputs)
    return outputs - labels


def valid_examples(logits: tf.Tensor | None, labels: tf.Tensor, task: str) -> tf.Tensor:
    """Where logits are finite and the label is in the task's range.

    Args:
      logits: as for `example_loss`, or None where a record carries only a loss.
      labels: `[n]`.
      task: "multiclass", "binary" or "regression".

    Returns:
      bool `[n]`.
    """
    if labels.dtype.is_floating:
        valid = tf.math.is_finite(labels)
    else:
        valid = tf.ones_like(labels, tf.bool)
    if task == constants.BINARY:
        labels = tf.cast(labels, tf.float32)
        valid &= (labels >= 0.0) & (labels <= 1.0)
    if logits is None:
        return valid
    if task == constants.MULTICLASS:
        labels = tf.cast(labels, tf.int64)
        valid &= (labels >= 0) & (labels < tf.shape(logits, tf.int64)[-1])
        return valid & tf.reduce_all(tf.math.is_finite(logits), axis=-1)
    return valid & tf.math.is_finite(_scalar_outputs(logits))


def stratification_key(
    logits: tf.Tensor | None, labels: tf.Tensor, losses: tf.Tensor, scores: tf.Tensor, task: str
) -> tf.Tensor:
    """A sort key that puts alike examples side by side: the order of the systematic design.

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


def _label_logit(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    # Labels out of range are marked by valid_examples; clipping keeps the gather legal.
    last = tf.shape(logits, tf.int64)[-1] - 1
    labels = tf.clip_by_value(tf.cast(labels, tf.int64), 0, last)
    return tf.gather(logits, labels, axis=-1, batch_dims=1)

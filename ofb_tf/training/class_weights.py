"""`class_weight` of `fit` as weights of examples, so that it multiplies importance weights."""

import tensorflow as tf


def class_weight_table(class_weight: dict[int, float]) -> tf.Tensor:
    """A vector of weights from `class_weight`; a class without an entry gets 1, as in Keras."""
    table = [1.0] * (max(class_weight) + 1)
    for index, value in class_weight.items():
        table[index] = float(value)
    return tf.constant(table)


def class_weights_of(table: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Weights `[n]` of integer labels `[n]` or `[n, 1]`, or one-hot labels `[n, k]`."""
    if labels.shape.rank == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else tf.argmax(labels, 1)
    labels = tf.cast(labels, tf.int64)
    inside = labels < tf.size(table, tf.int64)
    return tf.where(inside, tf.gather(table, tf.where(inside, labels, 0)), 1.0)

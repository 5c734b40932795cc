"""Scores against formulas in numpy and against TensorFlow's own gradients."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.selection import scores

RNG = np.random.default_rng(0)


def random_window(task, n=64, classes=7):
    if task == "multiclass":
        return RNG.normal(size=(n, classes)) * 5, RNG.integers(0, classes, n)
    if task == "binary":
        return RNG.normal(size=(n, 1)) * 5, RNG.integers(0, 2, n)
    return RNG.normal(size=(n, 1)), RNG.normal(size=n)


def example_loss(logits, labels, task):
    return scores.example_loss({constants.LOGITS: logits}, labels, task)


def gradient_norm_bound(logits, labels, task):
    return scores.gradient_norm_bound({constants.LOGITS: logits}, labels, task)


def valid_examples(logits, labels, task):
    return scores.valid_examples({constants.LOGITS: logits}, labels, task)


def as_tensors(logits, labels):
    dtype = tf.int64 if labels.dtype.kind == "i" else tf.float32
    return tf.constant(logits, tf.float32), tf.constant(labels, dtype)


@pytest.mark.parametrize("task", ["multiclass", "binary", "regression"])
def test_loss_equals_the_formula(task):
    logits, labels = random_window(task)
    if task == "multiclass":
        p = np.exp(logits - logits.max(-1, keepdims=True))
        expected = -np.log((p / p.sum(-1, keepdims=True))[np.arange(len(labels)), labels])
    elif task == "binary":
        p = 1 / (1 + np.exp(-logits[:, 0]))
        expected = -np.where(labels == 1, np.log(p), np.log1p(-p))
    else:
        expected = (logits[:, 0] - labels) ** 2
    got = example_loss(*as_tensors(logits, labels), task)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["multiclass", "binary", "regression"])
def test_bound_is_the_norm_of_the_gradient_of_the_loss(task):
    """TensorFlow differentiates `example_loss`; the square's factor 2 is left out."""
    logits, labels = as_tensors(*random_window(task))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(example_loss(logits, labels, task))
    norms = np.linalg.norm(tape.gradient(loss, logits), axis=-1)
    if task == "regression":
        norms = norms / 2
    got = gradient_norm_bound(logits, labels, task)
    np.testing.assert_allclose(got, norms, rtol=1e-4, atol=1e-6)


def test_bound_does_not_cancel_for_confident_predictions():
    logits = tf.constant([[12.0, 0.0, 0.0]])
    p_other = np.exp(-12.0) / (1 + 2 * np.exp(-12.0))
    expected = np.sqrt(2 * p_other**2 + (2 * p_other) ** 2)
    got = gradient_norm_bound(logits, tf.constant([0]), "multiclass")
    np.testing.assert_allclose(got, [expected], rtol=0.05)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_scalar_logits_equal_one_column(task):
    logits, labels = as_tensors(*random_window(task))
    for function in (example_loss, gradient_norm_bound, scores.signed_residual):
        np.testing.assert_array_equal(
            function(logits, labels, task), function(logits[:, 0], labels, task)
        )


def test_invalid_examples_are_marked():
    nan, inf = float("nan"), float("inf")
    logits = tf.constant([[0.0, 1.0], [nan, 1.0], [inf, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = tf.constant([1, 0, 0, 2, -1])
    np.testing.assert_array_equal(
        valid_examples(logits, labels, "multiclass"), [True, False, False, False, False]
    )
    np.testing.assert_array_equal(
        valid_examples(
            tf.constant([0.0, 0.0, nan, 0.0]), tf.constant([0.0, 2.0, 1.0, nan]), "binary"
        ),
        [True, False, False, False],
    )
    np.testing.assert_array_equal(
        valid_examples(tf.constant([1.0, -inf]), tf.constant([inf, 1.0]), "regression"),
        [False, False],
    )


def test_multiclass_order_is_by_label_then_prediction_then_score():
    logits, labels = random_window("multiclass", n=200)
    logits, labels = as_tensors(logits, labels)
    values = gradient_norm_bound(logits, labels, "multiclass")
    key = scores.stratification_key(logits, labels, values, values, "multiclass").numpy()
    predicted = tf.argmax(logits, -1).numpy()
    expected = np.lexsort((values.numpy(), predicted, labels.numpy()))
    np.testing.assert_array_equal(np.argsort(key, kind="stable"), expected)


def test_binary_order_is_by_signed_residual():
    logits, labels = as_tensors(*random_window("binary", n=200))
    loss = example_loss(logits, labels, "binary")
    key = scores.stratification_key(logits, labels, loss, loss, "binary").numpy()
    residual = 1 / (1 + np.exp(-logits.numpy()[:, 0])) - labels.numpy()
    np.testing.assert_allclose(key, residual, atol=1e-6)
    # Without logits the loss, signed by the label, gives the same order.
    by_loss = scores.stratification_key(None, labels, loss, loss, "binary").numpy()
    np.testing.assert_array_equal(np.argsort(by_loss), np.argsort(key))

"""Selection inside a training step: fixed count, unbiasedness, XLA, odd input."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import get_policy, window
from ofb_tf.training import step
from tests import reference

N, COUNT, TRIALS = 60, 12, 3000


def example_logits():
    random = np.random.default_rng(3)
    logits = (random.normal(size=(N, 4)) * 2).astype(np.float32)
    return tf.constant(logits), tf.constant(random.integers(0, 4, N))


def select_many(policy, logits, labels, trials=TRIALS):
    """Indices `[trials, COUNT]` and weights."""

    @tf.function
    def draw(key):
        return window.select_count(policy, COUNT, "multiclass", labels, {"logits": logits}, key)

    drawn = [draw(tf.constant(key, tf.int64)) for key in range(trials)]
    return tuple(np.stack([d[part].numpy() for d in drawn]) for part in (0, 1))


@pytest.mark.parametrize("name", ["importance", "uniform"])
def test_weighted_mean_gradient_is_unbiased(name):
    logits, labels = example_logits()
    indices, weights = select_many(get_policy(name), logits, labels)
    assert indices.shape == (TRIALS, COUNT)
    assert all(len(set(row)) == COUNT for row in indices)
    gradients = reference.gradients(logits.numpy(), labels.numpy())
    estimates = (gradients[indices] * weights[:, :, None]).mean(1)
    tolerance = 5 * estimates.std(0, ddof=1) / np.sqrt(TRIALS) + 1e-12
    assert (np.abs(estimates.mean(0) - gradients.mean(0)) < tolerance).all()
    np.testing.assert_allclose(
        weights.mean(), 1.0, atol=5 * weights.mean(1).std() / TRIALS**0.5 + 1e-6
    )


def test_every_example_is_selected_with_its_probability():
    logits, labels = example_logits()
    policy = ofb_tf.Importance(uniform_mix=0.5)
    indices, weights = select_many(policy, logits, labels)
    frequency = np.bincount(indices.ravel(), minlength=N) / TRIALS
    weight_of = np.zeros(N)
    weight_of[indices.ravel()] = weights.ravel()
    probability = (COUNT / N) / weight_of
    tolerance = 5 * np.sqrt(probability * (1 - probability) / TRIALS) + 1e-9
    assert (np.abs(frequency - probability) <= tolerance).all()


def test_uniform_weights_are_one():
    logits, labels = example_logits()
    _, weights = select_many(get_policy("uniform"), logits, labels, trials=3)
    np.testing.assert_array_equal(weights, 1.0)


def test_non_finite_logits_and_bad_labels_have_finite_weights():
    logits, labels = example_logits()
    logits = tf.tensor_scatter_nd_update(logits, [[0, 1], [1, 2]], [float("nan"), float("inf")])
    labels = tf.tensor_scatter_nd_update(labels, [[2]], tf.constant([99], labels.dtype))
    indices, weights = select_many(get_policy("importance"), logits, labels, trials=200)
    assert np.isfinite(weights).all()
    assert {0, 1, 2} <= set(indices.ravel())


def test_nothing_usable_is_uniform():
    logits = tf.fill([N, 3], float("nan"))
    _, weights = select_many(get_policy("importance"), logits, tf.zeros([N], tf.int64), trials=3)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("mse", ("regression", False)),
        ("sparse_categorical_crossentropy", ("multiclass", False)),
        (keras.losses.BinaryCrossentropy(from_logits=True), ("binary", True)),
        (keras.losses.CategoricalCrossentropy(), ("multiclass", False)),
        (keras.losses.Huber(), ("regression", False)),
        (keras.losses.mean_squared_error, ("regression", False)),
    ],
)
def test_task_is_read_from_the_loss(loss, expected):
    reading = step.read_outputs(loss, None)
    assert (reading.task, reading.from_logits) == expected


def test_unknown_loss_needs_a_task():
    def mine(y, y_pred):
        return y - y_pred

    with pytest.raises(ValueError, match="task must be given for loss=.*Received: None"):
        step.read_outputs(mine, None)
    assert step.read_outputs(mine, "binary").from_logits


def test_probabilities_become_logits():
    logits = tf.constant([[1.0, -2.0, 0.5]])
    reading = step.OutputReading("multiclass", from_logits=False)
    np.testing.assert_allclose(
        tf.nn.softmax(reading.logits(tf.nn.softmax(logits))), tf.nn.softmax(logits), rtol=1e-5
    )
    binary = step.OutputReading("binary", from_logits=False)
    np.testing.assert_allclose(binary.logits(tf.sigmoid([0.3, -4.0]))[:, 0], [0.3, -4.0], rtol=1e-4)


def test_labels_of_every_form():
    reading = step.OutputReading("multiclass")
    for y in ([2, 0], [[2], [0]], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]):
        np.testing.assert_array_equal(reading.labels(tf.constant(y)), [2, 0])
    with pytest.raises(ValueError, match=r"outputs must be \[n\] or \[n, 1\] for task='binary'"):
        step.OutputReading("binary").logits(tf.zeros([3, 2]))
    with pytest.raises(ValueError, match="one output tensor"):
        reading.logits({"a": tf.zeros([3, 2])})

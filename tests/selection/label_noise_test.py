"""Whether labels look noisy, from the records of the model that served."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import label_noise
from tests import reference

N, CLASSES = 4000, 4
_RNG = np.random.default_rng(51)
CENTRES = _RNG.normal(size=(CLASSES, 6)) * 3
TRUE = _RNG.integers(0, CLASSES, N)
X = CENTRES[TRUE] + _RNG.normal(size=(N, 6))
# The posterior of a mixture of Gaussians: a calibrated model.
LOGITS = (X @ CENTRES.T - 0.5 * np.square(CENTRES).sum(1)).astype(np.float32)
NOISY = np.where(_RNG.random(N) < 0.1, _RNG.integers(0, CLASSES, N), TRUE)


def test_counts_equal_numpy():
    usable = np.arange(N) % 5 > 0
    record = {"logits": tf.constant(LOGITS)}
    got = label_noise.confident_errors(
        record, tf.constant(NOISY), tf.constant(usable), "multiclass"
    )
    p = reference.softmax(LOGITS)
    order = np.argsort(np.where(usable, -p.max(1), 1.0), kind="stable")[: usable.sum() // 4]
    count, errors, expected = (part.numpy() for part in got)
    assert count == len(order)
    assert errors == pytest.approx((p.argmax(1) != NOISY)[order].sum(), abs=20)  # ties at 1
    assert expected == pytest.approx((1 - p.max(1))[order].sum(), abs=1e-4)


def test_binary_is_the_same_as_two_classes():
    logits = LOGITS[:, :1] - LOGITS[:, 1:2]
    two = np.concatenate([np.zeros_like(logits), logits], axis=1)
    labels, usable = tf.constant(TRUE % 2), tf.fill([N], True)
    one = label_noise.confident_errors({"logits": tf.constant(logits)}, labels, usable, "binary")
    both = label_noise.confident_errors({"logits": tf.constant(two)}, labels, usable, "multiclass")
    np.testing.assert_allclose(one.expected, both.expected, atol=1e-3)
    assert one.count == both.count == N // 4


@pytest.mark.parametrize("labels", ["right", "noisy"])
@pytest.mark.parametrize("learnt", [False, True])
def test_noise_is_seen_whether_the_model_has_learnt_of_it_or_not(labels, learnt):
    """A model of clean labels is surprised; one of noisy labels expects what it finds."""
    logits = LOGITS
    if learnt:
        mixed = 0.9 * reference.softmax(LOGITS) + 0.1 / CLASSES
        logits = np.log(mixed).astype(np.float32)
    stream = tf.data.Dataset.from_tensor_slices(
        {"label": TRUE if labels == "right" else NOISY, "logits": logits}
    )
    sampler = ofb_tf.ofb_sample(window_size=1000, seed=1, estimator="log_odds")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figures = sampler.statistics(stream)
    said = [str(warning.message) for warning in caught if "look noisy" in str(warning.message)]
    assert len(said) == (labels == "noisy")
    share = 0.1 * (CLASSES - 1) / CLASSES if labels == "noisy" else 0.0
    tolerance = 5 * np.sqrt(share * (1 - share) / (N / 4)) + 0.002
    assert figures["confident_error"] == pytest.approx(share, abs=tolerance)
    expected = 0.1 * (CLASSES - 1) / CLASSES if learnt else 0.0
    assert figures["expected_confident_error"] == pytest.approx(expected, abs=2e-3)


def test_little_evidence_is_not_enough():
    assert not label_noise.looks_noisy(0, 0)
    assert not label_noise.looks_noisy(20, 2)
    assert label_noise.looks_noisy(2000, 200)
    assert not label_noise.looks_noisy(2000, 40)


def test_regression_and_losses_have_no_figure():
    stream = ofb_tf.testing.tiny_dataset(400, task="regression")
    figures = ofb_tf.ofb_sample(task="regression", seed=1).statistics(stream)
    assert np.isnan(figures["confident_error"])

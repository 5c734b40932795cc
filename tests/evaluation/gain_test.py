"""The predicted gain against the variance over every selection, and against the window itself."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import Importance
from ofb_tf.evaluation import gain
from ofb_tf.selection import window
from ofb_tf.selection.score_summary import ScoreSummary
from tests import reference

_RNG = np.random.default_rng(41)
HEAVY = (_RNG.exponential(size=20_000) ** 3).astype(np.float32)


def variance_over_every_selection(gradients, probabilities, weights):
    """Of the sum of weighted gradients `[n, d]` over independent draws, summed over d."""
    mean = square = 0.0
    for chosen in itertools.product([False, True], repeat=len(gradients)):
        chosen = np.array(chosen)
        chance = np.where(chosen, probabilities, 1 - probabilities).prod()
        estimate = (weights[chosen, None] * gradients[chosen]).sum(0)
        mean, square = mean + chance * estimate, square + chance * (estimate**2).sum()
    return square - (mean**2).sum()


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("mix", [0.0, 0.2, 1.0])
def test_gap_closure_is_the_variance_that_selection_removes(rate, mix):
    """Three of ten are capped at 0.5; draws are enumerated."""
    norms = np.float32([9.0, 7.0, 6.5, 1.0, 0.8, 0.5, 0.3, 0.2, 0.15, 0.1]).astype(np.float64)
    directions = _RNG.normal(size=(10, 3))
    gradients = norms[:, None] * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    sizes = (1 - mix) * norms / norms.sum(dtype=np.float64) + mix / 10
    p = reference.capped_pps(sizes, 10 * rate)
    assert (p == 1.0).any() == (rate == 0.5 and mix < 1)
    weighted = variance_over_every_selection(gradients, p, rate / p)
    uniform = variance_over_every_selection(gradients, np.full(10, rate), np.ones(10))
    found = gain.predict(ScoreSummary.of(norms), rate, mix)
    assert found["predicted_gap_closure"] == pytest.approx(
        1 - weighted / uniform, rel=1e-6, abs=1e-9
    )
    squares = norms.astype(np.float64) ** 2
    assert found["variance_ratio"] == pytest.approx(np.average(rate / p, weights=squares), rel=1e-6)


@pytest.mark.parametrize("rate", gain.RATES)
def test_figures_are_those_of_the_window(rate):
    """Of 20,000 heavy-tailed scores, by the policy itself: bins cost less than 0.1%."""
    ids = tf.range(len(HEAVY), dtype=tf.int64)
    selection = window.select(
        Importance(score="loss"), rate=rate, task="regression", missing="drop", example_ids=ids,
        labels=tf.zeros(len(HEAVY)), record={"loss": tf.constant(HEAVY)},
        key=tf.constant(1, tf.int64), batch_size=None,
    )  # fmt: skip
    weights = rate / selection.probabilities.numpy()
    found = gain.predict(ScoreSummary.of(HEAVY), rate, 0.2)
    squares = HEAVY.astype(np.float64) ** 2
    assert found["variance_ratio"] == pytest.approx(np.average(weights, weights=squares), rel=1e-3)
    assert found["effective_sample_size"] == pytest.approx(1 / weights.mean(), rel=1e-3)
    # Kish's formula on what was drawn: a ratio of means of so many weights.
    drawn = selection.weights.numpy()
    error = 5 * (drawn**2).std() / (drawn**2).mean() / np.sqrt(len(drawn)) + 1e-3
    assert found["effective_sample_size"] == pytest.approx(
        reference.effective_sample_size(drawn), rel=error
    )


def test_missing_examples_gain_nothing():
    whole = gain.predict(ScoreSummary.of(HEAVY), 0.1, 0.2)
    half = gain.predict(ScoreSummary.of(HEAVY, len(HEAVY)), 0.1, 0.2)
    assert half["variance_ratio"] == pytest.approx((whole["variance_ratio"] + 1) / 2)
    assert half["predicted_gap_closure"] == pytest.approx(whole["predicted_gap_closure"] / 2)
    mean_weight = (1 / whole["effective_sample_size"] + 1) / 2
    assert half["effective_sample_size"] == pytest.approx(1 / mean_weight)


def test_even_scores_gain_nothing_and_no_score_predicts_nothing():
    even = gain.predict(ScoreSummary.of(np.full(1000, 0.3)), 0.1, 0.2)
    assert even == {
        "rate": 0.1,
        "variance_ratio": pytest.approx(1.0),
        "predicted_gap_closure": pytest.approx(0.0, abs=1e-9),
        "effective_sample_size": pytest.approx(1.0),
    }
    zero = gain.predict(ScoreSummary.of(np.zeros(9)), 0.1, 0.2)
    assert zero["variance_ratio"] is zero["predicted_gap_closure"] is None
    assert set(gain.predict(ScoreSummary.of([]), 0.1, 0.2).values()) == {0.1, None}


def test_without_a_mix_scores_of_zero_are_never_selected():
    """Two of four are reached, with p = 0.4 each; Kish's formula in expectation."""
    found = gain.predict(ScoreSummary.of([1.0, 1.0, 0.0, 0.0]), 0.2, 0.0)
    assert found["variance_ratio"] == pytest.approx(0.5)
    assert found["effective_sample_size"] == pytest.approx(
        (2 * 0.2) ** 2 / (0.8 * (2 * 0.2**2 / 0.4))
    )


TOTAL = {"examples": 1000, "evaluated": 900, "coverage": 0.9}


def advice(scores, total=TOTAL, noise=None):
    predicted = [gain.predict(ScoreSummary.of(scores), rate, 0.2) for rate in gain.RATES]
    return gain.advise(total, predicted, noise)


def test_advice_says_what_the_figures_say():
    rare = np.where(np.arange(1000) < 10, 0.9, 0.01)
    found = advice(rare)
    closure = gain.predict(ScoreSummary.of(rare), 0.01, 0.2)["predicted_gap_closure"]
    assert found.startswith("Selection pays") and f"removes {closure:.0%}" in found
    assert "at a rate of 0.01" in found
    noisy = advice(rare, noise=0.08)
    assert "8.0% of the labels contradict" in noisy and "estimator='weights'" in noisy
    heavier = np.abs(_RNG.laplace(size=5000))
    assert "Selection may pay" in advice(heavier)
    residuals = np.abs(_RNG.normal(size=5000))  # as of ratings
    assert "no gain to be had" in advice(residuals)
    assert "nothing left to learn" in advice(np.zeros(10))
    assert "Only 10.0%" in advice(rare, TOTAL | {"coverage": 0.1})
    assert "None of 1000 examples" in advice([], TOTAL | {"evaluated": 0})

"""What docs/METHOD.md claims of estimator, variance, staleness and policies, by exact sums."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import hashing
from ofb_tf.selection import (
    BottomLoss,
    Importance,
    LossMatching,
    SelectiveBackprop,
    TopLoss,
    Uniform,
    designs,
)
from tests.reference import inclusion, make_window, runner

N, RATE = 200, 0.1
SIZES = np.random.default_rng(12).exponential(size=N).astype(np.float32)


@pytest.fixture(name="rng")
def _rng():
    return np.random.default_rng(13)


def second_moment(values, p):
    """Of the Poisson estimate of the mean, but for a term that no policy changes: sum y^2 / p."""
    return (np.square(values, dtype=np.float64) / p).sum() / len(p) ** 2


def poisson_variance(values, p):
    return ((1 - p) / p * np.square(values, dtype=np.float64)).sum() / len(p) ** 2


def all_estimates(values, p, order, starts):
    """Systematic estimates of the mean for every start."""
    run = tf.function(
        lambda start: designs.systematic(tf.constant(p), tf.constant(order), start),
        input_signature=[tf.TensorSpec([], tf.float64)],
    )
    chosen = [run(start).numpy() for start in starts]
    return np.array([(values[c] / p[c]).sum() for c in chosen]) / len(p)


@pytest.mark.parametrize("policy", [Uniform(), Importance(), Importance(uniform_mix=0.0)])
def test_weights_add_up_to_the_count(policy):
    """Sum of p * (rate / p) is the budget, so the mean weight is 1 in expectation."""
    p, weights = inclusion(policy, SIZES, RATE * N)
    assert weights is None
    used = p > 0
    np.testing.assert_allclose((p * RATE / np.where(used, p, 1))[used].sum(), RATE * N, rtol=1e-9)
    np.testing.assert_allclose(p.sum(), RATE * N, rtol=1e-9)


def test_poisson_variance_is_the_formula():
    """All outcomes of six examples."""
    p, values = np.array([0.3, 0.9, 0.5, 1.0, 0.1, 0.7]), np.array([2.0, -1.0, 4.0, 0.5, 3.0, -2.0])
    moments = np.zeros(2)
    for outcome in itertools.product([0, 1], repeat=6):
        draws = np.where(outcome, 0.0, np.nextafter(1.0, 0.0))
        chance = np.prod(np.where(outcome, p, 1 - p))
        if chance == 0.0:
            continue
        chosen = designs.poisson(tf.constant(p), tf.constant(draws)).numpy()
        estimate = (values[chosen] / p[chosen]).sum() / 6
        moments += chance * np.array([estimate, estimate**2])
    np.testing.assert_allclose(moments[0], values.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        moments[1] - moments[0] ** 2, poisson_variance(values, p), rtol=1e-12
    )


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_probabilities_in_proportion_to_the_norm_have_the_least_variance(share, rng):
    """No shift of probability from one example to another makes it less, also with the cap."""
    p = designs.capped_pps(tf.constant(SIZES, tf.float64), share * N).numpy()
    least = second_moment(SIZES, p)
    for _ in range(500):
        giver, taker = rng.choice(N, 2, replace=False)
        moved = p.copy()
        step = rng.random() * min(p[giver], 1 - p[taker]) * 0.9
        moved[giver] -= step
        moved[taker] += step
        assert second_moment(SIZES, moved) >= least * (1 - 1e-12)
    if p.max() < 1:
        np.testing.assert_allclose(
            least, np.sum(SIZES, dtype=np.float64) ** 2 / (share * N) / N**2, rtol=1e-9
        )


@pytest.mark.parametrize("mix", [0.05, 0.2, 0.5])
def test_useless_scores_cost_at_most_one_over_the_mix(mix):
    """Scores that are wrong on purpose: the norms in reverse order."""
    order = np.argsort(SIZES)
    wrong = np.empty_like(SIZES)
    wrong[order] = SIZES[order][::-1]
    p, _ = inclusion(Importance(uniform_mix=mix), wrong, RATE * N)
    uniform = second_moment(SIZES, np.full(N, RATE))
    assert uniform < second_moment(SIZES, p) <= uniform / mix
    assert (RATE / p).max() <= 1 / mix * (1 + 1e-9)


def test_a_stale_score_moves_the_variance_and_never_the_mean(rng):
    """From the right norm to one of other examples: variance rises, the mean stays exactly."""
    shuffled = rng.permutation(SIZES)
    variances = []
    for age in np.linspace(0, 1, 6):
        stale = (1 - age) * SIZES + age * shuffled
        p, _ = inclusion(Importance(), stale, RATE * N)
        # Expected estimate: sum of p * value / p over those that can be selected.
        assert (p > 0).all()
        np.testing.assert_allclose((p * (SIZES / p)).sum() / N, SIZES.mean(), rtol=1e-6)
        starts = (np.arange(400) + 0.5) / 400
        got = all_estimates(SIZES.astype(np.float64), p, np.argsort(stale), starts).mean()
        # Starts on a grid miss a probability by at most one point of the grid, 1 / 400.
        np.testing.assert_allclose(got, SIZES.mean(), atol=(SIZES / p).sum() / N / 400)
        variances.append(poisson_variance(SIZES, p))
    assert variances == sorted(variances)
    assert variances[0] < poisson_variance(SIZES, np.full(N, RATE))


def test_the_ordered_systematic_design_has_less_variance_than_independent_draws(rng):
    """Variance over every start, against the formula, for gradients that follow a residual."""
    residuals = rng.normal(size=N)
    p, _ = inclusion(Importance(), np.abs(residuals), RATE * N)
    starts = (np.arange(1000) + 0.5) / 1000
    ordered = all_estimates(residuals, p, np.argsort(residuals), starts).var()
    at_random = all_estimates(residuals, p, rng.permutation(N), starts).var()
    independent = poisson_variance(residuals, p)
    assert ordered < 0.25 * independent
    assert ordered < at_random


@pytest.mark.parametrize(
    ("policy", "sign"), [(TopLoss(), 1), (SelectiveBackprop(), 1), (BottomLoss(), -1)]
)
def test_weights_of_one_on_preferred_losses_are_biased(policy, sign):
    """Expected mean loss of the selection against the window's."""
    p, weights = inclusion(policy, SIZES, RATE * N)
    np.testing.assert_array_equal(weights, np.ones(N))
    expected = (p * SIZES).sum() / p.sum()
    assert sign * (expected - SIZES.mean()) > 0.5 * SIZES.mean()


def test_matching_the_mean_loss_does_not_keep_rare_examples_at_the_rate(rng):
    """Five positives among 600: over draws, their share of the selection is not the stream's."""
    losses = np.r_[rng.uniform(4, 6, 5), rng.lognormal(-5, 1, 595)]
    run, trials, size = runner(LossMatching()), 400, 60
    taken = np.array([run(losses, size, seed)[0][:5].sum() for seed in range(trials)])
    expected = 5 * size / 600
    deviation = taken.mean() - expected
    spread = np.sqrt(5 * 0.1 * 0.9 / trials)  # of a draw without replacement, at most
    assert abs(deviation) > 5 * spread


def test_draws_are_a_function_of_seed_and_ids(rng):
    window = make_window(SIZES, 4)
    starts = [hashing.uniform_start(tf.constant(seed, tf.int64)).numpy() for seed in (4, 4, 5)]
    assert starts[0] == starts[1] != starts[2]
    draws = hashing.hash01(window.example_ids, window.key).numpy()
    order = rng.permutation(N)
    moved = hashing.hash01(tf.gather(window.example_ids, order), window.key)
    np.testing.assert_array_equal(draws[order], moved)

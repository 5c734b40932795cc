"""Selection in one window: budget, unbiasedness, missing records, edge cases."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.selection import Importance, Inclusion, Policy, Uniform
from ofb_tf.selection.window import select
from tests import reference

N = 200
_RNG = np.random.default_rng(1)
IDS = _RNG.integers(-(2**63), 2**63 - 1, N)
LOGITS = (_RNG.normal(size=(N, 5)) * 3).astype(np.float32)
LABELS = _RNG.integers(0, 5, N)
BOUND = np.linalg.norm(reference.gradients(LOGITS, LABELS), axis=1)
BOTH_DESIGNS = pytest.mark.parametrize("design", ["systematic", "poisson"])


@pytest.fixture(name="rng")
def _rng():
    return np.random.default_rng(2)


def sample(
    seed=0,
    policy=None,
    *,
    rate=0.1,
    missing="uniform",
    batch_size=None,
    ids=IDS,
    labels=LABELS,
    **record,
):
    if constants.LOSS not in record:
        record = {constants.LOGITS: LOGITS} | record
    return select(
        policy or Importance(),
        rate=rate,
        task="multiclass",
        missing=missing,
        example_ids=None if ids is None else tf.constant(ids),
        labels=tf.constant(labels),
        record={name: tf.constant(values) for name, values in record.items()},
        key=tf.convert_to_tensor(seed, tf.int64),
        batch_size=batch_size,
    )


@pytest.mark.parametrize("mix", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_probabilities_and_weights_equal_the_formula(mix, rate):
    expected = reference.capped_pps((1 - mix) * BOUND / BOUND.sum() + mix / N, rate * N)
    got = sample(policy=Importance(uniform_mix=mix), rate=rate)
    np.testing.assert_allclose(got.probabilities, expected, rtol=1e-6)
    np.testing.assert_allclose(got.weights, rate / expected[got.indices.numpy()], rtol=1e-6)
    if mix:
        assert got.weights.numpy().max() <= 1 / mix * (1 + 1e-6)


@BOTH_DESIGNS
def test_unbiased_over_thousands_of_draws(design, rng):
    """Each example's inclusion frequency and the weighted sums, within 5 standard errors."""
    trials = 4000
    policy = Importance(design=design)
    run = tf.function(lambda seed: sample(seed, policy))
    counts, estimates = np.zeros(N), np.zeros((trials, 2))
    values = np.stack([BOUND, rng.normal(size=N)], axis=1)
    sizes = np.zeros(trials)
    for seed in range(trials):
        got = run(tf.constant(seed, tf.int64))
        indices = got.indices.numpy()
        counts[indices] += 1
        sizes[seed] = len(indices)
        estimates[seed] = (got.weights.numpy()[:, None] * values[indices]).sum(0) / (0.1 * N)
    p = sample(0, policy).probabilities.numpy()
    assert (np.abs(counts / trials - p) <= 5 * np.sqrt(p * (1 - p) / trials) + 1e-12).all()
    error = np.abs(estimates.mean(0) - values.mean(0))
    assert (error <= 5 * estimates.std(0, ddof=1) / np.sqrt(trials)).all()
    if design == "systematic":
        assert (sizes == 0.1 * N).all()
    else:
        assert abs(sizes.mean() - 0.1 * N) <= 5 * np.sqrt((p * (1 - p)).sum() / trials)


@pytest.mark.parametrize("batch_size", [None, 5, 20, 64])
@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_systematic_selects_exactly_the_budget_once_each(batch_size, rate):
    for seed in range(20):
        indices = sample(seed, rate=rate, batch_size=batch_size).indices.numpy()
        assert len(indices) == len(set(indices)) == rate * N


def test_a_budget_that_is_no_integer_takes_the_one_below_or_above_and_is_right_on_average():
    rate, trials = 0.0437, 2000  # 8.74 of 200
    run = tf.function(lambda seed: tf.size(sample(seed, rate=rate).indices))
    sizes = np.array([run(tf.constant(seed, tf.int64)).numpy() for seed in range(trials)])
    assert set(sizes) == {8, 9}
    assert abs(sizes.mean() - 8.74) <= 5 * np.sqrt(0.74 * 0.26 / trials)


@BOTH_DESIGNS
def test_uniform_weights_are_exactly_one(design):
    for rate in (0.1, 0.3, 1 / 3, 0.07):
        got = sample(policy=Uniform(design=design), rate=rate)
        np.testing.assert_array_equal(got.weights, np.ones(len(got.indices)))
        np.testing.assert_allclose(got.probabilities, np.full(N, rate), rtol=1e-12)


@BOTH_DESIGNS
def test_rate_one_keeps_everything_with_weight_one(design):
    got = sample(policy=Importance(design=design), rate=1.0)
    assert sorted(got.indices.numpy()) == list(range(N))
    np.testing.assert_array_equal(got.weights, np.ones(N))


def test_poisson_selection_does_not_depend_on_order(rng):
    policy = Importance(design="poisson")
    shuffled = rng.permutation(N)
    plain = set(IDS[sample(7, policy).indices.numpy()])
    moved = sample(7, policy, ids=IDS[shuffled], labels=LABELS[shuffled], logits=LOGITS[shuffled])
    assert set(IDS[shuffled][moved.indices.numpy()]) == plain


def test_batches_that_leave_are_each_a_systematic_sample():
    """Dealt: in every batch each label appears about in proportion, never one class alone."""
    indices = sample(rate=0.5, batch_size=20).indices.numpy().reshape(5, 20)
    selected = np.bincount(LABELS[indices.ravel()], minlength=5) / 5
    for batch in indices:
        # A systematic sample of an ordered list misses a class's share by less than 1 a stratum
        # border: two borders for each of five labels.
        assert (np.abs(np.bincount(LABELS[batch], minlength=5) - selected) <= 1).all()


def test_all_scores_zero_is_uniform():
    got = sample(loss=np.zeros(N, np.float32))
    np.testing.assert_allclose(got.probabilities, np.full(N, 0.1), rtol=1e-12)
    np.testing.assert_array_equal(got.weights, np.ones(20))


def test_records_with_a_loss_alone_are_scored_by_it(rng):
    loss = rng.exponential(size=N).astype(np.float32)
    got = sample(loss=loss)
    expected = reference.capped_pps(0.8 * loss / loss.sum(dtype=np.float64) + 0.2 / N, 20.0)
    np.testing.assert_allclose(got.probabilities, expected, rtol=1e-6)


def test_a_score_function_of_the_users_own():
    policy = Importance(score=lambda window: tf.cast(window.labels, tf.float32) + 1.0)
    s = LABELS + 1.0
    expected = reference.capped_pps(0.8 * s / s.sum() + 0.2 / N, 20.0)
    np.testing.assert_allclose(sample(policy=policy).probabilities, expected, rtol=1e-6)


def some_unusable():
    logits, labels, has_record = LOGITS.copy(), LABELS.copy(), np.ones(N, bool)
    logits[3, 1], logits[4, 0], labels[5], labels[6] = np.nan, np.inf, 5, -1
    has_record[10:30] = False
    unusable = ~has_record
    unusable[3:7] = True
    return {"logits": logits, "labels": labels, "has_record": has_record}, unusable


@BOTH_DESIGNS
@pytest.mark.parametrize("missing", ["uniform", "keep", "drop"])
def test_missing_and_unusable_records(missing, design):
    changes, unusable = some_unusable()
    got = sample(policy=Importance(design=design), missing=missing, **changes)
    np.testing.assert_array_equal(got.usable, ~unusable)
    p, weights, indices = got.probabilities.numpy(), got.weights.numpy(), got.indices.numpy()
    assert np.isfinite(weights).all()
    expected = {"uniform": 0.1, "keep": 1.0, "drop": 0.0}[missing]
    np.testing.assert_array_equal(p[unusable], np.full(24, expected))
    budget = {"uniform": 0.1 * 176, "keep": 0.2 * 0.1 * 176, "drop": 0.1 * 176}[missing]
    np.testing.assert_allclose(p[~unusable].sum(), budget)
    np.testing.assert_allclose(weights, 0.1 / p[indices], rtol=1e-6)
    if design == "systematic" and missing == "uniform":
        assert len(indices) == 20


def test_kept_examples_take_their_part_of_the_budget():
    has_record = np.ones(N, bool)
    has_record[:5] = False
    got = sample(missing="keep", has_record=has_record)
    np.testing.assert_allclose(got.probabilities.numpy().sum(), 20.0)
    assert set(range(5)) <= set(got.indices.numpy())
    assert len(got.indices) == 20


@pytest.mark.parametrize("missing", ["uniform", "keep", "drop"])
def test_no_record_at_all(missing):
    got = sample(missing=missing, has_record=np.zeros(N, bool))
    assert len(got.indices) == {"uniform": 20, "keep": N, "drop": 0}[missing]
    expected = 0.1 if missing == "keep" else 1.0
    np.testing.assert_allclose(got.weights, np.full(len(got.indices), expected), rtol=1e-6)


def test_without_ids_the_draws_are_keyed_by_content():
    first, again = sample(1, ids=None), sample(1, ids=None)
    np.testing.assert_array_equal(first.indices, again.indices)
    assert len(first.indices) == 20
    assert set(first.indices.numpy()) != set(sample(2, ids=None).indices.numpy())


def test_a_policy_of_the_users_own():
    class TopTwo(Policy):
        design = "poisson"

        def inclusion(self, window, budget):
            cut = tf.sort(window.losses)[-2]
            top = tf.cast(window.losses >= cut, tf.float64)
            return Inclusion(top, weights=tf.ones_like(window.losses))

    got = sample(policy=TopTwo())
    losses = reference.cross_entropy(LOGITS, LABELS)
    assert set(got.indices.numpy()) == set(np.argsort(losses)[-2:])
    np.testing.assert_array_equal(got.weights, [1.0, 1.0])


def test_a_policy_that_returns_something_else_is_told():
    class Wrong(Policy):
        def inclusion(self, window, budget):
            return tf.ones_like(window.losses)

    with pytest.raises(TypeError, match=r"Wrong\.inclusion must return an ofb_tf\.Inclusion"):
        sample(policy=Wrong())


def test_window_key_does_not_depend_on_order():
    key = tf.constant(3, tf.int64)
    a = hashing.window_key(tf.constant(IDS), key)
    b = hashing.window_key(tf.constant(IDS[::-1].copy()), key)
    assert a.numpy() == b.numpy()

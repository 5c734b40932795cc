"""TopLoss, BottomLoss, SelectiveBackprop and InfoBatch against plain numpy."""

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import (
    POLICIES,
    BottomLoss,
    Importance,
    InfoBatch,
    LossMatching,
    SelectiveBackprop,
    TopLoss,
    window,
)
from ofb_tf.testing import assert_checkpoint_roundtrip
from tests import reference
from tests.reference import inclusion, random_losses, runner

RATES = (0.02, 0.1, 0.33, 1.0)
ALL = sorted(set(POLICIES) - {"uniform"})


def stream(losses):
    losses = np.asarray(losses, np.float32)
    fields = {"example_id": np.arange(len(losses)), "label": np.zeros_like(losses), "loss": losses}
    return tf.data.Dataset.from_tensor_slices(fields)


def reference_top(losses, budget):
    """Example by example: room that larger losses leave, shared with those alike."""
    return np.array(
        [np.clip((budget - (losses > x).sum()) / (losses == x).sum(), 0, 1) for x in losses]
    )


@pytest.mark.parametrize("policy", [TopLoss, BottomLoss])
def test_extreme_losses_equal_numpy(policy):
    run = runner(policy())
    for losses in random_losses():
        for rate in RATES:
            budget = rate * len(losses)
            p, weights = run(losses, budget)
            sign = 1 if policy is TopLoss else -1
            np.testing.assert_allclose(p, reference_top(sign * losses, budget), atol=1e-12)
            np.testing.assert_allclose(p.sum(), budget, atol=1e-9)
            np.testing.assert_array_equal(weights, np.ones(len(losses)))


@pytest.mark.parametrize(("policy", "expected"), [(TopLoss, [1, 3]), (BottomLoss, [0, 4])])
def test_extreme_losses_by_hand(policy, expected):
    p, _ = inclusion(policy(), [0.1, 5.0, 1.0, 4.0, 0.2], 2.0)
    assert np.flatnonzero(p).tolist() == expected


def test_a_fraction_is_the_next_example_and_ties_share():
    np.testing.assert_allclose(inclusion(TopLoss(), [3.0, 2.0, 1.0], 1.25)[0], [1, 0.25, 0])
    np.testing.assert_allclose(inclusion(TopLoss(), [3, 2, 2, 2, 1], 2.0)[0], [1, *[1 / 3] * 3, 0])


def reference_percentiles(losses):
    """Mean over those that tie of (position + 1/2) / n."""
    order = np.argsort(losses, kind="stable")
    percentiles = np.empty(len(losses))
    percentiles[order] = (np.arange(len(losses)) + 0.5) / len(losses)
    return np.array([percentiles[losses == x].mean() for x in losses])


@pytest.mark.parametrize("beta", [None, 0.0, 1.0, 2.5])
def test_selective_backprop_equals_numpy(beta):
    run = runner(SelectiveBackprop(beta=beta))
    for losses in random_losses():
        for rate in RATES:
            n = len(losses)
            p, weights = run(losses, rate * n)
            power = (1 / rate - 1) if beta is None else beta
            sizes = reference_percentiles(losses) ** power
            expected = reference.capped_pps(sizes, rate * n)
            np.testing.assert_allclose(p, expected, rtol=1e-7, atol=1e-12)
            np.testing.assert_array_equal(weights, np.ones(n))


def test_default_beta_needs_no_scale():
    """The power of the percentile itself, but for the midpoint rule's error, O(1 / n^2)."""
    losses = np.random.default_rng(0).random(4096)
    p, _ = inclusion(SelectiveBackprop(), losses, 409.6)
    # Second derivative of x^9 is at most 72; the midpoint rule errs by at most 72 / (24 n^2).
    tolerance = 72 / 24 / 4096**2 / 0.1 + 1e-6  # losses are float32
    np.testing.assert_allclose(p, reference_percentiles(np.float32(losses)) ** 9, rtol=tolerance)


@pytest.mark.parametrize("prune", [0.0, 0.5, 0.8])
def test_info_batch_equals_numpy(prune):
    run = runner(InfoBatch(prune=prune))
    for losses in random_losses():
        p, weights = run(losses, 0.1 * len(losses))
        mean = losses.astype(np.float64).mean() if len(losses) else 0
        alike = len(set(losses.tolist())) == 1
        kept = (losses.astype(np.float64) >= mean) | alike
        np.testing.assert_allclose(p, np.where(kept, 1, 1 - prune), rtol=1e-12)
        np.testing.assert_allclose(weights, np.where(kept, 1, 1 / (1 - prune)), rtol=1e-6)


def test_info_batch_estimates_the_sum_without_bias():
    """Exactly: the weighted sum in expectation, sum of p * w * loss."""
    run = runner(InfoBatch(prune=0.6))
    for losses in random_losses():
        p, weights = run(losses, 0.0)
        np.testing.assert_allclose((p * weights * losses).sum(), losses.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_nothing_one_and_everything(name):
    policy = POLICIES[name]()
    assert inclusion(policy, [], 0.0)[0].shape == (0,)
    np.testing.assert_array_equal(inclusion(policy, [0.3], 1.0)[0], [1.0])
    kept = [0.5, 0.5, 1.0] if name == "info_batch" else np.ones(3)  # its rate is no target
    np.testing.assert_allclose(inclusion(policy, [0.1, 0.0, 2.0], 3.0)[0], kept)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"info_batch", "loss_matching"}))
def test_equal_losses_are_sampled_uniformly(name):
    for loss in (0.0, 0.1, 5.0):
        p, _ = inclusion(POLICIES[name](), np.full(30, loss), 4.5)
        np.testing.assert_allclose(p, np.full(30, 0.15), rtol=1e-9)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"info_batch"}))
@pytest.mark.parametrize("batch_size", [None, 40])
def test_exactly_the_budget_leaves_a_window(name, batch_size):
    rng = np.random.default_rng(1)
    dataset = stream(rng.integers(0, 8, 800) / 4)  # many ties
    sampler = ofb_tf.ofb_sample(
        policy=name, rate=0.2, window_size=200, batch_size=batch_size, seed=3, missing="error"
    )
    leaves = dataset.apply(sampler)
    if batch_size is None:
        leaves = leaves.batch(40)
    ids = np.concatenate([batch["example_id"] for batch in leaves])
    assert np.bincount(ids // 200).tolist() == [40] * 4
    assert len(set(ids)) == 160
    assert sampler.statistics(dataset)["realized_rate"] == 0.2


def test_info_batch_reports_what_it_realised():
    dataset = stream(np.r_[np.zeros(150), np.ones(50)])
    sampler = ofb_tf.ofb_sample(policy="info_batch", window_size=200, seed=3)
    figures = sampler.statistics(dataset)
    assert figures["realized_rate"] == pytest.approx((50 + 75) / 200)
    assert figures["mean_weight"] == pytest.approx((50 + 75 * 2) / 125)
    weights = [float(element["importance_weight"]) for element in dataset.apply(sampler)]
    assert sorted(set(weights)) == [1.0, 2.0]


@pytest.mark.parametrize("name", ALL)
def test_records_that_are_not_finite_are_left_to_missing(name):
    loss = np.random.default_rng(2).exponential(size=200)
    loss[[3, 50, 120]] = np.nan, np.inf, -1.0
    dataset = stream(loss)
    for missing in ("drop", "keep", "uniform"):
        sampler = ofb_tf.ofb_sample(
            policy=name, rate=0.25, window_size=200, seed=1, missing=missing
        )
        got = {int(e["example_id"]): float(e["importance_weight"]) for e in dataset.apply(sampler)}
        assert np.isfinite(list(got.values())).all()
        assert sampler.statistics(dataset)["unusable"] == 3
        if missing == "drop":
            assert not {3, 50, 120} & set(got)
        if missing == "keep":
            assert {3, 50, 120} <= set(got)
            np.testing.assert_allclose([got[i] for i in (3, 50, 120)], [0.25] * 3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_same_seed_equal_other_seed_different(name, design):
    losses = np.random.default_rng(5).integers(0, 3, 300).astype(np.float32)  # ties leave a choice

    @tf.function
    def chosen(seed):
        return window.select(
            POLICIES[name](design=design),
            rate=0.1,
            task="regression",
            missing="error",
            example_ids=tf.range(300, dtype=tf.int64),
            labels=tf.zeros(300),
            record={"loss": tf.constant(losses)},
            key=seed,
            batch_size=None,
        ).indices

    first, *others = (chosen(tf.constant(seed, tf.int64)).numpy() for seed in (1, *range(1, 12)))
    np.testing.assert_array_equal(first, others[0])
    # With halves and ones, as InfoBatch has them, the systematic design has two outcomes.
    assert len({tuple(indices) for indices in others}) > 1


@pytest.mark.parametrize("name", ALL)
def test_restored_at_every_step_the_selection_goes_on(name):
    dataset = stream(np.random.default_rng(6).exponential(size=400))
    sampler = ofb_tf.ofb_sample(policy=name, rate=0.25, window_size=100, batch_size=25, seed=9)
    assert_checkpoint_roundtrip(dataset.apply(sampler))


@pytest.mark.parametrize("name", ALL)
def test_the_probe_is_refused_where_no_probability_is_known_to_be_above_zero(name):
    if name == "importance":
        ofb_tf.ofb_sample(policy=name, uniform_probe=0.01)
        return
    for policy in (name, ofb_tf.SelectionGuard().policy(name)):
        with pytest.raises(ValueError, match="least inclusion probability, which is 0"):
            ofb_tf.ofb_sample(policy=policy, uniform_probe=0.01)


@pytest.mark.parametrize("name", ALL)
def test_fixed_count_and_xla(name):
    """What `OFBModel(backward_rate=..., selection_policy=name)` runs, compiled."""
    rng = np.random.default_rng(7)
    logits = tf.constant(rng.normal(size=(64, 5)), tf.float32)
    labels = tf.constant(rng.integers(0, 5, 64))
    policy = POLICIES[name]()

    def select():
        key = tf.constant(3, tf.int64)
        return window.select_count(policy, 16, "multiclass", labels, {"logits": logits}, key)

    plain, compiled = select(), tf.function(select, jit_compile=True)()
    assert len(set(plain[0].numpy())) == 16
    np.testing.assert_array_equal(plain[0], compiled[0])
    np.testing.assert_allclose(plain[1], compiled[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectiveBackprop(beta=-1), "beta must be finite and at least 0.*Received: -1"),
        (lambda: InfoBatch(prune=1.0), r"prune must be in \[0, 1\). Received: 1.0"),
        (lambda: InfoBatch(score="size"), "score must be"),
        (lambda: TopLoss(design="cluster"), "design must be"),
        (lambda: BottomLoss(design="cluster"), "design must be"),
        (lambda: Importance(design="cluster"), "design must be 'systematic'"),
        (lambda: Importance(score="entropy"), "score must be 'gradient_norm_bound'"),
        (lambda: Importance(uniform_mix=-0.1), r"uniform_mix must be in \[0, 1\]. Received: -0.1"),
        (lambda: Importance(uniform_mix=float("nan")), r"uniform_mix must be in \[0, 1\]"),
        (lambda: LossMatching(tolerance=-1), "tolerance must be finite.*Received: -1"),
    ],
)
def test_validation(make, message):
    with pytest.raises(ValueError, match=message):
        make()

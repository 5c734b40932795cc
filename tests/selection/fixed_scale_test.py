"""A given scale: probabilities of the scores alone, whatever the window."""

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import FixedScale
from ofb_tf.testing import tiny_dataset


def sample(policy, window_size):
    transform = ofb_tf.ofb_sample(
        policy=policy, rate=0.1, seed=3, window_size=window_size, redraw_each_iteration=False
    )
    return {
        int(one["example_id"]): float(one["importance_weight"])
        for one in tiny_dataset(4000).apply(transform).as_numpy_iterator()
    }


def test_selection_and_weights_do_not_depend_on_the_window():
    policy = FixedScale(0.2, 0.02)
    one, other = sample(policy, 4000), sample(policy, 100)
    assert one.keys() == other.keys()
    np.testing.assert_allclose([one[k] for k in sorted(one)], [other[k] for k in sorted(one)], 4e-7)
    # Poisson: the count is a sum of independent draws.
    logits, labels = zip(
        *((e["logits"][0], e["label"]) for e in tiny_dataset(4000).as_numpy_iterator()), strict=True
    )
    scores = np.abs(1 / (1 + np.exp(-np.array(logits, np.float64))) - np.array(labels))
    p = np.minimum(1.0, 0.2 * scores + 0.02)
    assert abs(len(one) - p.sum()) < 5 * np.sqrt((p * (1 - p)).sum())
    np.testing.assert_allclose(
        [one[k] for k in sorted(one)], 0.1 / p[np.array(sorted(one)) - 1000], rtol=1e-5
    )


@pytest.mark.parametrize("rate, mix", [(0.1, 0.2), (0.5, 0.2), (0.3, 0.0), (0.05, 1.0)])
def test_fit_meets_the_rate_and_equals_importance(rate, mix):
    scores = np.random.default_rng(0).lognormal(sigma=2.0, size=5000)
    policy = FixedScale.fit(scores, rate=rate, uniform_mix=mix)
    p = np.minimum(1.0, policy.slope * scores + policy.offset)
    assert p.mean() == pytest.approx(rate, rel=1e-9)
    assert p.min() >= mix * rate * (1 - 1e-12)
    sizes = (1 - mix) * scores / scores.sum() + mix / len(scores)
    expected = ofb_tf.selection.designs.capped_pps(tf.constant(sizes), rate * len(scores)).numpy()
    np.testing.assert_allclose(p, expected, rtol=1e-9)


def test_fit_where_most_scores_are_zero():
    scores = np.zeros(100)
    scores[:30] = np.arange(1, 31)
    policy = FixedScale.fit(scores, rate=0.1, uniform_mix=0.0)
    assert np.minimum(1.0, policy.slope * scores + policy.offset).sum() == pytest.approx(10)
    with pytest.raises(ValueError, match="only 5 of 100 scores are above 0"):
        FixedScale.fit(np.arange(100) < 5, rate=0.1, uniform_mix=0.0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": np.array([])}, "at least one"),
        ({"scores": np.array([1.0, np.nan])}, "finite"),
        ({"rate": 1.0}, "rate must be"),
        ({"uniform_mix": -0.1}, "uniform_mix in"),
        ({"scores": np.zeros(3)}, "some score above 0"),
    ],
)
def test_fit_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        FixedScale.fit(**{"scores": np.ones(3), "rate": 0.1} | change)


@pytest.mark.parametrize("slope, offset", [(-1.0, 0.1), (1.0, 1.5), (float("inf"), 0.0)])
def test_wrong_scales_are_named(slope, offset):
    with pytest.raises(ValueError, match="slope must be"):
        FixedScale(slope, offset)

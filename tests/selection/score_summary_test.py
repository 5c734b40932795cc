"""The mergeable summary and the probabilities it leads to, against plain float64 numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofb_tf.selection.score_summary import ScoreSummary, solve
from tests import reference

_RNG = np.random.default_rng(11)
_SCORES = {
    "even": _RNG.random(20_000),
    "heavy_tail": _RNG.exponential(size=20_000) ** 4,
    "three_values": _RNG.choice([0.0, 0.25, 1.0], 20_000),
    "rare": np.where(_RNG.random(20_000) < 0.02, 1.0, 1e-4),
    "tiny_range": 0.5 + 1e-4 * _RNG.random(20_000),
}


def _summary(scores, num_missing=0):
    return ScoreSummary.of(np.asarray(scores, np.float32), num_missing)


def _inclusion(scores, rate, mix):
    summary = _summary(scores)
    inclusion = solve(summary, rate=rate, uniform_mix=mix, missing="uniform")
    scores = np.asarray(scores, np.float32)
    return inclusion.probabilities(scores, np.ones(len(scores), bool))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("mix", [0.05, 0.2])
@pytest.mark.parametrize("name", _SCORES)
def test_probabilities_are_capped_pps(name, mix, rate):
    scores = _SCORES[name].astype(np.float32).astype(np.float64)
    sizes = (1 - mix) * scores / scores.sum() + mix / len(scores)
    expected = reference.capped_pps(sizes, rate * len(scores))
    actual = _inclusion(scores, rate, mix)
    # Only scores in the bin that the cap cuts may be off, and these by the bin's width.
    np.testing.assert_allclose(actual, expected, rtol=2.0**-10)
    assert abs(actual.sum() - rate * len(scores)) < 1e-3


def test_sum_misses_the_budget_by_less_than_its_bound_in_the_worst_bin():
    # Half of the cut bin at either end, the cap in its middle, everything else negligible.
    low, high = np.float32(1.0), np.nextafter(np.float32(1.0 + 2.0**-10), np.float32(0))
    scores = np.concatenate([np.repeat([low, high], 500), np.full(9000, 1e-30)])
    actual = _inclusion(scores, 0.1, 0.0)
    error = abs(actual.sum() - 1000.0)
    assert 0.05 < error < 2.5e-4 * 1000


@given(
    st.lists(st.floats(0, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
    st.integers(1, 9),
)
def test_merging_is_exact_in_any_order_and_grouping(scores, random, num_parts):
    whole = _summary(scores, 3)
    shuffled = random.sample(scores, len(scores))
    parts = [_summary(part) for part in np.array_split(shuffled, num_parts)] + [_summary([], 3)]
    random.shuffle(parts)
    merged = ScoreSummary.merge([ScoreSummary.merge(parts[:2]), *parts[2:]])
    for name in ("bins", "counts", "low_sums"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    assert merged.num_missing == 3
    np.testing.assert_allclose(
        whole.sums().sum(), np.sum(np.float32(scores), dtype=np.float64), rtol=1e-14
    )


def test_memory_is_bounded_over_the_whole_range_of_floats():
    exponents = _RNG.uniform(-126, 127.9, 2_000_000)
    summary = _summary(2.0**exponents)
    assert summary.num_scored == 2_000_000
    assert len(summary.bins) <= 261_120
    columns = (summary.bins, summary.counts, summary.low_sums)
    assert sum(column.nbytes for column in columns) <= 24 * 261_120


def test_scores_all_zero_mean_uniform():
    np.testing.assert_allclose(_inclusion(np.zeros(50), 0.1, 0.2), 0.1)


def test_without_mix_zeros_share_what_positive_scores_leave():
    actual = _inclusion([1.0] * 3 + [0.0] * 7, 0.5, 0.0)
    np.testing.assert_allclose(actual, [1.0] * 3 + [2.0 / 7.0] * 7)


def test_budget_of_everything_takes_everything():
    np.testing.assert_array_equal(_inclusion(_SCORES["heavy_tail"], 1.0, 0.2), 1.0)


@pytest.mark.parametrize(
    ("missing", "expected", "budget"),
    [("uniform", 0.1, 0.1 * 900), ("drop", 0.0, 0.1 * 900), ("keep", 1.0, 0.02 * 900)],
)
def test_missing_examples(missing, expected, budget):
    # keep: 100 of 1000 have no record and use up the budget; the others keep a fifth of the rate.
    scores = _SCORES["even"][:900].astype(np.float32)
    inclusion = solve(_summary(scores, 100), rate=0.1, uniform_mix=0.2, missing=missing)
    p = inclusion.probabilities(np.append(scores, 0.0), np.append(np.ones(900, bool), False))
    assert p[-1] == expected
    assert p[:-1].sum() == pytest.approx(budget, rel=1e-6)
    weights = inclusion.weights(p)
    assert weights[-1] == pytest.approx(0.1 / expected if expected else 0.0)


@pytest.mark.parametrize("mix", [0.05, 0.5])
@pytest.mark.parametrize("num_missing", [20, 90, 500])
def test_keep_takes_its_part_of_the_budget_within_the_bound_of_the_weights(mix, num_missing):
    num_scored = 1000 - num_missing
    scores = _SCORES["heavy_tail"][:num_scored].astype(np.float32)
    inclusion = solve(_summary(scores, num_missing), rate=0.1, uniform_mix=mix, missing="keep")
    p = inclusion.probabilities(scores, np.ones(num_scored, bool))
    budget = max(100 - num_missing, max(0.2, mix) * 0.1 * num_scored)
    assert p.sum() == pytest.approx(budget, rel=1e-3)
    assert inclusion.weights(p).max() <= 1 / mix * (1 + 1e-6)


def test_no_example_at_all():
    inclusion = solve(ScoreSummary.of([]), rate=0.1, uniform_mix=0.2, missing="uniform")
    assert inclusion.probabilities(np.zeros(0), np.zeros(0, bool)).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_score_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="finite and at least 0"):
        _summary([1.0, bad])

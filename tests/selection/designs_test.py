"""Designs against exhaustive and numpy references."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ofb_tf import hashing
from ofb_tf.selection import designs
from tests import reference

sizes_lists = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.just(1.0)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(sizes_lists, st.floats(0.0, 1.2))
@example([0.0] * 8, 0.25)
@example([], 0.0)
def test_capped_pps_equals_the_textbook_iteration(sizes, share):
    sizes, budget = np.array(sizes), share * len(sizes)
    got = designs.capped_pps(tf.constant(sizes, tf.float64), budget).numpy()
    np.testing.assert_allclose(got, reference.capped_pps(sizes, budget), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.sum(), min(budget, len(sizes)), rtol=1e-9, atol=1e-9)
    assert ((got >= 0.0) & (got <= 1.0)).all()


def test_capped_pps_sees_sizes_far_below_the_largest():
    """Their sum decides whether the next one is capped, and a difference of sums would lose it."""
    sizes = np.r_[np.ones(5), 2e-19, np.full(10_000, 1e-20)]
    got = designs.capped_pps(tf.constant(sizes), 60.0).numpy()
    np.testing.assert_allclose(got, reference.capped_pps(sizes, 60.0), rtol=1e-12)
    assert got[5] < 0.2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=0, max_size=50),
    st.integers(0, 2**24 - 1),
    st.randoms(use_true_random=False),
)
def test_systematic_equals_the_floor_steps_of_the_cumulative_sum(probabilities, bits, random):
    probabilities = np.array(probabilities, np.float64)
    start = (bits + 0.5) / 2**24
    order = list(range(len(probabilities)))
    random.shuffle(order)
    order = np.array(order, np.int32)
    steps = np.floor(np.concatenate([[0.0], np.cumsum(probabilities[order])]) + start)
    expected = order[np.diff(steps) > 0]
    got = designs.systematic(tf.constant(probabilities), tf.constant(order), start).numpy()
    total = probabilities.sum()
    if abs(total - round(total)) < 1e-6:  # rounding decides the last step; the count is exact
        assert len(got) == round(total)
    else:
        np.testing.assert_array_equal(got, expected)
    assert len(set(got.tolist())) == len(got)


def test_systematic_takes_each_example_with_its_probability_exactly():
    """Every start on a grid fine enough that the grid's frequencies are the probabilities."""
    probabilities = np.array([0.25, 0.5, 1.0, 0.125, 0.125, 0.75, 0.25])
    counts = np.zeros(len(probabilities))
    for k in range(16):
        chosen = designs.systematic(
            tf.constant(probabilities), tf.range(len(probabilities)), (k + 0.5) / 16
        ).numpy()
        assert len(chosen) == 3
        counts[chosen] += 1
    np.testing.assert_array_equal(counts / 16, probabilities)


@pytest.mark.parametrize("n", [10, 1000, 4096])
def test_systematic_takes_exactly_the_budget_over_many_starts(n):
    rng = np.random.default_rng(n)
    budget = n // 10
    probabilities = designs.capped_pps(tf.constant(rng.pareto(1.0, n)), float(budget))
    for seed in range(200):
        start = hashing.uniform_start(tf.constant(seed, tf.int64))
        chosen = designs.systematic(probabilities, tf.range(n), start).numpy()
        assert len(set(chosen.tolist())) == len(chosen) == budget


def test_systematic_never_takes_probability_zero_and_always_takes_one():
    probabilities = np.array([0.0, 1.0, 0.0, 0.3, 0.7, 0.0, 1.0, 0.0])
    for seed in range(500):
        start = hashing.uniform_start(tf.constant(seed, tf.int64))
        chosen = set(designs.systematic(probabilities, tf.range(8), start).numpy().tolist())
        assert {1, 6} <= chosen <= {1, 3, 4, 6}


def test_poisson_is_independent_draws():
    probabilities = np.array([0.0, 0.2, 0.5, 1.0])
    key, trials = tf.constant(5, tf.int64), 20_000
    ids = tf.range(trials * 4, dtype=tf.int64)
    draws = hashing.hash01(ids, key)
    taken = np.zeros(trials * 4)
    taken[designs.poisson(tf.tile(tf.constant(probabilities), [trials]), draws).numpy()] = 1
    taken = taken.reshape(trials, 4)
    tolerance = 5 * np.sqrt(probabilities * (1 - probabilities) / trials)
    assert (np.abs(taken.mean(0) - probabilities) <= tolerance).all()
    together = (taken[:, 1] * taken[:, 2]).mean()
    assert abs(together - 0.1) < 5 * np.sqrt(0.1 * 0.9 / trials)


def test_spread_deals_whole_batches():
    order = designs.spread(12, 4).numpy()
    np.testing.assert_array_equal(order.reshape(3, 4), [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])


@pytest.mark.parametrize("count", [0, 1, 2, 7, 409, 410, 1000])
@pytest.mark.parametrize("batch_size", [None, 64, 256])
def test_spread_is_a_permutation(count, batch_size):
    order = designs.spread(tf.constant(count), batch_size).numpy()
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_any_run_of_neighbours_is_spread_alike():
    count, length = 1000, 50
    order = designs.spread(tf.constant(count), None).numpy()
    for begin in range(0, count - length, 7):
        run = np.sort(order[begin : begin + length])
        gaps = np.diff(np.concatenate([[run[-1] - count], run]))
        # Gaps take three lengths, the largest the sum of the others and under 2.7 times the mean
        # (three-distance theorem); a sorted run would leave a gap of 950.
        assert gaps.max() < 2.7 * count / length

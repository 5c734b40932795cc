"""LossMatching against numpy's best swaps, and against all subsets of small windows."""

import itertools
import timeit

import numpy as np
import tensorflow as tf

from ofb_tf.selection import LossMatching
from ofb_tf.selection.loss_matching import match_mean
from tests.reference import inclusion, random_losses, runner


def best_swaps(losses, chosen, tolerance=1e-6):
    """Best swaps by the whole matrix of them."""
    chosen = chosen.copy()
    goal = losses.sum() * (chosen.sum() / len(losses))
    while 0 < chosen.sum() < len(losses):
        lacking = goal - losses[chosen].sum()
        if abs(lacking) <= tolerance * abs(goal):
            break
        inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        left = np.abs(lacking + losses[inside][:, None] - losses[outside])
        i, j = np.unravel_index(left.argmin(), left.shape)
        swapped = chosen.copy()
        swapped[inside[i]], swapped[outside[j]] = False, True
        if abs(goal - losses[swapped].sum()) >= abs(lacking):
            break
        chosen = swapped
    return chosen


def distance(losses, chosen):
    """Between the means of the chosen and of all."""
    return abs(losses[chosen].mean() - losses.mean())


def test_swaps_equal_numpy():
    """As near the mean as numpy's best swaps from the same start, over many windows."""
    rng = np.random.default_rng(3)
    signature = [tf.TensorSpec([None], tf.float64), tf.TensorSpec([None], tf.bool)]
    match = tf.function(lambda *window: match_mean(*window, 1e-6), input_signature=signature)
    for losses in random_losses():
        losses = np.sort(losses.astype(np.float64))
        n = len(losses)
        for size in {0, min(1, n), n // 10, n // 3, n}:
            start = rng.permutation(n) < size
            got = match(losses, start).numpy()
            assert got.sum() == size
            if 0 < size < n:
                expected = distance(losses, best_swaps(losses, start))
                # Equally good swaps may be taken in another order: then both are near.
                near = 1e-6 * losses.mean() + 1e-12
                assert distance(losses, got) <= max(expected, near) * (1 + 1e-9) + 1e-12


def test_no_single_swap_comes_closer():
    run = runner(LossMatching(tolerance=0.0))
    for losses in random_losses():
        n = len(losses)
        budget = max(n // 5, 1) if n else 0
        chosen = run(losses, budget)[0] > 0
        losses = losses.astype(np.float64)
        assert chosen.sum() == budget
        if not 0 < budget < n:
            continue
        reached = distance(losses, chosen) * budget
        lacking = losses.mean() * budget - losses[chosen].sum()
        best = np.abs(lacking + losses[chosen][:, None] - losses[~chosen]).min()
        assert reached <= best + 1e-9 * max(1.0, losses.sum())


def test_against_all_subsets_of_small_windows():
    """Near the exact optimum, which only enumeration finds.

    Over 300 windows of 6 to 12, the mean distance to the window's mean is computed for the
    optimum, the policy and a subset drawn at random (0.031, 0.038 and 0.369; optimal in 193):
    the policy keeps at most a twentieth of what the random subset has above the optimum.
    """
    rng = np.random.default_rng(4)
    run = runner(LossMatching())
    optimum, reached, drawn, exact = [], [], [], 0
    for seed in range(300):
        n = int(rng.integers(6, 13))
        size = int(rng.integers(2, n // 2 + 1))
        losses = rng.exponential(size=n).astype(np.float32)
        chosen = run(losses, size, seed)[0] > 0
        losses = losses.astype(np.float64)
        subsets = [list(s) for s in itertools.combinations(range(n), size)]
        distances = [distance(losses, s) for s in subsets]
        optimum.append(min(distances))
        reached.append(distance(losses, chosen))
        drawn.append(distances[rng.integers(len(distances))])
        assert reached[-1] >= optimum[-1] - 1e-9
        exact += reached[-1] <= optimum[-1] + 1e-6 * losses.mean()
    assert np.mean(reached) - np.mean(optimum) <= 0.05 * (np.mean(drawn) - np.mean(optimum))
    assert exact >= 150


def test_a_large_window_is_matched():
    for losses in (np.random.default_rng(8).exponential(size=4096), np.r_[np.zeros(4000), 1:97]):
        chosen = inclusion(LossMatching(), losses, 410.0)[0] > 0
        assert chosen.sum() == 410
        losses = np.float32(losses).astype(np.float64)
        assert distance(losses, chosen) <= 1.001e-6 * losses.mean() or (losses % 1 == 0).all()


def test_the_draw_does_not_depend_on_the_order_of_the_window():
    rng = np.random.default_rng(9)
    for losses in (rng.exponential(size=200), rng.integers(0, 3, 200), np.ones(200)):
        ids, order = rng.permutation(10**6)[:200], rng.permutation(200)
        plain = inclusion(LossMatching(), losses, 20.0, 5, ids)[0] > 0
        moved = inclusion(LossMatching(), losses[order], 20.0, 5, ids[order])[0] > 0
        assert set(ids[plain]) == set(ids[order][moved])


def test_equal_losses_leave_the_uniform_draw():
    """Each example equally often, within 5 standard errors."""
    n, size, trials = 20, 5, 2000
    run = runner(LossMatching())
    counts = sum(run(np.ones(n), size, seed)[0] for seed in range(trials))
    p = size / n
    assert np.abs(counts / trials - p).max() <= 5 * np.sqrt(p * (1 - p) / trials)


def test_a_fraction_of_the_budget_is_right_on_average():
    trials, losses = 1000, np.random.default_rng(1).exponential(size=12)
    run = runner(LossMatching())
    sizes = np.array([run(losses, 2.3, seed)[0].sum() for seed in range(trials)])
    assert set(sizes) == {2.0, 3.0}
    assert abs(sizes.mean() - 2.3) <= 5 * np.sqrt(0.3 * 0.7 / trials)


def test_a_window_of_4096_takes_well_under_a_tenth_of_a_second():
    losses, run = np.random.default_rng(2).exponential(size=4096), runner(LossMatching())
    run(losses, 409.6)
    assert min(timeit.repeat(lambda: run(losses, 409.6), number=1)) < 0.1

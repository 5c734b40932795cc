"""A budget that follows the stream: windows with many hard examples may take more than others.

The probabilities of a window are `min(1, slope * score + intercept)`. With `budget="window"` the
slope is such that each window takes its share exactly. Here it is such that the rate is right over
the past of the stream and this window together, so that the same score has about the same
probability in every window, and the rate is right on average:

- Past scores are kept as a histogram on a logarithmic scale, with the sum of each bin, so that
  only the one bin that the cap of 1 cuts is not exact. It forgets a hundredth with every window.
- What the windows so far took more or less than their budgets is an account, of which a tenth is
  paid back in every window. This keeps the realised rate right where scores drift.

Probabilities are a function of the scores of this window and those before it, so the weights rate
/ p stay unbiased. The intercept is `uniform_mix * rate`, which bounds weights by 1 / uniform_mix.
"""

from typing import NamedTuple

import tensorflow as tf

_OCTAVES = 24  # scores from 2^-24 to 2^24 have bins of their own, two per octave
_BINS = 4 * _OCTAVES
_MEMORY = 100.0  # windows that the histogram remembers
_REPAYMENT = 0.1  # of the account, per window
_MAX_REPAYMENT = 0.5  # of a window's budget, either way
_MAX_ACCOUNT = 20.0  # budgets of a window: what is beyond is written off
_STEEP = 1e200  # a slope that lifts every score but 0 above 1


class StreamState(NamedTuple):
    """What is carried from window to window.

    Attributes:
      account: float64 scalar: examples by which the windows so far fell short of their budgets.
      counts: float64 `[bins]`: past scores in each bin.
      sums: float64 `[bins]`: their sums.
    """

    account: tf.Tensor
    counts: tf.Tensor
    sums: tf.Tensor


def initial_state() -> StreamState:
    """The state before the first window."""
    empty = tf.zeros([_BINS], tf.float64)
    return StreamState(tf.zeros([], tf.float64), empty, empty)


def remember(state: StreamState, scores: tf.Tensor) -> StreamState:
    """The state with a window's scores, finite and at least 0, `[n]`."""
    scores = tf.cast(scores, tf.float64)
    octave = tf.math.log(tf.clip_by_value(scores, 2.0**-_OCTAVES, 2.0**_OCTAVES)) / tf.math.log(
        tf.constant(2.0, tf.float64)
    )
    bins = tf.clip_by_value(tf.cast(tf.floor(2.0 * (octave + _OCTAVES)), tf.int32), 0, _BINS - 1)
    kept = 1.0 - 1.0 / _MEMORY
    counts = tf.math.unsorted_segment_sum(tf.ones_like(scores), bins, _BINS)
    sums = tf.math.unsorted_segment_sum(scores, bins, _BINS)
    return StreamState(state.account, kept * state.counts + counts, kept * state.sums + sums)


def line(state: StreamState, budget: tf.Tensor, n: tf.Tensor, least: float) -> tf.Tensor:
    """Slope and intercept of a window's probabilities.

    Args:
      state: with the window's own scores.
      budget: float64 scalar: the window's own.
      n: float64 scalar: its examples with a score.
      least: the intercept, at most budget / n: the probability of an example with score 0.

    Returns:
      float64 `[2]`: slope and intercept, which make the mean of the probabilities over the
      histogram the window's rate, plus or minus what is paid back.
    """
    paid = tf.clip_by_value(
        _REPAYMENT * state.account, -_MAX_REPAYMENT * budget, _MAX_REPAYMENT * budget
    )
    rate = tf.clip_by_value(tf.math.divide_no_nan(budget + paid, n), least, 1.0)
    return _solve(state.counts, state.sums, rate, tf.constant(least, tf.float64))


def settle(state: StreamState, budget: tf.Tensor, probabilities: tf.Tensor) -> StreamState:
    """The state with what a window was due and what it got, in expectation."""
    account = state.account + budget - tf.reduce_sum(probabilities)
    most = _MAX_ACCOUNT * budget
    return state._replace(account=tf.clip_by_value(account, -most, most))


def _solve(counts: tf.Tensor, sums: tf.Tensor, rate: tf.Tensor, least: tf.Tensor) -> tf.Tensor:
    """The slope for which `sum(counts * min(1, slope * mean + least)) = rate * sum(counts)`."""
    edges = tf.pow(tf.constant(2.0, tf.float64), tf.range(_BINS, dtype=tf.float64) / 2 - _OCTAVES)
    means = tf.maximum(tf.where(counts > 0.0, tf.math.divide_no_nan(sums, counts), edges), edges[0])
    goal = rate * tf.reduce_sum(counts)
    # Bins ascend, so the capped ones are the last. With the slope that just caps bin j, ...
    below = tf.cumsum(sums, exclusive=True)
    num_below = tf.cumsum(counts, exclusive=True)
    num_above = tf.cumsum(counts, reverse=True)
    expected = num_above + (1.0 - least) / means * below + least * num_below
    # ... that many are expected. It is capped where they are not too many.
    capped = expected <= goal
    zero = tf.zeros_like(counts)
    num_capped = tf.reduce_sum(tf.where(capped, counts, zero))
    rest = tf.reduce_sum(tf.where(capped, zero, sums))
    num_rest = tf.reduce_sum(tf.where(capped, zero, counts))
    slope = tf.math.divide_no_nan(goal - num_capped - least * num_rest, rest)
    # Where only zeros are left they share evenly; where nothing is left, all are taken.
    even = tf.where(num_rest > 0.0, tf.math.divide_no_nan(goal - num_capped, num_rest), 1.0)
    intercept = tf.where(rest > 0.0, least, tf.maximum(least, even))
    steep = tf.where(num_capped > 0.0, tf.constant(_STEEP, tf.float64), 0.0)
    return tf.stack([tf.where(rest > 0.0, tf.maximum(slope, 0.0), steep), intercept])

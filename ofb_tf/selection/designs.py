"""From sizes to inclusion probabilities, and from probabilities to a selection.

Knows neither datasets nor models: float64 vectors in, indices out.
"""

import tensorflow as tf

_GOLDEN_RATIO = 0.6180339887498949


def capped_pps(sizes: tf.Tensor, budget: tf.Tensor) -> tf.Tensor:
    """Inclusion probabilities proportional to size, none above 1, with a fixed sum.

    Solves sum(min(1, c * sizes)) = budget for c exactly. With the k largest sizes capped, c is
    what is left of the budget over the sum of the rest; the k sought is the first where c times
    the next size is not above 1. At most the budget can be capped, so that many of the largest
    sizes are sorted. Where the remaining sizes sum to zero they share evenly, so all sizes zero
    means uniform.

    Args:
      sizes: float64 `[n]`, finite, at least 0.
      budget: float64 scalar, at least 0; at most n counts.

    Returns:
      float64 `[n]` in [0, 1] with sum min(budget, n).

    Reference: probability-proportional-to-size sampling, Tillé, "Sampling Algorithms", 2006,
    section 2.10.
    """
    n = tf.cast(tf.size(sizes), tf.float64)
    budget = tf.minimum(tf.convert_to_tensor(budget, tf.float64), n)

    count = tf.cast(tf.minimum(tf.floor(budget) + 1.0, n), tf.int32)
    largest = tf.math.top_k(sizes, count).values
    # Summed apart, since a difference of sums would lose sizes far below the largest.
    least = tf.reduce_min(largest)
    ties = tf.cast(tf.math.count_nonzero(sizes >= least), tf.float64) - tf.cast(count, tf.float64)
    others = tf.reduce_sum(tf.where(sizes < least, sizes, tf.zeros_like(sizes))) + ties * least
    rest = tf.cumsum(largest, reverse=True) + others
    left = budget - tf.range(tf.cast(count, tf.float64), dtype=tf.float64)
    # Sizes that are equal are capped together: the condition cannot separate them.
    capped = sizes > tf.reduce_max(tf.where(largest * left > rest, tf.zeros_like(largest), largest))
    num_capped = tf.cast(tf.math.count_nonzero(capped), tf.float64)
    left_to_share = budget - num_capped
    uncapped = tf.where(capped, tf.zeros_like(sizes), sizes)
    factor = tf.math.divide_no_nan(left_to_share, tf.reduce_sum(uncapped))
    # A factor of 0 means that only zeros are left.
    even_share = tf.math.divide_no_nan(left_to_share, n - num_capped)
    shares = tf.where(factor > 0.0, sizes * factor, even_share)
    return tf.where(capped, tf.ones_like(sizes), shares)


def systematic(
    probabilities: tf.Tensor,
    order: tf.Tensor,
    start: tf.Tensor,
    count: int | tf.Tensor | None = None,
) -> tf.Tensor:
    """Systematic sampling: one uniform start, then every unit step of the cumulative sum.

    Each example is taken with its probability. Where the probabilities sum to an integer, that
    many are taken; otherwise the integer below or above. Neighbours in the order are taken
    together less often than independent draws would, so similar examples belong next to each
    other.

    Args:
      probabilities: float64 `[n]` in [0, 1].
      order: int32 or int64 `[n]`, a permutation.
      start: float64 scalar in (0, 1) from `ofb_tf.hashing.uniform_start`.
      count: how many to take, where the probabilities sum to it but for rounding; the result then
        has a static shape. None takes what the sum says.

    Returns:
      int32 `[m]`: indices of the selected, in the order given.

    Reference: Madow, "On the theory of systematic sampling, II", Annals of Mathematical
    Statistics 20, 1949.
    """
    order = tf.cast(order, tf.int32)
    cumulative = tf.cumsum(tf.gather(probabilities, order))
    if count is not None:
        cumulative *= tf.cast(count, tf.float64) / cumulative[-1]
        steps = tf.cast(tf.range(1, count + 1), tf.float64)
        positions = _lower_bound(cumulative, steps - start)
        return tf.gather(order, tf.minimum(positions, tf.size(order) - 1))
    # The last sum is the greatest one; 0 where there is none.
    total = tf.maximum(tf.reduce_max(cumulative), 0.0)
    # A sum that is an integer but for rounding is that integer: the count is then exact.
    nearest = tf.round(total)
    exact = tf.abs(total - nearest) < 1e-9 * tf.maximum(total, 1.0)
    scale = tf.where(exact, tf.math.divide_no_nan(nearest, total), 1.0)
    count = tf.floor(tf.where(exact, nearest, total) + start)
    steps = tf.range(1.0, count + 1.0, dtype=tf.float64)
    return tf.gather(order, _lower_bound(cumulative * scale, steps - start))


def _lower_bound(ascending: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`tf.searchsorted` of vectors, which takes 20 more operations to take any shape."""
    positions = tf.raw_ops.LowerBound(
        sorted_inputs=tf.expand_dims(ascending, 0), values=tf.expand_dims(values, 0)
    )
    return tf.squeeze(positions, 0)


def poisson(probabilities: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Poisson (rejection) sampling: each example on its own.

    Args:
      probabilities: float64 `[n]` in [0, 1].
      draws: float64 `[n]` in [0, 1) from `ofb_tf.hashing.hash01`.

    Returns:
      int32 `[m]`: ascending indices of the selected.
    """
    return tf.cast(tf.where(draws < probabilities)[:, 0], tf.int32)


def spread(count: tf.Tensor, batch_size: int | None) -> tf.Tensor:
    """A permutation in which an ordered selection leaves its window.

    The systematic order puts similar examples next to each other, so it must not be the order of
    training. Where whole batches fit, they are dealt: batch j of m takes positions j, j + m,
    j + 2m, ... and is a systematic sample of its own. Otherwise positions j leave by the
    fractional part of j times the golden ratio: any run is spread evenly over the order, with
    gaps of at most three lengths (the three-distance theorem).

    Args:
      count: int32 scalar, at least 0: how many leave.
      batch_size: size of the batches that they leave in, or None for single examples.

    Returns:
      int32 `[count]`, a permutation.
    """
    places = tf.range(tf.cast(count, tf.float64), dtype=tf.float64)
    one, golden_ratio = tf.constant(1.0, tf.float64), tf.constant(_GOLDEN_RATIO, tf.float64)
    step, turn = golden_ratio, one
    if batch_size is not None:
        whole = tf.equal(count % batch_size, 0)
        step = tf.where(whole, one, golden_ratio)
        turn = tf.where(whole, tf.cast(count // batch_size, tf.float64), one)
    # Dealt: by the remainder of the place; the sort is stable.
    return ascending_order(tf.math.floormod(places * step, turn))


def ascending_order(values: tf.Tensor) -> tf.Tensor:
    """`tf.argsort(values, stable=True)` of floats `[n]`, in two operations instead of nine."""
    return tf.math.top_k(-values, tf.size(values)).indices

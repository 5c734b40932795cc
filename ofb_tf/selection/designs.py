"""From sizes to inclusion probabilities, and from probabilities to a selection.

Knows neither datasets nor models: float64 vectors in, indices out.
"""

import tensorflow as tf

_GOLDEN_RATIO = 0.6180339887498949


def capped_pps(sizes: tf.Tensor, budget: tf.Tensor) -> tf.Tensor:
    """Inclusion probabilities proportional to size, none above 1, with a fixed sum.

    Solves sum(min(1, c * sizes)) = budget for c exactly: whatever c carries over 1 is capped and
    c is computed again for the rest, until nothing more is carried over. Each round caps at
    least one size, so it ends; few rounds are usual, none where scores are similar. Where the
    remaining sizes sum to zero they share evenly, so all sizes zero means uniform.

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

    def carried_over(capped: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any((sizes * factor > 1.0) & ~capped)

    def cap(capped: tf.Tensor, factor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        capped |= sizes * factor > 1.0
        left = budget - tf.cast(tf.math.count_nonzero(capped), tf.float64)
        rest = tf.reduce_sum(tf.where(capped, tf.zeros_like(sizes), sizes))
        return capped, tf.math.divide_no_nan(left, rest)

    capped, factor = tf.while_loop(
        carried_over,
        cap,
        (tf.zeros_like(sizes, tf.bool), tf.math.divide_no_nan(budget, tf.reduce_sum(sizes))),
    )
    num_capped = tf.cast(tf.math.count_nonzero(capped), tf.float64)
    # A factor of 0 means that only zeros are left.
    even_share = tf.math.divide_no_nan(budget - num_capped, n - num_capped)
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
        positions = tf.searchsorted(cumulative, steps - start)
        return tf.gather(order, tf.minimum(positions, tf.size(order) - 1))
    total = tf.concat([tf.zeros([1], tf.float64), cumulative], axis=0)[-1]
    # A sum that is an integer but for rounding is that integer: the count is then exact.
    nearest = tf.round(total)
    exact = tf.abs(total - nearest) < 1e-9 * tf.maximum(total, 1.0)
    scale = tf.where(exact, tf.math.divide_no_nan(nearest, total), 1.0)
    count = tf.cast(tf.floor(tf.where(exact, nearest, total) + start), tf.int32)
    steps = tf.range(1, count + 1, dtype=tf.int32)
    positions = tf.searchsorted(cumulative * scale, tf.cast(steps, tf.float64) - start)
    return tf.gather(order, positions)


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

    def golden_ratio() -> tf.Tensor:
        return tf.argsort(tf.math.floormod(tf.range(count, dtype=tf.float64) * _GOLDEN_RATIO, 1.0))

    if batch_size is None:
        return golden_ratio()

    def dealt() -> tf.Tensor:
        by_round = tf.reshape(tf.range(count, dtype=tf.int32), [batch_size, count // batch_size])
        return tf.reshape(tf.transpose(by_round), [-1])

    return tf.cond((count % batch_size == 0) & (count > 0), dealt, golden_ratio)

"""Loss matching: a subset whose mean recorded loss is the window's."""

import tensorflow as tf

from ofb_tf import hashing
from ofb_tf.selection.policy import LOSS, SYSTEMATIC, Inclusion, Policy, Window, check_design


class LossMatching(Policy):
    """A subset with the window's mean loss, with weights of 1.

    Our reading of the objective of arXiv 2104.13114, of which only the abstract is public to us.
    Begins with a subset that is drawn uniformly, then makes the one swap, of all between the
    subset and the rest, that brings the two means closest, until they agree within `tolerance`
    or no swap brings them closer. Draws are keyed by the ids, so the subset does not depend on
    the order of the window.

    The mean loss of the subset is right; its gradient need not be. Each example has the
    same chance only while the start, not the swaps, decides: where few losses make up the mean
    (rare positives), swaps favour the losses near it, and the policy is biased. Expect uniform
    sampling or worse; use `Importance` where the gradient or calibration counts.

    A budget that is no integer takes the one below or above, right on average.

    Args:
      tolerance: at least 0: largest relative difference of the means that is left alone.
      design: "systematic" or "poisson"; both take exactly the subset.

    Raises:
      ValueError: an argument out of range.

    Reference: Dong et al., "One Backward from Ten Forward, Subsampling for Large-Scale Deep
    Learning", arXiv 2104.13114, 2021.
    """

    score = LOSS
    uniform_mix = 0.0

    def __init__(self, *, tolerance: float = 1e-6, design: str = SYSTEMATIC) -> None:
        if not 0.0 <= tolerance < float("inf"):
            raise ValueError(f"tolerance must be finite and at least 0. Received: {tolerance!r}")
        self.tolerance = float(tolerance)
        self.design = check_design(design)

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """1 for the subset, 0 for the rest."""
        n = tf.size(window.example_ids)
        size = tf.floor(budget + hashing.uniform_start(hashing.fold_in(window.key, _ROUNDING)))
        # The order of the draws first, so that ties in the loss are broken by them.
        drawn = tf.argsort(hashing.hash01(window.example_ids, window.key))
        by_loss = tf.argsort(tf.gather(window.losses, drawn), stable=True)
        order = tf.gather(drawn, by_loss)
        losses = tf.cast(tf.gather(window.losses, order), tf.float64)
        chosen = match_mean(
            losses,
            by_loss < tf.cast(tf.minimum(size, tf.cast(n, tf.float64)), tf.int32),
            self.tolerance,
        )
        probabilities = tf.scatter_nd(order[:, None], tf.cast(chosen, tf.float64), [n])
        return Inclusion(probabilities, tf.ones_like(window.losses))


_ROUNDING = 1  # folded into the window's key for the draw that rounds the budget


def match_mean(losses: tf.Tensor, chosen: tf.Tensor, tolerance: float) -> tf.Tensor:
    """Swaps chosen (bool `[n]`) and other losses (float64 `[n]`, ascending) until the means agree.

    The best partner of each chosen example is found by bisection in the sorted rest, so a swap
    costs O(n log n) instead of O(n^2). Few swaps are usual; where a single loss outweighs all
    others there is one for each of the chosen. In the end no single swap brings the means closer,
    or they agree within `tolerance`, relative to the mean.
    """
    size = tf.math.count_nonzero(chosen, dtype=tf.int32)
    n = tf.size(losses)
    places = tf.range(n)
    share = tf.math.divide_no_nan(tf.cast(size, tf.float64), tf.cast(n, tf.float64))
    goal = tf.reduce_sum(losses) * share
    close = tolerance * tf.abs(goal)
    can_swap = (size > 0) & (size < n)
    infinity = tf.constant(float("inf"), tf.float64)

    def missing_sum(chosen: tf.Tensor) -> tf.Tensor:
        """What the sum of the chosen lacks; made anew from them, so that no error adds up."""
        return goal - tf.reduce_sum(tf.where(chosen, losses, tf.zeros_like(losses)))

    def goes_on(chosen: tf.Tensor, lacking: tf.Tensor, improved: tf.Tensor) -> tf.Tensor:
        del chosen
        return can_swap & improved & (tf.abs(lacking) > close)

    def swap(chosen: tf.Tensor, lacking: tf.Tensor, improved: tf.Tensor) -> tuple:
        del improved
        # The rest first, ascending, then the chosen: shapes are fixed, as XLA needs them.
        rank = tf.cumsum(tf.cast(~chosen, tf.int32))
        slots = tf.where(chosen, n - size + places - rank, rank - 1)
        rest = tf.scatter_nd(slots[:, None], places, [n])
        taken = tf.where(places < n - size, tf.gather(losses, rest), infinity)
        above = tf.searchsorted(taken, losses + lacking)
        # The nearest of the rest is at the place found or before it; infinity is never nearest.
        partners = tf.clip_by_value(tf.stack([above - 1, above]), 0, n - 1)
        left = tf.abs(lacking + losses - tf.gather(taken, partners))
        best = tf.argmin(tf.reshape(tf.where(chosen, left, infinity), [-1]), output_type=tf.int32)
        out, into = best % n, tf.gather(rest, tf.gather(tf.reshape(partners, [-1]), best))
        swapped = (chosen & (places != out)) | (places == into)
        lacking_then = missing_sum(swapped)
        improved = tf.abs(lacking_then) < tf.abs(lacking)
        return (
            tf.where(improved, swapped, chosen),
            tf.where(improved, lacking_then, lacking),
            improved,
        )

    state = (chosen, missing_sum(chosen), tf.constant(True))
    return tf.while_loop(goes_on, swap, state)[0]

"""Selective-backprop: probability by the rank of the loss, without weights."""

import tensorflow as tf

from ofb_tf.selection import designs
from ofb_tf.selection.policy import LOSS, SYSTEMATIC, Inclusion, Policy, Window, check_design


class SelectiveBackprop(Policy):
    """Probability proportional to a power of the loss's percentile, weights of 1. Biased.

    The example with k of n losses below it has the percentile (k + 1/2) / n; those that tie
    share the mean of theirs, so all losses alike is uniform sampling. Probabilities are scaled
    (and capped at 1) to the window's budget, so that every `beta` costs the same. The default
    `beta`, 1 / rate - 1, is the one whose scale is 1: the mean of its powers is the rate.

    Large losses are over-represented and no weight takes that back: rare classes come out too
    probable, wrong labels are learnt. Use `Importance` where calibration counts.

    Args:
      beta: at least 0; 0 is uniform sampling, more prefers larger losses. None for
        1 / rate - 1.
      design: "systematic" or "poisson".

    Raises:
      ValueError: an argument out of range.

    Reference: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers",
    arXiv 1910.00762, 2019; there percentiles are of a queue of recent losses, here of the window.
    """

    score = LOSS
    uniform_mix = 0.0

    def __init__(self, *, beta: float | None = None, design: str = SYSTEMATIC) -> None:
        if beta is not None and not 0.0 <= beta < float("inf"):
            raise ValueError(f"beta must be finite and at least 0, or None. Received: {beta!r}")
        self.beta = beta
        self.design = check_design(design)

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """Percentiles to the power of beta, scaled to the budget."""
        losses = window.losses
        ordered = tf.sort(losses)
        n = tf.cast(tf.size(losses), tf.float64)
        below = tf.searchsorted(ordered, losses, side="left")
        up_to = tf.searchsorted(ordered, losses, side="right")
        percentiles = tf.cast(below + up_to, tf.float64) / (2.0 * n)
        if self.beta is None:
            beta = tf.math.divide_no_nan(n, budget) - 1.0
        else:
            beta = tf.constant(self.beta, tf.float64)
        # Relative to the largest, so that a large beta leaves something above 0.
        sizes = tf.pow(percentiles / tf.reduce_max(percentiles), beta)
        return Inclusion(designs.capped_pps(sizes, budget), tf.ones_like(losses))

"""Uniform sampling: the baseline of every comparison."""

import tensorflow as tf

from ofb_tf.selection.policy import SYSTEMATIC, Inclusion, Policy, Window, check_design


class Uniform(Policy):
    """Every example alike, with weights of exactly 1. Needs no records.

    Args:
      design: "systematic" (the window's budget exactly) or "poisson" (independent draws).

    Raises:
      ValueError: an unknown design.
    """

    needs_records = False
    affine = True

    def __init__(self, *, design: str = SYSTEMATIC) -> None:
        self.design = check_design(design)

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """The budget's share for every example."""
        n = tf.size(window.example_ids)
        share = tf.minimum(tf.math.divide_no_nan(budget, tf.cast(n, tf.float64)), 1.0)
        return Inclusion(tf.fill([n], share), line=tf.stack([tf.zeros_like(share), share]))

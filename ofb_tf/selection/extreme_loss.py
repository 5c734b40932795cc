"""The largest or the smallest losses of a window: two biased baselines."""

import tensorflow as tf

from ofb_tf.selection.policy import LOSS, SYSTEMATIC, Inclusion, Policy, Window, check_design


class TopLoss(Policy):
    """The examples with the largest losses, with weights of 1. Biased: a baseline.

    Training minimises the mean of the window's upper tail instead of its mean. Where labels are
    wrong or outliers exist, they are what it selects, and predicted probabilities are off; use
    `Importance` where the model's mean loss or calibration counts.

    Examples that share the loss at the edge share what is left of the budget, so all losses
    alike is uniform sampling, and a fraction of an example is rounded by the design.

    Args:
      design: "systematic" or "poisson"; they differ at the edge alone.

    Raises:
      ValueError: an unknown design.

    Reference: ordered SGD, Kawaguchi & Lu, AISTATS 2020; online hard example mining,
    Shrivastava et al., CVPR 2016.
    """

    score = LOSS
    uniform_mix = 0.0

    def __init__(self, *, design: str = SYSTEMATIC) -> None:
        self.design = check_design(design)

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """1 for losses above the edge, a share at the edge, 0 below."""
        return Inclusion(_largest(window.losses, budget), tf.ones_like(window.losses))


class BottomLoss(Policy):
    """The examples with the smallest losses, with weights of 1. Biased: a baseline.

    Meant for data in which the large losses are corrupted; what the model does not know yet, it
    never sees. Without corruption expect it to end far below uniform sampling.

    Examples that share the loss at the edge share what is left of the budget.

    Args:
      design: "systematic" or "poisson"; they differ at the edge alone.

    Raises:
      ValueError: an unknown design.

    Reference: Shah et al., "Choosing the Sample with Lowest Loss makes SGD Robust", AISTATS 2020.
    """

    score = LOSS
    uniform_mix = 0.0

    def __init__(self, *, design: str = SYSTEMATIC) -> None:
        self.design = check_design(design)

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """1 for losses below the edge, a share at the edge, 0 above."""
        return Inclusion(_largest(-window.losses, budget), tf.ones_like(window.losses))


def _largest(values: tf.Tensor, budget: tf.Tensor) -> tf.Tensor:
    """Probabilities, float64 `[n]` with sum `budget`, that prefer the largest values."""
    ordered = tf.sort(values)
    at_most = tf.searchsorted(ordered, values, side="right")
    num_above = tf.cast(tf.size(values) - at_most, tf.float64)
    num_alike = tf.cast(at_most - tf.searchsorted(ordered, values, side="left"), tf.float64)
    return tf.clip_by_value((budget - num_above) / num_alike, 0.0, 1.0)

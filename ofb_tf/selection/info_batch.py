"""InfoBatch: easy examples are pruned at random, and those that stay count for more."""

from collections.abc import Callable

import tensorflow as tf

from ofb_tf.selection.policy import (
    LOSS,
    SYSTEMATIC,
    Inclusion,
    Policy,
    Window,
    check_design,
    check_score,
)


class InfoBatch(Policy):
    """All scores from the window's mean upwards; the others with probability 1 - prune.

    Those kept from below the mean weigh 1 / (1 - prune), the rest 1: the weighted sum estimates
    the window's sum without bias. The rate is not a target here: what comes through is
    1 - prune * (share below the mean), half or more of the stream, which `OFBSampler.statistics`
    counts as `realized_rate`; `ofb_sample(rate=...)` acts only on examples without a record,
    which come through at that rate and with the weights of `missing`, so they count for less
    than they should. The original also trains on everything in its last epochs; here that is
    left to the user.

    Args:
      prune: in [0, 1): the share of the easy examples that is left out.
      score: "loss" as in the original, "gradient_norm_bound", or a function of a `Window`.
      design: "systematic" or "poisson".

    Raises:
      ValueError: an argument out of range.

    Reference: Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data
    Pruning", ICLR 2024.
    """

    uniform_mix = 0.0

    def __init__(
        self,
        *,
        prune: float = 0.5,
        score: str | Callable[[Window], tf.Tensor] = LOSS,
        design: str = SYSTEMATIC,
    ) -> None:
        if not 0.0 <= prune < 1.0:
            raise ValueError(f"prune must be in [0, 1). Received: {prune!r}")
        self.prune = float(prune)
        self.score = check_score(score)
        self.design = check_design(design)

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """1 from the mean upwards, 1 - prune below; the budget does not enter."""
        scores = tf.cast(window.scores, tf.float64)
        n = tf.cast(tf.size(scores), tf.float64)
        mean = tf.reduce_sum(scores) / n  # of equal float32 numbers it is exact in float64
        kept = tf.constant(1.0 - self.prune, tf.float64)
        probabilities = tf.where(scores >= mean, tf.ones_like(scores), kept)
        return Inclusion(probabilities, tf.cast(1.0 / probabilities, tf.float32))

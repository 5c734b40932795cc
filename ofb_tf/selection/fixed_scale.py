"""Importance sampling with a scale that is given: what a stream without an end selects by."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from ofb_tf.selection import designs
from ofb_tf.selection.policy import (
    GRADIENT_NORM_BOUND,
    POISSON,
    Inclusion,
    Policy,
    Window,
    check_score,
)


class FixedScale(Policy):
    """Inclusion probability min(1, slope * score + offset), by Poisson sampling.

    `Importance` solves for slope and offset in each window. Here they are constants, fitted to
    scores of the stream's past, so an example's selection and weight depend on its id, its record
    and its label alone: not on the window, the order, the worker or a retry. The rate is met on
    average while the scores are distributed as in the past, and is exceeded where they rise.

    ```python
    import numpy as np

    import ofb_tf
    from ofb_tf.selection import FixedScale
    from ofb_tf.testing import tiny_dataset

    policy = FixedScale.fit(np.full(1000, 0.5), rate=0.1)
    sampled = tiny_dataset(1000).apply(ofb_tf.ofb_sample(policy=policy, rate=0.1, seed=1))
    assert all(example["importance_weight"] <= 5.0 for example in sampled)
    ```

    Args:
      slope: at least 0: probability per unit of score.
      offset: in [0, 1]: probability of an example with score 0. Weights are at most
        rate / offset.
      score: "gradient_norm_bound", "loss", or a function of a `Window` to floats `[n]`.

    Raises:
      ValueError: an argument out of range.

    Reference: Poisson sampling with probability proportional to size, Tillé, "Sampling
    Algorithms", 2006, section 5.4.
    """

    design = POISSON

    def __init__(
        self,
        slope: float,
        offset: float,
        *,
        score: str | Callable[[Window], tf.Tensor] = GRADIENT_NORM_BOUND,
    ) -> None:
        if not (0.0 <= slope < float("inf") and 0.0 <= offset <= 1.0):
            raise ValueError(
                "slope must be finite and at least 0, and offset in [0, 1]. "
                f"Received: slope={slope!r}, offset={offset!r}"
            )
        self.slope = float(slope)
        self.offset = float(offset)
        self.score = check_score(score)

    @classmethod
    def fit(
        cls,
        scores: np.ndarray,
        *,
        rate: float,
        uniform_mix: float = 0.2,
        score: str | Callable[[Window], tf.Tensor] = GRADIENT_NORM_BOUND,
    ) -> "FixedScale":
        """The scale that meets a rate on a sample of scores, as `Importance` would.

        Args:
          scores: `[n]`, finite, at least 0, not all 0: what `Policy.score` gave of past examples.
          rate: in (0, 1): mean probability of these examples.
          uniform_mix: in [0, 1]; weights are at most 1 / uniform_mix or less.
          score: what the scores are.

        Returns:
          A policy.

        Raises:
          ValueError: an argument out of range.
        """
        scores = np.asarray(scores, np.float64)
        if not (len(scores) and np.isfinite(scores).all() and (scores >= 0.0).all()):
            raise ValueError(
                "scores must be at least one, finite and at least 0. "
                f"Received: {len(scores)}, minimum {scores.min(initial=np.inf)}"
            )
        if not (0.0 < rate < 1.0 and 0.0 <= uniform_mix <= 1.0 and scores.any()):
            raise ValueError(
                "rate must be in (0, 1), uniform_mix in [0, 1] and some score above 0. Received: "
                f"rate={rate!r}, uniform_mix={uniform_mix!r}, largest score {scores.max()}"
            )
        n = len(scores)
        sizes = (1.0 - uniform_mix) * scores / scores.sum() + uniform_mix / n
        probabilities = designs.capped_pps(tf.constant(sizes), rate * n).numpy()
        # Sizes below the cap share one scale; those of 0 say nothing about it.
        below = (probabilities < 1.0) & (sizes > 0.0)
        if not below.any():
            raise ValueError(
                f"only {np.count_nonzero(scores)} of {n} scores are above 0, too few for the rate "
                f"{rate}. Set uniform_mix above 0."
            )
        scale = (probabilities[below] / sizes[below]).max()
        slope = scale * (1.0 - uniform_mix) / scores.sum()
        return cls(slope, min(1.0, scale * uniform_mix / n), score=score)

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """Probabilities of the scores alone; the budget is not looked at."""
        scores = tf.cast(window.scores, tf.float64)
        return Inclusion(tf.minimum(scores * self.slope + self.offset, 1.0))

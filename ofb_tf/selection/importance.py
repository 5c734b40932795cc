"""Importance sampling by recorded scores: the default policy."""

from collections.abc import Callable

import tensorflow as tf

from ofb_tf.selection import designs
from ofb_tf.selection.policy import (
    GRADIENT_NORM_BOUND,
    SYSTEMATIC,
    Inclusion,
    Policy,
    Window,
    check_design,
    check_score,
)


class Importance(Policy):
    """Probability proportional to score, mixed with uniform, weighted to stay unbiased.

    An example with score s among n, budget b and mix m has inclusion probability
    min(1, b * ((1 - m) * s / sum(s) + m / n)); mass over 1 goes to the others. Weights r / p are
    at most 1 / m for the rate r: where the budget is less than r * n (`missing="keep"`), m grows
    to m * r * n / b.

    ```python
    import ofb_tf
    from ofb_tf.testing import tiny_dataset

    policy = ofb_tf.Importance(uniform_mix=0.25, score="loss", design="poisson")
    sampled = tiny_dataset(1000).apply(ofb_tf.ofb_sample(policy=policy, window_size=500, seed=1))
    assert all(example["importance_weight"] <= 4.0 for example in sampled)  # 1 / uniform_mix
    ```

    Args:
      uniform_mix: in [0, 1]; 1 is uniform sampling, 0 lets weights grow without bound.
      score: "gradient_norm_bound", "loss", or a function of a `Window` to floats `[n]`; a
        negative or non-finite score makes its example count as one without a record.
      design: "systematic" or "poisson".

    Raises:
      ValueError: an argument out of range.

    Reference: Katharopoulos & Fleuret, ICML 2018, for the score; the cap as in VCAS, Wang et
    al., ICLR 2024.
    """

    affine = True

    def __init__(
        self,
        *,
        uniform_mix: float = 0.2,
        score: str | Callable[[Window], tf.Tensor] = GRADIENT_NORM_BOUND,
        design: str = SYSTEMATIC,
    ) -> None:
        if not 0.0 <= uniform_mix <= 1.0:
            raise ValueError(f"uniform_mix must be in [0, 1]. Received: {uniform_mix!r}")
        self.uniform_mix = float(uniform_mix)
        self.score = check_score(score)
        self.design = check_design(design)

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """Capped probabilities proportional to the mixed score."""
        scores = tf.cast(window.scores, tf.float64)
        if window.line is not None:
            probabilities = tf.minimum(window.line[0] * scores + window.line[1], 1.0)
            return Inclusion(probabilities, line=window.line)
        n = tf.maximum(tf.cast(tf.size(scores), tf.float64), 1.0)
        # A budget below rate * n, as under missing="keep", must not push p below rate * mix.
        mix = self.uniform_mix * _one_or_more(window.rate, n, budget)
        # All scores zero: the shares are zero too, and capped_pps makes equal sizes uniform.
        total = tf.reduce_sum(scores)
        sizes = (1.0 - mix) * tf.math.divide_no_nan(scores, total) + mix / n
        probabilities = designs.capped_pps(sizes, budget)
        slope = tf.math.divide_no_nan(1.0 - mix, total)
        line = _scale(sizes, probabilities) * tf.stack([slope, mix / n])
        return Inclusion(probabilities, line=line)


def _scale(sizes: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """The c of probabilities min(1, c * size); a very large one where all are 1."""
    below = probabilities < 1.0
    zero = tf.zeros_like(sizes)
    rest = tf.reduce_sum(tf.where(below, sizes, zero))
    scale = tf.reduce_sum(tf.where(below, probabilities, zero)) / rest
    return tf.where(rest > 0.0, scale, tf.constant(1e100, tf.float64))


def _one_or_more(rate: float | tf.Tensor | None, n: tf.Tensor, budget: tf.Tensor) -> tf.Tensor:
    """By how much the budget falls short of rate * n; exactly 1 where it does not."""
    if rate is None:
        return tf.constant(1.0, tf.float64)
    return tf.maximum(tf.math.divide_no_nan(rate * n, budget), 1.0)

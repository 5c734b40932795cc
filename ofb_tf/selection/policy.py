"""What a selection policy is: a window in, inclusion probabilities out."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

GRADIENT_NORM_BOUND = "gradient_norm_bound"
LOSS = "loss"
SYSTEMATIC = "systematic"
POISSON = "poisson"


class Window(NamedTuple):
    """The examples of one window that have a usable record; every tensor leads with `[n]`.

    Attributes:
      example_ids: int64 `[n]`.
      labels: `[n]`, dtype as in the stream, all valid for the task.
      logits: floating `[n, k]`, or None where records carry only a loss.
      losses: float32 `[n]`, finite: the recorded loss, or computed from logits and label.
      scores: float32 `[n]`, finite and at least 0: what `Policy.score` asked for.
      key: int64 scalar, a function of the seed, the epoch and the window's ids: fold data into
        it for every random draw (`ofb_tf.hashing`).
      rate: float or float64 scalar: what weights are relative to, rate / p. The budget is
        rate * n, or less under `missing="keep"`. None while scores are computed.
      line: float64 `[2]`, slope and intercept that `budget="stream"` carries from window to
        window, for a policy that is `affine`. None where the budget is the window's own.
    """

    example_ids: tf.Tensor
    labels: tf.Tensor
    logits: tf.Tensor | None
    losses: tf.Tensor
    scores: tf.Tensor
    key: tf.Tensor
    rate: float | tf.Tensor | None = None
    line: tf.Tensor | None = None


class Inclusion(NamedTuple):
    """How a window is to be sampled.

    Attributes:
      probabilities: float64 `[n]` in [0, 1]: the probability that each example is selected.
      weights: float32 `[n]`, or None for importance weights rate / probability, which keep the
        estimate unbiased.
      line: float64 `[2]`, slope and intercept, for a policy that is `affine`: the probability of
        an example is min(1, slope * score + intercept). None for other policies.
    """

    probabilities: tf.Tensor
    weights: tf.Tensor | None = None
    line: tf.Tensor | None = None


class Policy(abc.ABC):
    """Chooses inclusion probabilities for a window. Your own policy implements one method.

    ```python
    import tensorflow as tf

    import ofb_tf


    class Threshold(ofb_tf.Policy):
        '''Keeps every example whose loss is above 1, and the rate of the others.'''

        design = "poisson"

        def inclusion(self, window, budget):
            always = tf.ones_like(window.losses, tf.float64)
            rate = budget / tf.reduce_sum(always)
            return ofb_tf.Inclusion(tf.where(window.losses > 1.0, always, rate))


    dataset.apply(ofb_tf.ofb_sample(policy=Threshold()))
    ```

    Attributes:
      design: "systematic" or "poisson": how probabilities become a selection.
      score: what `Window.scores` holds: "gradient_norm_bound" (the loss where records carry no
        logits), "loss", or a function of a `Window` whose scores are the losses, to floats `[n]`.
      needs_records: False for a policy that looks at neither losses nor scores.
      affine: whether probabilities are a capped line of the score, `Inclusion.line`, and taken
        from `Window.line` where there is one: what `estimator="log_odds"` and `budget="stream"`
        need.
    """

    design: str = SYSTEMATIC
    score: str | Callable[[Window], tf.Tensor] = GRADIENT_NORM_BOUND
    needs_records: bool = True
    affine: bool = False

    @abc.abstractmethod
    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """Inclusion probabilities of a window.

        Args:
          window: the `n` examples to choose from; `n` may be 0.
          budget: float64 scalar in [0, n]: how many to select in expectation.

        Returns:
          An `Inclusion`. Only tensor operations: it runs inside the tf.data graph, without
          AutoGraph, so conditions are `tf.where` or `tf.cond`.
        """


def check_design(design: str) -> str:
    """Returns `design`; raises ValueError unless it is "systematic" or "poisson"."""
    if design not in (SYSTEMATIC, POISSON):
        raise ValueError(f"design must be 'systematic' or 'poisson'. Received: {design!r}")
    return design


def check_score(score: str | Callable) -> str | Callable:
    """Returns `score`; raises ValueError unless it is a known name or a function."""
    if score not in (GRADIENT_NORM_BOUND, LOSS) and not callable(score):
        raise ValueError(
            "score must be 'gradient_norm_bound', 'loss' or a function of a Window. "
            f"Received: {score!r}"
        )
    return score

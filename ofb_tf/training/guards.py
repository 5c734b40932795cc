"""A guard that watches whether selection helps, and can make it uniform."""

import warnings
from typing import Any

import keras
import tensorflow as tf

from ofb_tf.selection import Inclusion, Policy, Window, get_policy
from ofb_tf.training import metrics
from ofb_tf.training.model import OFBModel


class SelectionGuard(keras.callbacks.Callback):
    """Warns, and if asked falls back to uniform sampling, when the weighted estimate is worse.

    It reads `variance_ratio` (`ofb_tf.training.metrics.VarianceRatio`) from a uniform part of
    the stream:
    the variance of the weighted estimate over that of uniform sampling at the same rate. Useless
    records (another model's, mixed-up ids) put it above 1.

    ```python
    import keras

    import ofb_tf
    from ofb_tf.testing import tiny_dataset

    guard = ofb_tf.SelectionGuard(fall_back=True, min_examples=20)
    sampler = ofb_tf.ofb_sample(
        policy=guard.policy("importance"), uniform_holdout=0.02, batch_size=32, seed=17
    )
    feature = keras.Input((2,), name="feature")
    model = ofb_tf.OFBModel(feature, keras.layers.Dense(1)(feature))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(tiny_dataset(8192).apply(sampler), callbacks=[guard], verbose=0)
    assert model.variance_ratio.count() > 20  # what the guard has judged by
    ```

    Args:
      max_variance_ratio: above 0; a larger ratio trips the guard.
      min_examples: holdout examples since the beginning of the epoch before it judges, at least 1.
      every_batches: it judges after this many batches and at the end of every epoch.
      fall_back: whether `policy` becomes uniform when the guard trips. Batches that tf.data has
        prefetched are still weighted as they were selected: the estimate stays unbiased.

    Attributes:
      tripped: whether the guard has tripped.

    Raises:
      ValueError: an argument is out of range; in `fit`, the model is not an `OFBModel`.
    """

    def __init__(
        self,
        *,
        max_variance_ratio: float = 1.0,
        min_examples: int = 200,
        every_batches: int = 50,
        fall_back: bool = False,
    ):
        super().__init__()
        if not max_variance_ratio > 0:
            raise ValueError(f"max_variance_ratio must be above 0. Received: {max_variance_ratio}")
        for name, value in (("min_examples", min_examples), ("every_batches", every_batches)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {value}")
        self.max_variance_ratio = max_variance_ratio
        self.min_examples = min_examples
        self.every_batches = every_batches
        self.fall_back = fall_back
        self.tripped = False
        self._is_uniform = tf.Variable(False, trainable=False)

    def policy(self, policy: str | Policy = "importance") -> "GuardedPolicy":
        """The policy that this guard can make uniform.

        Args:
          policy: a name or a `Policy`: what is used until the guard trips.

        Returns:
          A `Policy` for `ofb_sample`, in the process that trains.

        Raises:
          ValueError: an unknown name.
          TypeError: neither a name nor a `Policy`.
        """
        return GuardedPolicy(get_policy(policy), self._is_uniform)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the model; raises ValueError unless it is an `OFBModel`."""
        if not isinstance(self.model, OFBModel):
            raise ValueError(
                f"SelectionGuard needs an OFBModel. Received: {type(self.model).__name__}"
            )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Judges every `every_batches` batches."""
        if (batch + 1) % self.every_batches == 0:
            self._judge()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Judges; says so where there was nothing to judge by."""
        self._judge()
        if self.model.variance_ratio.count() == 0:
            warnings.warn(
                "SelectionGuard saw no example with uniform_holdout and a weight. Sample with "
                "ofb_sample(uniform_holdout=0.02) on dict elements.",
                stacklevel=2,
            )

    def _judge(self) -> None:
        monitor = self.model.variance_ratio
        count = monitor.count()
        if self.tripped or count < self.min_examples:
            return
        ratio = float(monitor.result())
        if ratio <= self.max_variance_ratio:
            return
        self.tripped = True
        figures = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        correlation = figures.get(metrics.SCORE_CORRELATION)
        stale = "" if correlation is None else f" and score_correlation is {correlation:.2f}"
        action = "sampling is uniform from here on" if self.fall_back else "fall_back=False"
        warnings.warn(
            f"SelectionGuard: the weighted estimate has {ratio:.2f} times the variance of uniform "
            f"sampling on {count} holdout examples (max_variance_ratio={self.max_variance_ratio})"
            f"{stale}; {action}. Check that the records belong to these examples and to a model "
            "like this one; raise uniform_mix, or use policy='uniform'.",
            stacklevel=3,
        )
        if self.fall_back:
            self._is_uniform.assign(True)


class GuardedPolicy(Policy):
    """Another policy, or uniform sampling with weights of 1, as a variable says.

    The variable is state, so an iterator over such a dataset cannot be checkpointed, and it has
    to be in the process that trains (not in a tf.data service worker).

    Args:
      policy: the policy.
      is_uniform: bool scalar variable.
    """

    def __init__(self, policy: Policy, is_uniform: tf.Variable):
        self.design = policy.design
        self.score = policy.score
        self.needs_records = policy.needs_records
        self.uniform_mix = getattr(policy, "uniform_mix", 1.0)  # bounds the uniform holdout
        self._policy = policy
        self._is_uniform = is_uniform

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """The policy's inclusion, or `budget / n` for all."""
        chosen = self._policy.inclusion(window, budget)
        n = tf.maximum(tf.cast(tf.size(window.scores), tf.float64), 1.0)
        even = tf.ones_like(chosen.probabilities) * tf.minimum(budget / n, 1.0)
        is_uniform = self._is_uniform.read_value()
        weights = chosen.weights
        if weights is not None:
            weights = tf.where(is_uniform, tf.ones_like(weights), weights)
        return Inclusion(tf.where(is_uniform, even, chosen.probabilities), weights)

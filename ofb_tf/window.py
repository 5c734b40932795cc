"""One window of the stream: records and labels → scores → policy → selection and weights.

Tensors in, tensors out. `ofb_tf.sampling` puts it into a tf.data pipeline.
"""

from typing import NamedTuple

import tensorflow as tf

from ofb_tf import hashing, scores, types
from ofb_tf.policies import Inclusion, Policy, Window, base, designs

UNIFORM, KEEP, DROP, ERROR = "uniform", "keep", "drop", "error"
MISSING = (UNIFORM, KEEP, DROP, ERROR)

# Where kept examples without a record use up the budget, the others keep this share of the rate.
_KEEP_FLOOR = 0.2


class WindowSample(NamedTuple):
    """What was selected of a window.

    Attributes:
      indices: int32 `[m]`, in the order in which they should leave.
      weights: float32 `[m]`, finite.
      has_score: bool `[n]`: which examples had a usable record.
      probabilities: float64 `[n]`: inclusion probabilities.
    """

    indices: tf.Tensor
    weights: tf.Tensor
    has_score: tf.Tensor
    probabilities: tf.Tensor


def sample_window(
    *,
    policy: Policy,
    rate: float,
    task: str,
    missing: str,
    example_ids: tf.Tensor | None,
    labels: tf.Tensor,
    record: dict[str, tf.Tensor],
    key: tf.Tensor,
    batch_size: int | None,
) -> WindowSample:
    """Selects about `rate` of a window.

    Args:
      policy: the policy.
      rate: in (0, 1].
      task: "multiclass", "binary" or "regression".
      missing: "uniform", "keep", "drop" or "error": see `ofb_sample`.
      example_ids: int64 `[n]`, or None where the stream has none: draws are then keyed by the
        examples' losses and places in the window.
      labels: `[n]`.
      record: `logits` `[n, k]` and / or `loss` `[n]`, and `has_record` bool `[n]` where some
        may be missing; empty for a policy that needs no records.
      key: int64 scalar made from the seed and the epoch.
      batch_size: size of the batches in which the selection will leave, or None.

    Returns:
      A `WindowSample`.
    """
    n = tf.size(labels)
    losses, values, has_score = _score(policy, task, labels, record, example_ids, key)
    if example_ids is None:
        bits = tf.cast(tf.bitcast(losses, tf.int32), tf.int64)
        example_ids = hashing.fold_in(bits, tf.range(tf.cast(n, tf.int64)))
    key_of_window = hashing.window_key(example_ids, key)

    scored = tf.cast(tf.where(has_score)[:, 0], tf.int32)
    budget, unscored_probability = _share_budget(rate, missing, n, tf.size(scored))
    logits = record.get(types.LOGITS)
    window = Window(
        example_ids=tf.gather(example_ids, scored),
        labels=tf.gather(labels, scored),
        logits=None if logits is None else tf.gather(logits, scored),
        losses=tf.gather(losses, scored),
        scores=tf.gather(values, scored),
        key=hashing.fold_in(key_of_window, tf.constant(1, tf.int64)),
    )
    probabilities, weights = _inclusion(policy, window, budget, rate)
    full = tf.fill([n], unscored_probability)
    full_weights = tf.fill([n], tf.cast(rate if missing == KEEP else 1.0, tf.float32))
    probabilities = tf.tensor_scatter_nd_update(full, scored[:, None], probabilities)
    weights = tf.tensor_scatter_nd_update(full_weights, scored[:, None], weights)

    if policy.design == base.POISSON:
        indices = designs.poisson(probabilities, hashing.hash01(example_ids, key))
    else:
        strata = _strata(policy, window, task, n, scored)
        ordered = designs.systematic(
            probabilities, tf.argsort(strata, stable=True), hashing.uniform_start(key_of_window)
        )
        indices = tf.gather(ordered, designs.spread(tf.size(ordered), batch_size))
    return WindowSample(indices, tf.gather(weights, indices), has_score, probabilities)


def _score(
    policy: Policy,
    task: str,
    labels: tf.Tensor,
    record: dict[str, tf.Tensor],
    example_ids: tf.Tensor | None,
    key: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Losses and scores, float32 `[n]`, and bool `[n]`: where both and the label are usable."""
    if not policy.needs_records:
        zeros = tf.zeros(tf.shape(labels), tf.float32)
        return zeros, zeros, tf.ones(tf.shape(labels), tf.bool)
    logits, loss = record.get(types.LOGITS), record.get(types.LOSS)
    has_score = scores.valid_examples(logits, labels, task)
    if types.HAS_RECORD in record:
        has_score &= record[types.HAS_RECORD]
    losses = scores.example_loss(logits, labels, task) if loss is None else loss
    losses = tf.cast(losses, tf.float32)
    if callable(policy.score):
        ids = tf.zeros(tf.shape(labels), tf.int64) if example_ids is None else example_ids
        values = policy.score(Window(ids, labels, logits, losses, losses, key))
    elif policy.score == base.GRADIENT_NORM_BOUND and logits is not None:
        values = scores.gradient_norm_bound(logits, labels, task)
    else:
        # Task losses are at least 0; a recorded loss of the user's own may not be.
        values = losses
    values = tf.cast(values, tf.float32)
    has_score &= tf.math.is_finite(losses) & tf.math.is_finite(values) & (values >= 0.0)
    return losses, values, has_score


def _share_budget(
    rate: float, missing: str, n: tf.Tensor, num_scored: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The budget of the scored examples and the probability of each of the others."""
    num_scored = tf.cast(num_scored, tf.float64)
    budget = rate * num_scored
    if missing == KEEP:
        num_missing = tf.cast(n, tf.float64) - num_scored
        left = rate * tf.cast(n, tf.float64) - num_missing
        return tf.maximum(left, _KEEP_FLOOR * budget), tf.constant(1.0, tf.float64)
    return budget, tf.constant(rate if missing == UNIFORM else 0.0, tf.float64)


def _inclusion(
    policy: Policy, window: Window, budget: tf.Tensor, rate: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """The policy's answer: float64 probabilities and float32 weights, both `[n]`."""
    inclusion = policy.inclusion(window, budget)
    if not isinstance(inclusion, Inclusion):
        raise TypeError(
            f"{type(policy).__name__}.inclusion must return an ofb_tf.Inclusion. "
            f"Received: {inclusion!r}"
        )
    probabilities = tf.clip_by_value(tf.cast(inclusion.probabilities, tf.float64), 0.0, 1.0)
    if inclusion.weights is None:
        # Where the probability is 0 the weight is never used.
        weights = tf.math.divide_no_nan(tf.constant(rate, tf.float64), probabilities)
    else:
        weights = inclusion.weights
    return probabilities, tf.cast(weights, tf.float32)


def _strata(
    policy: Policy, window: Window, task: str, n: tf.Tensor, scored: tf.Tensor
) -> tf.Tensor:
    """The systematic order's sort key, float64 `[n]`; examples without a score come last."""
    if policy.needs_records:
        key = scores.stratification_key(
            window.logits, window.labels, window.losses, window.scores, task
        )
    else:
        # Without records the order is random, keyed by the ids: simple random sampling.
        key = hashing.hash01(window.example_ids, window.key)
    last = tf.fill([n], tf.constant(float("inf"), tf.float64))
    return tf.tensor_scatter_nd_update(last, scored[:, None], key)

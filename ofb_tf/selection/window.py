"""One window of the stream: records and labels → scores → policy → selection and weights.

Tensors in, tensors out. `ofb_tf.transforms` puts it into a tf.data pipeline.
"""

from typing import NamedTuple

import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.selection import Inclusion, Policy, Window, designs, scores, top_k
from ofb_tf.selection import policy as base

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
      example_ids: int64 `[n]`: as given, or made from content and place.
    """

    indices: tf.Tensor
    weights: tf.Tensor
    has_score: tf.Tensor
    probabilities: tf.Tensor
    example_ids: tf.Tensor


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

    def decide(scored: tf.Tensor | None) -> tuple:
        """Probabilities, weights and sort keys of the examples at these places, or of all."""

        def take(values: tf.Tensor | None) -> tf.Tensor | None:
            return values if values is None or scored is None else tf.gather(values, scored)

        examples = Window(
            example_ids=take(example_ids),
            labels=take(labels),
            logits=take(record.get(constants.LOGITS)),
            losses=take(losses),
            scores=take(values),
            key=hashing.fold_in(key_of_window, tf.constant(1, tf.int64)),
        )
        num_scored = tf.cast(tf.size(examples.example_ids), tf.float64)
        return _decide(policy, examples, _budget(rate, missing, n, num_scored), task)

    def decide_scored() -> tuple:
        """The same where some examples have no score: those get what `missing` says."""
        scored = tf.where(has_score)[:, 0]
        # Weights of a policy's own: here too, what is always kept stands for itself alone.
        weight = rate if missing == KEEP else 1.0
        defaults = (_unscored_probability(rate, missing), weight, float("inf"))
        return tuple(
            value
            if value is None
            else tf.tensor_scatter_nd_update(
                tf.fill(tf.shape(labels), tf.constant(default, value.dtype)), scored[:, None], value
            )
            for value, default in zip(decide(scored), defaults, strict=True)
        )

    if policy.needs_records:
        probabilities, weights, strata = tf.cond(
            tf.reduce_all(has_score), lambda: decide(None), decide_scored
        )
    else:
        probabilities, weights, strata = decide(None)

    if policy.design == base.POISSON:
        indices = designs.poisson(probabilities, hashing.hash01(example_ids, key))
    else:
        ordered = designs.systematic(
            probabilities, tf.argsort(strata, stable=True), hashing.uniform_start(key_of_window)
        )
        indices = tf.gather(ordered, designs.spread(tf.size(ordered), batch_size))
    if weights is None:
        weights = tf.cast(rate / tf.gather(probabilities, indices), tf.float32)
    else:
        weights = tf.gather(weights, indices)
    return WindowSample(indices, weights, has_score, probabilities, example_ids)


def uniform_holdout(sample: WindowSample, fraction: float, key: tf.Tensor) -> tf.Tensor:
    """Flags a uniform sample of the stream among the selected: bool `[m]`.

    An example is selected with probability p and then flagged with fraction / p, so every
    example of the stream is flagged with the same probability, which is `fraction` where no p is
    below it.
    """
    draws = hashing.hash01(
        tf.gather(sample.example_ids, sample.indices),
        hashing.fold_in(key, tf.constant(2, tf.int64)),
    )
    return draws * tf.gather(sample.probabilities, sample.indices) < fraction


def count(record: dict[str, tf.Tensor], sample: WindowSample) -> dict[str, tf.Tensor]:
    """Sums over one window that add up over windows; see `summarize`."""
    has_record = record.get(constants.HAS_RECORD, tf.ones_like(sample.has_score))
    weights = tf.cast(sample.weights, tf.float64)
    return {
        "examples": tf.size(sample.has_score, tf.int64),
        "selected": tf.size(sample.indices, tf.int64),
        "without_record": tf.math.count_nonzero(~has_record),
        "unusable": tf.math.count_nonzero(has_record & ~sample.has_score),
        "sum_weights": tf.reduce_sum(weights),
        "sum_squared_weights": tf.reduce_sum(tf.square(weights)),
        "max_weight": tf.reduce_max(tf.concat([weights, tf.zeros([1], tf.float64)], axis=0)),
    }


def add_counts(total: dict[str, float], counts: dict[str, float]) -> dict[str, float]:
    """Sums of two parts of the stream."""
    added = {name: total[name] + counts[name] for name in total}
    return added | {"max_weight": max(total["max_weight"], counts["max_weight"])}


def summarize(total: dict[str, float] | None) -> dict[str, float]:
    """Counts and ratios from sums; of nothing where `total` is None. See `statistics`."""
    names = ("examples", "selected", "without_record", "unusable")
    counts = {name: 0 if total is None else int(total[name]) for name in names}

    def ratio(numerator: float, denominator: float) -> float:
        return float(numerator / denominator) if denominator else float("nan")

    examples, selected = counts["examples"], counts["selected"]
    usable = examples - counts["without_record"] - counts["unusable"]
    sums = total or {"sum_weights": 0.0, "sum_squared_weights": 0.0, "max_weight": 0.0}
    return counts | {
        "coverage": ratio(usable, examples),
        "realized_rate": ratio(selected, examples),
        "mean_weight": ratio(sums["sum_weights"], selected),
        "max_weight": float(sums["max_weight"]) if selected else float("nan"),
        "effective_sample_size": ratio(
            sums["sum_weights"] ** 2, selected * sums["sum_squared_weights"]
        ),
    }


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
    logits, loss = record.get(constants.LOGITS), record.get(constants.LOSS)
    if constants.CLASS_IDS in record:
        top = top_k.TopKRecord.from_fields(record)
        has_score = top_k.valid_examples(top, labels)
    else:
        top = None
        has_score = scores.valid_examples(logits, labels, task)
    if constants.HAS_RECORD in record:
        has_score &= record[constants.HAS_RECORD]
    if loss is not None:
        losses = loss
    elif top is not None:
        losses = top_k.example_loss(top, labels)
    else:
        losses = scores.example_loss(logits, labels, task)
    losses = tf.cast(losses, tf.float32)
    if callable(policy.score):
        ids = tf.zeros(tf.shape(labels), tf.int64) if example_ids is None else example_ids
        values = policy.score(Window(ids, labels, logits, losses, losses, key))
    elif policy.score == base.GRADIENT_NORM_BOUND and logits is not None:
        values = (
            scores.gradient_norm_bound(logits, labels, task)
            if top is None
            else top_k.gradient_norm_bound(top, labels)
        )
    else:
        # Task losses are at least 0; a recorded loss of the user's own may not be.
        values = losses
    values = tf.cast(values, tf.float32)
    has_score &= tf.math.is_finite(losses) & tf.math.is_finite(values) & (values >= 0.0)
    return losses, values, has_score


def _budget(rate: float, missing: str, n: tf.Tensor, num_scored: tf.Tensor) -> tf.Tensor:
    """How many of the scored examples to select: float64 scalar."""
    if missing != KEEP:
        return rate * num_scored
    num_missing = tf.cast(n, tf.float64) - num_scored
    left = rate * tf.cast(n, tf.float64) - num_missing
    return tf.maximum(left, _KEEP_FLOOR * rate * num_scored)


def _unscored_probability(rate: float, missing: str) -> float:
    return {UNIFORM: rate, KEEP: 1.0, DROP: 0.0, ERROR: 0.0}[missing]


def _decide(policy: Policy, examples: Window, budget: tf.Tensor, task: str) -> tuple:
    """Probabilities float64, weights float32 (None for rate / p), sort keys float64; all `[n]`."""
    inclusion = policy.inclusion(examples, budget)
    if not isinstance(inclusion, Inclusion):
        raise TypeError(
            f"{type(policy).__name__}.inclusion must return an ofb_tf.Inclusion. "
            f"Received: {inclusion!r}"
        )
    probabilities = tf.clip_by_value(tf.cast(inclusion.probabilities, tf.float64), 0.0, 1.0)
    weights = None if inclusion.weights is None else tf.cast(inclusion.weights, tf.float32)
    if policy.needs_records:
        strata = scores.stratification_key(
            examples.logits, examples.labels, examples.losses, examples.scores, task
        )
    else:
        # Without records the order is random, keyed by the ids: simple random sampling.
        strata = hashing.hash01(examples.example_ids, examples.key)
    return probabilities, weights, strata

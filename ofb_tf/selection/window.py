"""The one algorithm: records and labels → scores → inclusion probabilities → selection, weights.

Pure tensor functions. tf.data (`ofb_tf.transforms`), the training step (`ofb_tf.training`) and
Beam (`ofb_tf.beam`) call them; Beam solves for the scale of the probabilities over
a whole split and takes everything else from here.
"""

from typing import NamedTuple

import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.hashing import Stream
from ofb_tf.selection import designs, log_odds, scores, stream_budget
from ofb_tf.selection.policy import GRADIENT_NORM_BOUND, POISSON, Inclusion, Policy, Window

# Where kept examples without a record use up the budget, the others keep this share of the rate.
KEEP_FLOOR = 0.2


class Scored(NamedTuple):
    """What records and labels say of examples.

    Attributes:
      losses: float32 `[n]`.
      scores: float32 `[n]`: what `Policy.score` asks for.
      usable: bool `[n]`: where the record is there and not too old, the label is valid for the
        task, and logits, loss and score are finite and the score is at least 0.
      valid_labels: bool `[n]`: where the label is valid for the task, whatever the record says.
    """

    losses: tf.Tensor
    scores: tf.Tensor
    usable: tf.Tensor
    valid_labels: tf.Tensor


class Selection(NamedTuple):
    """What was selected of a window.

    Attributes:
      indices: int32 `[m]`, in the order in which they leave.
      weights: float32 `[m]`, finite.
      usable: bool `[n]`: which examples had a usable record.
      valid_labels: bool `[n]`: as `Scored.valid_labels`.
      probabilities: float64 `[n]`: inclusion probabilities.
      example_ids: int64 `[n]`: as given, or made from content and place.
      log_inclusion: float32 `[m, k]` of the selected, see `log_odds`; None with weights.
      state: what the next window needs under `budget="stream"`; None under "window".
    """

    indices: tf.Tensor
    weights: tf.Tensor
    usable: tf.Tensor
    valid_labels: tf.Tensor
    probabilities: tf.Tensor
    example_ids: tf.Tensor
    log_inclusion: tf.Tensor | None = None
    state: stream_budget.StreamState | None = None


def score(
    policy: Policy,
    task: str,
    labels: tf.Tensor,
    record: dict[str, tf.Tensor],
    example_ids: tf.Tensor | None = None,
    key: tf.Tensor | None = None,
) -> Scored:
    """Losses and scores of examples, and which of them are usable.

    Args:
      policy: what to score by. One that needs no records finds every example usable.
      task: "multiclass", "binary" or "regression".
      labels: `[n]`.
      record: `logits` `[n, k]` and / or `loss` `[n]`, the columns of the top-k form where records
        have it, and `has_record` bool `[n]` where some are missing.
      example_ids: int64 `[n]`, for a score function of the user's own; None for zeros.
      key: int64 scalar, for the same; None for zero.

    Returns:
      A `Scored`. Where a record is not usable its loss and score are arbitrary.
    """
    if not policy.needs_records:
        zeros = tf.zeros(tf.shape(labels), tf.float32)
        valid = tf.ones(tf.shape(labels), tf.bool)
        return Scored(zeros, zeros, valid, valid)
    valid = scores.valid_labels(record, labels, task)
    usable = scores.with_finite_outputs(record, valid, task)
    if constants.HAS_RECORD in record:
        usable &= record[constants.HAS_RECORD]
    losses = record.get(constants.LOSS)
    if losses is None:
        losses = scores.example_loss(record, labels, task)
    losses = tf.cast(losses, tf.float32)
    values = losses
    if callable(policy.score):
        ids = tf.zeros(tf.shape(labels), tf.int64) if example_ids is None else example_ids
        key = tf.constant(0, tf.int64) if key is None else key
        logits = record.get(constants.LOGITS)
        values = tf.cast(policy.score(Window(ids, labels, logits, losses, losses, key)), tf.float32)
    elif policy.score == GRADIENT_NORM_BOUND and constants.LOGITS in record:
        values = scores.gradient_norm_bound(record, labels, task)
    # Task losses are at least 0; a recorded loss of the user's own may not be.
    usable &= tf.math.is_finite(losses) & tf.math.is_finite(values) & (values >= 0.0)
    return Scored(losses, values, usable, valid)


def select(
    policy: Policy,
    *,
    rate: float,
    task: str,
    missing: str,
    example_ids: tf.Tensor | None,
    labels: tf.Tensor,
    record: dict[str, tf.Tensor],
    key: tf.Tensor,
    batch_size: int | None,
    estimator: str = constants.WEIGHTS,
    num_outputs: int | None = None,
    state: stream_budget.StreamState | None = None,
) -> Selection:
    """Selects about `rate` of a window.

    Args:
      policy: the policy.
      rate: in (0, 1].
      task: "multiclass", "binary" or "regression".
      missing: "uniform", "keep", "drop" or "error": see `ofb_sample`.
      example_ids: int64 `[n]`, or None where the stream has none: draws are then keyed by the
        examples' losses and places in the window.
      labels: `[n]`.
      record: as for `score`; empty for a policy that needs no records.
      key: int64 scalar made from the seed and the epoch.
      batch_size: size of the batches in which the selection will leave, or None.
      estimator: "weights", or "log_odds" for `log_inclusion` and weights of 1.
      num_outputs: for "log_odds": outputs of a record, which its top-k form does not show; None
        for one where there are no records.
      state: what the window before left, for `budget="stream"`; None for "window".

    Returns:
      A `Selection`.
    """
    n = tf.size(labels)
    scored = score(policy, task, labels, record, example_ids, key)
    if example_ids is None:
        bits = tf.cast(tf.bitcast(scored.losses, tf.int32), tf.int64)
        example_ids = hashing.fold_in(bits, tf.range(tf.cast(n, tf.int64)))
    key_of_window = hashing.window_key(example_ids, key)

    # The policy sees the examples with a usable record; the others get what `missing` says.
    places = tf.where(scored.usable) if policy.needs_records else None

    def take(values: tf.Tensor | None) -> tf.Tensor | None:
        if values is None or places is None:
            return values
        return tf.gather(values, tf.squeeze(places, 1))

    ids = take(example_ids)
    window = Window(
        example_ids=ids,
        labels=take(labels),
        logits=take(record.get(constants.LOGITS)),
        losses=take(scored.losses),
        scores=take(scored.scores),
        key=hashing.fold_in(key_of_window, tf.constant(Stream.POLICY, tf.int64)),
        rate=rate,
    )
    num_scored = tf.cast(tf.size(ids), tf.float64)
    mix = getattr(policy, "uniform_mix", 0.0)
    left = budget(rate, missing, tf.cast(n, tf.float64), num_scored, mix)
    if state is not None:
        state = stream_budget.remember(state, window.scores)
        least = getattr(policy, "uniform_mix", 1.0) * rate
        window = window._replace(line=stream_budget.line(state, left, num_scored, least))
    probabilities, weights, strata, line = _decide(policy, window, left, task)
    if state is not None:
        state = stream_budget.settle(state, left, probabilities)
    if places is not None:

        def place(values: tf.Tensor, default: float) -> tf.Tensor:
            filled = tf.fill(tf.shape(labels), tf.constant(default, values.dtype))
            return tf.tensor_scatter_nd_update(filled, places, values)

        probabilities = place(probabilities, missing_probability(rate, missing))
        strata = place(strata, float("inf"))
        if weights is not None:
            # Here too, what is always kept stands for itself alone.
            weights = place(weights, rate if missing == constants.MISSING_KEEP else 1.0)

    if policy.design == POISSON:
        indices = designs.poisson(probabilities, hashing.hash01(example_ids, key))
    else:
        ordered = designs.systematic(
            probabilities, designs.ascending_order(strata), hashing.uniform_start(key_of_window)
        )
        indices = tf.gather(ordered, designs.spread(tf.size(ordered), batch_size))
    log_inclusion = None
    if estimator == constants.LOG_ODDS:
        log_inclusion = _log_inclusion(
            policy, line, record, scored.usable, indices, task, num_outputs
        )
        weights = tf.ones(tf.shape(labels), tf.float32)
    weights = _weights(weights, rate, probabilities, indices)
    return Selection(
        indices=indices,
        weights=weights,
        usable=scored.usable,
        valid_labels=scored.valid_labels,
        probabilities=probabilities,
        example_ids=example_ids,
        log_inclusion=log_inclusion,
        state=state,
    )


def select_count(
    policy: Policy,
    count: int | tf.Tensor,
    task: str,
    labels: tf.Tensor,
    record: dict[str, tf.Tensor],
    key: tf.Tensor,
    estimator: str = constants.WEIGHTS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Selects exactly `count` of n examples by systematic sampling; shapes are static for XLA.

    An example that is not usable gets the mean loss and score of the others; where none is
    usable, the selection is uniform.

    Args:
      policy: gives inclusion probabilities; they are rescaled to sum to `count` if they do not.
      count: in [1, n], an integer or an int32 scalar.
      task: "multiclass", "binary" or "regression".
      labels: `[n]`.
      record: as for `score`.
      key: int64 scalar: the draw is a function of it.
      estimator: "weights" or "log_odds".

    Returns:
      int32 `[count]` indices, and float32 `[count]` weights: (count / n) / p, or the policy's own.
      With "log_odds", float32 `[count, k]` `log_inclusion` instead of weights.
    """
    n = tf.size(labels)
    budget_of_batch = tf.cast(count, tf.float64)
    rate = budget_of_batch / tf.cast(n, tf.float64)
    ids = tf.range(tf.cast(n, tf.int64))
    scored = score(policy, task, labels, record, ids, key)
    window = Window(
        example_ids=ids,
        labels=labels,
        logits=record.get(constants.LOGITS),
        losses=_mean_where_not(scored.usable, scored.losses),
        scores=_mean_where_not(scored.usable, scored.scores),
        key=key,
        rate=rate,
    )
    probabilities, weights, strata, line = _decide(policy, window, budget_of_batch, task)
    if policy.needs_records:
        strata = tf.where(scored.usable, strata, tf.constant(float("inf"), strata.dtype))
    probabilities = designs.capped_pps(probabilities, budget_of_batch)
    start = hashing.uniform_start(hashing.fold_in(key, tf.constant(Stream.STEP_START, tf.int64)))
    indices = designs.systematic(probabilities, designs.ascending_order(strata), start, count)
    if estimator == constants.LOG_ODDS:
        num_outputs = record[constants.LOGITS].shape[-1]
        return indices, _log_inclusion(
            policy, line, record, scored.usable, indices, task, num_outputs
        )
    return indices, _weights(weights, rate, probabilities, indices)


def uniform_probe(selection: Selection, fraction: float, key: tf.Tensor) -> tf.Tensor:
    """Flags a uniform sample of the stream among the selected: bool `[m]`.

    An example is selected with probability p and then flagged with fraction / p, so every
    example of the stream is flagged with the same probability, which is `fraction` where no p is
    below it. The key is that of `select`.
    """
    draws = hashing.hash01(
        tf.gather(selection.example_ids, selection.indices),
        hashing.fold_in(key, tf.constant(Stream.PROBE, tf.int64)),
    )
    return draws * tf.gather(selection.probabilities, selection.indices) < fraction


def budget(rate, missing: str, n, num_scored, uniform_mix: float):  # type: ignore[no-untyped-def]
    """How many of the scored examples to select, in expectation.

    Under "keep" the examples without a usable record are all selected and use up the budget;
    the scored ones still get a fifth of their rate, or as much as `uniform_mix` promises them.

    Args:
      rate: in (0, 1].
      missing: "uniform", "keep", "drop" or "error".
      n: examples, a float64 scalar or a number.
      num_scored: of these, the usable ones, of the same type.
      uniform_mix: the policy's, in [0, 1]; 0 where it has none.

    Returns:
      A float64 scalar for tensors, a float for numbers.
    """
    if missing != constants.MISSING_KEEP:
        return rate * num_scored
    left = rate * n - (n - num_scored)
    least = max(KEEP_FLOOR, uniform_mix) * rate * num_scored
    return tf.maximum(left, least) if tf.is_tensor(left) else max(left, least)


def missing_probability(rate: float, missing: str) -> float:
    """Inclusion probability of an example without a usable record."""
    return {constants.MISSING_UNIFORM: rate, constants.MISSING_KEEP: 1.0}.get(missing, 0.0)


def _decide(policy: Policy, window: Window, budget: tf.Tensor, task: str) -> tuple:
    """Probabilities float64, weights float32 (None for rate / p), sort keys float64; all `[n]`.

    And `Inclusion.line`.
    """
    inclusion = policy.inclusion(window, budget)
    if not isinstance(inclusion, Inclusion):
        raise TypeError(
            f"{type(policy).__name__}.inclusion must return an ofb_tf.Inclusion. "
            f"Received: {inclusion!r}"
        )
    probabilities = tf.clip_by_value(tf.cast(inclusion.probabilities, tf.float64), 0.0, 1.0)
    weights = None if inclusion.weights is None else tf.cast(inclusion.weights, tf.float32)
    if policy.needs_records:
        strata = scores.stratification_key(
            window.logits, window.labels, window.losses, window.scores, task
        )
    else:
        # Without records the order is random, keyed by the ids: simple random sampling.
        strata = hashing.hash01(window.example_ids, window.key)
    return probabilities, weights, strata, inclusion.line


def _log_inclusion(
    policy: Policy,
    line: tf.Tensor,
    record: dict[str, tf.Tensor],
    usable: tf.Tensor,
    indices: tf.Tensor,
    task: str,
    num_outputs: int | None,
) -> tf.Tensor:
    """`log_odds.log_inclusion` of the selected."""
    if not policy.needs_records:  # it selects alike whatever the label
        return tf.zeros([tf.size(indices), num_outputs or 1], tf.float32)
    selected = {name: tf.gather(value, indices) for name, value in record.items()}
    return log_odds.log_inclusion(line, selected, tf.gather(usable, indices), task, num_outputs)


def _weights(
    weights: tf.Tensor | None,
    rate: float | tf.Tensor,
    probabilities: tf.Tensor,
    indices: tf.Tensor,
) -> tf.Tensor:
    if weights is not None:
        return tf.gather(weights, indices)
    return tf.cast(rate / tf.gather(probabilities, indices), tf.float32)


def _mean_where_not(usable: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    kept = tf.where(usable, values, tf.zeros_like(values))
    mean = tf.math.divide_no_nan(tf.reduce_sum(kept), tf.reduce_sum(tf.cast(usable, values.dtype)))
    return tf.where(usable, values, mean)

"""What sampling did: coverage, realised rate, weights and their effective sample size."""

from typing import Any

import tensorflow as tf

from ofb_tf import constants
from ofb_tf.selection.heads import Heads
from ofb_tf.selection.label_noise import confident_errors
from ofb_tf.selection.label_noise import looks_noisy as errors_look_noisy
from ofb_tf.selection.window import Selection

CONFIDENT, CONFIDENT_ERRORS = "confident", "confident_errors"
_COUNTS = ("examples", "selected", "without_record", "unusable", CONFIDENT, CONFIDENT_ERRORS)
_SUMS = ("sum_weights", "sum_squared_weights", "max_weight", "expected_errors")


def count(
    record: dict[str, tf.Tensor], labels: tf.Tensor, selection: Selection, task: str | Heads
) -> dict[str, tf.Tensor]:
    """Sums over one window, to be added over windows by `add`."""
    none = tf.constant(0, tf.int64)
    confident, errors, expected = none, none, tf.constant(0.0, tf.float64)
    if isinstance(task, str) and task != constants.REGRESSION and constants.LOGITS in record:
        confident, errors, expected = confident_errors(record, labels, selection.usable, task)
    has_record = record.get(constants.HAS_RECORD, tf.ones_like(selection.usable))
    weights = tf.cast(selection.weights, tf.float64)
    return {
        "examples": tf.size(selection.usable, tf.int64),
        "selected": tf.size(selection.indices, tf.int64),
        "without_record": tf.math.count_nonzero(~has_record),
        "unusable": tf.math.count_nonzero(has_record & ~selection.usable),
        CONFIDENT: confident,
        CONFIDENT_ERRORS: errors,
        "expected_errors": expected,
        "sum_weights": tf.reduce_sum(weights),
        "sum_squared_weights": tf.reduce_sum(tf.square(weights)),
        "max_weight": tf.reduce_max(tf.concat([weights, tf.zeros([1], tf.float64)], axis=0)),
    }


def add(total: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    """Sums of two parts of the stream."""
    added = {name: total[name] + counts[name] for name in total}
    return added | {"max_weight": max(total["max_weight"], counts["max_weight"])}


def summarize(total: dict[str, Any] | None) -> dict[str, float]:
    """Counts and ratios from sums; of nothing where `total` is None."""
    sums = total or dict.fromkeys((*_COUNTS, *_SUMS), 0)
    counts = {name: int(sums[name]) for name in _COUNTS}
    examples, selected = counts["examples"], counts["selected"]
    usable = examples - counts["without_record"] - counts["unusable"]
    figures = counts | {
        constants.COVERAGE: ratio(usable, examples),
        constants.REALIZED_RATE: ratio(selected, examples),
        constants.MEAN_WEIGHT: ratio(sums["sum_weights"], selected),
        constants.MAX_WEIGHT: float(sums["max_weight"]) if selected else float("nan"),
        constants.EFFECTIVE_SAMPLE_SIZE: effective_sample_size(
            selected, sums["sum_weights"], sums["sum_squared_weights"]
        ),
        constants.CONFIDENT_ERROR: ratio(counts[CONFIDENT_ERRORS], counts[CONFIDENT]),
        constants.EXPECTED_CONFIDENT_ERROR: ratio(sums["expected_errors"], counts[CONFIDENT]),
    }
    return {k: v for k, v in figures.items() if k not in (CONFIDENT, CONFIDENT_ERRORS)}


def looks_noisy(total: dict[str, Any] | None) -> bool:
    """Whether labels contradict confident predictions too often; see `label_noise`."""
    sums = total or dict.fromkeys(_COUNTS, 0)
    return errors_look_noisy(int(sums[CONFIDENT]), int(sums[CONFIDENT_ERRORS]))


def effective_sample_size(count: float, total: float, squares: float) -> float:
    """(sum of w)^2 / (n sum of w^2), in (0, 1]: Kish, "Survey Sampling", 1965."""
    return ratio(total * total, count * squares)


def ratio(numerator: float, denominator: float) -> float:
    """Their quotient; not-a-number where the denominator is 0."""
    return float(numerator / denominator) if denominator else float("nan")

"""What selection by recorded scores will gain, from the distribution of the scores alone.

docs/evaluate.md derives the figures and names their limits.
"""

from typing import Any

import numpy as np

from ofb_tf import constants
from ofb_tf.selection.score_summary import ScoreSummary, solve
from ofb_tf.transforms.statistics import effective_sample_size, ratio

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
ADVICE_RATE = 0.1
FLAT, STEEP = 0.45, 0.7
"""Predicted gap closures: scores are flat below the first, selection pays from the second on."""
MIN_COVERAGE = 0.5


def predict(
    summary: ScoreSummary, rate: float, uniform_mix: float, squares: np.ndarray | None = None
) -> dict[str, float | None]:
    """What importance sampling at a rate will gain over uniform sampling.

    Examples without a score are taken at the plain rate; their gradients are taken to be as large
    as those of the others.

    Args:
      summary: of the scores, which stand for gradient norms.
      rate: in (0, 1]; at 1 there is no gap to close.
      uniform_mix: of `Importance`, in [0, 1].
      squares: sums of squared gradient norms in each bin of the summary, float64 `[m]`, where
        they are not the scores themselves.

    Returns:
      `rate`; `variance_ratio`, the mean of g² w over that of g² for norms g and weights w, as the
      metric of that name in training; `predicted_gap_closure`, the share of uniform sampling's
      variance that selection removes, in (-inf, 1]; `effective_sample_size` of the weights, in
      (0, 1]. None where they are not defined: nothing has a score, or every score is 0.
    """
    counts, sums = summary.counts, summary.sums()
    means = sums / counts
    solved = solve(summary, rate=rate, uniform_mix=uniform_mix, missing=constants.MISSING_UNIFORM)
    probabilities = solved.probabilities(means, np.ones(len(means), bool))
    reached = probabilities > 0.0  # without a mix, a score of 0 is never selected
    weights = np.divide(rate, probabilities, out=np.zeros(len(means)), where=reached)
    squares, missing = sums * means if squares is None else squares, summary.num_missing
    n = summary.num_scored + missing
    scored = ratio(summary.num_scored, n)
    variance = scored * ratio(squares @ weights, squares.sum()) + 1.0 - scored
    found: dict[str, Any] = {
        "rate": rate,
        "variance_ratio": variance,
        "predicted_gap_closure": ratio(1.0 - variance, 1.0 - rate),
        constants.EFFECTIVE_SAMPLE_SIZE: effective_sample_size(
            n, counts[reached].sum() + missing, counts @ weights + missing
        ),
    }
    return {name: value if value == value else None for name, value in found.items()}


def advise(
    total: dict[str, Any], gain: list[dict[str, float | None]], confident_error: float | None
) -> str:
    """One sentence: what to do.

    Args:
      total: of `GroupSums.metrics`.
      gain: of `predict`, at rates of which one is `ADVICE_RATE`.
      confident_error: of `label_noise`, where labels look noisy; None where they do not.
    """
    if not total["evaluated"]:
        return (
            f"None of {total['examples']} examples has a usable record and a valid label: check "
            "that serving and the stream make the same ids, and the label."
        )
    (here,) = (each for each in gain if each["rate"] == ADVICE_RATE)
    closure, variance = here["predicted_gap_closure"], here["variance_ratio"]
    if closure is None or variance is None:
        return "Every score is 0: the served model has nothing left to learn from these examples."
    if total[constants.COVERAGE] < MIN_COVERAGE:
        return (
            f"Only {total[constants.COVERAGE]:.1%} of the examples have a usable record and a "
            "valid label: mend the join before you select by records."
        )
    worth = f"one example in ten by importance is worth {ADVICE_RATE / variance:.0%} of the stream"
    if closure < FLAT:
        return (
            f"Scores are flat, and {worth} uniformly: there is no gain to be had that is worth "
            "the effort; sample uniformly, or train on everything."
        )
    good = [each for each in gain if (each["predicted_gap_closure"] or 0.0) >= closure - 0.05]
    least = min(good, key=lambda each: each["rate"] or 0.0)
    pays = "Selection pays" if closure >= STEEP else "Selection may pay"
    advice = (
        f"{pays}: {worth} uniformly, and at a rate of {least['rate']:g} it removes "
        f"{least['predicted_gap_closure']:.0%} of the variance that uniform sampling adds"
    )
    if confident_error is not None:
        advice += (
            f"; but {confident_error:.1%} of the labels contradict confident predictions, so use "
            "estimator='weights' and expect less"
        )
    return advice + "."

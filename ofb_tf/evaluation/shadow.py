"""Two models that answered the same requests: one that serves, and one in its shadow.

Examples are selected by the records of the model that serves. Where a new model is to be trained
from them, its gradients are not the ones that the scores bound. What that costs is predicted from
the records of both: the variance of the new model's gradients when the served one's scores select.
"""

from typing import Any

import numpy as np

from ofb_tf.evaluation import gain
from ofb_tf.evaluation.quality import GroupSums, Measured
from ofb_tf.selection.score_summary import ScoreSummary, bins_of

SERVED, SHADOW = "served", "shadow"
_MAX_PENDING = 1 << 18  # pairs of scores that are kept before they are summarised


class ShadowEvaluation:
    """Sums over the examples that both models have answered; memory as of two evaluations.

    Args:
      task: "multiclass", "binary" or "regression", of both.
      num_outputs: of the served model and of the other, 0 where records hold only losses.
      uniform_mix: of the `Importance` whose gain is predicted, in [0, 1].
    """

    def __init__(self, task: str, num_outputs: tuple[int, int], uniform_mix: float = 0.2) -> None:
        self._groups = [GroupSums(task, number) for number in num_outputs]
        self._uniform_mix = uniform_mix
        self._summaries = [ScoreSummary.of([]), ScoreSummary.of([])]
        self._squares = np.zeros(0)  # of the shadow's scores, by bin of the served model's
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, served: Measured, shadow: Measured) -> None:
        """Adds n examples, as `quality.measure` gives them for either model's records."""
        both = np.isfinite(served.scores) & np.isfinite(shadow.scores)
        pair = served.rows(both), shadow.rows(both)
        for sums, measured in zip(self._groups, pair, strict=True):
            sums.add([0], np.zeros(len(measured.scores), np.int64), measured)
        self._pending.append((pair[0].scores, pair[1].scores))
        if sum(len(scores) for scores, _ in self._pending) > _MAX_PENDING:
            self._summarize()

    def result(self) -> dict[str, Any]:
        """Every figure over the examples that both models have answered, in JSON's types.

        Returns:
          `served` and `shadow`, the counts and metrics of `GroupSums.metrics` of each model; and
          `gain`, for each of `gain.RATES` a dict of `rate`, `variance_ratio`, of the shadow's
          gradients when its own scores select, and `variance_ratio_by_served`, when the served
          model's do. None where a figure is not defined.
        """
        self._summarize()
        by_served, by_own = self._summaries
        rows = []
        for rate in gain.RATES:
            own = gain.predict(by_own, rate, self._uniform_mix)
            other = gain.predict(by_served, rate, self._uniform_mix, self._squares)
            ratios = {"variance_ratio_by_served": other["variance_ratio"]}
            rows.append({name: own[name] for name in ("rate", "variance_ratio")} | ratios)
        names = zip((SERVED, SHADOW), self._groups, strict=True)
        return {name: sums.metrics(0) for name, sums in names} | {"gain": rows}

    def _summarize(self) -> None:
        """Empties the scores that are pending into the summaries."""
        if not self._pending:
            return
        scores = [np.concatenate(column) for column in zip(*self._pending, strict=True)]
        before = self._summaries[0]
        self._summaries = [
            ScoreSummary.merge([summary, ScoreSummary.of(column)])
            for summary, column in zip(self._summaries, scores, strict=True)
        ]
        bins, squares = self._summaries[0].bins, np.zeros(len(self._summaries[0].bins))
        squares[np.searchsorted(bins, before.bins)] = self._squares
        np.add.at(
            squares, np.searchsorted(bins, bins_of(scores[0])), scores[1].astype(np.float64) ** 2
        )
        self._squares, self._pending = squares, []

"""What an evaluation adds up: one pass over any part of the stream, merged with others."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ofb_tf import constants
from ofb_tf.checks import check_choice
from ofb_tf.evaluation import gain
from ofb_tf.evaluation.quality import GroupSums, Measured
from ofb_tf.selection import label_noise
from ofb_tf.selection.score_summary import ScoreSummary
from ofb_tf.tables import format_time
from ofb_tf.transforms.statistics import ratio

RECORD_AGE, TIME = "record_age", "time"
MAX_TIMES = 30
"""Intervals of time; where there would be more, longer ones are taken."""
# Each divides the next, so that intervals can be put together: 1 ms to ten times 364 days.
_INTERVALS = (
    1000, 10_000, 100_000,
    *(seconds * constants.MICROSECONDS for seconds in (
        1, 5, 30, 60, 300, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 604_800, 2_419_200,
        31_449_600, 314_496_000,
    )),
)  # fmt: skip
_AGES = {  # from how many seconds on
    0: "0 to 1 min", 60: "1 to 10 min", 600: "10 to 60 min", 3600: "1 to 6 h", 21_600: "6 to 24 h",
    86_400: "1 to 7 d", 604_800: "7 to 30 d", 2_592_000: "over 30 d",
}  # fmt: skip
_AGE_EDGES = constants.MICROSECONDS * np.array(list(_AGES))
_AGE_NAMES = ("below 0", *_AGES.values())
_MAX_PENDING = 1 << 18  # scores that are kept before they are summarised
_DRIFT_SHARE = 0.01  # of the evaluated examples, for an age to count


class Evaluation:
    """Counts and sums over examples joined to records; fixed memory, whatever their number.

    Batches may be added in any order, and evaluations of parts merged in any order and grouping:
    the counts are the same, and all other figures but for float64 rounding.

    Args:
      task: "multiclass", "binary" or "regression".
      num_outputs: of the model, 0 where records hold only losses.
      as_of: microseconds since 1970: the age of a record counts from here where examples have no
        time.
      uniform_mix: of the `Importance` whose gain is predicted, in [0, 1].

    Raises:
      ValueError: an argument is out of range.
    """

    def __init__(
        self, task: str, num_outputs: int, as_of: int = 0, uniform_mix: float = 0.2
    ) -> None:
        self.task = check_choice("task", task, constants.TASKS)
        if not 0.0 <= uniform_mix <= 1.0:
            raise ValueError(f"uniform_mix must be in [0, 1]. Received: {uniform_mix!r}")
        self.num_outputs = num_outputs
        self.as_of = as_of
        self.uniform_mix = uniform_mix
        self._total, self._versions, self._ages, self._times = (self._groups() for _ in range(4))
        self._interval = 0  # of the times, as an index of `_INTERVALS`
        self._slices: dict[str, GroupSums] = {}
        self._confident = np.zeros(3)
        self._summary = ScoreSummary.of([])
        self._pending: list[np.ndarray] = []

    def add(
        self,
        measured: Measured,
        *,
        model_versions: np.ndarray,
        timestamps: np.ndarray,
        times: np.ndarray | None = None,
        slices: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Adds n examples.

        Args:
          measured: of `quality.measure`, as arrays.
          model_versions: int64 `[n]`, of the records; arbitrary where there is none.
          timestamps: int64 `[n]` microseconds since 1970, of the records; arbitrary likewise.
          times: int64 `[n]` microseconds since 1970, of the examples; None for those of their
            records, and then an example without a record has no time.
          slices: numbers or bytes `[n]` for each feature to slice by.

        Raises:
          ValueError: a feature has more than `quality.MAX_GROUPS` values, or times span 300 years.
        """
        has_record = measured.has_record
        joined = measured.rows(has_record)
        _add(self._total, np.zeros(len(has_record), np.int64), measured)
        _add(self._versions, model_versions[has_record], joined)
        ages = ((self.as_of if times is None else times) - timestamps)[has_record]
        _add(self._ages, np.searchsorted(_AGE_EDGES, ages, side="right"), joined)
        at, dated = (timestamps[has_record], joined) if times is None else (times, measured)
        self._fit_times(at)
        _add(self._times, self._beginning(at), dated)
        for name, values in (slices or {}).items():
            _add(self._slices.setdefault(name, self._groups()), values, measured, _text)
        self._confident += measured.confident
        self._pending.append(measured.scores[np.isfinite(measured.scores)])
        if sum(map(len, self._pending)) > _MAX_PENDING:
            self._summarize()

    def merge(self, other: "Evaluation") -> None:
        """Adds what another evaluation, made with the same arguments, has added up."""
        self._total.merge(other._total)
        self._versions.merge(other._versions)
        self._ages.merge(other._ages)
        self._fit_times(np.array(other._times.keys, np.int64), other._interval)
        self._times.merge(other._times, self._beginning)
        for name, sums in other._slices.items():
            self._slices.setdefault(name, self._groups()).merge(sums)
        self._confident += other._confident
        for evaluation in (self, other):
            evaluation._summarize()
        self._summary = ScoreSummary.merge([self._summary, other._summary])

    def result(self) -> dict[str, Any]:
        """Every figure, in the types that JSON has; None for one that is not defined.

        Returns:
          `task` and `num_outputs`; `total`, the counts and metrics of `GroupSums.metrics`, and the
          same `by` each `model_version`, `record_age` and interval of `time` (by its beginning),
          and in `slices` by the value of each feature; `confident_error`,
          `expected_confident_error` and `labels_look_noisy`, see `selection.label_noise`;
          `score_drift`, the mean score with the oldest records over that with the youngest, minus
          1; `gain`, a list of `gain.predict` at `gain.RATES`; and `advice`, a sentence.
        """
        self._summarize()
        total = self._total.metrics(0)
        ages = {_AGE_NAMES[key]: self._ages.metrics(key) for key in self._ages.keys}
        summary = ScoreSummary.merge(
            [self._summary, ScoreSummary.of([], total["examples"] - total["evaluated"])]
        )
        count, errors, expected = self._confident.tolist()
        is_noisy = label_noise.looks_noisy(round(count), round(errors))
        error = errors / count if count else None
        predicted = [gain.predict(summary, rate, self.uniform_mix) for rate in gain.RATES]
        return {
            "task": self.task,
            "num_outputs": self.num_outputs,
            "total": total,
            "by": {
                constants.MODEL_VERSION: _metrics(self._versions),
                RECORD_AGE: ages,
                TIME: _metrics(self._times, format_time),
            },
            "slices": {name: _metrics(sums) for name, sums in self._slices.items()},
            constants.CONFIDENT_ERROR: error,
            constants.EXPECTED_CONFIDENT_ERROR: expected / count if count else None,
            "labels_look_noisy": is_noisy,
            "score_drift": _drift([*ages.values()], total["evaluated"]),
            "gain": predicted,
            "advice": gain.advise(total, predicted, error if is_noisy else None),
        }

    def _groups(self) -> GroupSums:
        return GroupSums(self.task, self.num_outputs)

    def _beginning(self, times: Any) -> Any:
        """Where the intervals of these times begin."""
        interval = _INTERVALS[self._interval]
        return times // interval * interval

    def _fit_times(self, times: np.ndarray, at_least: int = 0) -> None:
        """Makes intervals longer until there are not too many with these times."""
        found = np.unique(np.append(np.array(self._times.keys, np.int64), times))
        before, self._interval = self._interval, max(self._interval, at_least)
        while len(np.unique(self._beginning(found))) > MAX_TIMES:
            if self._interval + 1 == len(_INTERVALS):
                raise ValueError(
                    "times must be microseconds since 1970, and lie within 300 years. Received: "
                    f"{found[0]} to {found[-1]}"
                )
            self._interval += 1
        if self._interval > before:
            finer, self._times = self._times, self._groups()
            self._times.merge(finer, self._beginning)

    def _summarize(self) -> None:
        """Empties the scores that are pending into the summary."""
        scores = np.concatenate([np.zeros(0, np.float32), *self._pending])
        self._summary = ScoreSummary.merge([self._summary, ScoreSummary.of(scores)])
        self._pending = []


def _add(sums: GroupSums, values: np.ndarray, measured: Measured, key_of: Callable = int) -> None:
    """Adds examples to the groups of their values `[n]`."""
    unique, groups = np.unique(values, return_inverse=True)
    sums.add([key_of(value) for value in unique], groups, measured)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _metrics(sums: GroupSums, name_of: Callable = str) -> dict[str, dict[str, Any]]:
    return {name_of(key): sums.metrics(key) for key in sums.keys}


def _drift(ages: list[dict[str, Any]], evaluated: int) -> float | None:
    scores = [age["mean_score"] for age in ages if age["evaluated"] > _DRIFT_SHARE * evaluated]
    drift = ratio(scores[-1], scores[0]) - 1.0 if len(scores) > 1 else float("nan")
    return drift if drift == drift else None

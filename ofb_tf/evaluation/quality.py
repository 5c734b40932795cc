"""The quality of the model that served, on groups of examples: sums that add up, and their metrics.

An example is evaluated if it has a record with finite outputs and a valid label; the others are
counted by what they lack. Of the evaluated ones:

| metric | task | what it is |
|---|---|---|
| `loss` | all | mean of `selection.scores.example_loss`, or of the recorded losses |
| `mean_score` | all | mean of `selection.scores.gradient_norm_bound`, or of the recorded losses |
| `normalized_entropy` | binary, multiclass | loss over the entropy of the mean label |
| `r_squared` | regression | 1 minus the loss over the variance of the labels |
| `calibration` | all | mean prediction over mean label; of classes, mean confidence over accuracy |
| `accuracy` | multiclass | share of labels that are the predicted class |
| `auc`, `auc_error` | binary | area under the ROC curve, and by how much it may be off |

Normalized entropy is 1 for a model that predicts the share of positives for every example, and less
for a better one: He et al., "Practical lessons from predicting clicks on ads at Facebook", ADKDD
2014.

The area is taken from histograms of the logits of positives and negatives. Pairs in different bins
are counted exactly. Of the pairs in one bin between none and all are in the right order, and half
of them is what counts: the area is off by at most half their share.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.selection import Importance, label_noise, window
from ofb_tf.transforms.statistics import ratio

NUM_BINS = 8192
"""Bins of the logits; those beyond plus or minus `LARGEST_LOGIT` are in the first and the last."""
LARGEST_LOGIT = 16.0
MAX_GROUPS = 10_000
_MAX_PENDING = 1 << 20  # cells of histograms that are kept before they are added up

_SUMS = (
    "examples", "without_record", "invalid_labels", "unusable",
    "loss", "score", "prediction", "outcome", "squared_outcome",
)  # fmt: skip
_NUM_COUNTS = 4


class Measured(NamedTuple):
    """What records and labels say of n examples; tensors, or the same as arrays.

    Attributes:
      sums: float64 `[n, s]`: what each example adds to the sums of its group.
      bins: int64 `[n, m]`: columns of the histogram of its group, and
      amounts: float64 `[n, m]`: what it adds to them, 0 where it is not evaluated.
      scores: float32 `[n]`: gradient-norm bounds, not-a-number where it is not evaluated.
      has_record: bool `[n]`.
      confident: float64 `[3]`: `label_noise.ConfidentErrors` of the examples together.
    """

    sums: Any
    bins: Any
    amounts: Any
    scores: Any
    has_record: Any
    confident: Any

    def rows(self, chosen: np.ndarray) -> "Measured":
        """Some of the examples, by indices or bool `[n]`; without their confident errors."""
        return self._replace(
            sums=self.sums[chosen],
            bins=self.bins[chosen],
            amounts=self.amounts[chosen],
            scores=self.scores[chosen],
            has_record=self.has_record[chosen],
            confident=np.zeros(3),
        )


def measure(record: dict[str, tf.Tensor], labels: tf.Tensor, task: str) -> Measured:
    """Evaluates each example by its record and its label.

    Args:
      record: `has_record` bool `[n]`, and `logits` `[n, k]` (with the other columns of the top-k
        form) or `loss` `[n]`. A recorded loss counts only where there are no logits.
      labels: `[n]`; a float label that is not known is a NaN, an integer class -1.
      task: "multiclass", "binary" or "regression".

    Returns:
      `Measured` tensors.
    """
    if constants.LOGITS in record:
        record = {name: value for name, value in record.items() if name != constants.LOSS}
    scored = window.score(Importance(), task, labels, record)
    usable, has_record = scored.usable, record[constants.HAS_RECORD]
    has_label = has_record & scored.valid_labels
    lacks = (~has_record, has_record & ~has_label, has_label & ~usable)
    prediction, outcome, confident = _compare(record, labels, usable, task)
    values = (scored.losses, scored.scores, prediction, outcome, tf.square(outcome))
    values = tf.stack([tf.cast(value, tf.float64) for value in values], axis=1)
    counts = tf.cast(tf.stack([tf.ones_like(usable), *lacks], axis=1), tf.float64)
    evaluated = tf.expand_dims(tf.cast(usable, tf.float64), 1)
    bins, amounts = _histogram(record, labels, outcome, usable, task)
    return Measured(
        sums=tf.concat([counts, tf.where(evaluated > 0.0, values, 0.0)], axis=1),
        bins=bins,
        amounts=tf.where(evaluated > 0.0, amounts, 0.0),
        scores=tf.where(usable, scored.scores, float("nan")),
        has_record=has_record,
        confident=confident,
    )


def _compare(
    record: dict[str, tf.Tensor], labels: tf.Tensor, usable: tf.Tensor, task: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Prediction and what came of it, float64 `[n]`, and confident errors, float64 `[3]`."""
    confident = tf.zeros([3], tf.float64)
    if constants.LOGITS in record and task != constants.REGRESSION:
        errors = label_noise.confident_errors(record, labels, usable, task)
        confident = tf.stack([tf.cast(each, tf.float64) for each in errors])
    outputs = _outputs(record, labels)
    if task != constants.MULTICLASS:
        prediction = tf.sigmoid(outputs) if task == constants.BINARY else outputs
        return prediction, tf.cast(labels, tf.float64), confident
    if constants.LOGITS not in record:
        return outputs, outputs, confident
    predicted, confidence = label_noise.predictions(record, task)
    is_right = predicted == tf.cast(labels, tf.int64)
    return tf.cast(confidence, tf.float64), tf.cast(is_right, tf.float64), confident


def _histogram(
    record: dict[str, tf.Tensor],
    labels: tf.Tensor,
    outcome: tf.Tensor,
    usable: tf.Tensor,
    task: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Columns of the histogram and what is added there; of binary labels positives come first."""
    if task == constants.REGRESSION:
        nothing = tf.zeros([tf.size(usable), 0], tf.float64)
        return tf.cast(nothing, tf.int64), nothing
    if task == constants.MULTICLASS:
        classes = tf.where(usable, tf.cast(labels, tf.int64), 0)
        return classes[:, None], tf.ones_like(outcome)[:, None]
    logits = tf.where(usable, _outputs(record, labels), 0.0)
    place = tf.floor((logits / LARGEST_LOGIT + 1.0) * (NUM_BINS / 2))
    # Clipped as a float: an integer would overflow.
    bins = tf.cast(tf.clip_by_value(place, 0.0, NUM_BINS - 1.0), tf.int64)
    return tf.stack([bins, NUM_BINS + bins], 1), tf.stack([outcome, 1.0 - outcome], 1)


def _outputs(record: dict[str, tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
    """The output of a model with one, float64 `[n]`; zeros for other models."""
    logits = record.get(constants.LOGITS)
    if logits is None or logits.shape[1:].num_elements() != 1:
        return tf.zeros(tf.shape(labels), tf.float64)
    return tf.reshape(tf.cast(logits, tf.float64), [-1])


class GroupSums:
    """Sums over the examples of each group, by its key; two of them add up.

    Histograms are kept sparse: a cell of a group takes memory once an example is in it.

    Args:
      task: "multiclass", "binary" or "regression".
      num_outputs: of the model, 0 where records hold only losses.

    Raises:
      ValueError: the model has another number of outputs than the task needs.
    """

    def __init__(self, task: str, num_outputs: int) -> None:
        if num_outputs and (task == constants.MULTICLASS) != (num_outputs > 1):
            expected = "at least 2 outputs" if task == constants.MULTICLASS else "1 output"
            raise ValueError(
                f"records must have {expected} for task={task!r}. Received: {num_outputs}. Set "
                "task, or name the records of this stream."
            )
        self.task = task
        self.num_outputs = num_outputs
        width = {constants.BINARY: 2 * NUM_BINS, constants.MULTICLASS: num_outputs}.get(task, 0)
        self._width = width if num_outputs else 0  # of a group's histogram
        self._rows: dict[Hashable, int] = {}
        self._sums = np.zeros((0, len(_SUMS)))
        self._cells: np.ndarray = np.zeros(0, np.int64)  # row * width + bin, ascending
        self._amounts: np.ndarray = np.zeros(0)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []  # cells and amounts to be added

    @property
    def keys(self) -> list[Any]:
        """The groups, in ascending order of their keys."""
        return sorted(self._rows)

    def add(self, keys: Sequence[Hashable], groups: np.ndarray, measured: Measured) -> None:
        """Adds n examples, of which number i belongs to the group with `keys[groups[i]]`.

        Raises:
          ValueError: there are more than `MAX_GROUPS` groups.
        """
        rows = self.rows_of(keys)[groups]
        np.add.at(self._sums, rows, measured.sums)
        if self._width:
            cells = rows[:, None] * self._width + measured.bins
            counted = measured.amounts != 0.0
            self._put(cells[counted], measured.amounts[counted])

    def merge(self, other: "GroupSums", key_of: Callable = lambda key: key) -> None:
        """Adds the groups of another, each to the group with the key `key_of(its own)`.

        Raises:
          ValueError: there are more than `MAX_GROUPS` groups.
        """
        rows = self.rows_of([key_of(key) for key in other._rows])
        np.add.at(self._sums, rows, other._sums)
        other._consolidate()
        if self._width:
            there, bins = np.divmod(other._cells, self._width)
            self._put(rows[there] * self._width + bins, other._amounts)

    def rows_of(self, keys: Sequence[Hashable]) -> np.ndarray:
        """int64 rows of groups, which are made where they are new."""
        for key in keys:
            self._rows.setdefault(key, len(self._rows))
        if len(self._rows) > MAX_GROUPS:
            raise ValueError(
                f"examples must form at most {MAX_GROUPS} groups, got more, such as "
                f"{keys[-1]!r}. Slice by a feature with fewer values, or bucketise it."
            )
        new = len(self._rows) - len(self._sums)
        if new:
            self._sums = np.pad(self._sums, [(0, new), (0, 0)])
        return np.array([self._rows[key] for key in keys], np.int64)

    def metrics(self, key: Hashable) -> dict[str, Any]:
        """Counts and metrics of one group; None for a metric that is not defined.

        Returns:
          `examples`, `without_record`, `invalid_labels`, `unusable` (outputs that are not finite),
          `evaluated`, `coverage` (evaluated over examples), and the metrics of the task.
        """
        (row,) = self.rows_of([key])
        sums = dict(zip(_SUMS, self._sums[row].tolist(), strict=True))
        counts = {name: round(sums[name]) for name in _SUMS[:_NUM_COUNTS]}
        n = counts["examples"] - sum(counts[name] for name in _SUMS[1:_NUM_COUNTS])
        found = counts | {"evaluated": n, constants.COVERAGE: ratio(n, counts["examples"])}
        mean = {name: ratio(sums[name], n) for name in _SUMS[_NUM_COUNTS:]}
        found |= {constants.LOSS: mean["loss"], "mean_score": mean["score"]}
        if self.num_outputs:
            found |= self._of_task(mean, *self._histogram(row))
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def _of_task(
        self, mean: dict[str, float], bins: np.ndarray, amounts: np.ndarray
    ) -> dict[str, float]:
        """The metrics of the task from means and the cells of the histogram that are not empty."""
        found = {"calibration": ratio(mean["prediction"], mean["outcome"])}
        if self.task == constants.REGRESSION:
            variance = mean["squared_outcome"] - mean["outcome"] ** 2
            return {"r_squared": 1.0 - ratio(mean["loss"], variance)} | found
        if self.task == constants.BINARY:
            shares = np.array([mean["outcome"], 1.0 - mean["outcome"]])
            dense = np.bincount(bins, weights=amounts, minlength=self._width)
            found["auc"], found["auc_error"] = auc(*dense.reshape(2, NUM_BINS))
        else:
            shares = amounts / amounts.sum()
            found["accuracy"] = mean["outcome"]
        shares = shares[shares != 0.0]
        entropy = -float(np.sum(shares * np.log(shares)))
        return {"normalized_entropy": ratio(mean["loss"], entropy)} | found

    def _histogram(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Bins of a group that are not empty, ascending, and their amounts."""
        self._consolidate()
        begin = row * self._width
        part = slice(*np.searchsorted(self._cells, [begin, begin + self._width]))
        return self._cells[part] - begin, self._amounts[part]

    def _put(self, cells: np.ndarray, amounts: np.ndarray) -> None:
        self._pending.append((cells, amounts))
        if sum(len(cells) for cells, _ in self._pending) > _MAX_PENDING:
            self._consolidate()

    def _consolidate(self) -> None:
        """Adds what is pending to the cells."""
        if self._pending:
            parts = [(self._cells, self._amounts), *self._pending]
            cells, amounts = (np.concatenate(each) for each in zip(*parts, strict=True))
            self._cells, places = np.unique(cells, return_inverse=True)
            self._amounts = np.bincount(places, amounts, len(self._cells))
            self._pending = []


def auc(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve from histograms, and the bound of its error.

    Args:
      positives: float64 `[bins]`, by ascending score; soft labels may make them fractions.
      negatives: as positives.

    Returns:
      The area in [0, 1] and the bound in [0, 0.5]; not-a-number where either is empty.
    """
    pairs = float(positives.sum() * negatives.sum())
    in_order = float(positives @ (np.cumsum(negatives) - negatives))
    in_one_bin = float(positives @ negatives)
    return ratio(in_order + in_one_bin / 2, pairs), ratio(in_one_bin / 2, pairs)

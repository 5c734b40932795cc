"""What goes wrong in practice: wrong labels, outliers among targets, lost serving records."""

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.experiments import config as configs
from ofb_tf.experiments.workloads import Workload

OUTLIER_SHIFT = 5.0
"""Standard deviations of the targets by which an outlier is moved."""

_LABEL_NOISE, _NEW_LABEL, _OUTLIER, _UPWARD, _MISSING = range(11, 16)  # keys of separate draws


def check(config: configs.SimulationConfig, *, is_regression: bool) -> None:
    """Raises ValueError where a condition does not fit the dataset's task."""
    task = "regression" if is_regression else "classification"
    for name, fits in (("label_noise", not is_regression), ("outliers", is_regression)):
        if getattr(config, name) and not fits:
            raise ValueError(
                f"{name} must be 0 for {task} ({config.dataset}). Received: {getattr(config, name)}"
            )


class Conditions:
    """The conditions of one cell; each is a function of the seed and the example's id.

    A wrong label or an outlier stays the same in every pass. Records are lost anew at every
    refresh of the snapshot.

    Args:
      config: says how much of each.
      seed: of the draws.
      workload: the dataset.

    Raises:
      ValueError: the condition does not fit the workload's task.
    """

    def __init__(self, config: configs.SimulationConfig, seed: int, workload: Workload):
        check(config, is_regression=workload.task == constants.REGRESSION)
        self._config, self._seed, self._workload = config, seed, workload

    def corrupt(self, examples: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The examples with wrong labels or outliers among them."""
        if not self._config.label_noise and not self._config.outliers:
            return examples
        ids, labels = (
            np.asarray(examples[name]) for name in (constants.EXAMPLE_ID, constants.LABEL)
        )
        if self._config.label_noise:
            drawn = self._workload.random_labels(self._draw(ids, _NEW_LABEL))
            is_wrong = self._draw(ids, _LABEL_NOISE) < self._config.label_noise
            labels = np.where(is_wrong, drawn, labels)
        if self._config.outliers:
            sign = np.where(self._draw(ids, _UPWARD) < 0.5, -1.0, 1.0)
            shift = OUTLIER_SHIFT * self._workload.label_deviation
            is_outlier = self._draw(ids, _OUTLIER) < self._config.outliers
            labels = np.where(is_outlier, labels + sign * shift, labels).astype(labels.dtype)
        return examples | {constants.LABEL: tf.constant(labels)}

    def has_record(self, example_ids: np.ndarray, interval: int) -> np.ndarray:
        """Whose record survives: bool `[n]`.

        Args:
          example_ids: int64 `[n]`.
          interval: number of the snapshot that serves them.
        """
        return self._draw(example_ids, _MISSING, interval) >= self._config.missing_records

    def _draw(self, example_ids: np.ndarray, purpose: int, interval: int = 0) -> np.ndarray:
        key = hashing.fold_in_numpy(np.int64(self._seed), np.int64(purpose))
        key = hashing.fold_in_numpy(key, np.int64(interval))
        return hashing.hash01_numpy(example_ids, key)

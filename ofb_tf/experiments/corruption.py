"""What goes wrong in practice: wrong labels, outliers among the targets, lost serving records."""

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.experiments import config as configs
from ofb_tf.experiments.workload import Workload

OUTLIER_SHIFT = 5.0
"""Standard deviations of the targets by which an outlier is moved."""

# Keys of independent draws; another value is another corruption for the same seed.
_LABEL_NOISE_KEY = 11
_NEW_LABEL_KEY = 12
_OUTLIER_KEY = 13
_OUTLIER_SIGN_KEY = 14
_MISSING_RECORD_KEY = 15


def check(config: configs.SimulationConfig, *, is_regression: bool) -> None:
    """Raises ValueError if a corruption does not apply to the dataset's task."""
    name, task = ("label_noise", "regression") if is_regression else ("outliers", "classification")
    if share := getattr(config, name):
        raise ValueError(f"{name} must be 0 for {task} ({config.dataset}). Received: {share}")


class Corruption:
    """The corruptions of one trial; each is a function of the seed and the example's id.

    A wrong label or an outlier is the same in every pass. Which records are lost is drawn again at
    every refresh of the snapshot.
    """

    def __init__(self, config: configs.SimulationConfig, seed: int, workload: Workload):
        check(config, is_regression=workload.task == constants.REGRESSION)
        self._config, self._seed, self._workload = config, seed, workload

    def corrupt(self, examples: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The examples, some with wrong labels or outliers."""
        if not self._config.label_noise and not self._config.outliers:
            return examples
        ids, labels = examples[constants.EXAMPLE_ID].numpy(), examples[constants.LABEL].numpy()
        if self._config.label_noise:
            drawn = self._workload.random_labels(self._draw(ids, _NEW_LABEL_KEY))
            is_wrong = self._draw(ids, _LABEL_NOISE_KEY) < self._config.label_noise
            labels = np.where(is_wrong, drawn, labels)
        if self._config.outliers:
            sign = np.where(self._draw(ids, _OUTLIER_SIGN_KEY) < 0.5, -1.0, 1.0)
            shift = OUTLIER_SHIFT * self._workload.label_deviation
            is_outlier = self._draw(ids, _OUTLIER_KEY) < self._config.outliers
            labels = np.where(is_outlier, labels + sign * shift, labels).astype(labels.dtype)
        return examples | {constants.LABEL: tf.constant(labels)}

    def has_record(self, example_ids: np.ndarray, interval: int) -> np.ndarray:
        """Which examples' records survive at a snapshot: bool `[n]`."""
        drawn = self._draw(example_ids, _MISSING_RECORD_KEY, interval)
        return drawn >= self._config.missing_records

    def _draw(self, example_ids: np.ndarray, purpose: int, interval: int = 0) -> np.ndarray:
        key = hashing.fold_in(np.int64(self._seed), np.int64(purpose))
        key = hashing.fold_in(key, np.int64(interval))
        return hashing.hash01(example_ids, key)

"""Keras metrics of a weighted selection."""

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import types

EFFECTIVE_SAMPLE_SIZE = "effective_sample_size"
MEAN_WEIGHT = "mean_weight"
MAX_WEIGHT = "max_weight"


@keras.saving.register_keras_serializable(package="ofb_tf")
class ImportanceWeightStatistics(keras.metrics.Metric):
    """Effective sample size, mean and maximum of the importance weights since the last reset.

    - `effective_sample_size`: `(Σw)² / (n Σw²)` in (0, 1], the fraction of the examples that an
      unweighted estimate of the same variance would need (Kish, "Survey Sampling", 1965).
      Uniform sampling gives 1.
    - `mean_weight`: 1 in expectation; a lasting distance from 1 means that selection
      probabilities and weights do not belong together.
    - `max_weight`: at most 1/λ under `Importance` with uniform mix λ.

    A non-finite weight makes all three NaN or infinite: it shows, and is never averaged away.
    """

    def __init__(self, name: str = "importance_weight_statistics", **kwargs):
        super().__init__(name=name, **kwargs)
        # One slot a replica: summed over replicas on read, which is the aggregation that Keras
        # has, it is the vector of every replica's maximum.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._sums = self.add_variable((3,), "zeros", name="sums")
        self._maxima = self.add_variable((replicas,), "zeros", name="maxima")

    def update_state(self, y_true, y_pred=None, sample_weight=None) -> None:
        """Adds one batch of weights.

        Args:
          y_true: importance weights, float `[n]`, finite and non-negative (the name is Keras's).
          y_pred: unused.
          sample_weight: unused.
        """
        del y_pred, sample_weight
        weights = tf.reshape(tf.cast(y_true, tf.float32), [-1])
        count = tf.cast(tf.size(weights), tf.float32)
        self._sums.assign_add(
            tf.stack([count, tf.reduce_sum(weights), tf.reduce_sum(tf.square(weights))])
        )
        largest = tf.reduce_max(tf.concat([weights, tf.zeros([1])], 0))
        if self._maxima.shape[0] == 1:
            slot = tf.ones([1])
        else:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            slot = tf.one_hot(replica, self._maxima.shape[0])
        self._maxima.assign(
            tf.maximum(self._maxima, tf.where(slot > 0, largest, tf.zeros_like(slot)))
        )

    def totals(self) -> np.ndarray:
        """Count, sum, sum of squares and maximum since the last reset: float64 `[4]`, eagerly."""
        maximum = keras.ops.convert_to_numpy(self._maxima).max()
        return np.append(keras.ops.convert_to_numpy(self._sums).astype(np.float64), maximum)

    def result(self) -> dict[str, tf.Tensor]:
        """The three figures, float32 scalars; 0 where no weight was seen."""
        count, total, squares = tf.unstack(tf.convert_to_tensor(self._sums))
        return {
            EFFECTIVE_SAMPLE_SIZE: tf.math.divide_no_nan(total * total, count * squares),
            MEAN_WEIGHT: tf.math.divide_no_nan(total, count),
            MAX_WEIGHT: tf.reduce_max(tf.convert_to_tensor(self._maxima)),
        }


WEIGHT_METRICS = (EFFECTIVE_SAMPLE_SIZE, MEAN_WEIGHT, MAX_WEIGHT)
RECORD_FIELDS = frozenset(
    {
        types.LOGITS,
        types.LOSS,
        types.MODEL_VERSION,
        types.TIMESTAMP,
        types.HAS_RECORD,
        types.CLASS_IDS,
        types.LOGSUMEXP,
        types.SUM_SQUARED_PROBABILITIES,
    }
)
"""Fields that a join adds and that are never inputs of the model under training."""

"""Keras metrics of a weighted selection."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants

RECORD_COVERAGE = "record_coverage"
SCORE_CORRELATION = "score_correlation"
VARIANCE_RATIO = "variance_ratio"
SELECTED_VARIANCE_RATIO = "selected_variance_ratio"
OWN_FIGURES = (
    constants.EFFECTIVE_SAMPLE_SIZE,
    constants.MEAN_WEIGHT,
    constants.MAX_WEIGHT,
    constants.REALIZED_RATE,
    RECORD_COVERAGE,
    SCORE_CORRELATION,
    VARIANCE_RATIO,
    SELECTED_VARIANCE_RATIO,
)
"""What `OFBModel.fit` may report in addition to the user's metrics."""


@keras.saving.register_keras_serializable(package="ofb_tf")
class ImportanceWeightStatistics(keras.metrics.Metric):
    """Effective sample size, mean and maximum of the importance weights since the last reset.

    - `effective_sample_size`: `(Σw)² / (n Σw²)` in (0, 1], the fraction of the examples that an
      unweighted estimate of the same variance would need (Kish, "Survey Sampling", 1965).
      Uniform sampling gives 1.
    - `mean_weight`: 1 in expectation; a lasting distance from 1 means that selection
      probabilities and weights do not belong together.
    - `max_weight`: at most 1/λ under `Importance` with uniform mix λ.

    A non-finite weight makes all three NaN or infinite instead of being averaged away.

    Args:
      name: the metric's name.
      **kwargs: as of `keras.metrics.Metric`.
    """

    def __init__(self, name: str = "importance_weight_statistics", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        # One slot per replica: summed over replicas on read, which is the aggregation that Keras
        # has, it is the vector of every replica's maximum.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._sums = self.add_variable((3,), "zeros", name="sums")
        self._maxima = self.add_variable((replicas,), "zeros", name="maxima")

    def update_state(self, y_true: Any, y_pred: Any = None, sample_weight: Any = None) -> None:
        """Adds importance weights, `y_true` in Keras's words: float `[n]`, finite, at least 0."""
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
            constants.EFFECTIVE_SAMPLE_SIZE: tf.math.divide_no_nan(total * total, count * squares),
            constants.MEAN_WEIGHT: tf.math.divide_no_nan(total, count),
            constants.MAX_WEIGHT: tf.reduce_max(tf.convert_to_tensor(self._maxima)),
        }


@keras.saving.register_keras_serializable(package="ofb_tf")
class RecordStatistics(keras.metrics.Metric):
    """How much of the stream has a record, and how stale the records are.

    Both are weighted by the importance weights, so they describe the stream and not what was
    selected from it.

    - `record_coverage`: fraction with a record, in [0, 1].
    - `score_correlation`: Pearson correlation of log(1 + loss) between the record and this step,
      in [-1, 1]. Near 1: records point at what still matters. Near 0: they are stale or wrong.

    Args:
      name: the metric's name.
      **kwargs: as of `keras.metrics.Metric`.
    """

    def __init__(self, name: str = "record_statistics", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._sums = self.add_variable((8,), "zeros", name="sums")

    def update_state(self, y_true: Any, y_pred: Any = None, sample_weight: Any = None) -> None:
        """Adds one batch.

        `y_true` holds the recorded losses, float `[n]`, not finite where there is no usable record;
        `y_pred` the losses in this step; `sample_weight` the importance weights, None for ones.
        """
        recorded = tf.cast(y_true, tf.float32)
        current = tf.cast(y_pred, tf.float32)
        weight = tf.ones_like(current) if sample_weight is None else sample_weight
        weight = tf.cast(weight, tf.float32)
        known = tf.math.is_finite(recorded) & tf.math.is_finite(current)
        # log1p: otherwise a few large losses would dominate the correlation.
        a, b = (tf.where(known, tf.math.log1p(tf.nn.relu(v)), 0.0) for v in (recorded, current))
        counted = tf.where(known, weight, 0.0)
        has_record = tf.where(tf.math.is_finite(recorded), weight, 0.0)
        terms = (weight, has_record, counted, counted * a, counted * b)
        squares = (counted * a * a, counted * b * b, counted * a * b)
        self._sums.assign_add(tf.stack([tf.reduce_sum(term) for term in (*terms, *squares)]))

    def result(self) -> dict[str, tf.Tensor]:
        """The two figures, float32 scalars; 0 where nothing was counted."""
        sums = tf.unstack(tf.convert_to_tensor(self._sums))
        weight, has_record, n, a, b, aa, bb, ab = sums
        mean_a, mean_b = tf.math.divide_no_nan(a, n), tf.math.divide_no_nan(b, n)
        covariance = tf.math.divide_no_nan(ab, n) - mean_a * mean_b
        variances = [
            tf.nn.relu(tf.math.divide_no_nan(square, n) - mean * mean)
            for square, mean in ((aa, mean_a), (bb, mean_b))
        ]
        return {
            RECORD_COVERAGE: tf.math.divide_no_nan(has_record, weight),
            SCORE_CORRELATION: tf.math.divide_no_nan(
                covariance, tf.sqrt(variances[0] * variances[1])
            ),
        }


@keras.saving.register_keras_serializable(package="ofb_tf")
class VarianceRatio(keras.metrics.Metric):
    """Variance of the weighted estimate over that of uniform sampling at the same rate.

    With g the norm of an example's gradient (its bound at the last layer) under the model of this
    step, the variance of independent draws is proportional to the stream's mean of g² w for
    weights w, and to that of g² for uniform sampling, apart from a term that both share. The ratio
    of the two is below 1 where selection helps and above 1 where uniform sampling would do
    better. The systematic design is better than independent draws for both.

    Without a probe the selected examples estimate both means themselves, Σ w² g² over Σ w g², since
    each stands for w examples of the stream: give the weights as `sample_weight`, too.

    Args:
      name: the metric's name.
      **kwargs: as of `keras.metrics.Metric`.
    """

    def __init__(self, name: str = "variance_ratio", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._sums = self.add_variable((3,), "zeros", name="sums")

    def update_state(self, y_true: Any, y_pred: Any = None, sample_weight: Any = None) -> None:
        """Adds one batch.

        `y_true` holds the gradient norms in this step, float `[n]` (those not finite are left out);
        `y_pred` the importance weights; `sample_weight` what makes the batch stand for the stream:
        1 for examples of a uniform probe and 0 for others, or the importance weights.
        """
        norms, weights = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        counted = tf.cast(sample_weight, tf.float32)
        usable = tf.math.is_finite(norms) & tf.math.is_finite(weights)
        squares = tf.where(usable, counted * tf.square(norms), 0.0)
        count = tf.math.count_nonzero(usable & (counted > 0.0), dtype=tf.float32)
        self._sums.assign_add(
            tf.stack(
                [
                    count,
                    tf.reduce_sum(squares * tf.where(usable, weights, 0.0)),
                    tf.reduce_sum(squares),
                ]
            )
        )

    def count(self) -> int:
        """Examples since the last reset, at least 0; eagerly."""
        return int(keras.ops.convert_to_numpy(self._sums)[0])

    def result(self) -> tf.Tensor:
        """float32 scalar, at least 0; 0 where nothing was counted."""
        _, weighted, uniform = tf.unstack(tf.convert_to_tensor(self._sums))
        return tf.math.divide_no_nan(weighted, uniform)


@keras.saving.register_keras_serializable(package="ofb_tf")
class Ratio(keras.metrics.Metric):
    """Sum of one count over the sum of another.

    Args:
      name: the metric's name.
      **kwargs: as of `keras.metrics.Metric`.
    """

    def __init__(self, name: str = "ratio", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._sums = self.add_variable((2,), "zeros", name="sums")

    def update_state(self, y_true: Any, y_pred: Any = None, sample_weight: Any = None) -> None:
        """Adds a number to the numerator, `y_true`, and one to the denominator, `y_pred`."""
        del sample_weight
        self._sums.assign_add(tf.stack([tf.cast(v, tf.float32) for v in (y_true, y_pred)]))

    def result(self) -> tf.Tensor:
        """float32 scalar; 0 where nothing was counted."""
        numerator, denominator = tf.unstack(tf.convert_to_tensor(self._sums))
        return tf.math.divide_no_nan(numerator, denominator)


OWN = (ImportanceWeightStatistics, RecordStatistics, VarianceRatio, Ratio)
"""The metrics that `OFBModel` adds by itself."""

"""Statistics of importance weights against numpy."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import metrics


def _numpy_statistics(weights):
    weights = np.asarray(weights, np.float64)
    return {
        "effective_sample_size": weights.sum() ** 2 / (len(weights) * (weights**2).sum()),
        "mean_weight": weights.mean(),
        "max_weight": weights.max(),
    }


def test_statistics_match_numpy_over_batches():
    weights = np.random.default_rng(0).uniform(0.1, 5.0, 100).astype(np.float32)
    metric = metrics.ImportanceWeightStatistics()
    for batch in np.split(weights, [30, 75]):
        metric.update_state(batch)
    for name, expected in _numpy_statistics(weights).items():
        assert float(metric.result()[name]) == pytest.approx(expected, rel=1e-6), name
    np.testing.assert_allclose(
        metric.totals(), [100, weights.sum(), (weights**2).sum(), weights.max()], rtol=1e-6
    )


def test_uniform_weights_are_one_exactly():
    metric = metrics.ImportanceWeightStatistics()
    metric.update_state(tf.ones([7]))
    assert [float(value) for value in metric.result().values()] == [1.0, 1.0, 1.0]


def test_reset_forgets():
    metric = metrics.ImportanceWeightStatistics()
    metric.update_state([9.0])
    metric.reset_state()
    metric.update_state([0.5, 0.5])
    assert float(metric.result()["max_weight"]) == 0.5
    assert float(metric.result()["mean_weight"]) == 0.5


def test_no_weights_give_zero_and_not_nan():
    metric = metrics.ImportanceWeightStatistics()
    metric.update_state(tf.zeros([0]))
    assert [float(value) for value in metric.result().values()] == [0.0, 0.0, 0.0]


def test_non_finite_weight_shows():
    metric = metrics.ImportanceWeightStatistics()
    metric.update_state([1.0, float("nan")])
    assert np.isnan(float(metric.result()["mean_weight"]))
    assert np.isnan(float(metric.result()["effective_sample_size"]))

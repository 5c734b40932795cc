"""Statistics of importance weights against numpy."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.training import metrics
from tests import reference


def test_statistics_match_numpy_over_batches():
    weights = np.random.default_rng(0).uniform(0.1, 5.0, 100).astype(np.float32)
    metric = metrics.ImportanceWeightStatistics()
    for batch in np.split(weights, [30, 75]):
        metric.update_state(batch)
    expected = {
        "effective_sample_size": reference.effective_sample_size(weights),
        "mean_weight": weights.mean(dtype=np.float64),
        "max_weight": weights.max(),
    }
    assert {name: float(v) for name, v in metric.result().items()} == pytest.approx(expected, 1e-6)
    np.testing.assert_allclose(
        metric.totals(), [100, weights.sum(), (weights**2).sum(), weights.max()], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0] * 7, [1.0] * 3), ([0.5, 0.5], [1.0, 0.5, 0.5]), ([], [0.0] * 3)],
)
def test_equal_weights_and_none_after_a_reset(weights, expected):
    metric = metrics.ImportanceWeightStatistics()
    metric.update_state([9.0])
    metric.reset_state()
    metric.update_state(tf.constant(weights, tf.float32))
    assert [float(value) for value in metric.result().values()] == expected


def test_non_finite_weight_shows():
    metric = metrics.ImportanceWeightStatistics()
    metric.update_state([1.0, float("nan")])
    assert np.isnan(float(metric.result()["mean_weight"]))
    assert np.isnan(float(metric.result()["effective_sample_size"]))


def test_record_statistics_match_numpy():
    random = np.random.default_rng(0)
    current = random.exponential(size=200).astype(np.float32)
    recorded = (current * random.uniform(0.5, 2.0, 200)).astype(np.float32)
    weights = random.uniform(0.2, 5.0, 200).astype(np.float32)
    recorded[:50] = np.nan
    metric = metrics.RecordStatistics()
    for part in (slice(0, 80), slice(80, 200)):
        metric.update_state(recorded[part], current[part], weights[part])
    a, b, w = np.log1p(recorded[50:]), np.log1p(current[50:]), weights[50:]
    covariance = np.cov(a, b, aweights=w, ddof=0)
    expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert float(metric.result()["score_correlation"]) == pytest.approx(expected, rel=1e-4)
    assert float(metric.result()["record_coverage"]) == pytest.approx(
        w.sum() / weights.sum(), rel=1e-5
    )


def test_equal_records_correlate_fully_and_none_not_at_all():
    metric = metrics.RecordStatistics()
    metric.update_state([0.1, 1.0, 3.0], [0.1, 1.0, 3.0])
    assert float(metric.result()["score_correlation"]) == pytest.approx(1.0, abs=1e-4)
    metric.reset_state()
    assert [float(value) for value in metric.result().values()] == [0.0, 0.0]


def test_variance_ratio_is_that_of_the_estimators():
    """Against the variance of draws: selection by p with weights r / p, and uniform by r."""
    random = np.random.default_rng(0)
    norms = random.exponential(size=500)
    rate, trials = 0.02, 20000
    probability = np.minimum(1, rate * (0.8 * norms / norms.mean() + 0.2))
    weights = rate / probability
    metric = metrics.VarianceRatio()
    metric.update_state(norms, weights, np.ones(500))
    draws = random.uniform(size=(trials, 500))
    weighted = ((draws < probability) * weights * norms).sum(1).var()
    uniform = ((draws < rate) * norms).sum(1).var()
    # The variance of a variance of nearly normal sums: 2 / trials; and 1 - r is left out.
    assert float(metric.result()) == pytest.approx(
        weighted / uniform, rel=5 * np.sqrt(4 / trials) + 4 * rate
    )
    assert metric.count() == 500


def test_variance_ratio_of_the_selected_is_that_of_the_stream():
    """Without a probe: pooled over many draws, sums over the selected stand for the stream."""
    random = np.random.default_rng(3)
    norms = random.exponential(size=500) ** 2
    rate, trials = 0.1, 2000
    probability = np.minimum(1, rate * (0.8 * norms / norms.mean() + 0.2))
    weights = rate / probability
    draws = random.uniform(size=(trials, 500)) < probability
    metric = metrics.VarianceRatio()
    for chosen in draws:
        metric.update_state(norms[chosen], weights[chosen], weights[chosen])
    truth = np.average(weights, weights=norms**2)
    # The delta method: of the ratio of two sums over the selected.
    residuals = draws @ (weights * norms**2 * (weights - truth))
    error = residuals.std() / np.sqrt(trials) / (rate * (norms**2).sum())
    assert float(metric.result()) == pytest.approx(truth, abs=5 * error)
    assert 5 * error < 0.02 * truth

"""The fast cell selects and trains as the full one does."""

import numpy as np
import pytest

from ofb_tf import constants
from ofb_tf.experiments import SimulationConfig, fast_cell, simulation, workloads
from tests.experiments.arrays import array_workload

CLICKS = {
    "dataset": "click_stream",
    "num_examples": 700,
    "window_size": 100,
    "refresh_interval": 4,
    "test_examples": 200,
    "positive_rate": 0.1,
    "rate": 0.13,
}
ARRAYS = {"dataset": "arrays", "window_size": 64, "rate": 0.2, "refresh_interval": 2}


class _Spy:
    """Notes the ids and weights that a cell trains on, interval by interval."""

    def __init__(self, cell):
        self.cell, self.ids, self.weights = cell, [], []
        sample = cell._sample

        def noted(interval, examples, records):
            selected = sample(interval, examples, records)
            if isinstance(selected, fast_cell.Selection):
                ids = examples[constants.EXAMPLE_ID].numpy()[selected.rows]
                self.ids.append(ids)
                self.weights.append(selected.weights)
                return selected
            batches = list(selected.as_numpy_iterator())
            self.ids.append(np.concatenate([b[constants.EXAMPLE_ID] for b in batches]))
            weights = [
                b.get(constants.IMPORTANCE_WEIGHT, np.ones(len(b["label"]))) for b in batches
            ]
            self.weights.append(np.concatenate(weights))
            return selected

        cell._sample = noted
        cell.result = cell.run(lambda windows: None)


def both(config, policy, workload, directory, seed=0):
    full = _Spy(simulation.Cell(config, policy, seed, workload, str(directory)))
    return full, _Spy(fast_cell.FastCell(config, policy, seed, workload))


def check_equal(full, fast, metric):
    assert len(full.ids) == len(fast.ids) > 1
    for ids, others in zip(full.ids, fast.ids, strict=True):
        np.testing.assert_array_equal(ids, others)
    for weights, others in zip(full.weights, fast.weights, strict=True):
        # Logits of other batch sizes may differ in the last bits: a few times 2^-24 relative.
        np.testing.assert_allclose(weights, others, rtol=1e-5)
    ours, theirs = fast.cell.result, full.cell.result
    assert ours.backward_examples == theirs.backward_examples
    assert ours.metrics[metric] == pytest.approx(theirs.metrics[metric], rel=1e-4)
    assert ours.metrics["calibration"] == pytest.approx(theirs.metrics["calibration"], rel=1e-4)
    assert ours.effective_sample_size == pytest.approx(theirs.effective_sample_size, rel=1e-5)
    assert ours.max_weight == pytest.approx(theirs.max_weight, rel=1e-5)


@pytest.mark.parametrize("policy", ["importance", "everything"])
def test_click_stream_is_selected_and_trained_alike(policy, tmp_path):
    config = SimulationConfig(**CLICKS)
    workload = workloads.get_workload(config, 3)
    check_equal(*both(config, policy, workload, tmp_path, seed=3), "excess_kl")


@pytest.mark.parametrize("policy", ["loss_matching", "selective_backprop"])
def test_classes_with_lost_records_and_wrong_labels(policy, tmp_path):
    config = SimulationConfig(**ARRAYS, missing_records=0.3, label_noise=0.2)
    check_equal(*both(config, policy, array_workload(3), tmp_path), "test_loss")


def test_selective_backprop_with_a_power(tmp_path):
    results = []
    for beta in (1.0, None):
        config = SimulationConfig(**ARRAYS, selective_beta=beta)
        full, fast = both(config, "selective_backprop", array_workload(3), tmp_path / str(beta))
        check_equal(full, fast, "test_loss")
        results.append(fast.cell.result.metrics["test_loss"])
    assert results[0] != results[1]


def test_several_steps_a_window_and_another_mix(tmp_path):
    settings = {"steps_per_window": 2, "rate": 0.25, "uniform_mix": 0.5}
    config = SimulationConfig(**{**ARRAYS, **settings})
    full, fast = both(config, "importance", array_workload(3), tmp_path)
    check_equal(full, fast, "test_loss")
    assert fast.cell.result.max_weight <= 2.0  # 1 / uniform_mix
    assert fast.cell.model.optimizer.iterations == 7  # of 8 examples: 50 selected of 200


def test_regression_with_outliers_and_one_snapshot_a_pass(tmp_path):
    settings = {"refresh_interval": 0, "passes": 2, "outliers": 0.1}
    config = SimulationConfig(**{**ARRAYS, **settings})
    full, fast = both(config, "importance", array_workload(None), tmp_path)
    check_equal(full, fast, "test_rmse")
    assert len(fast.ids) == config.passes + 1  # the last one again for the histogram

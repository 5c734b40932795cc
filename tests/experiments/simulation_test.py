"""The simulation end to end on tiny streams, with all its real parts."""

import math

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import experiments
from ofb_tf.experiments import runner, serving, simulation, workloads
from ofb_tf.records import ForwardRecords
from tests.experiments.arrays import array_workload

CLICKS = {
    "dataset": "click_stream",
    "num_examples": 1000,
    "window_size": 100,
    "refresh_interval": 4,
    "test_examples": 200,
    "positive_rate": 0.1,
    "seeds": 2,
}


@pytest.fixture(name="use_arrays")
def _use_arrays(monkeypatch):
    def use(num_classes):
        monkeypatch.setattr(
            simulation, "get_workload", lambda config, seed: array_workload(num_classes, seed)
        )

    return use


def test_click_stream_cells():
    config = experiments.SimulationConfig(**CLICKS)
    windows = []
    cells = {
        policy: simulation.run_cell(config, policy, 0, on_progress=windows.append)
        for policy in config.policies
    }
    assert sum(windows) == 3 * simulation.num_windows(config, 1000) == 30
    for policy, cell in cells.items():
        assert cell.stream_examples == 1000
        assert cell.backward_examples == (1000 if policy == "everything" else 100)
        assert math.isfinite(cell.metrics["excess_kl"]) and cell.metrics["excess_kl"] > 0
        assert [p["stream_examples"] for p in cell.curve] == [0, 400, 800, 1000]
        # The same initial weights and the same test examples for every policy of a seed.
        assert cell.curve[0]["excess_kl"] == cells["uniform"].curve[0]["excess_kl"]
    assert cells["uniform"].max_weight == cells["uniform"].effective_sample_size == 1.0
    assert cells["uniform"].serving_seconds == 0.0
    importance = cells["importance"]
    assert importance.serving_seconds > 0.0
    assert 1.0 < importance.max_weight <= 5.0
    assert importance.mean_weight == pytest.approx(1.0, abs=0.5)
    # The last interval has 200 examples; a tenth of each window is selected.
    assert len(importance.histogram["selected"]) == 20
    assert len(importance.histogram["not_selected"]) == 180


@pytest.mark.parametrize(("num_classes", "metric"), [(3, "test_loss"), (None, "test_rmse")])
def test_array_cells_over_several_passes(use_arrays, num_classes, metric):
    use_arrays(num_classes)
    config = experiments.SimulationConfig(
        dataset="arrays", window_size=64, rate=0.25, refresh_interval=2, passes=2, seeds=1
    )
    cell = simulation.run_cell(config, "importance", 0)
    assert cell.stream_examples == 400
    assert cell.backward_examples == pytest.approx(100, abs=1)
    assert math.isfinite(cell.metrics[metric])


def test_same_seed_same_figures_other_seed_others(use_arrays):
    use_arrays(3)
    config = experiments.SimulationConfig(
        dataset="arrays", window_size=64, rate=0.25, refresh_interval=2, seeds=1
    )
    first, again, other = (simulation.run_cell(config, "importance", s).metrics for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_snapshot_is_loaded_back_and_recorded(tmp_path):
    workload = array_workload(3)
    config = experiments.SimulationConfig(dataset="arrays", window_size=64)
    cell = simulation.Cell(config, "importance", 0, workload, str(tmp_path))
    examples = workload.examples(150, 100)  # over the end of the first pass
    records = ForwardRecords.load(cell._serve(5, examples))
    ids = examples["example_id"].numpy()
    expected = dict(zip(ids, cell.model({"features": examples["features"]}).numpy(), strict=True))
    assert set(records.example_ids.numpy()) == set(ids)
    for example_id, logits in zip(records.example_ids.numpy(), records.logits.numpy(), strict=True):
        np.testing.assert_allclose(logits, expected[example_id], atol=1e-6)
    assert set(records.model_versions.numpy()) == {5}


def test_snapshot_does_not_follow_the_model(tmp_path):
    cell = simulation.Cell(
        experiments.SimulationConfig(dataset="arrays"), "uniform", 0, array_workload(3), ""
    )
    serving.export_snapshot(cell.model, str(tmp_path / "snapshot"))
    request = {"features": tf.ones([1, 4])}
    before = cell.model(request)
    cell.model.set_weights([w + 1 for w in cell.model.get_weights()])
    snapshot = tf.saved_model.load(str(tmp_path / "snapshot"))
    np.testing.assert_allclose(snapshot.serve(request), before, atol=1e-6)


def test_passes_hold_every_example_once_in_another_order():
    workload = array_workload(3)
    passes = [workload.examples(start, 200)["example_id"].numpy() for start in (0, 200)]
    assert set(passes[0]) == set(passes[1]) and len(set(passes[0])) == 200
    assert list(passes[0]) != list(passes[1])
    across = workload.examples(190, 20)["example_id"].numpy()
    np.testing.assert_array_equal(across, np.concatenate([passes[0][190:], passes[1][:10]]))


def test_metrics_against_numpy():
    clicks = workloads.get_workload(experiments.SimulationConfig(**CLICKS), 0)
    truth = clicks.test["click_probability"].numpy().astype(np.float64)
    perfect = clicks.evaluate(np.log(truth / (1 - truth))[:, None])
    assert perfect["excess_kl"] == pytest.approx(0.0, abs=1e-12)
    assert perfect["calibration"] == pytest.approx(1.0)
    off = clicks.evaluate(np.zeros([200, 1]))
    entropy = -truth * np.log(truth) - (1 - truth) * np.log(1 - truth)
    assert off["excess_kl"] == pytest.approx(np.mean(np.log(2) - entropy))
    classes = array_workload(3)
    flat = classes.evaluate(np.zeros([30, 3]))
    assert flat["test_loss"] == pytest.approx(np.log(3))
    assert flat["calibration"] == pytest.approx(1 / 3 / flat["test_accuracy"])
    regression = array_workload(None)
    label = regression.test["label"].numpy()
    assert regression.evaluate(label[:, None] + 2)["test_rmse"] == pytest.approx(2, rel=1e-5)


@pytest.mark.slow
def test_experiment_in_processes_is_the_one_in_this_process(tmp_path):
    config = experiments.SimulationConfig(**CLICKS)
    alone, processes = (
        runner.run_experiment(config, command="x", workers=workers, show_progress=False)
        for workers in (1, 2)
    )
    for policy in config.policies:
        assert alone["policies"][policy]["values"] == pytest.approx(
            processes["policies"][policy]["values"], rel=1e-3
        )
    path = experiments.write_results(alone, tmp_path / "new")
    assert path.read_text().startswith("{")


def test_workers_are_checked():
    with pytest.raises(ValueError, match="workers must be at least 1. Received: 0"):
        runner.run_experiment(experiments.SimulationConfig(**CLICKS), command="", workers=0)

"""Trials on tiny streams: as recorded, the same through files and in memory, with real parts."""

import json
import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.experiments import paths, trial, workloads
from ofb_tf.experiments.config import SimulationConfig
from ofb_tf.records import ForwardRecords
from tests.experiments.conftest import array_workload

CLICKS = {
    "dataset": "click_stream", "num_examples": 700, "window_size": 100, "refresh_interval": 4,
    "test_examples": 200, "positive_rate": 0.1, "rate": 0.13,
}  # fmt: skip
ARRAYS = {"dataset": "arrays", "window_size": 64, "rate": 0.2, "refresh_interval": 2}
GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden.json").read_text())


def name(case):
    return f"{case['policy']}-{'files' if case['through_files'] else 'memory'}"


@pytest.mark.parametrize("case", GOLDEN, ids=name)
def test_figures_are_those_that_were_recorded(case):
    """Another figure is another measurement: raise `TRIAL_VERSION` and record again."""
    config = SimulationConfig.for_dataset("click_stream", **case["settings"])
    result = trial.run(config, case["policy"], case["seed"], through_files=case["through_files"])
    expected = case["measured"]
    assert result.metrics == pytest.approx(expected.pop("metrics"), rel=1e-5)
    curve = [point["excess_kl"] for point in result.curve]
    assert curve == pytest.approx(expected.pop("curve"), rel=1e-5)
    for field, value in expected.items():
        assert getattr(result, field) == pytest.approx(value, rel=1e-6), field


def both(config, policy, workload):
    """Both paths select the same rows with the same weights, and train the same."""
    full, fast = (
        trial.run(config, policy, 0, through_files=files, workload=workload)
        for files in (True, False)
    )
    assert full.backward_examples == fast.backward_examples
    # Logits of other batch sizes may differ in the last bits: a few times 2^-24 relative.
    assert full.metrics == pytest.approx(fast.metrics, rel=1e-4)
    for field in ("mean_weight", "max_weight", "effective_sample_size"):
        assert getattr(full, field) == pytest.approx(getattr(fast, field), rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "num_classes", "settings"),
    [
        ("loss_matching", 3, {"missing_records": 0.3, "label_noise": 0.2}),
        ("selective_backprop", 3, {"selective_beta": 1.0}),
        ("importance", None, {"refresh_interval": 0, "passes": 2, "outliers": 0.1}),
    ],
)
def test_both_paths_select_and_train_the_same(policy, num_classes, settings):
    config = SimulationConfig(**{**ARRAYS, **settings})
    both(config, policy, array_workload(num_classes))


@pytest.mark.parametrize(
    # Over intervals the stream's budget goes on through files, and begins again in memory.
    "settings",
    [{"missing_records": 0.3}, {"budget": "stream", "refresh_interval": 0}],
)
def test_both_paths_select_and_train_two_heads_the_same(settings):
    config = SimulationConfig(**CLICKS | {"dataset": "click_conversion"} | settings)
    both(config, "importance", workloads.get_workload(config, 0))


@pytest.mark.parametrize("policy", ["importance", "info_batch"])
def test_both_paths_select_the_same_ids_with_the_same_weights(policy, monkeypatch):
    """Also where selections are no whole batches, of which the rest waits for the next interval."""
    through_files, in_memory = [], []  # of each iteration, of each interval
    batches, selected = paths.ThroughFiles._batches, paths.InMemory._selected

    def of_batches(self, **settings):
        def keep(ids, weights):
            taken.extend(zip(ids.tolist(), weights.tolist(), strict=True))

        def look(batch):
            seen = [batch[name] for name in ("example_id", "importance_weight")]
            with tf.control_dependencies([tf.numpy_function(keep, seen, [])]):
                return {name: tf.identity(value) for name, value in batch.items()}

        taken = []
        through_files.append(taken)
        return batches(self, **settings).map(look)

    def of_intervals(self):
        rows, weights, offsets = selected(self)
        ids = self._examples["example_id"].numpy()[rows]
        in_memory.append(list(zip(ids.tolist(), weights.tolist(), strict=True)))
        return rows, weights, offsets

    monkeypatch.setattr(paths.ThroughFiles, "_batches", of_batches)
    monkeypatch.setattr(paths.InMemory, "_selected", of_intervals)
    for path in (paths.ThroughFiles, paths.InMemory):  # the same logits however batches are cut
        monkeypatch.setattr(path, "_answer", lambda _, snapshot, x: x["features"].numpy()[:, :3])
    config = SimulationConfig(**ARRAYS | {"refresh_interval": 1, "missing_records": 0.2})
    for files in (True, False):
        trial.run(config, policy, 0, through_files=files, workload=array_workload(3))
    (_, all_of_files), (_, *intervals) = through_files, in_memory  # without what warmed up
    assert len(intervals) == 4
    assert sum(len(interval) % config.batch_size for interval in intervals) > 0
    assert all_of_files == sum(intervals, [])


def test_one_stream_and_one_fit_are_followed_for_a_pass(monkeypatch, tmp_path):
    streams, fits = [], []
    stream, fit = paths.streaming.SampledStream, paths.OFBModel.fit

    def made(sampler, **settings):
        streams.append(sampler.config.seed % 1000)
        return stream(sampler, **settings)

    def fitted(self, *arguments, **settings):
        fits.append(settings.get("callbacks"))
        return fit(self, *arguments, **settings)

    monkeypatch.setattr(paths.streaming, "SampledStream", made)
    monkeypatch.setattr(paths.OFBModel, "fit", fitted)
    config = SimulationConfig(**ARRAYS, passes=2)  # intervals from 0, 128, 256 and 384
    for policy in ("importance", "uniform", "everything"):
        trial.run(config, policy, 1, through_files=True, workload=array_workload(3))
        assert streams == ([] if policy == "everything" else [3, 4])
        # One step to warm up, and one fit for each pass.
        assert [callbacks is None for callbacks in fits] == [True, False, False]
        streams.clear()
        fits.clear()


def test_records_of_another_model_are_those_that_it_makes_by_itself():
    """The production model's loop is the same whether a new model is trained along with it."""
    alone = trial.run(SimulationConfig(**CLICKS, model="linear"), "importance", 0)
    along = trial.run(SimulationConfig(**CLICKS, served_model="linear"), "importance", 0)
    own = trial.run(SimulationConfig(**CLICKS), "importance", 0)
    for field in ("max_weight", "mean_weight", "effective_sample_size"):
        assert getattr(along, field) == getattr(alone, field)  # to the bit: the same selection
        assert getattr(along, field) != getattr(own, field)
    assert along.metrics != alone.metrics and along.curve[0] == own.curve[0]


def test_settings_of_policies_have_an_effect():
    def run(policy, **settings):
        config = SimulationConfig(**{**ARRAYS, **settings})
        return trial.run(config, policy, 0, workload=array_workload(3))

    with_power, without = run("selective_backprop", selective_beta=1.0), run("selective_backprop")
    assert with_power.metrics != without.metrics
    assert run("importance", uniform_mix=0.5).max_weight <= 2.0  # 1 / uniform_mix


def test_several_steps_per_window():
    config = SimulationConfig(**{**ARRAYS, "steps_per_window": 2, "rate": 0.25})
    workload = array_workload(3)
    both(config, "importance", workload)
    model = paths.compiled_model(config, workload).model
    assert model.optimizer.iterations == 7  # of 8 examples: 50 selected of 200


@pytest.mark.parametrize("through_files", [True, False])
def test_what_is_measured_of_a_click_stream(through_files):
    config = SimulationConfig(**CLICKS)
    results = {
        policy: trial.run(config, policy, 0, through_files=through_files)
        for policy in ("uniform", "importance", "everything")
    }
    for policy, result in results.items():
        assert result.stream_examples == 700
        assert result.backward_examples == (700 if policy == "everything" else 91)
        assert math.isfinite(result.metrics["excess_kl"]) and result.metrics["excess_kl"] > 0
        assert [p["stream_examples"] for p in result.curve] == [0, 400, 700]
        # The same initial weights and the same test examples for every policy of a seed.
        assert result.curve[0]["excess_kl"] == results["uniform"].curve[0]["excess_kl"]
    assert results["uniform"].max_weight == results["uniform"].effective_sample_size == 1.0
    assert results["uniform"].serving_seconds == 0.0
    importance = results["importance"]
    assert importance.serving_seconds > 0.0
    for name in ("train_seconds", "cpu_seconds", "warm_up_seconds"):
        assert getattr(importance, name) > 0.0
    assert 1.0 < importance.max_weight <= 5.0


def test_same_seed_same_figures_other_seed_others():
    config = SimulationConfig(**ARRAYS)
    first, again, other = (
        trial.run(config, "importance", seed, workload=array_workload(3, seed)).metrics
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_snapshot_is_loaded_back_and_recorded(tmp_path):
    workload = array_workload(3)
    config = SimulationConfig(dataset="arrays", window_size=64)
    path = paths.ThroughFiles(config, "importance", 0, workload, tmp_path)
    examples = workload.examples(150, 100)  # over the end of the first pass
    path.serve(5, examples, np.arange(100) != 3)
    records = ForwardRecords.load(tmp_path / "records_32")  # of the pass that begins at 6400
    ids = examples["example_id"].numpy()
    expected = dict(zip(ids, path.model({"features": examples["features"]}).numpy(), strict=True))
    assert set(records.example_ids.numpy()) == set(np.delete(ids, 3))
    for example_id, logits in zip(records.example_ids.numpy(), records.logits.numpy(), strict=True):
        np.testing.assert_allclose(logits, expected[example_id], atol=1e-6)
    assert set(records.model_versions.numpy()) == {5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["records_32"]


def test_snapshot_does_not_follow_the_model(tmp_path):
    model = paths.InMemory(SimulationConfig(**ARRAYS), "uniform", 0, array_workload(3)).model
    paths.export_snapshot(model, str(tmp_path / "snapshot"))
    request = {"features": tf.ones([1, 4])}
    before = model(request)
    model.set_weights([w + 1 for w in model.get_weights()])
    snapshot = tf.saved_model.load(str(tmp_path / "snapshot"))
    np.testing.assert_allclose(snapshot.serve(request), before, atol=1e-6)


def test_passes_hold_every_example_once_in_another_order():
    workload = array_workload(3)
    passes = [workload.examples(start, 200)["example_id"].numpy() for start in (0, 200)]
    assert set(passes[0]) == set(passes[1]) and len(set(passes[0])) == 200
    assert list(passes[0]) != list(passes[1])
    across = workload.examples(190, 20)["example_id"].numpy()
    np.testing.assert_array_equal(across, np.concatenate([passes[0][190:], passes[1][:10]]))


def test_a_click_stream_in_memory_is_the_generated_one():
    config = SimulationConfig(**CLICKS)
    kept, generated = (
        workloads.get_workload(config, 1, in_memory=m).examples(130, 50) for m in (True, False)
    )
    assert list(kept) == list(generated)
    for field, values in kept.items():
        np.testing.assert_array_equal(values, generated[field])


def test_metrics_against_numpy():
    clicks = workloads.get_workload(SimulationConfig(**CLICKS), 0)
    truth = clicks.test["click_probability"].numpy().astype(np.float64)
    perfect = clicks.evaluate(clicks.test, np.log(truth / (1 - truth))[:, None])
    assert perfect["excess_kl"] == pytest.approx(0.0, abs=1e-12)
    assert perfect["calibration"] == pytest.approx(1.0)
    off = clicks.evaluate(clicks.test, np.zeros([200, 1]))
    entropy = -truth * np.log(truth) - (1 - truth) * np.log(1 - truth)
    assert off["excess_kl"] == pytest.approx(np.mean(np.log(2) - entropy))
    conversions = workloads.get_workload(
        SimulationConfig(**CLICKS | {"dataset": "click_conversion"}), 0
    )
    of_clicks = np.log(truth / (1 - truth))
    p = conversions.test["conversion_probability"].numpy().astype(np.float64)
    of_conversions = np.log(p / (1 - p))
    perfect = conversions.evaluate(conversions.test, np.stack([of_clicks, of_conversions], axis=1))
    assert perfect["excess_kl"] == pytest.approx(0.0, abs=1e-12)
    assert perfect["conversion_excess_kl"] == pytest.approx(0.0, abs=1e-12)
    off = conversions.evaluate(conversions.test, np.stack([of_clicks, np.zeros(200)], axis=1))
    lost = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    assert off["excess_kl"] == perfect["excess_kl"]
    assert off["conversion_excess_kl"] == pytest.approx(
        (truth * lost).sum() / truth.sum(), rel=1e-5
    )
    classes = array_workload(3)
    flat = classes.evaluate(classes.test, np.zeros([30, 3]))
    assert flat["test_loss"] == pytest.approx(np.log(3))
    assert flat["calibration"] == pytest.approx(1 / 3 / flat["test_accuracy"])
    regression = array_workload(None)
    label = regression.test["label"].numpy()
    assert regression.evaluate(regression.test, label[:, None] + 2)["test_rmse"] == pytest.approx(
        2, rel=1e-5
    )

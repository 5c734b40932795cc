"""Streams in the order of time: what is checked, who served what, and what is evaluated."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.experiments import ArrayWorkload, paths, trial
from ofb_tf.experiments.config import SimulationConfig
from tests.experiments.conftest import array_workload

N, TEST, WINDOW, INTERVAL = 230, 40, 20, 2
# `own:stream` has the name of a workload of one's own: it is never loaded here.
CONFIG = SimulationConfig.for_dataset(
    "own:stream", window_size=WINDOW, refresh_interval=INTERVAL, rate=0.2, learning_rate=0.01
)


def model(units=1, names=("x",)):
    inputs = [keras.Input((3,), name=name) for name in names]
    hidden = inputs[0] if len(inputs) == 1 else keras.layers.Add()(inputs)
    return keras.Model(inputs, keras.layers.Dense(units)(keras.layers.Dense(4, "tanh")(hidden)))


def fields(count, delay=0.0, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 3))
    served = np.sort(random.uniform(0, count, count))
    return {
        "x": x,
        "label": (x[:, 0] + random.normal(size=count) > 0.5).astype(np.int64),
        "served": served,
        "known": served + random.exponential(delay, count) if delay else served,
    }


def stream(delay=None, **settings):
    times = {} if delay is None else {"serving_time": "served", "label_time": "known"}
    train, test = fields(N, delay or 0.0), fields(TEST, seed=1)
    settings = {"task": "binary", "build": model} | times | settings
    return ArrayWorkload(train, test, **settings)


def test_examples_come_in_the_order_of_their_labels():
    raw, workload = fields(N, delay=30.0), stream(delay=30.0)
    order = sorted(range(N), key=lambda row: raw["known"][row])
    examples = workload.examples(0, N)
    np.testing.assert_array_equal(examples["example_id"], order)
    np.testing.assert_array_equal(examples["label"], raw["label"][order])
    np.testing.assert_array_equal(examples["x"], raw["x"][order].astype(np.float32))
    # A second pass begins again; labels of the first are all known by then.
    across = workload.examples(N - 3, 6)["example_id"].numpy()
    np.testing.assert_array_equal(across, [*order[-3:], *order[:3]])
    known = [sum(raw["known"][other] < raw["served"][row] for other in range(N)) for row in order]
    np.testing.assert_array_equal(workload.served(0, N), known)
    np.testing.assert_array_equal(workload.served(N + 4, 9), np.array(known[4:13]) + N)
    assert (workload.served(0, N) <= np.arange(N)).all()
    assert (
        workload.served(0, N)[50:].max() > 0 and not (workload.served(0, N) == np.arange(N)).all()
    )


def test_a_dataset_is_the_same_as_its_arrays():
    arrays, test = fields(N, delay=30.0), fields(TEST, seed=1)
    times = {"serving_time": "served", "label_time": "known"}
    datasets = [tf.data.Dataset.from_tensor_slices(one) for one in (arrays, test)]
    one = ArrayWorkload(*datasets, task="binary", build=model, **times)
    other = stream(delay=30.0)
    for start in (0, N - 10):
        ours, theirs = one.examples(start, 20), other.examples(start, 20)
        assert list(ours) == list(theirs)
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])
    np.testing.assert_array_equal(one.served(0, N), other.served(0, N))


def test_text_ids_and_datetimes():
    train = fields(4)
    train["example_id"] = np.array(["a", "b", "c", "d"])
    train["served"] = np.array(["2013-01-01T00", "2013-01-01T01", "2013-01-01T02", "2013-01-01T03"])
    train["served"] = train["served"].astype("datetime64[h]")
    train["known"] = train["served"] + np.array([5, 0, 0, 1])
    workload = ArrayWorkload(
        train, train, task="binary", build=model, serving_time="served", label_time="known"
    )
    ids = workload.examples(0, 4)["example_id"].numpy()
    assert len(set(ids)) == 4 and ids.dtype == np.int64
    np.testing.assert_array_equal(workload.served(0, 4), [0, 1, 2, 0])


def mean_absolute_error(labels, outputs):
    """Mean absolute error, in units. More."""
    return np.abs(labels - outputs[:, 0]).mean()


@pytest.mark.parametrize(
    ("task", "units", "loss"),
    [
        ("binary", 1, keras.losses.BinaryCrossentropy(from_logits=True)),
        ("multiclass", 3, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    ],
)
def test_metrics_equal_those_of_keras(task, units, loss):
    random = np.random.default_rng(2)
    outputs = random.normal(size=(TEST, units)).astype(np.float32)
    workload = stream(task=task, build=lambda: model(units))
    labels = workload.test["label"].numpy()
    measured = workload.evaluate(workload.test, outputs)
    shaped = labels[:, None].astype(np.float32) if units == 1 else labels
    assert measured["test_loss"] == pytest.approx(float(loss(shaped, outputs)), rel=1e-5)
    if task == "binary":
        mean = (1 / (1 + np.exp(-outputs.astype(float)))).mean()
        assert measured["calibration"] == pytest.approx(mean / labels.mean())
    assert type(workload.loss) is type(loss)
    assert workload.num_outputs == units


def test_a_metric_of_ones_own():
    workload = stream(metric=mean_absolute_error)
    assert workload.metric == "mean_absolute_error"
    assert workload.metric_text == "Mean absolute error, in units. More"
    outputs = np.ones([TEST, 1], np.float32)
    expected = np.mean(workload.test["label"].numpy() != 1)
    assert workload.evaluate(workload.test, outputs)["mean_absolute_error"] == expected
    result = trial.run(CONFIG, "uniform", 0, workload=workload)
    assert set(result.metrics) == {"mean_absolute_error", "calibration", "progressive"}


def without(name):
    return {field: values for field, values in fields(N).items() if field != name}


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        (without("label"), {}, r"train must have 'label' and .*Lacking: \['label'\]"),
        (without("x"), {}, r"train must have .*Lacking: \['x'\]. Received: \['known', 'label'"),
        (without("x") | {"x": np.ones([3, 3])}, {}, r"as many of every field.*'x': 3"),
        (without("label") | {"label": np.ones([N, 2])}, {}, r"label \[n\].*\[230, 2\]"),
        (without("label") | {"label": np.arange(N)}, {}, r"integers in \[0, 2\) for task='binary'"),
        (without("label") | {"label": np.full(N, 0.5)}, {}, r"\[0, 2\).*Received: \[0.5\]"),
        (
            without("label") | {"label": np.full(N, np.nan)},
            {"task": "regression"},
            "label must be finite",
        ),
        (fields(N) | {"example_id": np.zeros(N, int)}, {}, "example_id must be unique"),
        (fields(N), {"task": "ranking"}, "task must be one of .* Received: 'ranking'"),
        (fields(N), {"serving_time": "served"}, "must both name a field.*label_time=None"),
        (
            fields(N),
            {"serving_time": "served", "label_time": "when"},
            "must both name a field of train.*'when'",
        ),
        (
            fields(N) | {"known": np.full(N, -1.0)},
            {"serving_time": "served", "label_time": "known"},
            "served must be a time at or before known. Received: .* and -1.0 in row 0",
        ),
        (fields(N), {"build": lambda: model(2)}, r"shape \[n, 1\] for task='binary'.*\[None, 2\]"),
        (fields(N), {"task": "multiclass"}, r"shape \[n, classes\] for task='multiclass'"),
        (fields(N), {"build": lambda: "model"}, "functional keras.Model. Received: str"),
        (tf.data.Dataset.range(3), {}, "a dataset must have dicts as elements"),
        (tf.data.Dataset.from_tensor_slices(fields(3)).take(0), {}, "must have elements"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(train, settings, message):
    with pytest.raises(ValueError, match=message):
        ArrayWorkload(train, fields(TEST), **{"task": "binary", "build": model} | settings)


def test_inputs_are_found_by_their_names():
    extra = {"other": np.ones([N, 3])}
    workload = ArrayWorkload(
        fields(N) | extra,
        fields(N) | extra,
        task="binary",
        build=lambda: model(names=("x", "other")),
    )
    assert set(workload.examples(0, 5)) == {"example_id", "label", "x", "other"}
    result = trial.run(CONFIG, "importance", 0, workload=workload)
    assert result.stream_examples == N


class Spy:
    """Weights of every snapshot, and what it answered to which example, of one path."""

    def __init__(self, monkeypatch, kind):
        self.weights, self.answers = {}, {}
        take, serve = kind._snapshot, paths.RecordPath.serve

        def snapshot(path, interval):
            self.weights[interval] = path.model.get_weights()
            return take(path, interval)

        def served(path, interval, examples, kept, snapshots=None):
            serve(path, interval, examples, kept, snapshots)
            self.answers |= zip(examples["example_id"].numpy(), path.answers, strict=True)

        monkeypatch.setattr(kind, "_snapshot", snapshot)
        monkeypatch.setattr(paths.RecordPath, "serve", served)


@pytest.mark.parametrize("kind", [paths.InMemory, paths.ThroughFiles], ids=["memory", "files"])
@pytest.mark.parametrize("policy", ["importance", "uniform"])
def test_an_example_is_answered_by_the_snapshot_of_its_time(monkeypatch, kind, policy):
    """By an independent rule: the newest that was trained on nothing known later than serving."""
    delay = 60.0  # more than an interval of 40
    raw, workload = fields(N, delay), stream(delay)
    spy = Spy(monkeypatch, kind)
    through_files = kind is paths.ThroughFiles
    result = trial.run(CONFIG, policy, 0, through_files=through_files, workload=workload)
    known, used = np.sort(raw["known"]), set()
    for row in range(N):
        answering = max(
            k for k in range(len(spy.weights))
            if all(known[: k * WINDOW * INTERVAL] < raw["served"][row])
        )  # fmt: skip
        used.add(answering)
        (w1, b1, w2, b2) = spy.weights[answering]
        expected = np.tanh(raw["x"][row].astype(np.float32) @ w1 + b1) @ w2 + b2
        np.testing.assert_allclose(spy.answers[row], expected, rtol=1e-4, atol=1e-5)
    assert len(used) > 2
    z = np.array([spy.answers[row][0] for row in range(N)], float)
    losses = np.log1p(np.exp(z)) - raw["label"] * z
    assert result.metrics["progressive"] == pytest.approx(losses.mean())


def test_both_paths_record_what_older_snapshots_answered():
    full, fast = (
        trial.run(CONFIG, "importance", 1, through_files=files, workload=stream(delay=60.0))
        for files in (True, False)
    )
    assert full.backward_examples == fast.backward_examples
    assert full.metrics == pytest.approx(fast.metrics, rel=1e-4)
    assert full.max_weight == pytest.approx(fast.max_weight, rel=1e-5)
    without_delay = trial.run(CONFIG, "importance", 1, workload=stream())
    assert without_delay.metrics != pytest.approx(fast.metrics, rel=1e-4)


def test_progressive_validation_equals_a_loop_of_keras():
    """Predict a window, then train on it, with a stock model: what `everything` does."""
    config = SimulationConfig.for_dataset("own:stream", window_size=WINDOW, learning_rate=0.01)
    workload = stream()
    result = trial.run(config, "everything", 3, workload=workload)
    stock = keras.Model(*(lambda m: (m.inputs, m.outputs[0]))(model()))
    stock.set_weights(workload.initial_weights(3))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    stock.compile(keras.optimizers.Adam(0.01), loss)
    raw, losses = fields(N), []
    for start in range(0, N, WINDOW):
        part = slice(start, start + WINDOW)
        x, label = raw["x"][part].astype(np.float32), raw["label"][part]
        z = stock.predict_on_batch(x)[:, 0].astype(float)
        losses += list(np.log1p(np.exp(z)) - label * z)
        stock.train_on_batch(x, label[:, None].astype(np.float32))
    assert result.metrics["progressive"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert result.serving_seconds == 0.0 and result.wall_seconds > 0.0


def test_what_is_shuffled_is_not_progressive():
    workload = array_workload(3)
    assert not workload.is_progressive
    result = trial.run(SimulationConfig(dataset="arrays"), "uniform", 0, workload=workload)
    assert "progressive" not in result.metrics

"""Whether selection pays, against figures worked out by hand and against enumeration."""

import keras
import numpy as np
import pytest

from ofb_tf.experiments import break_even
from ofb_tf.records import ForwardRecords

# 100 µs a step and 20 to read; of what is not selected, 5 are read. A refresh costs 8 µs an
# example: 0.4 s every 50,000.
COSTS = {
    "rate": 0.1, "step_us": 100.0, "input_us": 20.0, "key_us": 5.0, "select_us": 2.0,
    "refresh_seconds": 0.4, "refresh_examples": 50_000,
}  # fmt: skip


def costs(**changes):
    return break_even.Costs(**{**COSTS, **changes})


def test_one_pass_by_hand():
    # 5 + 0.1 · (20 − 5) + 2 = 8.5, with the refresh 16.5, with a tenth of the steps 26.5, of 120.
    assert costs().everything_us == 120.0
    assert sum(costs().parts_us().values()) == pytest.approx(26.5)
    assert break_even.compare(costs()) == {
        "time": pytest.approx(26.5 / 120),
        "least_step_us": 0.0,  # reading 8.5 + 8 instead of 20 pays alone
        "least_refresh_examples": pytest.approx(400_000 / (120 - 18.5)),
    }
    # Without late decode, 20 + 2 + 8 + 0.1 t = 20 + t at t = 10 / 0.9.
    whole = break_even.compare(costs(key_us=20.0))
    assert whole["least_step_us"] == pytest.approx(10 / 0.9)


def test_the_same_quality_by_hand():
    # V / r = 2: twice the stream, 53 µs for 120; 2 · (16.5 + 0.1 t) = 20 + t at t = 13 / 0.8.
    found = break_even.compare(costs(), variance_ratio=0.2)
    assert found["time"] == pytest.approx(53 / 120)
    assert found["least_step_us"] == pytest.approx(13 / 0.8)
    # 120 / 2 − 18.5 is left for refreshes.
    assert found["least_refresh_examples"] == pytest.approx(400_000 / 41.5)
    # Uniform sampling takes ten times the stream, and never pays.
    uniform = break_even.compare(costs(), variance_ratio=1.0)
    assert uniform == {
        "time": pytest.approx(265 / 120), "least_step_us": None, "least_refresh_examples": None,
    }  # fmt: skip
    # Selection is no better than everything, whatever an estimate says.
    assert break_even.compare(costs(), variance_ratio=0.05) == break_even.compare(costs())


@pytest.mark.parametrize("variance_ratio", [None, 0.15, 0.25])
def test_at_its_bounds_it_neither_pays_nor_costs(variance_ratio):
    given = {"key_us": 20.0}
    found = break_even.compare(costs(**given), variance_ratio)
    for name in ("step_us", "refresh_examples"):
        at_bound = costs(**given, **{name: found[f"least_{name}"]})
        assert break_even.compare(at_bound, variance_ratio)["time"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, "rate must be above 0. Received: 0"),
        ({"step_us": -1.0}, "step_us must be finite and at least 0. Received: -1.0"),
        ({"select_us": float("nan")}, "select_us must be finite"),
        ({"refresh_examples": 0}, "refresh_examples must be above 0"),
        ({"key_us": 21.0}, "key_us must be at most 20.0. Received: 21.0"),
        ({"rate": 1.5}, "rate must be at most 1.0. Received: 1.5"),
    ],
)
def test_validation(changes, message):
    with pytest.raises(ValueError, match=message):
        costs(**changes)
    with pytest.raises(ValueError, match=message):
        break_even.analyze({**COSTS, **changes}, model="none", batch_size=1)


def test_variance_ratio_must_be_positive():
    with pytest.raises(ValueError, match="variance_ratio must be above 0. Received: 0.0"):
        break_even.compare(costs(), 0.0)
    with pytest.raises(ValueError, match="everything_us must be above 0"):
        costs(step_us=0.0, input_us=0.0, key_us=0.0)


def test_statistics_of_records_by_hand():
    # All logits alike: every weight is 1, as under uniform sampling.
    alike = ForwardRecords.from_columns(np.arange(4000), np.zeros((4000, 3)))
    found = break_even.statistics(alike, 0.1)
    assert found == {
        "variance_ratio": pytest.approx(1.0), "effective_sample_size": pytest.approx(1.0),
    }  # fmt: skip


def test_statistics_of_records_against_numpy():
    """Binary, one window: labels drawn from p = sigmoid(logit), capped PPS by |p − y|."""
    logits = np.random.default_rng(0).normal(-4, 1, 4000)
    found = break_even.statistics(ForwardRecords.from_columns(np.arange(4000), logits), 0.1)
    predicted = 1 / (1 + np.exp(-logits))
    ours = []
    for seed in range(200):
        labels = np.random.default_rng([1, seed]).random(4000) < predicted
        scores = np.abs(predicted - labels)
        sizes = 0.8 * scores / scores.sum() + 0.2 / 4000
        low, high = 0.0, 1e9
        for _ in range(200):  # the scale at which the capped sizes sum to the budget
            scale = (low + high) / 2
            below = np.minimum(1, scale * sizes).sum() < 400
            low, high = (scale, high) if below else (low, scale)
        weights = 0.1 / np.minimum(1, scale * sizes)
        ours.append([np.sum(scores**2 * weights) / np.sum(scores**2), 1 / weights.mean()])
    mean, deviation = np.mean(ours, axis=0), np.std(ours, axis=0)
    for name, m, d in zip(
        ("variance_ratio", "effective_sample_size"), mean, deviation, strict=True
    ):
        assert abs(found[name] - m) < 5 * d


def test_records_without_logits_are_refused():
    losses = ForwardRecords.from_columns(np.arange(10), losses=np.ones(10))
    with pytest.raises(ValueError, match="records must hold all logits of a classification"):
        break_even.statistics(losses, 0.1)


def test_a_saved_model_is_measured(tmp_path):
    fields = {"a": keras.Input((3,), name="a"), "b": keras.Input((), name="b", dtype="int64")}
    embedded = keras.layers.Embedding(5, 2)(fields["b"])
    hidden = keras.layers.Concatenate()([fields["a"], embedded])
    path = tmp_path / "model.keras"
    keras.Model(fields, keras.layers.Dense(2)(hidden)).save(path)
    assert 0.0 < break_even.measure_step(str(path), batch_size=8) < 1e6


def test_selection_is_measured():
    found = break_even.measure_selection(0.1, 8192)
    assert 0.0 < found["select_us"] < 1000.0
    assert 0.0 < found["refresh_seconds"] < 100.0


def test_an_item_that_noise_hides_is_repeated(monkeypatch):
    """Starting takes a second, one item a millisecond, and the shorter run is disturbed most."""
    monkeypatch.setattr(break_even, "_seconds", lambda work: work())
    counts = []

    def work(number):
        counts.append(number)
        return 1.0 + 0.001 * number + (0.1 if number == 1 else 0.0)

    assert break_even._per_item(work) == pytest.approx(0.001, rel=0.1)
    assert counts == [1, 6, 21, 81, 321, 1281]
    with pytest.raises(RuntimeError, match="5121 items of work took 1 seconds and one 1"):
        break_even._per_item(lambda number: 1.0)

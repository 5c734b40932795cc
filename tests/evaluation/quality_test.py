"""Metrics of groups against numpy on the examples themselves."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from ofb_tf.evaluation import quality
from tests import reference

N = 3000
_RNG = np.random.default_rng(31)


def measured(record, labels, task):
    record = {"has_record": np.ones(len(labels), bool)} | record
    record = {name: tf.constant(value) for name, value in record.items()}
    found = quality.measure(record, tf.constant(labels), task)
    return quality.Measured(*(part.numpy() for part in found))


def metrics(record, labels, task, num_outputs):
    sums = quality.GroupSums(task, num_outputs)
    sums.add([0], np.zeros(len(labels), int), measured(record, labels, task))
    return sums.metrics(0)


def binary(n=N):
    logits = _RNG.normal(-2.0, 1.5, n).astype(np.float32)
    labels = (_RNG.random(n) < 1 / (1 + np.exp(-0.8 * logits))).astype(np.int64)
    return logits, labels


def test_binary_metrics_equal_numpy():
    logits, labels = binary()
    found = metrics({"logits": logits[:, None]}, labels, "binary", 1)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    loss = -np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    share = labels.mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["normalized_entropy"] == pytest.approx(
        loss / reference.entropy([share, 1 - share]), rel=1e-6
    )
    assert found["calibration"] == pytest.approx(p.mean() / share, rel=1e-6)
    assert found["mean_score"] == pytest.approx(np.abs(p - labels).mean(), rel=1e-6)
    assert abs(found["auc"] - reference.auc(logits, labels)) <= found["auc_error"] < 1e-3


@given(
    st.lists(
        st.tuples(st.floats(-20, 20, width=32), st.booleans()), min_size=2, max_size=80
    ).filter(lambda pairs: len({label for _, label in pairs}) == 2),
    st.integers(0, 8),
)
def test_auc_is_within_its_bound(pairs, coarseness):
    """Of logits in a few bins, whose bound is wide, and in many; some beyond the last bin."""
    logits, labels = (np.array(part) for part in zip(*pairs, strict=True))
    logits = (logits / 2.0**coarseness).astype(np.float32)
    found = metrics({"logits": logits}, labels, "binary", 1)
    truth = reference.auc(logits, labels)
    assert abs(found["auc"] - truth) <= found["auc_error"] + 1e-12
    assert found["auc"] - found["auc_error"] >= 0.0
    assert found["auc"] + found["auc_error"] <= 1.0 + 1e-12


def test_the_bound_of_the_auc_is_reached():
    """Both in one bin: the order in it is not known, and either way the area is half off."""
    step = quality.LARGEST_LOGIT / quality.NUM_BINS
    for labels in ([0, 1], [1, 0]):
        logits = np.array([0.1 * step, 0.2 * step], np.float32)
        found = metrics({"logits": logits}, np.array(labels), "binary", 1)
        assert (found["auc"], found["auc_error"]) == (0.5, 0.5)


def test_soft_labels_count_by_their_share():
    """Each is as so many positives and negatives."""
    logits, _ = binary(400)
    soft = _RNG.integers(0, 5, 400) / 4
    found = metrics({"logits": logits}, soft.astype(np.float32), "binary", 1)
    hard = np.concatenate([np.arange(4) < 4 * share for share in soft])
    expected = metrics({"logits": np.repeat(logits, 4)}, hard, "binary", 1)
    for name in ("loss", "normalized_entropy", "calibration", "auc"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_multiclass_metrics_equal_numpy(dtype):
    logits = (2 * _RNG.normal(size=(N, 5))).astype(np.float32)
    labels = _RNG.choice(5, N, p=[0.5, 0.2, 0.2, 0.1, 0.0])
    found = metrics({"logits": logits}, labels.astype(dtype), "multiclass", 5)
    loss = reference.cross_entropy(logits, labels).mean()
    accuracy = np.mean(logits.argmax(1) == labels)
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["accuracy"] == accuracy
    confidence = reference.softmax(logits).max(1).mean()
    assert found["calibration"] == pytest.approx(confidence / accuracy, rel=1e-6)
    shares = np.bincount(labels, minlength=5) / N
    assert found["normalized_entropy"] == pytest.approx(loss / reference.entropy(shares), rel=1e-6)
    assert "auc" not in found


def test_top_k_records_count_as_whole_ones_where_they_hold_the_label():
    logits = (2 * _RNG.normal(size=(N, 6))).astype(np.float32)
    kept = np.argsort(-logits, axis=1)[:, :3]
    labels = kept[np.arange(N), _RNG.integers(0, 3, N)]
    p = reference.softmax(logits)
    record = {
        "logits": np.take_along_axis(logits, kept, 1),
        "class_ids": kept.astype(np.int32),
        "logsumexp": np.log(np.exp(logits, dtype=np.float64).sum(1)).astype(np.float32),
        "sum_squared_probabilities": (p**2).sum(1).astype(np.float32),
        "num_outputs": np.full(N, 6, np.int32),
    }
    whole = metrics({"logits": logits}, labels, "multiclass", 6)
    found = metrics(record, labels, "multiclass", 6)
    assert found == {name: pytest.approx(value, rel=1e-4) for name, value in whole.items()}


def test_regression_metrics_equal_numpy():
    labels = _RNG.normal(3.0, 2.0, N).astype(np.float32)
    outputs = (labels + _RNG.normal(0.5, 1.0, N)).astype(np.float32)
    found = metrics({"logits": outputs}, labels, "regression", 1)
    loss = np.mean((outputs - labels.astype(np.float64)) ** 2)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["r_squared"] == pytest.approx(1 - loss / labels.var(dtype=np.float64), rel=1e-5)
    assert found["calibration"] == pytest.approx(outputs.mean() / labels.mean(), rel=1e-5)
    assert found["mean_score"] == pytest.approx(np.abs(outputs - labels).mean(), rel=1e-5)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_losses_alone_have_a_mean_and_nothing_else(task):
    losses, labels = _RNG.exponential(size=N).astype(np.float32), np.ones(N, np.int64)
    found = metrics({"loss": losses}, labels, task, 0)
    assert found["loss"] == pytest.approx(losses.mean(dtype=np.float64), rel=1e-6)
    assert found["mean_score"] == found["loss"]
    assert not set(found) & {"calibration", "auc", "normalized_entropy", "r_squared", "accuracy"}


def test_a_recorded_loss_gives_way_to_logits():
    logits, labels = binary()
    plain = metrics({"logits": logits}, labels, "binary", 1)
    noted = {"logits": logits, "loss": np.full(N, np.nan, np.float32)}
    assert metrics(noted, labels, "binary", 1) == plain


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_what_cannot_be_evaluated_is_counted_once_and_left_out(task):
    logits, labels = binary()
    logits = logits[:, None] if task == "binary" else np.stack([0 * logits, logits], 1)
    outputs = logits.shape[1]
    broken, wrong = logits.copy(), labels.astype(np.float64)
    has_record = np.arange(N) >= 50
    broken[20:90] = np.nan
    broken[90:100] = np.inf
    wrong[30:60], wrong[95:120], wrong[120:130] = np.nan, -1.0, 7.0
    found = metrics({"logits": broken, "has_record": has_record}, wrong, task, outputs)
    counts = {name: found.pop(name) for name in ("examples", "evaluated", "coverage")}
    lacks = {name: found.pop(name) for name in ("without_record", "invalid_labels", "unusable")}
    assert lacks == {"without_record": 50, "invalid_labels": 10 + 35, "unusable": 30 + 5}
    assert counts == {"examples": N, "evaluated": N - 130, "coverage": (N - 130) / N}
    clean = metrics({"logits": logits[130:]}, labels[130:], task, outputs)
    # Kernels compute the last rows of a tensor by other instructions: float32 rounding.
    assert found == {name: pytest.approx(clean[name], rel=1e-6) for name in found}


def test_metrics_that_are_not_defined_are_none():
    nothing = metrics({"logits": np.zeros((0, 1), np.float32)}, np.zeros(0, np.int64), "binary", 1)
    assert nothing["examples"] == 0
    assert {nothing[n] for n in ("coverage", "loss", "auc", "normalized_entropy")} == {None}
    one_class = metrics({"logits": np.zeros(9, np.float32)}, np.zeros(9, np.int64), "binary", 1)
    assert one_class["loss"] == pytest.approx(np.log(2))
    assert {one_class[n] for n in ("calibration", "auc", "auc_error", "normalized_entropy")} == {
        None
    }


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 60))
def test_groups_and_merges_are_as_their_examples_by_themselves(groups, cut):
    groups, n = np.array(groups), len(groups)
    logits, labels = SAMPLE[0][:n], SAMPLE[1][:n]
    whole = measured({"logits": logits}, labels, "binary")
    parts = [quality.GroupSums("binary", 1) for _ in range(2)]
    for sums, part in zip(parts, (slice(cut), slice(cut, None)), strict=True):
        unique, inverse = np.unique(groups[part], return_inverse=True)
        sums.add([f"group {key}" for key in unique], inverse, whole.rows(part))
    parts[0].merge(parts[1])
    assert parts[0].keys == [f"group {key}" for key in np.unique(groups)]
    for key in np.unique(groups):
        own = groups == key
        expected = metrics({"logits": logits[own]}, labels[own], "binary", 1)
        found = parts[0].metrics(f"group {key}")
        for name, value in expected.items():
            assert found[name] == (None if value is None else pytest.approx(value, rel=1e-6)), name


SAMPLE = binary(60)


def test_merging_may_put_groups_together():
    sums, halves = (quality.GroupSums("multiclass", 3) for _ in range(2))
    logits = _RNG.normal(size=(60, 3)).astype(np.float32)
    labels = _RNG.integers(0, 3, 60)
    groups = np.arange(60) % 4
    halves.add([0, 1, 2, 3], groups, measured({"logits": logits}, labels, "multiclass"))
    sums.merge(halves, lambda key: key // 2)
    assert sums.keys == [0, 1]
    for key in (0, 1):
        own = groups // 2 == key
        expected = metrics({"logits": logits[own]}, labels[own], "multiclass", 3)
        assert sums.metrics(key) == {n: pytest.approx(v, rel=1e-9) for n, v in expected.items()}


def test_histograms_are_added_up_before_they_grow(monkeypatch):
    monkeypatch.setattr(quality, "_MAX_PENDING", 50)
    logits, labels = binary()
    sums = quality.GroupSums("binary", 1)
    for part in np.array_split(np.arange(N), 30):
        sums.add(
            [0],
            np.zeros(len(part), int),
            measured({"logits": logits[part]}, labels[part], "binary"),
        )
    assert sum(len(cells) for cells, _ in sums._pending) <= 50
    expected = metrics({"logits": logits}, labels, "binary", 1)
    assert sums.metrics(0)["auc"] == pytest.approx(expected["auc"], rel=1e-12)


def test_too_many_groups_are_refused(monkeypatch):
    monkeypatch.setattr(quality, "MAX_GROUPS", 3)
    sums = quality.GroupSums("regression", 1)
    sums.rows_of([0, 1, 2])
    with pytest.raises(ValueError, match="at most 3 groups, got more, such as 9"):
        sums.rows_of([1, 9])

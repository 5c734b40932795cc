"""`ofb_tf.evaluate` on whole streams: the join, groups, time, merging, input of any form."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import ofb_tf
from ofb_tf.evaluation import accumulator, quality
from ofb_tf.evaluation.accumulator import Evaluation
from tests import reference

N, HOUR = 9000, 3600 * 1_000_000
_RNG = np.random.default_rng(61)
IDS = _RNG.permutation(10 * N)[:N] - 3
LOGITS = _RNG.normal(-2.5, 1.5, N).astype(np.float32)
LABELS = (_RNG.random(N) < 1 / (1 + np.exp(-LOGITS))).astype(np.int64)
SERVED = 1_700_000_000_000_000 + np.sort(_RNG.integers(0, 40 * HOUR, N))
VERSIONS = np.where(np.arange(N) < 4000, 7, 12)
COUNTRY = _RNG.choice([b"DE", b"FR", b"IT"], N, p=[0.6, 0.3, 0.1])
DELAY = _RNG.choice([30, 400, 5 * 3600], N) * 1_000_000
EXAMPLES = {"example_id": IDS, "label": LABELS, "country": COUNTRY, "at": SERVED + DELAY}
HAS_RECORD = np.arange(N) % 10 > 0


def records(rows=HAS_RECORD, logits=LOGITS):
    return ofb_tf.ForwardRecords.from_columns(
        IDS[rows], logits[rows], model_versions=VERSIONS[rows], timestamps=SERVED[rows]
    )


@pytest.fixture(scope="module")
def found():
    return ofb_tf.evaluate(
        records(), EXAMPLES, task="binary", timestamp_key="at", slice_keys=["country"]
    )


def check(metrics, rows, joined=HAS_RECORD):
    """Metrics against numpy on these rows."""
    own = rows & joined
    p = 1 / (1 + np.exp(-LOGITS[own].astype(np.float64)))
    y = LABELS[own]
    loss = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
    assert metrics["examples"] == rows.sum() and metrics["evaluated"] == own.sum()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["calibration"] == pytest.approx(p.mean() / y.mean(), rel=1e-6)
    assert abs(metrics["auc"] - reference.auc(LOGITS[own], y)) <= metrics["auc_error"]


def test_the_whole_and_its_groups_equal_numpy(found):
    everything = np.ones(N, bool)
    check(found["total"], everything)
    assert found["total"]["without_record"] == N / 10
    assert list(found["by"]["model_version"]) == ["7", "12"]
    for version in (7, 12):
        check(found["by"]["model_version"][str(version)], HAS_RECORD & (version == VERSIONS))
    assert list(found["slices"]) == ["country"]
    for country in (b"DE", b"FR", b"IT"):
        check(found["slices"]["country"][country.decode()], country == COUNTRY)
    ages = {"0 to 1 min": 30, "1 to 10 min": 400, "1 to 6 h": 5 * 3600}
    assert list(found["by"]["record_age"]) == list(ages)
    for name, seconds in ages.items():
        check(found["by"]["record_age"][name], HAS_RECORD & (seconds * 1_000_000 == DELAY))


def test_time_is_progressive(found):
    """In the shortest intervals that are few enough: three hours, over two days."""
    times = found["by"]["time"]
    assert 10 <= len(times) <= accumulator.MAX_TIMES
    interval = 3 * HOUR
    beginnings = np.unique(EXAMPLES["at"] // interval)
    for name, beginning in zip(times, beginnings, strict=True):
        rows = EXAMPLES["at"] // interval == beginning
        assert np.datetime64(name.removesuffix("Z"), "us").astype(int) == beginning * interval
        assert times[name]["examples"] == rows.sum()
        assert times[name]["loss"] == pytest.approx(
            -np.mean(np.log(np.where(LABELS == 1, *sigmoid_pair())[rows & HAS_RECORD])), rel=1e-5
        )


def sigmoid_pair():
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    return p, 1 - p


def test_without_a_time_that_of_the_record_counts():
    found = ofb_tf.evaluate(records(), EXAMPLES, task="binary")
    assert sum(each["examples"] for each in found["by"]["time"].values()) == HAS_RECORD.sum()
    ages = (SERVED[HAS_RECORD].max() - SERVED[HAS_RECORD]) // 1_000_000
    assert found["by"]["record_age"]["1 to 7 d"]["examples"] == (ages >= 86_400).sum()
    assert found["slices"] == {}


def test_as_of_leaves_later_records_out():
    early = SERVED[4999] >= SERVED
    found = ofb_tf.evaluate(
        records(), EXAMPLES, task="binary", as_of=int(SERVED[4999])
    )  # records in memory are not filtered; those that are loaded are
    assert found["total"]["evaluated"] == HAS_RECORD.sum()
    assert found["by"]["record_age"]["below 0"]["examples"] == (~early & HAS_RECORD).sum()


def test_gain_and_noise_are_those_of_the_stream(found):
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    scores = np.abs(p - LABELS)[HAS_RECORD]
    sizes = 0.8 * scores / scores.sum() + 0.2 / len(scores)
    weights = 0.1 / reference.capped_pps(sizes, 0.1 * len(scores))
    ratio = 0.9 * np.average(weights, weights=scores**2) + 0.1
    gain = found["gain"][3]
    assert gain["rate"] == 0.1
    assert gain["variance_ratio"] == pytest.approx(ratio, rel=1e-3)
    assert gain["predicted_gap_closure"] == pytest.approx((1 - ratio) / 0.9, rel=1e-3)
    assert not found["labels_look_noisy"]
    # The windows of evaluate, a quarter of each.
    errors = count = 0
    for part in (slice(0, 4096), slice(4096, 8192), slice(8192, N)):
        rows = np.flatnonzero(HAS_RECORD[part]) + part.start
        sure = rows[np.argsort(-np.abs(LOGITS[rows]), kind="stable")[: len(rows) // 4]]
        errors, count = errors + ((LOGITS[sure] > 0) != LABELS[sure]).sum(), count + len(sure)
    assert found["confident_error"] == pytest.approx(errors / count)


def test_noisy_labels_are_seen():
    flipped = np.where(_RNG.random(N) < 0.1, 1 - LABELS, LABELS)
    found = ofb_tf.evaluate(records(), EXAMPLES | {"label": flipped}, task="binary")
    assert found["labels_look_noisy"] and found["confident_error"] > 0.05
    assert "contradict" in found["advice"] or "no gain" in found["advice"]


def test_score_drift_is_that_of_the_oldest_records():
    """Twice as confident when young: the scores with old records are larger."""
    fresh = np.where(DELAY < HOUR, 2.0, 1.0).astype(np.float32) * np.where(LABELS, 2, -2)
    found = ofb_tf.evaluate(
        records(logits=fresh.astype(np.float32)), EXAMPLES, task="binary", timestamp_key="at"
    )
    score = 1 / (1 + np.exp(np.array([4.0, 2.0])))
    assert found["score_drift"] == pytest.approx(score[1] / score[0] - 1, rel=1e-5)


def test_json_takes_all_of_it_and_nothing_is_lost(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    empty = ofb_tf.evaluate(
        ofb_tf.ForwardRecords.from_columns([-10], [0.0]), EXAMPLES, task="binary"
    )
    json.dumps(empty, allow_nan=False)
    assert empty["total"]["without_record"] == N and empty["total"]["loss"] is None
    assert "None of 9000 examples" in empty["advice"]


def test_any_form_of_examples_gives_the_same(found):
    arguments = {"task": "binary", "timestamp_key": "at", "slice_keys": ["country"]}
    dicts = tf.data.Dataset.from_tensor_slices(EXAMPLES)
    tuples = dicts.map(lambda x: ({k: x[k] for k in x if k != "label"}, x["label"]))
    for examples in (dicts, tuples):
        assert ofb_tf.evaluate(records(), examples, **arguments) == found
    assert ofb_tf.evaluate(records(), dicts.batch(4096), batched_input=True, **arguments) == found
    paired = tf.data.Dataset.zip(
        tf.data.Dataset.from_tensor_slices(IDS),
        tf.data.Dataset.from_tensor_slices((LOGITS, LABELS[:, None])),
    )
    plain = ofb_tf.evaluate(records(), paired, task="binary")
    assert plain["total"] == found["total"]


def test_records_are_loaded_and_text_ids_are_hashed(tmp_path):
    names = np.array([f"request-{number}" for number in range(N)])
    with ofb_tf.ForwardRecordWriter(tmp_path / "records") as writer:
        writer.write(names, LOGITS, timestamp=SERVED, model_version=1)
    found = ofb_tf.evaluate(
        str(tmp_path / "records"), {"example_id": names, "label": LABELS}, task="binary"
    )
    check(found["total"], np.ones(N, bool), np.ones(N, bool))
    half = ofb_tf.evaluate(
        str(tmp_path / "records"), {"example_id": names, "label": LABELS}, task="binary",
        as_of=int(SERVED[N // 2]),
    )  # fmt: skip
    assert half["total"]["evaluated"] == (SERVED[N // 2] >= SERVED).sum()


def add(evaluation, rows, times=True):
    record = {"has_record": HAS_RECORD[rows], "logits": np.where(HAS_RECORD, LOGITS, np.nan)[rows]}
    tensors = {name: tf.constant(value) for name, value in record.items()}
    measured = quality.measure(tensors, tf.constant(LABELS[rows]), "binary")
    evaluation.add(
        quality.Measured(*(part.numpy() for part in measured)),
        model_versions=VERSIONS[rows],
        timestamps=SERVED[rows],
        times=EXAMPLES["at"][rows] if times else None,
        slices={"country": COUNTRY[rows]},
    )


def approximately(value):
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    if isinstance(value, list):
        return [approximately(each) for each in value]
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 600), max_size=5),
    order=st.randoms(use_true_random=False),
    stride=st.sampled_from([1, 15]),
    times=st.booleans(),
)
def test_merging_parts_in_any_order_is_the_whole(cuts, order, stride, times):
    """Parts of an hour and of a day keep time in intervals of different length."""
    rows = stride * np.arange(600)
    parts = np.split(rows, sorted(cuts))
    whole = Evaluation("binary", 1, as_of=int(SERVED[-1]))
    evaluations = []
    for part in parts:  # of the same windows, so that the confident quarters are the same
        add(whole, part, times)
        evaluations.append(Evaluation("binary", 1, as_of=int(SERVED[-1])))
        add(evaluations[-1], part, times)
    order.shuffle(evaluations)
    while len(evaluations) > 1:
        left, right = evaluations.pop(), evaluations.pop(0)
        left.merge(right)
        evaluations.insert(order.randrange(len(evaluations) + 1), left)
    assert evaluations[0].result() == approximately(whole.result())
    assert len(whole.result()["by"]["time"]) <= accumulator.MAX_TIMES


def test_scores_are_summarised_before_they_grow(monkeypatch):
    monkeypatch.setattr(accumulator, "_MAX_PENDING", 500)
    evaluation, whole = Evaluation("binary", 1), Evaluation("binary", 1)
    for part in np.array_split(np.arange(N), 30):
        add(evaluation, part)
        assert sum(map(len, evaluation._pending)) <= 500
    add(whole, np.arange(N))
    assert evaluation.result()["gain"] == approximately(whole.result()["gain"])


def test_times_far_apart_stay_few():
    """From milliseconds to years in one stream."""
    evaluation = Evaluation("regression", 1)
    times = np.concatenate([np.arange(100) * 1000, np.arange(50) * 86_400_000_000 * 365])
    record = {"has_record": tf.fill([150], True), "logits": tf.zeros([150])}
    measured = quality.measure(record, tf.zeros([150]), "regression")
    evaluation.add(
        quality.Measured(*(part.numpy() for part in measured)),
        model_versions=np.zeros(150, np.int64), timestamps=times,
    )  # fmt: skip
    found = evaluation.result()["by"]["time"]
    assert 1 < len(found) <= accumulator.MAX_TIMES
    assert sum(each["examples"] for each in found.values()) == 150


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, "task must be one of"),
        ({"task": "multiclass"}, "at least 2 outputs for task='multiclass'. Received: 1"),
        ({"uniform_mix": 1.5}, r"uniform_mix must be in \[0, 1\]. Received: 1.5"),
        ({"label_key": "clicked"}, "field 'clicked' is missing from the elements"),
        ({"id_key": "request"}, "field 'request' is missing from the elements"),
        ({"slice_keys": ["city"]}, "'city' must be a scalar feature, got None; the elements have"),
        ({"timestamp_key": "country"}, "'country' must be int64 microseconds since 1970"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ofb_tf.evaluate(records(), EXAMPLES, **{"task": "binary"} | changes)


def test_several_labels_are_refused():
    examples = {"example_id": IDS, "label": np.stack([LABELS, LABELS], axis=1)}
    with pytest.raises(ValueError, match="'label' must be one label for task='binary'"):
        ofb_tf.evaluate(records(), examples, task="binary")

"""The join of one bucket: whatever the order of arrival, the selection of the one-machine path."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.selection import FixedScale, Importance
from ofb_tf.streaming import join
from ofb_tf.streaming.join import EXAMPLES, LABELS, RECORDS, JoinConfig, Pending
from tests.streaming import logs
from tests.streaming.logs import Logs

POLICY = FixedScale(slope=0.25, offset=0.02)
SECOND = 1_000_000
CONFIG = JoinConfig(
    policy=POLICY,
    rate=logs.RATE,
    seed=5,
    attribution_window=logs.WINDOW,
    max_wait=logs.MAX_WAIT,
    interval=0.25,
)


def columns(stream: Logs, kind: str, rows) -> dict:
    ids = stream.ids[rows]
    if kind == RECORDS:
        times, more = stream.record_times, {"logits": stream.logits[rows]}
    elif kind == EXAMPLES:
        serialized = [stream.example(row).SerializeToString() for row in rows]
        times, more = stream.times, {"serialized": np.array(serialized, object)}
    else:
        times, more = stream.label_times, {"label": np.ones(len(rows), np.int64)}
    return {"example_id": ids, "timestamp": times[rows], **more}


def events(stream: Logs) -> list[tuple[int, str, int]]:
    """(arrival, kind, row) of everything."""
    every = np.arange(stream.n)
    arrivals = (
        (RECORDS, stream.record_times, every[stream.recorded]),
        (EXAMPLES, stream.times, every),
        (LABELS, stream.label_times, every[stream.labelled]),
    )
    return [(int(t[row]), kind, row) for kind, t, rows in arrivals for row in rows.tolist()]


def run(stream: Logs, blocks, config=CONFIG, end=None):
    """Feeds `(watermark, kind, rows)` and returns id → (label, weight) and the summed counts."""
    pending, out, totals = Pending(), [], {}
    end = end or int(stream.times[-1] + 5 * logs.WINDOW * SECOND)
    for watermark, kind, rows in [*blocks, (end, None, None)]:
        if kind is not None:
            pending.add(kind, columns(stream, kind, rows))
        left = join.leave(pending, watermark, config)
        selected = join.sample(left, config)
        counts = left.counts | {"selected": len(selected)}
        out += selected
        totals = {name: totals.get(name, 0) + counts.get(name, 0) for name in totals | counts}
    return decoded(out), totals, pending


def decoded(serialized):
    found = {}
    for one in serialized:
        feature = tf.train.Example.FromString(one).features.feature
        (id_,) = feature["example_id"].int64_list.value
        assert id_ not in found
        (label,), (weight,) = (
            feature["label"].int64_list.value,
            feature["importance_weight"].float_list.value,
        )
        found[id_] = (label, weight)
    return found


def assert_same_sample(actual, expected):
    assert {id_: label for id_, (label, _) in actual.items()} == {
        id_: label for id_, (label, _) in expected.items()
    }
    ids = sorted(expected)
    # A vectorised sigmoid rounds the last bit by the place of an example in its vector.
    np.testing.assert_allclose(
        [actual[id_][1] for id_ in ids], [expected[id_][1] for id_ in ids], rtol=4e-7
    )


@pytest.mark.parametrize("disorder", [0.0, 0.3])
@pytest.mark.parametrize("interval", [0.1, 1.0])
def test_equals_one_machine(disorder, interval):
    """Blocks of any size, disorder within the watermark's bound, buckets of ids."""
    stream = Logs(3000)
    rng = np.random.default_rng(1)
    arrival = sorted(
        (time + int(rng.integers(0, round(disorder * SECOND) + 1)), kind, row)
        for time, kind, row in events(stream)
    )
    blocks, now = [], logs.START
    while arrival:
        now += round(interval * SECOND)
        slice_ = [a for a in arrival if a[0] < now]
        arrival = arrival[len(slice_) :]
        for kind in (LABELS, EXAMPLES, RECORDS):
            rows = np.array([row for _, k, row in slice_ if k == kind], np.int64)
            if len(rows):
                blocks.append((now - round((interval + disorder) * SECOND), kind, rows))
    selected, totals, pending = run(stream, blocks)
    assert_same_sample(selected, stream.expected(POLICY, seed=5))
    assert totals["left"] == stream.n
    assert totals["without_record"] == stream.n - stream.joined.sum()
    # A record that came too late for its example goes with it.
    assert totals["records_without_example"] == 0
    assert not pending


def test_second_deliveries_are_dropped():
    stream = Logs(500)
    every = np.arange(stream.n)
    end = int(stream.times[-1] + logs.WINDOW * SECOND)
    blocks = [
        (0, RECORDS, every[stream.recorded]),
        (0, EXAMPLES, every),
        (0, LABELS, every[stream.labelled]),
        (0, EXAMPLES, every[:100]),
        (end, RECORDS, every[stream.recorded][:50]),
        (end, EXAMPLES, every),
    ]
    selected, totals, pending = run(stream, blocks)
    assert_same_sample(selected, stream.expected(POLICY, seed=5))
    assert totals["left"] == stream.n
    assert not pending


def test_what_has_no_partner_is_counted_and_dropped():
    stream = Logs(40)
    rows = np.arange(stream.n)
    selected, totals, pending = run(stream, [(0, RECORDS, rows[:7]), (0, LABELS, rows[:5])])
    assert not selected and not pending
    assert totals == {"records_without_example": 7, "labels_without_example": 5, "selected": 0}


def test_without_negatives_only_labelled_examples_leave_as_output():
    stream = Logs(400)
    rows = np.arange(stream.n)
    config = JoinConfig(
        policy=FixedScale(0.0, 1.0),
        rate=1.0,
        attribution_window=logs.WINDOW,
        max_wait=0.0,
        negative=None,
    )
    blocks = [(0, EXAMPLES, rows), (0, LABELS, rows[stream.labelled])]
    selected, totals, _ = run(stream, blocks, config)
    assert set(selected) == set(stream.ids[stream.labels == 1].tolist())
    assert totals["unlabelled"] == stream.n - stream.labels.sum()


def test_newest_record_that_is_not_too_late():
    stream = Logs(1)
    pending = Pending()
    times = stream.times[0] + np.array([2, 1, 3, round(logs.MAX_WAIT * SECOND) + 1])
    logits = np.array([[2.0], [1.0], [3.0], [9.0]], np.float32)
    pending.add(
        RECORDS,
        {"example_id": np.repeat(stream.ids, 4), "timestamp": times, "logits": logits},
    )
    latest = stream.times + round(logs.MAX_WAIT * SECOND)
    record, found = join._lookup(pending, RECORDS, stream.ids, latest)
    assert found.all() and record["logits"] == 3.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"policy": Importance()}, "Poisson design"),
        ({"rate": 0.0}, "rate must be"),
        ({"task": "ranking"}, "task must be"),
        ({"missing": "error"}, "missing must be"),
        ({"max_wait": 3.0}, "max_wait must be"),
        ({"interval": 0.0}, "interval above 0"),
    ],
)
def test_wrong_settings_are_named(change, message):
    settings = {"policy": POLICY, "rate": 0.1, "attribution_window": 2.0, "max_wait": 0.5}
    with pytest.raises(ValueError, match=message):
        JoinConfig(**settings | change)

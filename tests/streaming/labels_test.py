"""Labels that come late: against an oracle, across restarts, and the bias of early negatives."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import streaming
from tests.streaming import logs
from tests.streaming.logs import Logs

SLICES = 8
LATENESS, INTERVAL, DELAY = 1.1, 0.5, 0.5
SPEC = {
    "example_id": tf.io.FixedLenFeature([], tf.int64),
    "label": tf.io.FixedLenFeature([], tf.int64),
}


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """4 seconds of events in 8 files of each log, then silence; a file arrives at its end.

    Labels arrive half a second later, so that those of a window's end need the lateness.
    """
    directory = tmp_path_factory.mktemp("delayed")
    for kind in ("records", "examples", "labels"):
        (directory / kind).mkdir()
    events = Logs(SLICES * logs.PER_SECOND // 2)
    for k in range(SLICES + 6):
        events.write(directory, 0.5 * k, 0.5 * k + 0.5, f"{k:03d}")
    for path in directory.glob("*/*"):
        delay = DELAY if path.parent.name == "labels" else 0.0
        arrived = 0.5 * (int(path.name[:3]) + 1) + delay
        nanoseconds = logs.START * 1000 + round(1e9 * arrived)
        os.utime(path, ns=(nanoseconds, nanoseconds))
    return events, directory


def delayed(directory, **settings):
    return streaming.DelayedLabels(
        streaming.Directory(directory / "examples"),
        streaming.Directory(directory / "labels"),
        attribution_window=logs.WINDOW,
        lateness=LATENESS,
        interval=INTERVAL,
        **settings,
    )


def leaving(log, position=None):
    """(segment, ids and labels) of everything that leaves."""
    follower, found = log.follow(position), []
    while segments := follower.poll():
        for segment in segments:
            serialized = list(follower.read(segment).as_numpy_iterator())
            parsed = tf.io.parse_example(serialized, SPEC)
            found.append(
                (segment, list(zip(*(parsed[n].numpy().tolist() for n in SPEC), strict=True)))
            )
    return found, follower


def test_every_example_leaves_once_with_the_label_of_its_window(stream):
    events, directory = stream
    found, follower = leaving(delayed(directory))
    everything = [pair for _, pairs in found for pair in pairs]
    assert len(everything) == events.n
    assert dict(everything) == dict(zip(events.ids.tolist(), events.labels.tolist(), strict=True))
    assert follower.counts["left"] == events.n
    # No example before its label has arrived or its window is over, and none long after.
    row_of = {id_: row for row, id_ in enumerate(events.ids.tolist())}
    for segment, pairs in found:
        for id_, label in pairs:
            row = row_of[id_]
            time = events.label_times[row] if label else events.times[row] + logs.WINDOW * 1e6
            waited = segment.arrived - time / 1e6
            most = (DELAY if label else LATENESS) + 0.5 + INTERVAL
            assert 0.0 <= waited <= most + 1e-6, (waited, label)


def test_goes_on_from_any_interval(stream):
    _, directory = stream
    whole, _ = leaving(delayed(directory))
    for k in range(0, len(whole), 3):
        log = delayed(directory)
        position = json.loads(json.dumps(whole[k][0].name))
        again, follower = leaving(log, int(position))
        assert again == whole[k + 1 :], k
        segment = whole[k][0]
        reader = log.follow(int(position))
        parsed = tf.io.parse_example(list(reader.read(segment)), SPEC)
        assert parsed["example_id"].numpy().tolist() == [id_ for id_, _ in whole[k][1]]
        del follower


def test_early_negatives_leave_twice_where_they_are_positive(stream):
    events, directory = stream
    found, _ = leaving(delayed(directory, early_negatives=True))
    everything = [pair for _, pairs in found for pair in pairs]
    negatives = sorted(id_ for id_, label in everything if not label)
    positives = sorted(id_ for id_, label in everything if label)
    assert negatives == sorted(events.ids.tolist())
    assert positives == sorted(events.ids[events.labels == 1].tolist())


def test_sampled_with_records(stream):
    """The whole way: labels, records, selection; the same from a state in the middle."""
    _, directory = stream

    def make():
        return streaming.SampledStream(
            ofb_tf.ofb_sample(
                window_size=500,
                batch_size=10,
                seed=3,
                max_age=60.0,
                task="binary",
                parse_fn=lambda serialized: tf.io.parse_example(serialized, SPEC),
            ),
            examples=delayed(directory),
            records=streaming.RecordDirectory(directory / "records"),
            follow=False,
        )

    def pairs(batches):
        return [
            (batch["example_id"].tolist(), batch["importance_weight"].tolist()) for batch in batches
        ]

    first = make()
    whole = list(first.dataset().as_numpy_iterator())
    assert first.status()["coverage"] > 0.97
    again = make()
    for elements in range(1, len(whole), 13):
        first.restore({})
        batches = first.dataset().as_numpy_iterator()
        for _ in range(elements):
            next(batches)
        again.restore(json.loads(json.dumps(first.state(elements))))
        assert pairs(again.dataset().as_numpy_iterator()) == pairs(whole[elements:])


def test_arguments_are_checked(stream):
    _, directory = stream
    with pytest.raises(ValueError, match="early_negatives needs the label"):
        delayed(directory, early_negatives=True, negative=None)
    with pytest.raises(ValueError, match="lateness must be finite"):
        streaming.DelayedLabels(
            streaming.Directory("a"), streaming.Directory("b"), attribution_window=1, lateness=-1
        )


@pytest.mark.parametrize("from_logits", [True, False])
def test_fake_negative_weighted_is_unbiased(from_logits):
    """Enumeration of labels: the expected gradient is (1 - p²)(p - q), 0 where p is right."""
    loss = ofb_tf.FakeNegativeWeighted(from_logits=from_logits)
    for q in (0.02, 0.3, 0.9):
        for z in (-3.0, -0.5, 0.0, 2.0):
            logit = tf.Variable([[z]])
            with tf.GradientTape() as tape:
                output = logit if from_logits else tf.sigmoid(logit)
                # Every example is a negative first; with probability q a positive follows.
                expected = loss([[0.0]], output) + q * loss([[1.0]], output)
            p = 1.0 / (1.0 + np.exp(-z))
            gradient = tape.gradient(expected, logit).numpy().item()
            assert gradient == pytest.approx((1.0 - p * p) * (p - q), abs=2e-6)


def test_fake_negative_weighted_takes_weights_and_saves():
    loss = ofb_tf.FakeNegativeWeighted(from_logits=False)
    labels, p, weights = np.array([[0.0], [1.0]]), np.array([[0.2], [0.6]]), np.array([3.0, 5.0])
    expected = (-3 * np.log(0.8) * 0.8 * 1.2 - 5 * np.log(0.6) * 1.6) / 2
    assert float(loss(labels, p, sample_weight=weights)) == pytest.approx(expected, rel=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(again(labels, p)) == pytest.approx(float(loss(labels, p)))


def test_fake_negative_weighted_trains_a_model_on_labels_without_a_second_axis():
    """One step of gradient descent, of a model p = sigmoid(w x) with w = 0, against numpy."""
    x = keras.Input([1], name="x")
    dense = keras.layers.Dense(1, kernel_initializer="zeros", use_bias=False)
    model = ofb_tf.OFBModel({"x": x}, dense(x))
    model.compile(keras.optimizers.SGD(1.0), ofb_tf.FakeNegativeWeighted())
    features, labels, weights = [[1.0], [2.0], [-1.0]], [0, 1, 0], np.array([1.0, 3.0, 2.0])
    batch = {"x": features, "label": labels, "importance_weight": weights.astype(np.float32)}
    model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    p, labels = 0.5, np.array(labels)
    counts = np.where(labels == 1, 1 + p, (1 - p) * (1 + p))
    gradient = np.mean(weights * counts * (p - labels) * np.array(features)[:, 0])
    assert dense.kernel.numpy().item() == pytest.approx(-gradient, rel=1e-5)

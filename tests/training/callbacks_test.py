"""What `OFBTensorBoard` writes is read back from its event files."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.training import callbacks

N = 64


def build(cls=ofb_tf.OFBModel):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), name="x")
    model = cls(inputs, keras.layers.Dense(3)(inputs))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def make_data(age_seconds=100.0):
    random = np.random.default_rng(0)
    now = time.time_ns() // 1000
    timestamp = np.full(N, now - int(age_seconds * 1e6))
    timestamp[:4] = -1
    return {
        "x": random.normal(size=(N, 3)).astype(np.float32),
        "label": random.integers(0, 3, N),
        "importance_weight": np.tile([0.5, 1.0, 2.0, 4.0], N // 4).astype(np.float32),
        "logits": random.normal(size=(N, 3)).astype(np.float32),
        "has_record": np.arange(N) >= 4,
        "timestamp": timestamp,
    }


def read_events(directory):
    """Tag → list of (step, value) from every event file."""
    found = {}
    for path in sorted(directory.glob("events*")):
        for raw in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(raw.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return found


def test_scalars_and_histograms_are_in_the_event_files(tmp_path):
    data = make_data()
    history = (
        build()
        .fit(
            tf.data.Dataset.from_tensor_slices(data).batch(16),
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[callbacks.OFBTensorBoard(tmp_path)],
        )
        .history
    )
    events = read_events(tmp_path)
    for name in (
        "effective_sample_size",
        "mean_weight",
        "max_weight",
        "record_coverage",
        "score_correlation",
    ):
        assert [step for step, _ in events[f"ofb/{name}"]] == [0, 1]
        np.testing.assert_allclose([v for _, v in events[f"ofb/{name}"]], history[name], rtol=1e-6)
    step, buckets = events["ofb/importance_weight"][0]
    assert step == 0 and buckets.shape[1] == 3
    assert buckets[:, 2].sum() == N
    for weight in (0.5, 1.0, 2.0, 4.0):
        inside = (buckets[:, 0] <= weight * 1.0001) & (weight * 1.0001 < buckets[:, 1])
        assert buckets[inside, 2] == N / 4
    ages = events["ofb/record_age_seconds"][0][1]
    assert ages[:, 2].sum() == N - 4
    old = ages[ages[:, 2] > 0]
    assert old[0, 0] <= 160 and old[-1, 1] >= 100


def test_age_is_left_out_without_timestamps(tmp_path):
    data = make_data()
    del data["timestamp"]
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(16)
    build().fit(dataset, shuffle=False, verbose=0, callbacks=[callbacks.OFBTensorBoard(tmp_path)])
    assert "ofb/record_age_seconds" not in read_events(tmp_path)


def test_training_goes_on_without_the_callback(tmp_path):
    model = build()
    dataset = tf.data.Dataset.from_tensor_slices(make_data()).batch(16)
    board = callbacks.OFBTensorBoard(tmp_path)
    model.fit(dataset, shuffle=False, verbose=0, callbacks=[board])
    model.fit(dataset, shuffle=False, verbose=0)
    assert len(read_events(tmp_path)["ofb/mean_weight"]) == 1


def test_other_models_are_refused(tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices((np.zeros((8, 3)), np.zeros(8))).batch(4)
    with pytest.raises(ValueError, match="OFBTensorBoard needs an OFBModel. Received: Functional"):
        build(keras.Model).fit(
            dataset, shuffle=False, verbose=0, callbacks=[callbacks.OFBTensorBoard(tmp_path)]
        )

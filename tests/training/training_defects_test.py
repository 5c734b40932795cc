"""Calls that Keras accepts and OFBModel once refused or got wrong."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import hashing

N = 64
RNG = np.random.default_rng(8)
X = RNG.normal(size=(N, 3)).astype(np.float32)
Y = RNG.integers(0, 2, N).astype(np.float32)


def build(cls=ofb_tf.OFBModel, **kwargs):
    keras.utils.set_random_seed(1)
    x = keras.Input((3,), name="x")
    model = cls(x, keras.layers.Dense(1)(x), **kwargs)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def test_positional_arguments_are_those_of_keras():
    ours, stock = build(), build(keras.Model)
    for model in (ours, stock):
        model.fit(X, Y, 16, 2, 0, None, 0.0, (X, Y), False)
    for a, b in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert ours.evaluate(X, Y, 16, 0) == stock.evaluate(X, Y, 16, 0)
    np.testing.assert_array_equal(ours.predict(X, 16, 0), stock.predict(X, 16, 0))


def test_weights_of_one_column_train_as_weights_without_it():
    weights = RNG.uniform(0.5, 2, N).astype(np.float32)
    trained = []
    for shaped in (weights, weights[:, None]):
        model = build()
        features = {"x": X, "importance_weight": np.full(N, 2, np.float32), "logits": X[:, :1]}
        dataset = tf.data.Dataset.from_tensor_slices((features, Y, shaped)).batch(16)
        history = model.fit(dataset, verbose=0).history
        trained.append((*model.get_weights(), history["max_weight"], history["score_correlation"]))
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert trained[0][-2] == [pytest.approx(2 * weights.max())]


def test_forward_passes_of_string_ids_are_recorded(tmp_path):
    names = np.array([f"user-{i}" for i in range(N)])
    model = build(backward_rate=0.25)
    data = {"example_id": names, "x": X, "label": Y}
    recorder = ofb_tf.RecordForwardPasses(tmp_path, batch_size=16)
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(16)
    model.fit(dataset, verbose=0, callbacks=[recorder])
    recorded = ofb_tf.ForwardRecords.load(str(tmp_path)).example_ids.numpy()
    np.testing.assert_array_equal(recorded, np.sort(hashing.to_int64(names)))


def test_a_saved_model_loads_where_only_the_package_is_imported(tmp_path):
    """Names are imported lazily, but Keras must know the classes of a program that uses it."""
    path = str(tmp_path / "model.keras")
    build().save(path)
    program = (
        "import sys, keras, ofb_tf; print(type(keras.models.load_model(sys.argv[1])).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.stdout.strip() == "FunctionalOFBModel", done.stderr[-2000:]


def test_the_old_tensorboard_callback_is_that_of_keras(monkeypatch):
    monkeypatch.setattr(keras.callbacks.TensorBoard, "__init__", lambda self, log_dir: None)
    with pytest.warns(DeprecationWarning, match=r"use keras\.callbacks\.TensorBoard"):
        callback = ofb_tf.OFBTensorBoard("logs")
    assert isinstance(callback, keras.callbacks.TensorBoard)

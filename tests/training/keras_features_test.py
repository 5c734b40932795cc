"""`OFBModel` with what Keras offers around `train_step`; stock Keras's own limits beside it."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.training import callbacks
from tests.training.models import (
    NUM_CLASSES,
    N,
    as_tuple,
    assert_same_weights,
    batches,
    build,
    fit,
    make_data,
)

ROOT = pathlib.Path(__file__).parents[2]


def fit_both(make_optimizer=lambda: None, validation_data=None, **settings):
    """The same training by `keras.Model` on tuples and by `OFBModel` on dicts."""
    data = make_data()
    stock, ours = (
        build(cls, make_optimizer(), **settings) for cls in (keras.Model, ofb_tf.OFBModel)
    )
    expected, history = (
        fit(model, elements, epochs=2, validation_data=validation_data)
        for model, elements in ((stock, as_tuple(data)), (ours, data))
    )
    assert_same_weights(stock, ours)
    assert history["loss"] == expected["loss"]
    weights = data["importance_weight"].astype(np.float64)
    assert history["mean_weight"][-1] == pytest.approx(weights.mean(), rel=1e-5)
    assert history["max_weight"][-1] == pytest.approx(weights.max(), rel=1e-6)
    return ours, history


def loss_scaling():
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))


def accumulating():
    return keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)


SETTINGS = pytest.mark.parametrize(
    "settings",
    [
        {"jit_compile": True},
        {"jit_compile": False},
        {"run_eagerly": True},
        {"steps_per_execution": 2, "jit_compile": False},
        {"dtype": "mixed_bfloat16"},
        {"dtype": "mixed_float16", "make_optimizer": loss_scaling},
        {"make_optimizer": accumulating},
    ],
    ids=["jit", "no_jit", "eagerly", "steps", "bfloat16", "float16", "accumulating"],
)


@SETTINGS
def test_training_equals_stock_keras(settings):
    fit_both(**settings)


@SETTINGS
def test_selection_in_the_step(settings):
    settings = dict(settings)
    optimizer = settings.pop("make_optimizer", lambda: None)()
    model = build(optimizer=optimizer, backward_rate=0.25, **settings)
    history = fit(model, make_data(), epochs=2)
    assert history["realized_rate"] == [0.25, 0.25]
    assert np.isfinite(history["loss"]).all()


def test_accumulated_weighted_gradient_is_that_of_the_large_batch():
    small = build(optimizer=keras.optimizers.SGD(1.0, gradient_accumulation_steps=4))
    large = build(optimizer=keras.optimizers.SGD(1.0))
    fit(small, make_data(), N // 4)
    fit(large, make_data(), N)
    assert_same_weights(small, large, atol=1e-6)


def test_validation_data():
    _, history = fit_both(validation_data=batches(as_tuple(make_data())))
    assert len(history["val_loss"]) == 2 and "val_mean_weight" not in history


def _sampled():
    data = make_data() | {"logits": np.random.default_rng(1).normal(size=(N, NUM_CLASSES))}
    del data["importance_weight"]
    stream = tf.data.Dataset.from_tensor_slices(data).repeat()
    return stream.apply(ofb_tf.ofb_sample(rate=0.5, window_size=16, batch_size=8, seed=3))


class _Stop(keras.callbacks.Callback):
    """Ends the process's training in the middle of the epoch after `epochs`."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.epochs and batch == 1:
            raise KeyboardInterrupt


def test_resuming_with_the_input_iterator_equals_never_stopping(tmp_path):
    """`BackupAndRestore` restores model and epoch; the iterator has a checkpoint of its own."""

    def run(directory, stop_after=None):
        model = build()
        place = callbacks.BackupIterator(_sampled(), directory / "input")
        backup = keras.callbacks.BackupAndRestore(str(directory / "model"))
        stop = [] if stop_after is None else [_Stop(stop_after)]
        # Steps of an epoch are no divisor of a pass: the place matters.
        fit(model, place.dataset, epochs=6, steps_per_epoch=3, callbacks=[backup, place, *stop])
        return model

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_after=3)
    resumed = run(tmp_path / "parts")
    assert int(resumed.optimizer.iterations) == int(whole.optimizer.iterations) == 18
    assert_same_weights(whole, resumed)


@pytest.fixture(name="mirrored", scope="module")
def _mirrored():
    command = [sys.executable, "-m", "tests.multi_worker.mirrored"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["compare", "log_odds"])
def test_mirrored_on_two_devices_is_one_device_on_the_global_batch(mirrored, what):
    result = mirrored[what]
    assert result["replicas"] == 2
    for name, value in result["one"]["history"].items():
        assert result["two"]["history"][name] == pytest.approx(value, rel=1e-4), name
    for a, b in zip(result["one"]["weights"], result["two"]["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_mirrored_training_uses_the_offsets(mirrored):
    losses = [mirrored[what]["two"]["history"] for what in ("compare", "log_odds")]
    assert abs(losses[0]["loss"][0] - losses[1]["loss"][0]) > 0.01
    assert abs(losses[0]["val_loss"][0] - losses[1]["val_loss"][0]) > 1e-4  # of another model


@pytest.mark.slow
def test_mirrored_selects_in_the_step_on_every_replica(mirrored):
    result = mirrored["backward_rate"]
    assert result["history"]["realized_rate"] == [pytest.approx(0.25)] * 2
    assert np.isfinite(result["history"]["loss"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["steps_per_execution", "jit_compile"])
def test_mirrored_with_these_fails_for_stock_keras_alike(mirrored, setting):
    """Keras's limit on CPU devices, not ours. If this fails, Keras learnt it: drop the test."""
    result = mirrored[setting]
    assert result["stock"] == result["ours"]

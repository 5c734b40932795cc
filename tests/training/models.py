"""A small classification task, and a model of it by any class and with any settings."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf

N, NUM_FEATURES, NUM_CLASSES = 64, 3, 4
_COMPILE = {"jit_compile", "metrics", "run_eagerly", "steps_per_execution", "weighted_metrics"}


def make_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, NUM_FEATURES)).astype(np.float32)
    scores = x @ rng.normal(size=(NUM_FEATURES, NUM_CLASSES)) + rng.normal(size=(N, NUM_CLASSES))
    return {
        "example_id": np.arange(N) + 1000,
        "x": x,
        "label": scores.argmax(1),
        "importance_weight": rng.uniform(0.2, 5.0, N).astype(np.float32),
    }


def batches(elements, size=16):
    return tf.data.Dataset.from_tensor_slices(elements).batch(size)


def as_tuple(data):
    return data["x"], data["label"], data["importance_weight"]


def build(cls=ofb_tf.OFBModel, optimizer=None, dtype=None, dropout=0.0, **settings):
    """The same initial weights in every call; settings are those of `compile` or of the class."""
    compile_settings = {name: settings.pop(name) for name in _COMPILE & settings.keys()}
    keras.utils.set_random_seed(0)
    inputs = keras.Input((NUM_FEATURES,), name="x")
    hidden = keras.layers.Dense(8, activation="relu", dtype=dtype)(inputs)
    hidden = keras.layers.Dropout(dropout)(hidden)
    outputs = keras.layers.Dense(NUM_CLASSES, dtype=dtype)(hidden)
    if dtype:
        outputs = keras.layers.Activation("linear", dtype="float32")(outputs)
    model = cls(inputs, outputs, **settings)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, **compile_settings)
    return model


def fit(model, elements, size=16, **settings):
    """One epoch in order, unless the settings say more; the history."""
    dataset = elements if isinstance(elements, tf.data.Dataset) else batches(elements, size)
    return model.fit(dataset, **{"shuffle": False, "verbose": 0} | settings).history


def assert_same_weights(first, second, atol=0.0):
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=atol)

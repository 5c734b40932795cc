"""Keras on JAX: stock `fit` on the sampled dataset, string ids and all; `OFBModel` says no."""

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import keras, numpy as np, tensorflow as tf
import ofb_tf
from ofb_tf.serving import RecordPredictions
assert keras.backend.backend() == "jax"
rng = np.random.default_rng(0)
x = rng.normal(size=(640, 4)).astype("float32")
y = (x[:, 0] > 0).astype("int64")
ids = np.array([f"user-{i}" for i in range(640)])
inputs = keras.Input((4,))
model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(inputs))
model.compile(keras.optimizers.Adam(0.1), "binary_crossentropy", weighted_metrics=["accuracy"])
with ofb_tf.ForwardRecordWriter("records") as writer:
    model.predict(x, callbacks=[RecordPredictions(writer, ids)], verbose=0)
examples = tf.data.Dataset.from_tensor_slices((ids, (x, y)))
train = examples.apply(ofb_tf.ofb_sample(records="records", window_size=320, batch_size=32))
model.fit(train, epochs=20, verbose=0)
loss, accuracy = model.evaluate(x, y, verbose=0)
assert accuracy > 0.9, accuracy
try:
    ofb_tf.OFBModel(inputs, model.outputs[0])
except RuntimeError as error:
    assert "needs Keras's TensorFlow backend. Received: jax" in str(error), error
else:
    raise AssertionError("OFBModel on JAX")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_stock_keras_on_jax_trains_on_the_selection(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": path}
    subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, timeout=500, cwd=tmp_path, env=environment
    )

import keras
import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.serving import export_recording_model
from tests.streams import serialized_example

FEATURE_SPEC = {
    "example_id": tf.io.FixedLenFeature([], tf.int64),
    "x": tf.io.FixedLenFeature([3], tf.float32),
}


@pytest.fixture(scope="session")
def examples():
    inputs = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    ids = np.arange(64) * 1000 - 7
    rows = zip(ids, inputs, strict=True)
    return ids, inputs, [serialized_example(example_id=i, x=x) for i, x in rows]


@pytest.fixture(scope="session")
def model():
    keras.utils.set_random_seed(1)
    inputs = keras.Input([3], name="x")
    return keras.Model(inputs, keras.layers.Dense(4)(inputs))


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "1"
    export_recording_model(model, path, FEATURE_SPEC)
    return path

"""MirroredStrategy on two logical CPU devices, in a process of its own.

Run as `python mirrored.py`; the last line of stdout is JSON, with one entry for each comparison.
"""

import json

import keras
import numpy as np
import tensorflow as tf

import ofb_tf

N, BATCH = 64, 16


def make_data():
    """Fields of all examples."""
    random = np.random.default_rng(0)
    return {
        "x": random.normal(size=(N, 3)).astype(np.float32),
        "label": random.integers(0, 3, N),
        "importance_weight": random.uniform(0.2, 5.0, N).astype(np.float32),
    }


def build(cls=ofb_tf.OFBModel, model_settings=None, **settings):
    """The same initial weights in every call."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), name="x")
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    model = cls(inputs, keras.layers.Dense(3)(hidden), **(model_settings or {}))
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
        **{"jit_compile": False, **settings},
    )
    return model


def fit(model, as_tuples=False):
    """Two epochs with validation; the history."""
    data = make_data()
    elements = (data["x"], data["label"], data["importance_weight"]) if as_tuples else data
    dataset = tf.data.Dataset.from_tensor_slices(elements).batch(BATCH)
    history = model.fit(dataset, epochs=2, validation_data=dataset, shuffle=False, verbose=0)
    return {name: [float(v) for v in values] for name, values in history.history.items()}


def outcome(cls, strategy, settings):
    """ "works", or the type of the error."""
    try:
        with strategy.scope():
            model = build(cls, **settings)
        fit(model, as_tuples=True)
    except Exception as error:
        return type(error).__name__
    return "works"


def main() -> dict:
    """Runs all comparisons: one process, as TensorFlow's start takes longer than they do."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    names = ("compare", "backward_rate", "steps_per_execution", "jit_compile")
    return {name: run(name, strategy) for name in names}


def run(what: str, strategy: tf.distribute.Strategy) -> dict:
    """Runs one comparison."""
    if what == "compare":
        one = build()
        with strategy.scope():
            two = build()
        return {
            "replicas": strategy.num_replicas_in_sync,
            **{
                name: {
                    "history": fit(model),
                    "weights": [w.tolist() for w in model.get_weights()],
                }
                for name, model in (("one", one), ("two", two))
            },
        }
    if what == "backward_rate":
        with strategy.scope():
            model = build(model_settings={"backward_rate": 0.25})
        return {"history": fit(model)}
    settings = (
        {"steps_per_execution": 2} if what == "steps_per_execution" else {"jit_compile": True}
    )
    return {
        name: outcome(cls, strategy, settings)
        for name, cls in (("stock", keras.Model), ("ours", ofb_tf.OFBModel))
    }


if __name__ == "__main__":
    print(json.dumps(main()))

"""MirroredStrategy on two logical CPU devices, in a process of its own.

Run as `python -m tests.multi_worker.mirrored`; the last line of stdout is JSON, with one entry
per comparison.
"""

import json

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from tests.training import models


def build(cls=ofb_tf.OFBModel, **settings):
    metrics = {
        "metrics": ["accuracy"],
        "weighted_metrics": [keras.metrics.SparseCategoricalAccuracy(name="weighted")],
    }
    return models.build(cls, **{"jit_compile": False} | metrics | settings)


def fit(model, elements=None):
    """Two epochs with validation; the history."""
    dataset = models.batches(models.make_data() if elements is None else elements)
    history = models.fit(model, dataset, epochs=2, validation_data=dataset)
    return {name: [float(v) for v in values] for name, values in history.items()}


def outcome(cls, strategy, settings):
    """ "works", or the type of the error."""
    try:
        with strategy.scope():
            model = build(cls, **settings)
        fit(model, models.as_tuple(models.make_data()))
    except Exception as error:
        return type(error).__name__
    return "works"


def main() -> dict:
    """Runs all comparisons: one process, as TensorFlow's start takes longer than they do."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    names = ("compare", "log_odds", "backward_rate", "steps_per_execution", "jit_compile")
    return {name: run(name, strategy) for name in names}


def with_offsets():
    data = models.make_data()
    return data | {"log_inclusion": np.random.default_rng(1).normal(size=(models.N, 4))}


def run(what: str, strategy: tf.distribute.Strategy) -> dict:
    """Runs one comparison."""
    if what in ("compare", "log_odds"):
        elements = with_offsets() if what == "log_odds" else None
        one = build()
        with strategy.scope():
            two = build()
        return {
            "replicas": strategy.num_replicas_in_sync,
            **{
                name: {
                    "history": fit(model, elements),
                    "weights": [w.tolist() for w in model.get_weights()],
                }
                for name, model in (("one", one), ("two", two))
            },
        }
    if what == "backward_rate":
        with strategy.scope():
            model = build(backward_rate=0.25)
        return {"history": fit(model)}
    settings = {what: 2 if what == "steps_per_execution" else True}
    return {
        name: outcome(cls, strategy, settings)
        for name, cls in (("stock", keras.Model), ("ours", ofb_tf.OFBModel))
    }


if __name__ == "__main__":
    print(json.dumps(main()))

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


def main() -> dict:
    """Runs all comparisons: one process, as TensorFlow's start takes longer than they do."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def mirrored(*args, **settings):
        with strategy.scope():
            return build(*args, **settings)

    def outcomes(**settings):
        """ "works", or the type of the error, of stock Keras and of ours."""
        found = {}
        for name, cls in (("stock", keras.Model), ("ours", ofb_tf.OFBModel)):
            try:
                fit(mirrored(cls, **settings), models.as_tuple(models.make_data()))
                found[name] = "works"
            except Exception as error:
                found[name] = type(error).__name__
        return found

    def compared(elements=None):
        found = {
            name: {
                "history": fit(model, elements),
                "weights": [w.tolist() for w in model.get_weights()],
            }
            for name, model in (("one", build()), ("two", mirrored()))
        }
        return found | {"replicas": strategy.num_replicas_in_sync}

    offsets = np.random.default_rng(1).normal(size=(models.N, models.NUM_CLASSES))
    return {
        "compare": compared(),
        "log_odds": compared(models.make_data() | {"log_inclusion": offsets}),
        "backward_rate": {"history": fit(mirrored(backward_rate=0.25))},
        "steps_per_execution": outcomes(steps_per_execution=2),
        "jit_compile": outcomes(jit_compile=True),
    }


if __name__ == "__main__":
    print(json.dumps(main()))

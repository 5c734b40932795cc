"""A tiny workload of arrays."""

import numpy as np

from ofb_tf.experiments import workloads

NUM_TRAIN = 200


def array_workload(num_classes, seed=0):
    """200 training and 30 test examples, learnable; None for regression."""
    random = np.random.default_rng(1)
    features = random.normal(size=(230, 4)).astype(np.float32)
    if num_classes is None:
        label = features.sum(1) + 10
    else:
        label = np.argmax(features[:, :num_classes], 1).astype(np.int64)
    fields = {"example_id": np.arange(230) * 7, "features": features, "label": label}
    train = {name: values[:NUM_TRAIN] for name, values in fields.items()}
    test = {name: values[NUM_TRAIN:] for name, values in fields.items()}
    return workloads.ArrayWorkload(train, test, num_classes=num_classes, seed=seed, hidden_units=8)

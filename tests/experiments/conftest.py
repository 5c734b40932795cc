"""Trials with known figures, without a simulation, and a tiny workload of arrays."""

import numpy as np

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import summary, workloads
from ofb_tf.experiments.trial import TrialResult

VALUES = {"uniform": [3.0, 5.0], "importance": [2.0, 3.0], "everything": [1.0, 3.0]}
RATES = {"everything": 1.0, "info_batch": 0.6}


def make_result(policy, seed, value, rate=0.1, progressive=None):
    rate = RATES.get(policy, rate)
    served = {} if progressive is None else {"progressive": progressive * value}
    return TrialResult(
        policy=policy,
        seed=seed,
        metric="test_loss",
        metric_text="mean cross-entropy",
        metrics={"test_loss": value, "calibration": 1.0 + seed} | served,
        stream_examples=1000,
        backward_examples=int(1000 * rate),
        mean_weight=1.0,
        max_weight=2.0 + seed,
        effective_sample_size=0.8,
        train_seconds=4.0,
        wall_seconds=4.0,
        cpu_seconds=3.0,
        warm_up_seconds=0.25,
        serving_seconds=1.0,
        curve=[
            {
                "stream_examples": x,
                "backward_examples": x * rate,
                "train_seconds": x / 250,
                "test_loss": value + 1 - x / 1000,
            }
            for x in (0, 500, 1000)
        ],
    )


def summarize(values=VALUES, rate=0.1, progressive=None, **more):
    """The content of results.json from the metric's values of each policy."""
    seeds = len(values["uniform"])
    config = configs.SimulationConfig(
        dataset="mnist", seeds=seeds, rate=rate, policies=tuple(values)
    )
    results = [
        make_result(p, seed, value, rate, progressive)
        for p, group in values.items()
        for seed, value in enumerate(group)
    ]
    command = "ofb demo --dataset='<mnist>'"
    return summary.summarize(config, results[::-1], command=command) | more


def array_workload(num_classes, seed=0):
    """200 training and 30 test examples, learnable; None for regression."""
    random = np.random.default_rng(1)
    features = random.normal(size=(230, 4)).astype(np.float32)
    if num_classes is None:
        label = features.sum(1) + 10
    else:
        label = np.argmax(features[:, :num_classes], 1).astype(np.int64)
    fields = {"example_id": np.arange(230) * 7, "features": features, "label": label}
    train = {name: values[:200] for name, values in fields.items()}
    test = {name: values[200:] for name, values in fields.items()}
    return workloads.flat_workload(
        train, test, num_classes=num_classes, seed=seed, hidden_units=(8, 8)
    )

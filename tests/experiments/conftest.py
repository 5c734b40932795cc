"""Trials with known figures, without a simulation."""

import numpy as np
import pytest

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import summary
from ofb_tf.experiments.trial import TrialResult

VALUES = {"uniform": [3.0, 5.0], "importance": [2.0, 3.0], "everything": [1.0, 3.0]}
RATES = {"everything": 1.0, "info_batch": 0.6}


def make_result(policy, seed, value, rate=0.1):
    rate = RATES.get(policy, rate)
    losses = np.random.default_rng([seed, len(policy)]).lognormal(-2, 2, 50)
    return TrialResult(
        policy=policy,
        seed=seed,
        metric="test_loss",
        metric_text="mean cross-entropy",
        metrics={"test_loss": value, "calibration": 1.0 + seed},
        stream_examples=1000,
        backward_examples=int(1000 * rate),
        mean_weight=1.0,
        max_weight=2.0 + seed,
        effective_sample_size=0.8,
        train_seconds=4.0,
        build_seconds=0.5,
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
        histogram={
            "num_selected": 10,
            "num_not_selected": 90,
            "selected": sorted(losses * 6),
            "not_selected": sorted(losses),
        }
        if seed == 0 and policy not in ("uniform", "everything")
        else None,
    )


def summarize(values=VALUES, rate=0.1, **more):
    """The content of results.json from the metric's values of each policy."""
    seeds = len(values["uniform"])
    config = configs.SimulationConfig(
        dataset="mnist", seeds=seeds, rate=rate, policies=tuple(values)
    )
    results = [
        make_result(p, seed, value, rate)
        for p, group in values.items()
        for seed, value in enumerate(group)
    ]
    command = "ofb demo --dataset='<mnist>'"
    return summary.summarize(config, results[::-1], command=command) | more


@pytest.fixture(name="make_results")
def _make_results():
    return summarize

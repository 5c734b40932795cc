"""Cells with known figures, without a simulation."""

import pytest

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import results
from ofb_tf.experiments.simulation import CellResult

VALUES = {"uniform": [3.0, 5.0], "importance": [2.0, 3.0], "everything": [1.0, 3.0]}


def cell(policy, seed, value):
    backward = 100 if policy == "everything" else 10
    return CellResult(
        policy=policy,
        seed=seed,
        metrics={"test_loss": value, "calibration": 1.0 + seed},
        stream_examples=100,
        backward_examples=backward,
        mean_weight=1.0,
        max_weight=2.0 + seed,
        effective_sample_size=0.8,
        train_seconds=4.0,
        build_seconds=0.5,
        serving_seconds=1.0,
        curve=[
            {
                "stream_examples": x,
                "backward_examples": x * backward / 100,
                "train_seconds": x / 25,
                "test_loss": value + 1 - x / 100,
            }
            for x in (0, 50, 100)
        ],
        histogram={"selected": [1.0, 2.0], "not_selected": [0.1] * 9}
        if policy == "importance" and seed == 0
        else None,
    )


def summarise(values=VALUES):
    cells = [cell(p, seed, v) for p, group in values.items() for seed, v in enumerate(group)]
    return results.summarise(
        configs.SimulationConfig(dataset="mnist", seeds=2),
        cells[::-1],
        metric="test_loss",
        metric_text="mean cross-entropy",
        command="ofb demo --dataset=mnist",
        version="1.2.3",
    )


@pytest.fixture(name="make_results")
def _make_results():
    """From the metric's values of each policy to the content of results.json."""
    return summarise

"""Contents of results.json for the report's tests: invented figures in the real schema."""

import numpy as np

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import results
from ofb_tf.experiments.simulation import CellResult
from ofb_tf.selection import POLICIES

FINAL = {
    "uniform": 2.0,
    "importance": 1.2,
    "loss_matching": 2.1,
    "selective_backprop": 3.5,
    "top_loss": 9.0,
    "bottom_loss": 60.0,
    "info_batch": 1.15,
    "everything": 1.0,
}
CALIBRATION = {"selective_backprop": 2.4, "top_loss": 6.0, "loss_matching": 1.3}
EVERY_POLICY = (*POLICIES, "everything")


def cell(policy, seed, final, rate, scale):
    random = np.random.default_rng([seed, len(policy)])
    rate = {"everything": 1.0, "info_batch": 0.6}.get(policy, rate)
    final = final * (1 + 0.03 * random.normal())
    curve = []
    for step in range(11):
        done = step / 10
        curve.append(
            {
                "stream_examples": int(100_000 * done),
                "backward_examples": int(100_000 * rate * done),
                "train_seconds": (3 + 20 * rate) * done,
                "test_loss": scale * (final + 4 * np.exp(-6 * done) * (1 + 0.05 * random.normal())),
            }
        )
    losses = random.lognormal(-2, 2, 500)
    return CellResult(
        policy=policy,
        seed=seed,
        metrics={
            "test_loss": curve[-1]["test_loss"],
            "calibration": CALIBRATION.get(policy, 1.0) + 0.01 * random.normal(),
        },
        stream_examples=100_000,
        backward_examples=int(100_000 * rate),
        mean_weight=1.0,
        max_weight=4.5,
        effective_sample_size=0.7,
        train_seconds=3 + 20 * rate,
        build_seconds=0.5,
        serving_seconds=1.0,
        curve=curve,
        histogram={"selected": sorted(losses * 6), "not_selected": sorted(losses)}
        if seed == 0 and policy not in ("uniform", "everything")
        else None,
    )


def comparison(title, group, rate=0.1, policies=EVERY_POLICY, scale=1.0, seeds=3, **finals):
    """One comparison; `finals` are the metric at the end that differ from `FINAL`."""
    config = configs.SimulationConfig(
        dataset="mnist", seeds=seeds, policies=tuple(policies), rate=rate
    )
    values = FINAL | finals
    content = results.summarise(
        config,
        [
            cell(policy, seed, values[policy], rate, scale)
            for policy in config.policies
            for seed in range(seeds)
        ],
        metric="test_loss",
        metric_text="mean cross-entropy on held-out examples, in nats",
        command="ofb compare",
        version="1.2.3",
    )
    return {"title": title, "group": group, "config": {}, **content}


def comparisons():
    fewer = ("uniform", "importance", "everything")
    return {
        "command": "ofb compare --suite=standard --output_dir='<out>'",
        "version": "1.2.3",
        "date": "2026-11-22",
        "comparisons": [
            comparison("mnist, rate 0.1", "Every policy at rate 0.1"),
            comparison("diamonds, rate 0.1", "Every policy at rate 0.1", importance=1.6),
            comparison(
                "click_stream (0.01 positives), rate 0.1", "Every policy at rate 0.1", scale=1e-3
            ),
            comparison("mnist, rate 0.02", "Other rates", 0.02, fewer, importance=1.9),
            comparison("mnist, rate 0.3", "Other rates", 0.3, fewer, uniform=0.9),
            comparison(
                "mnist, rate 0.1, snapshot refreshed every 94 windows, 0.1 of labels random",
                "Wrong labels",
                importance=2.4,
                bottom_loss=1.8,
            ),
        ],
    }

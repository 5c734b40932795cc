"""Validation of `SimulationConfig`."""

import pytest

from ofb_tf.experiments import SimulationConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, r"rate must be in \(0, 1\]. Received: 0.0"),
        ({"rate": 1.5}, r"rate must be in \(0, 1\]. Received: 1.5"),
        ({"rate": float("nan")}, "rate must be in"),
        ({"window_size": 1}, "window_size must be at least 2. Received: 1"),
        ({"refresh_interval": -1}, "refresh_interval must be at least 1, or 0 .* Received: -1"),
        ({"label_noise": 1.0}, r"label_noise must be in \[0, 1\). Received: 1.0"),
        ({"outliers": -0.1}, r"outliers must be in \[0, 1\). Received: -0.1"),
        ({"missing_records": 1.0}, r"missing_records must be in \[0, 1\). Received: 1.0"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"num_examples": 0}, "num_examples must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"positive_rate": 1.0}, r"positive_rate must be in \(0, 1\)"),
        ({"steps_per_window": 0}, "steps_per_window must be at least 1. Received: 0"),
        ({"steps_per_window": 3}, "window_size must be a multiple of steps_per_window"),
        ({"selective_beta": -1.0}, "selective_beta must be finite and at least 0. Received: -1.0"),
        ({"uniform_mix": 1.1}, r"uniform_mix must be in \[0, 1\]. Received: 1.1"),
        ({"dataset": ""}, "dataset must be a name"),
        ({"policies": ("best",)}, "policies must be among .*'importance'.* Received: 'best'"),
        ({"rate": 0.001, "window_size": 100}, r"rate \* window_size must be at least 1"),
    ],
)
def test_validation(settings, message):
    with pytest.raises(ValueError, match=message):
        SimulationConfig(**settings)


def test_policies_get_their_settings():
    config = SimulationConfig(uniform_mix=0.3, selective_beta=2.0)
    assert config.make_policy("importance").uniform_mix == 0.3
    assert config.make_policy("selective_backprop").beta == 2.0
    assert SimulationConfig().make_policy("selective_backprop").beta is None


def test_both_ends_of_the_gap_always_run():
    assert SimulationConfig(policies=("importance",)).policies == (
        "uniform",
        "importance",
        "everything",
    )


def test_defaults_of_a_dataset_and_settings_over_them():
    config = SimulationConfig.for_dataset("mnist", passes=None, window_size=320)
    assert (config.passes, config.window_size, config.batch_size) == (6, 320, 32)


def test_interval_between_refreshes():
    assert SimulationConfig(window_size=100, refresh_interval=4).interval_length(1000) == 400
    assert SimulationConfig(window_size=100, refresh_interval=0).interval_length(1000) == 1000

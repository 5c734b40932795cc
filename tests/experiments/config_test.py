"""Settings, the names of trials, and the suites."""

import itertools
import pathlib
import re

import pytest

from ofb_tf.experiments import config as configs
from ofb_tf.experiments.config import SimulationConfig, Trial


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
        ({"model": "huge"}, r"model must be in .*'linear', 'small', 'deep'.* Received: 'huge'"),
        ({"served_model": "huge"}, "served_model must be in .* Received: 'huge'"),
        (
            {"dataset": "nycflights13_cancelled", "served_model": "deep"},
            "served_model must be None for a stream",
        ),
        ({"policies": ("best",)}, "policies must be among .*'importance'.* Received: 'best'"),
        (
            {"dataset": "click_conversion", "estimator": "log_odds"},
            "estimator must be 'weights' for the two heads of click_conversion",
        ),
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
    expected = ("uniform", "importance", "everything")
    assert SimulationConfig(policies=("importance",)).policies == expected


def test_defaults_of_a_dataset_and_settings_over_them():
    config = SimulationConfig.for_dataset("mnist", passes=None, window_size=320)
    assert (config.passes, config.window_size, config.batch_size) == (6, 320, 32)
    deep = SimulationConfig.for_dataset("click_stream", model="deep", seeds=7)
    assert (deep.num_examples, deep.window_size, deep.seeds) == (400_000, 2560, 7)


def trial(policy="importance", seed=0, **settings):
    return Trial(SimulationConfig(**{"dataset": "click_stream", **settings}), policy, seed)


def test_everything_that_a_trial_depends_on_is_in_its_name():
    others = {
        "policy": "top_loss", "seed": 1, "rate": 0.2, "window_size": 640, "refresh_interval": 94,
        "passes": 2, "num_examples": 1000, "test_examples": 1000, "learning_rate": 1e-2,
        "positive_rate": 0.03, "label_noise": 0.1, "missing_records": 0.2, "steps_per_window": 4,
        "uniform_mix": 0.5, "dataset": "mnist", "model": "deep", "served_model": "deep",
    }  # fmt: skip
    trials = [trial(), *(trial(**{name: value}) for name, value in others.items())]
    trials += [trial("selective_backprop"), trial("selective_backprop", selective_beta=1.0)]
    assert len({one.file_name for one in trials}) == 20


def test_names_of_trials_stay_so_that_old_results_resume():
    assert trial().file_name == "click_stream-importance-0-f747b2cc910222a230f26b53.json"
    everything = trial("everything", rate=0.2).file_name
    assert everything == "click_stream-everything-0-59d8275a24e3cddef066ccba.json"


def test_trials_share_what_they_do_not_depend_on():
    assert trial().file_name == trial(seeds=7, policies=("top_loss",)).file_name
    mnist = trial(dataset="mnist")
    assert mnist.file_name == trial(dataset="mnist", data_dir="/elsewhere").file_name
    assert mnist == trial(dataset="mnist", positive_rate=0.3)
    stale = {"refresh_interval": 94, "missing_records": 0.2, "served_model": "linear"}
    assert trial("uniform", **stale) == trial("uniform")
    assert trial("uniform", rate=0.2) != trial("uniform")
    assert trial("everything", rate=0.2, **stale) == trial("everything")
    assert trial("uniform", uniform_mix=0.5) == trial("uniform")
    assert trial("importance", selective_beta=1.0) == trial("importance")
    assert trial(served_model="small") == trial()  # which is the model that is trained
    large = {"window_size": 5120, "steps_per_window": 4}
    assert trial("everything", **large) == trial("everything", window_size=1280)
    assert trial("uniform", **large) != trial("uniform", window_size=1280)
    assert trial("everything", label_noise=0.2) != trial("everything")


def test_a_new_version_of_selection_runs_every_trial_again(monkeypatch):
    before = trial().file_name
    monkeypatch.setattr(configs, "TRIAL_VERSION", configs.TRIAL_VERSION + 1)
    assert trial().file_name != before


def test_standard_suite_has_the_tasks_of_its_name():
    suite = configs.standard(seeds=5, data_dir=None)
    titles = [one.title for one in suite]
    assert len(set(titles)) == len(titles)
    for title in (
        "mnist, rate 0.1",
        "diamonds, rate 0.2",
        "click_stream (0.004 positives), rate 0.02",
        "click_stream (0.03 positives), rate 0.05",
        "mnist, rate 0.1, snapshot refreshed every 94 windows",
        "diamonds, rate 0.1, snapshot refreshed once a pass",
        "mnist, rate 0.1, selective_backprop with beta 1",
        "mnist, rate 0.1, 0.1 of labels random",
        "mnist, rate 0.01, log-odds correction",
        "mnist, rate 0.1, log-odds correction, 0.1 of labels random",
        "diamonds, rate 0.1, 0.05 of targets outliers",
        "click_stream (0.01 positives), rate 0.1, 0.2 of records missing",
    ):
        assert title in titles
    fewer = {"Other rates", "Log-odds correction", "Larger windows", "Uniform mix"}
    for one in suite:
        policies = {**dict.fromkeys(fewer, 3), "Milder selective_backprop": 4}.get(one.group, 8)
        policies = 3 if one.config.estimator == "log_odds" else policies
        assert len(one.config.policies) == policies, one.title
    groups = [one.group for one in suite]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == len(set(groups)) - 1
    assert {one.config.seeds for one in suite} == {5}


def test_quick_suite_needs_no_dataset():
    suite = configs.quick(seeds=2)
    assert {one.config.dataset for one in suite} == {"click_stream"}
    assert {one.config.seeds for one in suite} == {2}
    assert len({one.title for one in suite}) == 3
    # Uniform and everything are the same trials where records are missing.
    assert len({one for comparison in suite for one in comparison.trials()}) == (8 + 8 + 6) * 2


def test_grid_combines_every_axis():
    axes = {"rate": [0.1, 0.2], "missing_records": [0.0, 0.3], "label_noise": []}
    made = configs.grid(["mnist", "diamonds"], axes, seeds=2, passes=None)
    found = {(m.config.dataset, m.config.rate, m.config.missing_records) for m in made}
    assert len(made) == len(found) == 8
    assert made[0].config.passes == 6


def test_every_advice_points_at_a_table_of_the_standard_suite():
    choosing = pathlib.Path(__file__).parents[2] / "docs" / "CHOOSING.md"
    named = set(re.findall(r"RESULTS\.md#([^)]+)\)", choosing.read_text(encoding="utf-8")))
    titles = [one.title for one in configs.standard(seeds=5, data_dir=None)]
    titles += ["Gap closure", "Where the default does not win"]
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert named - anchors == set()
    assert anchors - named == set()


def test_a_sweep_makes_every_comparison_at_each_learning_rate():
    made = configs.grid(["mnist", "diamonds"], {"rate": [0.1, 0.2]}, seeds=2)
    swept = configs.sweep(made, [0.003, 0.001, 0.003])
    assert [(s.config.dataset, s.config.rate, s.config.learning_rate) for s in swept[:4]] == [
        ("mnist", 0.1, 0.003), ("mnist", 0.1, 0.001), ("mnist", 0.2, 0.003), ("mnist", 0.2, 0.001),
    ]  # fmt: skip
    assert len(swept) == 8
    assert swept[0].title == "mnist, rate 0.1, learning rate 0.003"
    assert swept[1].title == "mnist, rate 0.1"
    assert swept[1].trials() == made[0].trials()  # those that are finished are found
    assert swept[0].at_default_learning_rate() == made[0]
    assert configs.sweep(made, None) == made
    standard = configs.standard(seeds=2, data_dir=None)
    swept = configs.sweep(standard, [0.003, 0.01])
    rates = {group: {s.config.learning_rate for s in swept if s.group == group} for group in
             {one.group for one in standard}}  # fmt: skip
    assert rates["Other rates"] == rates["Wrong labels"] == {0.003, 0.01}
    assert rates["Uniform mix"] == rates["Lost records"] == {0.001}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("my_stream:workload", True),
        ("package.my_stream:workload", True),
        ("diamonds:1.0.0", False),
        ("mnist", False),
    ],
)
def test_a_workload_of_ones_own_is_no_tfds_version(dataset, expected):
    assert configs.is_own(dataset) is expected
    assert configs.is_stream("nycflights13_delay")
    assert SimulationConfig.for_dataset(dataset).refresh_interval == (1 if expected else 20)


def test_who_served_a_stream_is_part_of_every_trial():
    """Its answers are evaluated, also where the policy needs no records."""
    stream = {"dataset": "my_stream:workload"}
    often, seldom = ({**stream, "refresh_interval": interval} for interval in (1, 5))
    for policy in ("uniform", "everything"):
        assert trial(policy, **often) != trial(policy, **seldom)
        assert trial(policy, **often, missing_records=0.2) == trial(policy, **often)
    steps = trial("everything", **often, steps_per_window=2)
    assert (steps.config.window_size, steps.config.steps_per_window) == (1280, 2)
    assert trial(**stream).file_name != trial(**stream, fingerprint="0123").file_name

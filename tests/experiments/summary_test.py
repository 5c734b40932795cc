"""Statistics of finished trials, against numpy and by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import report, summary
from ofb_tf.experiments.config import SimulationConfig
from tests.experiments.conftest import VALUES, make_result, summarize

RESULT = {
    "dataset", "rate", "seeds", "metric", "metric_text", "command", "version", "window_size",
    "refresh_interval", "passes", "learning_rate", "stream_examples", "policies", "further_metrics",
}  # fmt: skip
POLICY = {
    "mean", "standard_error", "values", "gap_closure", "gap_closure_standard_error",
    "against_default", "calibration", "realized_rate", "mean_weight", "max_weight",
    "effective_sample_size", "backward_examples", "train_seconds", "wall_seconds", "cpu_seconds",
    "warm_up_seconds", "serving_seconds", "metrics", "time_to_uniform", "stream_to_uniform",
    "seconds_to_full_quality", "curves", "further", "progressive",
    "learning_rate",
}  # fmt: skip


def test_figures_against_numpy():
    random = np.random.default_rng(3)
    levels = {"uniform": 4, "importance": 2.5, "top_loss": 5, "everything": 2}
    values = {policy: list(at + random.normal(size=5) / 10) for policy, at in levels.items()}
    policies = summarize(values)["policies"]
    for policy, shown in policies.items():
        ours = np.array(values[policy])
        assert shown["values"] == values[policy]
        assert shown["mean"] == pytest.approx(ours.mean())
        assert shown["standard_error"] == pytest.approx(ours.std(ddof=1) / np.sqrt(5))

        def closure(keep, policy=policy):
            names = ("uniform", policy, "everything")
            uniform, ours, everything = (np.array(values[name])[keep].mean() for name in names)
            return (uniform - ours) / (uniform - everything)

        assert shown["gap_closure"] == pytest.approx(closure(np.arange(5)))
        left_out = [closure(np.delete(np.arange(5), seed)) for seed in range(5)]
        jackknife = np.sqrt(4 / 5 * np.sum((left_out - np.mean(left_out)) ** 2))
        assert shown["gap_closure_standard_error"] == pytest.approx(jackknife, abs=1e-12)
    difference = np.subtract(values["top_loss"], values["importance"])
    assert policies["top_loss"]["against_default"] == {
        "mean": pytest.approx(difference.mean()),
        "standard_error": pytest.approx(difference.std(ddof=1) / np.sqrt(5)),
    }
    assert policies["importance"]["against_default"] is None
    assert policies["everything"]["against_default"] is None


def test_schema_and_json_round_trip():
    content = summarize()
    assert set(content) == RESULT
    for shown in content["policies"].values():
        assert set(shown) == POLICY
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    importance = content["policies"]["importance"]
    assert (importance["calibration"], importance["max_weight"]) == (1.5, 2.5)
    assert importance["realized_rate"] == pytest.approx(0.1)


def test_jackknife_by_hand():
    # Without seed 0: (5-3)/(5-3) = 1; without seed 1: (3-2)/(3-1) = 0.5.
    error = summary.gap_closure_error(*VALUES.values())
    assert error == pytest.approx(np.sqrt(0.5 * (0.25**2 + 0.25**2)))


def test_gap_closure_has_a_guard():
    assert summary.gap_closure(4.0, 2.5, 2.0) == 0.75
    for ends in ((2.0, 2.0), (2.0, 3.0), (math.nan, 1.0), (math.inf, 1.0)):
        assert summary.gap_closure(ends[0], 1.5, ends[1]) is None
    content = summarize(VALUES | {"everything": [4.0, 6.0]})
    assert content["policies"]["importance"]["gap_closure"] is None


def test_single_seed_has_no_error():
    assert summary.standard_error([1.0]) is None
    assert summary.gap_closure_error([3.0], [2.0], [1.0]) is None


def test_time_to_uniform_by_hand():
    # Mean curves fall straight by 1 over the stream: uniform ends at 4, importance begins at 3.5.
    policies = summarize()["policies"]
    assert policies["uniform"]["stream_to_uniform"] == pytest.approx(1.0)
    assert policies["importance"]["stream_to_uniform"] == 0.0
    slower = summarize(VALUES | {"importance": [3.25, 4.25]})["policies"]["importance"]
    assert slower["stream_to_uniform"] == pytest.approx(0.75)
    assert slower["time_to_uniform"] == pytest.approx(0.75)
    never = summarize(VALUES | {"importance": [6.0, 6.0]})["policies"]["importance"]
    assert never["time_to_uniform"] is None


def test_seconds_to_full_quality_by_hand():
    # Everything ends at 2 after 4 seconds; each mean curve falls by 1 in that time.
    policies = summarize()["policies"]
    assert policies["everything"]["seconds_to_full_quality"] == pytest.approx(4.0)
    assert policies["importance"]["seconds_to_full_quality"] is None  # ends at 2.5
    better = summarize(VALUES | {"importance": [1.0, 2.5]})["policies"]["importance"]
    assert better["seconds_to_full_quality"] == pytest.approx(4 * 0.75)  # from 2.75 to 1.75


def test_first_reached_is_the_first_crossing_also_of_a_curve_that_rises_again():
    curve = [{"x": x, "y": y} for x, y in enumerate((9.0, 5.0, 7.0, 3.0, 4.0))]
    for goal, expected in ((9.5, 0.0), (9.0, 0.0), (6.0, 0.75), (5.0, 1.0), (4.0, 2.75)):
        assert summary.first_reached([curve], "y", goal, "x") == pytest.approx(expected)
    assert summary.first_reached([curve], "y", 2.9, "x") is None


def test_mean_curve_against_numpy():
    curves = summarize()["policies"]["uniform"]["curves"]
    mean, error = summary.mean_curve(curves, "test_loss")
    np.testing.assert_allclose(mean, [5.0, 4.5, 4.0])
    np.testing.assert_allclose(error, [1.0] * 3)  # values 3 and 5: half their distance
    assert summary.mean_curve(curves[:1], "test_loss")[1] is None


def test_best_within_the_budget():
    content = summarize(VALUES | {"info_batch": [0.5, 0.5], "top_loss": [9.0, 9.0]})
    assert summary.best(content) == "importance"  # info_batch realises 0.6 for a rate of 0.1
    content["policies"]["importance"]["mean"] = math.nan
    assert summary.best(content) == "uniform"


def test_one_rule_for_what_beats_the_default():
    """B7: paired errors, whatever the realised rate, whether or not `against_default` is there."""
    values = {"uniform": [3.0, 5.0], "importance": [2.0, 4.0], "everything": [1.0, 3.0]}
    values |= {"info_batch": [1.5, 3.6], "top_loss": [1.0, 4.9], "bottom_loss": [9.0, 9.0]}
    content = summarize(values, title="mnist, rate 0.1")
    # By 0.45 ± 0.05; the other by 0.05 ± 0.95.
    (found,) = summary.better_than_default([content])
    assert found[:2] == ("mnist, rate 0.1", "info_batch")
    assert found[2:] == pytest.approx((0.45, 0.05, 0.6))
    for shown in content["policies"].values():
        del shown["against_default"]
    assert summary.better_than_default([content]) == [found]
    del content["policies"]["importance"]
    assert summary.better_than_default([content]) == []


def test_gap_closure_by_another_metric():
    """Of a second head, whose values are the first one's of another seed."""
    results = [
        dataclasses.replace(
            make_result(policy, seed, value),
            further_metrics={"second": "of the second head"},
            metrics={"test_loss": value, "second": values[1 - seed] ** 2, "calibration": 1.0},
        )
        for policy, values in VALUES.items()
        for seed, value in enumerate(values)
    ]
    config = SimulationConfig(dataset="mnist", seeds=2)
    content = summary.summarize(config, results, command="")
    assert content["further_metrics"] == {"second": "of the second head"}
    shown = content["policies"]["importance"]["further"]["second"]
    assert shown["values"] == [9.0, 4.0]
    # Means of squares: uniform 17, importance 6.5, everything 5.
    assert shown["gap_closure"] == pytest.approx((17 - 6.5) / (17 - 5))
    headings, *rows = report.table_rows(content)
    assert headings[-2:] == ["second", "gap closure, second"]
    assert [row[-1].split()[0] for row in rows] == ["0.00", "0.88", "1.00"]
    assert rows[1][-2] == "6.5 ± 2.5"
    assert "0.88" in report.headline(content) and "by second" in report.headline(content)
    comparison = content | {"title": "two heads", "group": "Heads", "config": {}}
    page = report.as_markdown({"comparisons": [comparison], "version": "0", "command": ""})
    assert "two heads, by second" in page


def test_each_policy_at_its_best_learning_rate():
    levels = {
        0.001: {"uniform": 4.0, "importance": 3.0, "everything": 2.0},
        0.003: {"uniform": 3.0, "importance": 3.5, "everything": math.nan, "top_loss": 1.0},
        0.01: {"uniform": math.inf, "importance": 2.5, "everything": 1.0, "top_loss": 9.0},
    }
    swept = {
        rate: {
            p: [make_result(p, seed, value + seed) for seed in (0, 1)] for p, value in of.items()
        }
        for rate, of in levels.items()
    }
    results, rates = summary.at_best(swept)
    assert rates == {"uniform": 0.003, "importance": 0.01, "everything": 0.01}
    for policy, rate in rates.items():
        assert results[policy] is swept[rate][policy]


def test_learning_rates_are_shown_where_they_differ():
    plain = summarize()
    assert plain["learning_rate"] == 0.001
    assert {shown["learning_rate"] for shown in plain["policies"].values()} == {0.001}
    config = configs.SimulationConfig(dataset="mnist", seeds=1)
    results = [make_result(policy, 0, 1.0) for policy in config.policies]
    rates = {"uniform": 0.003, "importance": 0.01, "everything": 0.001}
    content = summary.summarize(config, results, command="", learning_rates=rates)
    assert content["learning_rate"] is None
    assert {p: shown["learning_rate"] for p, shown in content["policies"].items()} == rates


def test_the_progressive_metric_has_a_gap_too():
    values = {"uniform": [3.0, 5.0], "importance": [2.0, 3.0], "everything": [1.0, 3.0]}
    assert summarize(values)["policies"]["importance"]["progressive"] is None
    shown = summarize(values, progressive=10.0)["policies"]
    # Ten times as large as the metric: the same closure, ten times the error of the mean.
    for policy in values:
        progressive = shown[policy]["progressive"]
        assert progressive["mean"] == pytest.approx(10 * shown[policy]["mean"])
        assert progressive["values"] == [10 * value for value in values[policy]]
        assert progressive["gap_closure"] == pytest.approx(shown[policy]["gap_closure"])
        error = shown[policy]["standard_error"]
        assert progressive["standard_error"] == pytest.approx(10 * error)

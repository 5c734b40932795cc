"""From finished cells to results.json, results.csv and Markdown, against numpy."""

import csv
import dataclasses
import itertools
import json
import pathlib
import re

import numpy as np
import pytest

from ofb_tf.experiments import SimulationConfig, cells, comparison, suites, tables
from tests.experiments.conftest import cell

SEEDS = 3
CLOSED = {"uniform": 0.0, "importance": 0.8, "top_loss": -0.5, "everything": 1.0}


def compared(**settings):
    return suites.Comparison(
        "Some group",
        SimulationConfig(dataset="mnist", seeds=SEEDS, policies=tuple(CLOSED), **settings),
    )


def value(policy, seed):
    """Metric of a cell: uniform at 4 + seed, everything 2 below it, noise from the seed."""
    noise = np.random.default_rng([seed, len(policy)]).normal() / 10
    return 4 + seed - 2 * CLOSED[policy] + noise


@pytest.fixture(name="finished")
def _finished(tmp_path):
    """Two comparisons whose cells are all on disk, but for top_loss, seed 1, in the second."""
    comparisons = [compared(), compared(rate=0.2)]
    for number, one in enumerate(comparisons):
        for key in comparison.keys_of(one):
            if (number, key.policy, key.seed) == (1, "top_loss", 1):
                continue
            result = cell(key.policy, key.seed, value(key.policy, key.seed))
            done = cells.Cell(result, "test_loss", "mean cross-entropy")
            cells.save(tmp_path / "cells", key, done)
    return comparisons, tmp_path


@pytest.fixture(name="content")
def _content(finished):
    return comparison.summarise(*finished, command="ofb compare --suite=own")


def test_figures_against_numpy(content):
    assert content["command"] == "ofb compare --suite=own"
    assert {"version", "versions", "date"} <= set(content)
    first = content["comparisons"][0]
    assert first["title"] == "mnist, rate 0.1"
    assert first["config"]["policies"] == list(first["policies"]) == list(CLOSED)
    assert "data_dir" not in first["config"]
    values = {p: np.array([value(p, seed) for seed in range(SEEDS)]) for p in CLOSED}
    for policy, figures in first["policies"].items():
        ours = values[policy]
        np.testing.assert_allclose(figures["values"], ours)
        assert figures["mean"] == pytest.approx(np.mean(ours))
        assert figures["standard_error"] == pytest.approx(np.std(ours, ddof=1) / np.sqrt(SEEDS))
        closure = lambda keep, ours=ours: (  # noqa: E731
            (values["uniform"][keep].mean() - ours[keep].mean())
            / (values["uniform"][keep].mean() - values["everything"][keep].mean())
        )
        assert figures["gap_closure"] == pytest.approx(closure(np.arange(SEEDS)))
        left_out = [closure(np.delete(np.arange(SEEDS), seed)) for seed in range(SEEDS)]
        jackknife = np.sqrt((SEEDS - 1) * np.var(left_out))
        assert figures["gap_closure_standard_error"] == pytest.approx(jackknife, abs=1e-12)
    against = first["policies"]["top_loss"]["against_default"]
    difference = values["top_loss"] - values["importance"]
    assert against["mean"] == pytest.approx(difference.mean())
    assert against["standard_error"] == pytest.approx(difference.std(ddof=1) / np.sqrt(SEEDS))
    assert first["policies"]["importance"]["against_default"] is None
    json.dumps(content, allow_nan=False)


def test_a_policy_with_a_failed_cell_is_left_out(content):
    assert list(content["comparisons"][1]["policies"]) == ["uniform", "importance", "everything"]


def test_a_comparison_without_both_ends_is_left_out(finished):
    comparisons, directory = finished
    for path in directory.glob("cells/mnist-everything-*"):
        path.unlink()
    content = comparison.summarise(comparisons, directory, command="")
    assert content["comparisons"] == []


def test_cells_are_planned_once_and_shared(finished):
    comparisons, _ = finished
    # Four policies at two rates; everything is the same at both.
    assert len(comparison.plan(comparisons)) == 7 * SEEDS


def test_csv_has_every_value(content, tmp_path):
    with open(tables.write_csv(content, tmp_path), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 + 3
    row = rows[2]
    assert (row["policy"], row["title"], row["metric"]) == (
        "top_loss",
        "mnist, rate 0.1",
        "test_loss",
    )
    assert float(row["rate"]) == 0.1
    figures = content["comparisons"][0]["policies"]["top_loss"]
    assert float(row["mean"]) == figures["mean"]
    assert float(row["gap_closure"]) == figures["gap_closure"]
    assert [float(row[f"seed_{seed}"]) for seed in range(SEEDS)] == figures["values"]


def test_markdown_shows_figures_and_who_wins(content, tmp_path):
    text = tables.write_markdown(content, tmp_path / "docs" / "RESULTS.md").read_text()
    importance = content["comparisons"][0]["policies"]["importance"]
    closure, error = importance["gap_closure"], importance["gap_closure_standard_error"]
    assert f"| mnist, rate 0.1 | **{closure:.2f} ± {error:.2f}** |" in text
    assert "| mnist, rate 0.2 |" in text
    assert "### mnist, rate 0.1" in text and "## Some group" in text
    assert "ofb compare --suite=own" in text and content["versions"]["tensorflow"] in text
    assert content["date"] in text
    assert "Nowhere: `importance` beats or ties" in text
    for line in text.splitlines():
        assert line == line.rstrip()


def test_exceptions_are_named(content):
    first = content["comparisons"][0]
    assert tables.exceptions([first]) == []
    first["policies"]["top_loss"]["against_default"] = {"mean": -0.3, "standard_error": 0.2}
    ((title, policy, better, error, _),) = tables.exceptions([first])
    assert (title, policy, better, error) == ("mnist, rate 0.1", "top_loss", 0.3, 0.2)
    assert "| mnist, rate 0.1 | top_loss | 0.3 ± 0.2 |" in tables.markdown(content)
    first["policies"]["top_loss"]["against_default"] = {"mean": -0.1, "standard_error": 0.2}
    assert tables.exceptions([first]) == []


def test_standard_suite_has_the_tasks_of_its_name():
    suite = suites.standard(seeds=5, data_dir=None)
    titles = [one.title for one in suite]
    assert len(set(titles)) == len(titles)
    for title in (
        "mnist, rate 0.1",
        "diamonds, rate 0.3",
        "click_stream (0.004 positives), rate 0.02",
        "click_stream (0.03 positives), rate 0.05",
        "mnist, rate 0.1, snapshot refreshed every 94 windows",
        "diamonds, rate 0.1, snapshot refreshed once a pass",
        "mnist, rate 0.1, selective_backprop with beta 1",
        "mnist, rate 0.1, 0.1 of labels random",
        "diamonds, rate 0.1, 0.05 of targets outliers",
        "click_stream (0.01 positives), rate 0.1, 0.2 of records missing",
    ):
        assert title in titles
    fewer = {"Other rates", "Larger windows", "Uniform mix"}
    for one in suite:
        policies = {**dict.fromkeys(fewer, 3), "Milder selective_backprop": 4}.get(one.group, 8)
        assert len(one.config.policies) == policies, one.title
    groups = [one.group for one in suite]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == len(set(groups)) - 1
    assert {one.config.seeds for one in suite} == {5}


def test_quick_suite_needs_no_dataset():
    suite = suites.quick(seeds=2)
    assert {one.config.dataset for one in suite} == {"click_stream"}
    assert {one.config.seeds for one in suite} == {2}
    assert len({one.title for one in suite}) == 3
    # Uniform and everything do not feel that records are missing.
    assert len(comparison.plan(suite)) == (8 + 8 + 6) * 2


def test_grid_combines_every_axis():
    axes = {"rate": [0.1, 0.2], "missing_records": [0.0, 0.3], "label_noise": []}
    made = suites.grid(["mnist", "diamonds"], axes, seeds=2, passes=None)
    found = {(m.config.dataset, m.config.rate, m.config.missing_records) for m in made}
    assert len(made) == len(found) == 8
    assert dataclasses.asdict(made[0].config)["passes"] == 6


def test_every_advice_points_at_a_table_of_the_standard_suite():
    choosing = pathlib.Path(__file__).parents[2] / "docs" / "CHOOSING.md"
    named = set(re.findall(r"RESULTS\.md#([^)]+)\)", choosing.read_text(encoding="utf-8")))
    titles = [one.title for one in suites.standard(seeds=5, data_dir=None)]
    titles += ["Gap closure", "Where the default does not win"]
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert named - anchors == set()
    assert anchors - named == set()

"""Aggregation, table and sentences from cells with known figures."""

import json

import numpy as np
import pytest

from ofb_tf.experiments import results

VALUES = {"uniform": [3.0, 5.0], "importance": [2.0, 3.0], "everything": [1.0, 3.0]}
NEEDED = {
    "mean",
    "standard_error",
    "values",
    "gap_closure",
    "calibration",
    "realized_rate",
    "mean_weight",
    "max_weight",
    "effective_sample_size",
    "backward_examples",
    "wall_seconds",
    "serving_seconds",
    "curves",
}


def test_figures_by_hand(make_results):
    content = make_results()
    importance = content["policies"]["importance"]
    assert importance["values"] == [2.0, 3.0]
    assert importance["mean"] == 2.5
    assert importance["standard_error"] == pytest.approx(0.5)
    assert importance["gap_closure"] == pytest.approx((4 - 2.5) / (4 - 2))
    assert importance["calibration"] == 1.5
    assert importance["max_weight"] == 2.5
    assert importance["realized_rate"] == pytest.approx(0.1)
    assert content["policies"]["everything"]["gap_closure"] == 1.0
    assert content["policies"]["uniform"]["gap_closure"] == 0.0


def test_schema_and_json_round_trip(make_results):
    content = make_results()
    for name in ("dataset", "rate", "seeds", "metric", "command", "version", "policies"):
        assert name in content
    for figures in content["policies"].values():
        assert set(figures) >= NEEDED
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert list(content["histograms"]) == ["importance"]


def test_jackknife_by_hand():
    # Without seed 0: (5-3)/(5-3) = 1; without seed 1: (3-2)/(3-1) = 0.5.
    error = results.gap_closure_error(*VALUES.values())
    assert error == pytest.approx(np.sqrt(0.5 * (0.25**2 + 0.25**2)))


def test_no_gap_gives_no_closure(make_results):
    content = make_results(VALUES | {"everything": [4.0, 6.0]})
    assert content["policies"]["importance"]["gap_closure"] is None
    assert "no gap for importance" in results.reading(content)[0]
    assert "–" in results.format_table(content)


def test_single_seed_has_no_error():
    assert results.standard_error([1.0]) is None
    assert results.gap_closure_error([3.0], [2.0], [1.0]) is None


def test_table_lines_up_and_a_loser_is_shown_losing(make_results):
    content = make_results(VALUES | {"importance": [5.0, 5.0]})
    table = results.format_table(content).splitlines()
    assert len({len(line) for line in table}) == 1
    assert table[0].split()[:2] == ["policy", "test_loss"]
    assert table[3].startswith("importance") and "-0.50" in table[3]
    assert "was worse than uniform by 50% of the gap" in results.reading(content)[0]


def test_time_to_uniform_by_hand(make_results):
    # Mean curves fall straight by 1 over the stream: uniform ends at 4, importance begins at 3.5.
    policies = make_results()["policies"]
    assert policies["uniform"]["stream_to_uniform"] == pytest.approx(1.0)
    assert policies["importance"]["stream_to_uniform"] == 0.0
    slower = make_results(VALUES | {"importance": [3.25, 4.25]})["policies"]["importance"]
    assert slower["stream_to_uniform"] == pytest.approx(0.75)
    assert slower["time_to_uniform"] == pytest.approx(0.75)
    never = make_results(VALUES | {"importance": [6.0, 6.0]})["policies"]["importance"]
    assert never["time_to_uniform"] is None

"""Public tutorials, rewritten at toy size: each runs, learns, and needs few lines of ofb-tf."""

import pathlib
import runpy

import numpy as np
import pytest

PROGRAMS = sorted((pathlib.Path(__file__).parent / "programs").glob("*.py"))
# What an untrained model or a constant prediction gives, or a little better, on the toy data.
LEARNT = {
    "collaborative_filtering": ("mean_absolute_error", 0.2, -1),
    "deep_cross_network": ("mean_absolute_error", 0.7, -1),
    "imbalanced_classification": ("auc", 0.8, 1),
    "mnist_convnet": ("accuracy", 0.8, 1),
    "multi_task": ("rating_rmse", 0.7, -1),
    "retrieval": ("recall_at_8", 0.5, 1),
    "text_classification": ("accuracy", 0.7, 1),
    "wide_and_deep": ("accuracy", 0.7, 1),
}


def changed_lines(path):
    """How many lines are there because of ofb-tf."""
    return sum(line.endswith("# ofb") for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_learns(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures = runpy.run_path(str(path))["figures"]
    print(f"\n{path.stem}: {changed_lines(path)} lines, {figures}")
    assert all(np.isfinite(value) for value in figures.values())
    name, limit, sign = LEARNT[path.stem]
    assert sign * figures[name] > sign * limit
    assert changed_lines(path) <= 6

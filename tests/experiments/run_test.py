"""Trials in processes and on disk: failures and deaths do no harm, finished trials are kept."""

import dataclasses
import os
import pathlib
import signal

import pytest

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import report, run, trial
from ofb_tf.experiments.config import Comparison, SimulationConfig, Trial
from tests.experiments.conftest import make_result

VALUES = {"uniform": 4.0, "importance": 2.4, "top_loss": 5.0, "everything": 2.0}
ONE = Trial(SimulationConfig(), "importance", 0)


def task(argument):
    """Writes a file and returns its name, fails or dies, as the argument says."""
    directory, name, what = argument
    if what == "fail":
        raise ValueError(f"no {name}")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    (pathlib.Path(directory) / name).write_text(name)
    return name


def run_tasks(kinds, workers, directory):
    tasks = [(str(directory), f"task{i}", what) for i, what in enumerate(kinds)]
    done = {one: (result, error) for one, result, error in run.run_all(task, tasks, workers)}
    assert sorted(done) == tasks
    results, errors = zip(*(done[t] for t in tasks), strict=True)
    assert {r for r in results if r} == {path.name for path in directory.iterdir()}
    return results, errors


@pytest.mark.slow
def test_a_process_that_dies_is_reported_and_the_rest_is_done(tmp_path):
    results, errors = run_tasks(["fine", "die", "fail", "fine", "fine"], 2, tmp_path)
    assert results == ("task0", None, None, "task3", "task4")
    assert errors[1] == "The worker process died."
    assert "ValueError: no task2" in errors[2]


def test_a_trial_that_fails_ends_the_simulation(monkeypatch):
    def fail(*one, **settings):
        raise MemoryError("too large")

    monkeypatch.setattr(trial, "run", fail)
    config = SimulationConfig(num_examples=100, test_examples=10)
    with pytest.raises(RuntimeError, match=r"(?s)seed 0 failed:.*MemoryError: too large"):
        run.run_experiment(config, command="", workers=1, show_progress=False)


@pytest.mark.slow
def test_simulation_in_processes_is_the_one_in_this_process():
    config = SimulationConfig(
        num_examples=600, window_size=100, test_examples=200, positive_rate=0.1, seeds=1
    )
    alone, processes = (
        run.run_experiment(config, command="x", workers=workers, show_progress=False)
        for workers in (1, 2)
    )
    for policy in config.policies:
        # Other numbers of threads add in another order: float32 sums, amplified by training.
        values = pytest.approx(processes["policies"][policy]["values"], rel=1e-3)
        assert alone["policies"][policy]["values"] == values


def test_round_trip(tmp_path):
    assert run.load(tmp_path, ONE) is None
    result = make_result("importance", 0, 0.25)
    run.save(tmp_path / "new", ONE, result)
    assert run.load(tmp_path / "new", ONE) == result
    assert [path.name for path in (tmp_path / "new").iterdir()] == [ONE.file_name]


@pytest.mark.parametrize("content", ["", '{"result": {"policy": "x"}}', "[1, 2]", '{"result": 1'])
def test_a_damaged_file_counts_as_not_finished(content, tmp_path):
    (tmp_path / ONE.file_name).write_text(content)
    assert run.load(tmp_path, ONE) is None


@pytest.fixture(name="finished")
def _finished(tmp_path):
    """Two comparisons whose trials are all on disk, except one of top_loss in the second."""
    config = SimulationConfig(dataset="mnist", seeds=3, policies=tuple(VALUES), data_dir="/here")
    comparisons = [
        Comparison("Some group", dataclasses.replace(config, rate=rate)) for rate in (0.1, 0.2)
    ]
    for comparison in comparisons:
        for one in comparison.trials():
            if (one.config.rate, one.policy, one.seed) != (0.2, "top_loss", 1):
                value = VALUES[one.policy] + one.seed
                run.save(tmp_path / "cells", one, make_result(one.policy, one.seed, value))
    return comparisons, tmp_path


def test_comparisons_are_put_together_from_finished_trials(finished):
    content = run.summarize_comparisons(*finished, command="ofb compare --suite=own")
    assert content["command"] == "ofb compare --suite=own"
    assert {"version", "versions", "date"} <= set(content)
    first, second = content["comparisons"]
    assert (first["title"], first["group"]) == ("mnist, rate 0.1", "Some group")
    assert first["config"]["policies"] == list(first["policies"]) == list(VALUES)
    assert "data_dir" not in first["config"]
    assert first["policies"]["top_loss"]["values"] == [5.0, 6.0, 7.0]
    # A policy with an unfinished trial is left out.
    assert list(second["policies"]) == ["uniform", "importance", "everything"]
    for path in finished[1].glob("cells/mnist-everything-*"):
        path.unlink()
    assert run.summarize_comparisons(*finished, command="")["comparisons"] == []


def test_a_sweep_is_led_by_each_policy_at_its_best(tmp_path):
    config = SimulationConfig(dataset="mnist", seeds=2)
    others = [Comparison("A", dataclasses.replace(config, rate=rate)) for rate in (0.1, 0.2)]
    swept = configs.sweep(others, [0.001, 0.003])
    better = {"uniform": 0.001, "importance": 0.003, "everything": 0.003}
    for one in run.plan(swept):
        worse = 0.0 if one.config.learning_rate == better[one.policy] else 0.25
        value = VALUES[one.policy] + worse + one.seed
        run.save(tmp_path / "cells", one, make_result(one.policy, one.seed, value))
    found = run.summarize_comparisons(swept, tmp_path, command="")["comparisons"]
    assert [(one["title"], one["learning_rate"]) for one in found[:3]] == [
        ("mnist, rate 0.1, each policy at its best learning rate", None),
        ("mnist, rate 0.1", 0.001),
        ("mnist, rate 0.1, learning rate 0.003", 0.003),
    ]
    assert len(found) == 6
    about = {"version": "1", "command": ""}
    written = report.as_markdown(about | {"comparisons": found})
    for one in found:  # of the members of a sweep, the one at the default alone
        assert (f"### {one['title']}\n" in written) == (one["learning_rate"] != 0.003)
    alone = report.as_markdown(about | {"comparisons": found[2:3]})
    assert f"### {found[2]['title']}\n" in alone
    best = found[0]["policies"]
    assert {p: shown["learning_rate"] for p, shown in best.items()} == better
    for policy, shown in best.items():
        assert shown["values"] == [VALUES[policy], VALUES[policy] + 1]
    assert best["importance"]["gap_closure"] == pytest.approx((4.0 - 2.4) / (4.0 - 2.0))
    assert found[1]["policies"]["importance"]["mean"] == pytest.approx(2.4 + 0.25 + 0.5)
    for path in tmp_path.glob("cells/mnist-importance-1-*"):
        path.unlink()
    found = run.summarize_comparisons(swept, tmp_path, command="")["comparisons"]
    assert all(list(one["policies"]) == ["uniform", "everything"] for one in found)

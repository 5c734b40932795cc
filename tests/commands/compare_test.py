"""`ofb compare` from its arguments to its files, stopped and continued."""

import csv
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ofb_tf import cli
from ofb_tf.experiments import trial, workloads

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"

SMALL = (
    "compare", "--datasets=click_stream", "--num_examples=600", "--window_size=100",
    "--positive_rates=0.1", "--policies=importance", "--seeds=2", "--workers=1", "--noprogress",
)  # fmt: skip


def compare(directory, *arguments):
    return cli.main([*SMALL, *arguments, f"--output_dir={directory}"])


def results(directory):
    return json.loads((directory / "results.json").read_text())


def trial_files(directory):
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("cells/*.json")}


def test_end_to_end_and_a_second_run_runs_nothing(tmp_path, monkeypatch, capsys):
    page = tmp_path / "RESULTS.md"
    arguments = ("--rates=0.1,0.2", f"--markdown={page}")
    assert compare(tmp_path, *arguments) == 0
    printed = capsys.readouterr()
    assert "2 comparisons of 10 trials, 0 of them finished" in printed.err
    for name in ("results.json", "results.csv", "report.html", "RESULTS.md"):
        assert f"Wrote {tmp_path / name}" in printed.out
    content = results(tmp_path)
    assert content["command"].startswith("ofb compare --datasets=click_stream")
    assert [one["rate"] for one in content["comparisons"]] == [0.1, 0.2]
    for one, backward in zip(content["comparisons"], (60, 120), strict=True):
        assert list(one["policies"]) == ["uniform", "importance", "everything"]
        assert one["policies"]["importance"]["backward_examples"] == backward
        assert one["policies"]["importance"]["realized_rate"] == one["rate"]
    assert len(list(csv.reader((tmp_path / "results.csv").open()))) == 1 + 6
    assert "click_stream (0.1 positives), rate 0.2" in page.read_text()

    before = trial_files(tmp_path)
    assert len(before) == 10  # everything is one trial for both rates
    next((tmp_path / "cells").glob("*importance-1*")).unlink()
    ran = []
    run = trial.run
    monkeypatch.setattr(
        trial, "run", lambda *one, **settings: (ran.append(one[1:]), run(*one, **settings))[1]
    )
    assert compare(tmp_path, *arguments) == 0
    assert ran == [("importance", 1)]
    assert "9 of them finished" in capsys.readouterr().err
    after = trial_files(tmp_path)
    assert sum(before[name] != after[name] for name in before) == 1
    for one, again in zip(content["comparisons"], results(tmp_path)["comparisons"], strict=True):
        for policy, figures in one["policies"].items():
            assert figures["values"] == again["policies"][policy]["values"]


def test_a_failed_trial_is_reported_and_the_rest_is_kept(tmp_path, monkeypatch, capsys):
    run = trial.run

    def failing(config, policy, seed, **settings):
        if (policy, seed) == ("importance", 1):
            raise MemoryError("too large")
        return run(config, policy, seed, **settings)

    monkeypatch.setattr(trial, "run", failing)
    assert compare(tmp_path) == 1
    printed = capsys.readouterr().err
    assert "MemoryError: too large" in printed
    assert "1 trials failed" in printed
    assert list(results(tmp_path)["comparisons"][0]["policies"]) == ["uniform", "everything"]
    monkeypatch.undo()
    assert compare(tmp_path) == 0
    assert "importance" in results(tmp_path)["comparisons"][0]["policies"]


def test_stopped_by_the_user(tmp_path, monkeypatch, capsys):
    def stop(*one, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "run", stop)
    assert compare(tmp_path) == 130
    assert "The same command continues from here" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_in_the_middle_and_continued(tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [sys.executable, "-m", "ofb_tf.cli", *SMALL, f"--output_dir={stopped}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while len(trial_files(stopped)) < 2 and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    finished = trial_files(stopped)
    assert 2 <= len(finished) < 6
    assert not (stopped / "results.json").exists()
    assert compare(stopped) == compare(whole) == 0
    continued = trial_files(stopped)
    assert len(continued) == 6
    assert {name: continued[name] for name in finished} == finished
    ours, theirs = (results(one)["comparisons"][0]["policies"] for one in (stopped, whole))
    for policy, figures in ours.items():
        # Other numbers of threads add in another order: float32 sums, amplified by training.
        assert figures["values"] == pytest.approx(theirs[policy]["values"], rel=1e-3)


OWN = """
import keras
import numpy as np

from ofb_tf.experiments import ArrayWorkload

SCALE = 1.0

def build():
    x = keras.Input((2,), name="x")
    return keras.Model(x, keras.layers.Dense(1)(x))

def workload():
    x = np.random.default_rng(0).normal(size=(120, 2)) * SCALE
    fields = {"x": x, "label": x[:, 0] > 1}
    return ArrayWorkload(fields, fields, task="binary", build=build)

def number():
    return 7
"""
FEW = ("--policies=importance", "--seeds=1", "--workers=1", "--noprogress", "--window_size=20")


@pytest.fixture(name="own")
def _own(tmp_path, monkeypatch):
    """Compares a workload of a module in the current directory, again each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def compare_own(source=OWN, name="own_module:workload", *arguments):
        (tmp_path / "own_module.py").write_text(source)
        importlib.invalidate_caches()
        sys.modules.pop("own_module", None)
        for cached in (workloads._own, workloads._workload, workloads.fingerprint):
            cached.cache_clear()
        return cli.main(["compare", f"--workload={name}", *FEW, *arguments])

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield compare_own
    sys.modules.pop("own_module", None)


def test_a_workload_of_ones_own_is_run_again_only_if_it_changes(own, tmp_path, capsys):
    assert own() == 0
    assert "0 of them finished" in capsys.readouterr().err
    (content,) = json.loads((tmp_path / "out/compare/results.json").read_text())["comparisons"]
    assert content["title"] == "own_module:workload, rate 0.1"
    for shown in content["policies"].values():
        assert shown["progressive"]["mean"] > 0
        assert shown["wall_seconds"] > 0 and shown["cpu_seconds"] > 0
    assert own() == 0
    assert "3 of them finished" in capsys.readouterr().err
    assert own(OWN.replace("SCALE = 1.0", "SCALE = 1.1")) == 0
    assert "0 of them finished" in capsys.readouterr().err


def test_each_policy_at_its_best_learning_rate(own, tmp_path, capsys):
    assert own(OWN, "own_module:workload", "--learning_rates=0.01,0.1", "--rates=0.2") == 0
    assert "2 comparisons of 6 trials" in capsys.readouterr().err
    content = json.loads((tmp_path / "out/compare/results.json").read_text())["comparisons"]
    best, slow, fast = (one["policies"] for one in content)
    assert content[0]["title"].endswith("rate 0.2, each policy at its best learning rate")
    for policy, shown in best.items():
        means = {0.01: slow[policy]["mean"], 0.1: fast[policy]["mean"]}
        assert shown["mean"] == min(means.values())
        assert shown["learning_rate"] == min(means, key=means.get)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("own_module", (), "workload must be module:function. Received: 'own_module'"),
        ("no_such_module:workload", (), "No module named 'no_such_module'"),
        ("own_module:nothing", (), "has no attribute 'nothing'"),
        ("own_module:number", (), "must return an ofb_tf.experiments.ArrayWorkload"),
        ("own_module:workload", ("--num_examples=5",), "num_examples and model must not be given"),
        ("own_module:workload", ("--models=deep",), "num_examples and model must not be given"),
        ("own_module:workload", ("--outliers=0.1",), "outliers must be 0 for classification"),
        (
            "own_module:workload",
            ("--suite=quick",),
            "workload, policies, window_size must not be given",
        ),
    ],
)
def test_what_is_wrong_with_a_workload_is_named(own, name, arguments, message, capsys, tmp_path):
    assert own(OWN, name, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_example_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    flags = ["--workload=own_stream:workload", *FEW[:4], "--learning_rates=0.01"]
    assert cli.main(["compare", *flags, f"--output_dir={tmp_path}"]) == 0
    (content,) = results(tmp_path)["comparisons"]
    importance = content["policies"]["importance"]
    # 600 payments a day; those of the last week before the held-out days are not known in time.
    assert 42_000 < content["stream_examples"] < 45_000
    assert importance["progressive"]["gap_closure"] > 0.0
    assert importance["mean"] < 0.12
    sys.modules.pop("own_stream", None)

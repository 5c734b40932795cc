"""`ofb compare` from its arguments to its files, stopped and continued."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ofb_tf import cli
from ofb_tf.experiments import trial

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

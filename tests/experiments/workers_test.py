"""Worker processes: errors and deaths are reported and do no harm to the others."""

import os
import pathlib
import signal

import pytest

from ofb_tf.experiments import workers


def task(argument):
    """Writes a file, fails or dies, as the argument says."""
    directory, name, what = argument
    if what == "fail":
        raise ValueError(f"no {name}")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    (pathlib.Path(directory) / name).write_text(name)


def run(kinds, count, directory):
    tasks = [(str(directory), f"task{i}", what) for i, what in enumerate(kinds)]
    done = {}
    workers.run(task, tasks, count, lambda argument, error: done.update({argument: error}))
    assert sorted(done) == tasks
    return [done[t] for t in tasks], {path.name for path in directory.iterdir()}


def test_a_failure_is_reported_and_the_rest_is_done(tmp_path):
    errors, files = run(["fine", "fail", "fine"], 1, tmp_path)
    assert (errors[0], errors[2], files) == (None, None, {"task0", "task2"})
    assert "ValueError: no task1" in errors[1]


@pytest.mark.slow
def test_a_process_that_dies_is_reported_and_the_rest_is_done(tmp_path):
    errors, files = run(["die", "fail", "fine"], 2, tmp_path)
    assert errors[0] == "The worker process died with exit code -9."
    assert "ValueError: no task1" in errors[1]
    assert (errors[2], files) == (None, {"task2"})


def test_workers_are_checked():
    with pytest.raises(ValueError, match="workers must be at least 1. Received: 0"):
        workers.run(task, [], 0, print)

"""Runs trials, in processes where there are several workers, and keeps what they measured."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import tensorflow as tf
import tqdm

from ofb_tf import constants
from ofb_tf.experiments import config as configs
from ofb_tf.experiments import corruption, summary, trial
from ofb_tf.experiments.config import Comparison, SimulationConfig, Trial
from ofb_tf.experiments.trial import TrialResult
from ofb_tf.experiments.workloads import fingerprint, get_workload, task_of
from ofb_tf.version import __version__

FINISHED = "cells"
"""Folder of an output directory with one JSON file per finished trial."""

_PACKAGES = ("tensorflow", "keras", "numpy")

Finished = Generator[tuple[Any, Any, str], None, Any]
"""Task, its result (None if it failed) and what went wrong (else empty)."""


class Task(NamedTuple):
    """Arguments of `trial.run`, as they go to a worker process."""

    config: SimulationConfig
    policy: str
    seed: int
    through_files: bool


def run_task(task: Task) -> TrialResult:
    """Runs one trial; importable by name, as worker processes need."""
    return trial.run(task.config, task.policy, task.seed, through_files=task.through_files)


def run_experiment(
    config: SimulationConfig,
    *,
    command: str,
    workers: int | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Runs every policy with every seed through files, and returns the content of `results.json`.

    `workers` is the number of processes: None for one per core, 1 to run in this process. Raises
    ValueError or FileNotFoundError before anything runs, and RuntimeError once a trial fails.
    """
    check_datasets([config])
    get_workload(config, seed=0)  # fails here, once, if the dataset cannot be used
    # The longest first, so that no worker is left with a long one at the end.
    policies = sorted(config.policies, key=lambda policy: policy == configs.UNIFORM)
    tasks = [Task(config, p, seed, True) for seed in range(config.seeds) for p in policies]
    workers = _num_workers(workers, tasks)
    threads = None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    results = []
    with contextlib.closing(_run(tasks, workers, threads, len(tasks), show_progress)) as finished:
        for task, result, error in finished:
            if result is None:
                raise RuntimeError(f"{task.policy} with seed {task.seed} failed: {error}")
            results.append(result)
    return summary.summarize(config, results, command=command)


def run_comparisons(
    comparisons: Sequence[Comparison],
    directory: str | os.PathLike,
    *,
    workers: int | None = None,
    show_progress: bool = True,
) -> dict[Trial, str]:
    """Runs the trials in memory that the directory does not hold yet: what `ofb compare` does.

    Each process has one TensorFlow thread. Returns the trials that failed, with a traceback or how
    the process ended; the others are kept.
    """
    check_datasets([comparison.config for comparison in comparisons])
    folder, trials = pathlib.Path(directory) / FINISHED, plan(comparisons)
    todo = {Task(t.config, t.policy, t.seed, False): t for t in trials if not load(folder, t)}
    workers = _num_workers(workers, todo)
    counts = f"{len(comparisons)} comparisons of {len(trials)} trials"
    print(f"{counts}, {len(trials) - len(todo)} of them finished.", file=sys.stderr)
    failures: dict[Trial, str] = {}
    with contextlib.closing(_run(list(todo), workers, 1, len(trials), show_progress)) as finished:
        for task, result, error in finished:
            if result is not None:
                save(folder, todo[task], result)
            else:
                failures[todo[task]] = error
                tqdm.tqdm.write(f"Failed: {todo[task].settings}\n{error}", file=sys.stderr)
    return failures


def _num_workers(workers: int | None, tasks: Collection) -> int:
    if workers is None:
        workers = os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers must be at least 1. Received: {workers}")
    return min(workers, max(len(tasks), 1))


def _run(tasks: list[Task], workers: int, threads: int | None, total: int, show: bool) -> Finished:
    """`run_all` with a progress bar over `total` trials, of which only `tasks` are not finished."""
    done = total - len(tasks)
    with tqdm.tqdm(
        total=total, initial=done, unit="trial", disable=not show, smoothing=0.05
    ) as bar:
        for task, result, error in run_all(run_task, tasks, workers, threads):
            bar.set_description(f"{task.config.dataset}, {task.policy}", refresh=False)
            bar.update()
            yield task, result, error


def plan(comparisons: Sequence[Comparison]) -> list[Trial]:
    """Every trial once, in an order in which neighbours share their data."""
    unique = dict.fromkeys(one for comparison in comparisons for one in comparison.trials())
    return sorted(unique, key=lambda t: (t.config.dataset, t.config.positive_rate, t.seed))


def identify(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same, with the fingerprints of users' workloads, which are run again if they change."""
    made = []
    for one in comparisons:
        name = one.config.dataset
        config = dataclasses.replace(
            one.config, fingerprint=fingerprint(name) if configs.is_own(name) else None
        )
        made.append(Comparison(one.group, config))
    return made


def check_datasets(settings: Sequence[SimulationConfig]) -> None:
    """Raises an error if a dataset is unknown or absent, or a corruption does not apply to it."""
    tasks: dict[str, Any] = {}
    for config in settings:
        name = config.dataset
        if name not in tasks:
            tasks[name] = task_of(config)
        is_regression = tasks[name] == constants.REGRESSION
        corruption.check(config, is_regression=is_regression)
        if is_regression and config.estimator == constants.LOG_ODDS:
            raise ValueError(
                f"estimator must be weights for regression ({name}). Received: {config.estimator}"
            )


def summarize_comparisons(
    comparisons: Sequence[Comparison], directory: str | os.PathLike, *, command: str
) -> dict[str, Any]:
    """The content of `results.json` from the finished trials in a directory.

    Comparisons that differ in the learning rate alone follow one with each policy at its best. A
    policy with an unfinished trial is left out of its comparison; a comparison without both
    uniform and everything is left out.
    """
    folder = pathlib.Path(directory) / FINISHED
    contents = []
    for base, members in itertools.groupby(comparisons, key=Comparison.at_default_learning_rate):
        swept = {one.config.learning_rate: (one, _finished(one, folder)) for one in members}
        if len(swept) > 1:
            results, rates = summary.at_best({lr: found for lr, (_, found) in swept.items()})
            title = f"{base.title}, {configs.AT_BEST}"
            contents.append(_content(base, title, results, command, rates))
        contents += [_content(one, one.title, found, command) for one, found in swept.values()]
    return {
        "command": command,
        "version": __version__,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "date": str(datetime.datetime.now(datetime.timezone.utc).date()),
        "comparisons": [content for content in contents if content],
    }


def _finished(comparison: Comparison, folder: pathlib.Path) -> dict[str, list[TrialResult]]:
    """The results of the policies all of whose trials are finished."""
    found: dict[str, list[TrialResult | None]] = {}
    for one in comparison.trials():
        found.setdefault(one.policy, []).append(load(folder, one))
    return {p: [r for r in group if r] for p, group in found.items() if all(group)}


def _content(
    comparison: Comparison,
    title: str,
    results: Mapping[str, Sequence[TrialResult]],
    command: str,
    learning_rates: Mapping[str, float] | None = None,
) -> dict[str, Any] | None:
    """A comparison's part of `results.json`; None if an end of the gap is lacking."""
    if not {configs.UNIFORM, configs.EVERYTHING} <= set(results):
        return None
    config = dataclasses.replace(comparison.config, policies=tuple(results))
    settings = dataclasses.asdict(config) | {"policies": list(results)}
    del settings["data_dir"]  # a machine's path
    if learning_rates:
        settings["learning_rate"] = None
    flat = [result for group in results.values() for result in group]
    about = {"title": title, "group": comparison.group, "config": settings}
    return about | summary.summarize(config, flat, command=command, learning_rates=learning_rates)


def save(folder: str | os.PathLike, one: Trial, result: TrialResult) -> None:
    """Writes a finished trial; the file is there whole or not at all."""
    path = pathlib.Path(folder) / one.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = dataclasses.asdict(result)
    words = {name: measured.pop(name) for name in ("metric", "metric_text")}
    temporary = path.with_suffix(f".{os.getpid()}.part")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"settings": one.settings, "result": measured, **words}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(folder: str | os.PathLike, one: Trial) -> TrialResult | None:
    """Reads a finished trial; None if it is not there or the file is damaged."""
    path = pathlib.Path(folder) / one.file_name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        words = {name: content[name] for name in ("metric", "metric_text")}
        content["result"].pop("refresh_seconds", None)  # which earlier versions measured
        return TrialResult(**content["result"], **words)
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None


def run_all(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, threads: int | None = None
) -> Finished:
    """Calls a function with every task; one that fails or dies does no harm to the others.

    Yields tasks as they finish; closing the generator ends the processes. `function` is importable
    by name, because processes are spawned; with one worker it runs in this process.
    """
    if workers == 1:
        _limit_threads(threads)
        for task in tasks:
            try:
                result, error = function(task), ""
            except Exception:
                result, error = None, traceback.format_exc()
            yield task, result, error
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    waiting = list(tasks)
    while waiting:
        running, waiting = yield from _run_until_a_death(function, waiting, workers, threads)
        # Any of them may have killed its process: alone, each can only harm itself.
        for task in running:
            died, _ = yield from _run_until_a_death(function, [task], 1, threads)
            if died:
                yield task, None, "The worker process died."


def _run_until_a_death(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, threads: int | None
) -> Finished:
    """One pool; returns the tasks that ran when a process died, and those that had not begun."""
    waiting = list(tasks)
    running: dict[concurrent.futures.Future, Any] = {}
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not survive a fork
        initializer=_start_worker,
        initargs=(threads,),
    )
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running[pool.submit(function, waiting[0])] = waiting[0]
                del waiting[0]
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                return list(running.values()), waiting
            for future in done:
                task, error = running.pop(future), future.exception()
                if error is None:
                    yield task, future.result(), ""
                else:
                    yield task, None, "".join(traceback.format_exception(error))
        return [], []
    except BrokenProcessPool:  # raised by submit
        return list(running.values()), waiting
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()


def _start_worker(threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides
    parent = multiprocessing.parent_process()
    if parent is not None:  # whose death would leave this process waiting for work for ever

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    _limit_threads(threads)


def _limit_threads(threads: int | None) -> None:
    """Has TensorFlow use so many threads, unless it has already started with others."""
    if threads is None:
        return
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)

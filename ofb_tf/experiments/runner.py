"""Runs the cells of an experiment in worker processes and writes what they measured."""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import queue
from typing import Any

import tqdm

from ofb_tf import constants, version
from ofb_tf.experiments import conditions, results, simulation
from ofb_tf.experiments import config as configs
from ofb_tf.experiments.simulation import CellResult
from ofb_tf.experiments.workloads import get_workload

_progress: Any = None  # the queue of a worker process


def run_experiment(
    config: configs.SimulationConfig,
    *,
    command: str,
    workers: int | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Runs every policy with every seed.

    Args:
      config: the experiment.
      command: what repeats it; goes into the results.
      workers: processes, at least 1; None for one a core. With 1 the cells run in this process.
      show_progress: whether a progress bar over all windows goes to stderr.

    Returns:
      The content of `results.json`; see `results.summarise`.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1. Received: {workers}")
    workload = get_workload(config, seed=0)  # fails here, once, if the dataset cannot be had
    conditions.check(config, is_regression=workload.task == constants.REGRESSION)
    total = simulation.num_windows(config, workload.num_examples)
    tasks = [(policy, seed) for seed in range(config.seeds) for policy in _slowest_first(config)]
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    with tqdm.tqdm(
        total=total * len(tasks), unit="window", disable=not show_progress, mininterval=1
    ) as bar:
        bar.set_description(f"{config.dataset}, {len(tasks)} runs")
        if workers == 1:
            cells = [
                simulation.run_cell(config, policy, seed, on_progress=bar.update)
                for policy, seed in tasks
            ]
        else:
            cells = _run_in_processes(config, tasks, workers, bar)
    return results.summarise(
        config,
        cells,
        metric=workload.metric,
        metric_text=workload.metric_text,
        command=command,
        version=version.__version__,
    )


def write_results(content: dict[str, Any], directory: str | os.PathLike) -> pathlib.Path:
    """Writes `results.json` into a directory, which is made where absent; returns its path."""
    path = pathlib.Path(directory) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _slowest_first(config: configs.SimulationConfig) -> list[str]:
    """Policies with the longest first, so that no worker is left with a long one at the end."""
    return sorted(config.policies, key=lambda policy: policy == configs.UNIFORM)


def _run_in_processes(
    config: configs.SimulationConfig,
    tasks: list[tuple[str, int]],
    workers: int,
    bar: tqdm.tqdm,
) -> list[CellResult]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    progress = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // workers)
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(progress, threads)
    ) as pool:
        futures = [pool.submit(_run_in_worker, config, *task) for task in tasks]
        pending = set(futures)
        try:
            while pending:
                done, pending = concurrent.futures.wait(pending, timeout=0.2)
                _drain(progress, bar)
                for future in done:
                    future.result()  # the first failure ends the experiment
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        _drain(progress, bar)
        return [future.result() for future in futures]


def _drain(progress: Any, bar: tqdm.tqdm) -> None:
    while True:
        try:
            bar.update(progress.get_nowait())
        except queue.Empty:
            return


def _start_worker(progress: Any, threads: int) -> None:
    global _progress
    _progress = progress
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads + 1)


def _run_in_worker(config: configs.SimulationConfig, policy: str, seed: int) -> CellResult:
    return simulation.run_cell(config, policy, seed, on_progress=_progress.put)

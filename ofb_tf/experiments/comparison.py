"""Runs comparisons cell by cell, and puts the finished cells together."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import tqdm

from ofb_tf import version
from ofb_tf.experiments import cells, conditions, fast_cell, results, workers
from ofb_tf.experiments import config as configs
from ofb_tf.experiments.cells import Cell, CellKey
from ofb_tf.experiments.suites import Comparison

CELLS = "cells"
_PACKAGES = ("tensorflow", "keras", "numpy")
# CPU seconds for a million examples that one cell streams, measured; for others, as much as MNIST.
_SECONDS_PER_MILLION = {configs.CLICK_STREAM: 6.0, "mnist": 10.0, "diamonds": 4.0}
_OTHER_LENGTH = 60_000
_ENDS = (configs.UNIFORM, configs.EVERYTHING)


def keys_of(comparison: Comparison) -> list[CellKey]:
    """The cells of a comparison, seed by seed."""
    config = comparison.config
    return [
        CellKey(config, policy, seed) for seed in range(config.seeds) for policy in config.policies
    ]


def plan(comparisons: Sequence[Comparison]) -> list[CellKey]:
    """Every cell once, in an order in which neighbours share their data."""
    unique = dict.fromkeys(key for c in comparisons for key in keys_of(c))
    return sorted(unique, key=lambda k: (k.config.dataset, k.config.positive_rate, k.seed))


def check_datasets(comparisons: Sequence[Comparison]) -> None:
    """Raises ValueError where a dataset cannot be had or a condition does not fit its task.

    Once, and before anything runs.
    """
    is_regression = {}
    for config in (one.config for one in comparisons):
        name = config.dataset
        if name not in is_regression:
            is_regression[name] = False
            if name != configs.CLICK_STREAM:
                from ofb_tf.datasets import describe_tfds

                description = describe_tfds(name, data_dir=config.data_dir)
                is_regression[name] = not description.num_classes
        conditions.check(config, is_regression=is_regression[name])


def estimate(
    comparisons: Sequence[Comparison], directory: str | os.PathLike, num_workers: int
) -> str:
    """A sentence on how much is to be run and about how long that takes."""
    folder = pathlib.Path(directory) / CELLS
    keys = plan(comparisons)
    missing = [key for key in keys if cells.load(folder, key) is None]
    millions = lambda key: key.config.passes * (key.config.num_examples or _OTHER_LENGTH) / 1e6  # noqa: E731
    seconds = sum(_SECONDS_PER_MILLION.get(k.config.dataset, 10.0) * millions(k) for k in missing)
    return (
        f"{len(comparisons)} comparisons of {len(keys)} cells, {len(keys) - len(missing)} of them "
        f"finished; about {seconds / 60 / num_workers + 0.2:.1f} minutes for the rest with "
        f"{num_workers} free cores."
    )


def run(
    comparisons: Sequence[Comparison],
    directory: str | os.PathLike,
    *,
    num_workers: int,
    show_progress: bool = True,
) -> dict[CellKey, str]:
    """Runs the cells that are not in the directory yet, and leaves a file of each there.

    Args:
      comparisons: what is to be compared.
      directory: results go to its folder "cells".
      num_workers: processes, at least 1; with 1 everything runs in this one.
      show_progress: whether a progress bar over cells goes to stderr.

    Returns:
      The cells that failed, with what went wrong; the others are not lost.
    """
    folder = pathlib.Path(directory) / CELLS
    keys = plan(comparisons)
    missing = [key for key in keys if cells.load(folder, key) is None]
    failures: dict[CellKey, str] = {}
    with tqdm.tqdm(
        total=len(keys),
        initial=len(keys) - len(missing),
        unit="cell",
        disable=not show_progress,
        smoothing=0.05,
        mininterval=1,
    ) as bar:

        def on_done(task: tuple[str, CellKey], error: str | None) -> None:
            key = task[1]
            bar.set_description(f"{key.config.dataset}, {key.policy}", refresh=False)
            bar.update()
            if error is not None:
                failures[key] = error
                bar.write(f"Failed: {key.settings}\n{error}", file=sys.stderr)

        tasks = [(str(folder), key) for key in missing]
        workers.run(run_and_save, tasks, min(num_workers, max(len(tasks), 1)), on_done)
    return failures


def run_and_save(task: tuple[str, CellKey]) -> None:
    """Runs one cell and writes its file; `task` is the folder and the cell."""
    folder, key = task
    result = fast_cell.run_cell(key.config, key.policy, key.seed)
    workload = fast_cell.workload_of(key.config, key.seed)
    cells.save(folder, key, Cell(result, workload.metric, workload.metric_text))


def summarise(
    comparisons: Sequence[Comparison], directory: str | os.PathLike, *, command: str
) -> dict[str, Any]:
    """The content of `results.json` from the cells in a directory.

    A policy with a cell that is not there is left out of its comparison; a comparison without
    both uniform and everything is left out whole.

    Args:
      comparisons: what was compared.
      directory: as given to `run`.
      command: what repeats it.

    Returns:
      Plain values: `command`, `version`, `versions` of packages, `date` (UTC), and `comparisons`,
      each as `results.summarise` gives it, with `title`, `group`, `config`, and for each policy
      `against_default`.
    """
    folder = pathlib.Path(directory) / CELLS
    loaded = {key: cells.load(folder, key) for key in plan(comparisons)}
    contents = [_content(comparison, loaded, command) for comparison in comparisons]
    return {
        "command": command,
        "version": version.__version__,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "comparisons": [content for content in contents if content is not None],
    }


def write_results(content: dict[str, Any], directory: str | os.PathLike) -> pathlib.Path:
    """Writes `results.json` into a directory, which is made where absent; returns its path."""
    path = pathlib.Path(directory) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _content(
    comparison: Comparison, loaded: dict[CellKey, Cell | None], command: str
) -> dict[str, Any] | None:
    keys = {
        policy: [key for key in keys_of(comparison) if key.policy == policy]
        for policy in comparison.config.policies
    }
    finished: dict[str, list[Any]] = {
        policy: [loaded[key] for key in group]
        for policy, group in keys.items()
        if all(loaded[key] is not None for key in group)
    }
    if any(policy not in finished for policy in _ENDS):
        return None
    first = finished[configs.UNIFORM][0]
    config = dataclasses.replace(comparison.config, policies=tuple(finished))
    content = results.summarise(
        config,
        [cell.result for group in finished.values() for cell in group],
        metric=first.metric,
        metric_text=first.metric_text,
        command=command,
        version=version.__version__,
    )
    settings = dataclasses.asdict(config)
    settings.pop("data_dir")  # a machine's path
    against = {
        policy: _against_default(content["policies"], policy) for policy in content["policies"]
    }
    for policy, figures in content["policies"].items():
        figures["against_default"] = against[policy]
    return {
        "title": comparison.title,
        "group": comparison.group,
        "config": {**settings, "policies": list(config.policies)},
        **content,
    }


def _against_default(policies: dict[str, Any], policy: str) -> dict[str, float | None] | None:
    """Metric of a policy minus the default's, over the seeds that they share.

    Returns:
      `mean` and `standard_error` of the paired differences: above 0 where the policy is worse
      than importance. None where importance was not run, for itself and for everything.
    """
    if configs.IMPORTANCE not in policies or policy in (configs.IMPORTANCE, configs.EVERYTHING):
        return None
    pairs = zip(policies[policy]["values"], policies[configs.IMPORTANCE]["values"], strict=True)
    differences = [ours - default for ours, default in pairs]
    return {
        "mean": statistics.fmean(differences),
        "standard_error": results.standard_error(differences),
    }

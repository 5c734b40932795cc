"""From cells to `results.json` and the closing table."""

import math
from typing import Any

import numpy as np

from ofb_tf.experiments import config as configs
from ofb_tf.experiments.simulation import CellResult

_COUNTED = ("mean_weight", "max_weight", "effective_sample_size", "backward_examples")


def standard_error(values: list[float]) -> float | None:
    """Standard error of the mean; None for a single value, which says nothing of it."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def gap_closure(uniform: float, policy: float, everything: float) -> float | None:
    """(uniform − policy) / (uniform − everything); None where there is no gap to close.

    1: as good as training on everything. 0: as good as uniform sampling. Negative: worse.
    """
    gap = uniform - everything
    if not math.isfinite(gap) or gap <= 0:
        return None
    return (uniform - policy) / gap


def gap_closure_error(
    uniform: list[float], policy: list[float], everything: list[float]
) -> float | None:
    """Jackknife standard error of the gap closure over seeds, which the policies share.

    Reference: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11.
    """
    count = len(policy)
    if count < 2:
        return None
    left_out = []
    for seed in range(count):
        means = [np.delete(values, seed).mean() for values in (uniform, policy, everything)]
        closure = gap_closure(*means)
        if closure is None:
            return None
        left_out.append(closure)
    squares = (np.array(left_out) - np.mean(left_out)) ** 2
    return float(math.sqrt((count - 1) / count * np.sum(squares)))


def summarise(
    config: configs.SimulationConfig,
    cells: list[CellResult],
    *,
    metric: str,
    metric_text: str,
    command: str,
    version: str,
) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
      config: the experiment.
      cells: all its cells.
      metric: the name of the workload's metric.
      metric_text: what it is, in words.
      command: what repeats the experiment.
      version: of ofb-tf.

    Returns:
      Plain values; see DESIGN: mean, standard error and values a policy, gap closure, calibration,
      realised rate, weights, backward examples, wall-clock, and curves.
    """
    of = {
        policy: sorted((c for c in cells if c.policy == policy), key=lambda c: c.seed)
        for policy in config.policies
    }
    values = {policy: [c.metrics[metric] for c in group] for policy, group in of.items()}
    policies = {}
    for policy, group in of.items():
        mean_of = lambda name, group=group: float(np.mean([getattr(c, name) for c in group]))  # noqa: E731
        ends = (values[configs.UNIFORM], values[policy], values[configs.EVERYTHING])
        policies[policy] = {
            "mean": float(np.mean(values[policy])),
            "standard_error": standard_error(values[policy]),
            "values": values[policy],
            "gap_closure": gap_closure(*(float(np.mean(v)) for v in ends)),
            "gap_closure_standard_error": gap_closure_error(*ends),
            "calibration": float(np.mean([c.metrics["calibration"] for c in group])),
            "realized_rate": float(
                np.mean([c.backward_examples / c.stream_examples for c in group])
            ),
            **{name: mean_of(name) for name in _COUNTED},
            "wall_seconds": mean_of("train_seconds"),
            "build_seconds": mean_of("build_seconds"),
            "serving_seconds": mean_of("serving_seconds"),
            "metrics": {
                name: float(np.mean([c.metrics[name] for c in group])) for name in group[0].metrics
            },
            **_until_uniform(of[configs.UNIFORM], group, metric),
            "curves": [c.curve for c in group],
        }
    histograms = {p: g[0].histogram for p, g in of.items() if g[0].histogram is not None}
    return {
        "dataset": config.dataset,
        "rate": config.rate,
        "seeds": config.seeds,
        "metric": metric,
        "metric_text": metric_text,
        "command": command,
        "version": version,
        "window_size": config.window_size,
        "refresh_interval": config.refresh_interval,
        "passes": config.passes,
        "learning_rate": config.learning_rate,
        "stream_examples": cells[0].stream_examples,
        "policies": policies,
        "histograms": histograms,
    }


def _until_uniform(
    uniform: list[CellResult], group: list[CellResult], metric: str
) -> dict[str, float | None]:
    """What it took to be as good as uniform sampling at its end, as a fraction of uniform's whole.

    Read off the mean curve, between whose points it is taken as straight; None where the policy
    never gets there. `time_to_uniform` is of `train_seconds`, `stream_to_uniform` of examples.
    """
    goal = np.mean([cell.metrics[metric] for cell in uniform])

    def mean_curve(cells: list[CellResult], name: str) -> np.ndarray:
        return np.mean([[point[name] for point in cell.curve] for cell in cells], axis=0)

    values = mean_curve(group, metric)
    reached = np.flatnonzero(values <= goal)
    names = {"time_to_uniform": "train_seconds", "stream_to_uniform": "stream_examples"}
    if not len(reached):
        return dict.fromkeys(names)
    at = reached[0]
    fraction = 1.0 if at == 0 else (values[at - 1] - goal) / (values[at - 1] - values[at])
    found: dict[str, float | None] = {}
    for name, field in names.items():
        x = mean_curve(group, field)
        when = x[at] if at == 0 else x[at - 1] + fraction * (x[at] - x[at - 1])
        found[name] = float(when / max(mean_curve(uniform, field)[-1], 1e-9))
    return found


_HEADINGS = (
    ("policy", "{policy}"),
    ("{metric}", "{mean:.5g} ± {standard_error}"),
    ("gap closure", "{gap_closure}"),
    ("calibration", "{calibration:.3f}"),
    ("rate", "{realized_rate:.4f}"),
    ("mean w", "{mean_weight:.3f}"),
    ("max w", "{max_weight:.2f}"),
    ("ESS", "{effective_sample_size:.2f}"),
    ("backward", "{backward_examples:,.0f}"),
    ("stream to uniform", "{stream_to_uniform}"),
    ("train s", "{wall_seconds:.1f}"),
    ("serving s", "{serving_seconds:.1f}"),
)


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """The closing table: a row of headings, then a row a policy."""
    rows = [[heading.format(**results) for heading, _ in _HEADINGS]]
    for policy, figures in results["policies"].items():
        shown = dict(figures, policy=policy)
        error = figures["standard_error"]
        shown["standard_error"] = "–" if error is None else f"{error:.2g}"
        closure, closure_error = figures["gap_closure"], figures["gap_closure_standard_error"]
        shown["gap_closure"] = "–" if closure is None else f"{closure:.2f}"
        if closure_error and policy not in (configs.UNIFORM, configs.EVERYTHING):
            shown["gap_closure"] += f" ± {closure_error:.2f}"
        until = figures["stream_to_uniform"]
        shown["stream_to_uniform"] = "–" if until is None else f"{until:.2f}"
        rows.append([text.format(**shown) for _, text in _HEADINGS])
    return rows


def format_table(results: dict[str, Any]) -> str:
    """`table_rows` in columns of plain text."""
    rows = table_rows(results)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def reading(results: dict[str, Any]) -> list[str]:
    """Plain sentences on what the figures show."""
    policies, metric = results["policies"], results["metric"]
    everything = policies[configs.EVERYTHING]
    sentences = []
    for name, figures in policies.items():
        if name in (configs.UNIFORM, configs.EVERYTHING):
            continue
        less = everything["backward_examples"] / max(figures["backward_examples"], 1)
        closure = figures["gap_closure"]
        if closure is None:
            sentences.append(
                f"Training on everything was no better than uniform sampling in {metric}, so "
                f"there is no gap for {name} to close."
            )
            continue
        if abs(closure) < 0.005:
            did = "closed nothing of"
        elif closure > 0:
            did = f"closed {closure:.0%} of"
        else:
            did = f"was worse than uniform by {-closure:.0%} of"
        sentences.append(
            f"With {less:.1f} times fewer examples in the backward pass than training on "
            f"everything, {name} {did} the gap in {metric} between uniform sampling "
            f"({policies[configs.UNIFORM]['mean']:.4g}) and everything ({everything['mean']:.4g})."
        )
    sentences.append(
        "Every policy takes the same number of optimiser steps, one a window; everything takes "
        f"each with the whole window of {results['window_size']} examples, which is "
        f"{1 / results['rate']:.3g} times the backward work. "
        "Train seconds are the wall-clock of input pipeline, join, selection and training, among "
        f"them {_build_seconds(policies)} for building the pipeline anew at every refresh; "
        "serving seconds are export, forward passes and record writing in this simulation, which "
        "a production system has already paid for its users. Models here are small, so the input "
        "pipeline, not the backward pass, sets most of the wall-clock: read the cost from the "
        "backward column."
    )
    return sentences


def _build_seconds(policies: dict[str, Any]) -> str:
    return ", ".join(f"{name} {figures['build_seconds']:.1f}" for name, figures in policies.items())

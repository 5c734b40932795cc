"""`results.csv` and Markdown tables from the content of `ofb compare`'s `results.json`."""

import csv
import itertools
import os
import pathlib
from typing import Any

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import results
from ofb_tf.experiments.report_reading import within_budget

_SETTINGS = (
    "dataset",
    "positive_rate",
    "rate",
    "window_size",
    "refresh_interval",
    "passes",
    "label_noise",
    "outliers",
    "missing_records",
    "steps_per_window",
    "uniform_mix",
    "selective_beta",
)
_FIGURES = (
    "mean",
    "standard_error",
    "gap_closure",
    "gap_closure_standard_error",
    "calibration",
    "realized_rate",
    "mean_weight",
    "max_weight",
    "effective_sample_size",
    "backward_examples",
    "wall_seconds",
    "serving_seconds",
)
_NONE = "–"


def write_csv(content: dict[str, Any], directory: str | os.PathLike) -> pathlib.Path:
    """Writes `results.csv`: a row for each comparison and policy, one column for each seed."""
    path = pathlib.Path(directory) / "results.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = max((c["seeds"] for c in content["comparisons"]), default=0)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        values = [f"seed_{seed}" for seed in range(seeds)]
        writer.writerow(["title", *_SETTINGS, "metric", "policy", *_FIGURES, *values])
        for comparison in content["comparisons"]:
            settings = [comparison["config"][name] for name in _SETTINGS]
            for policy, figures in comparison["policies"].items():
                row = [comparison["title"], *settings, comparison["metric"], policy]
                writer.writerow(row + [figures[name] for name in _FIGURES] + figures["values"])
    return path


def write_markdown(content: dict[str, Any], path: str | os.PathLike) -> pathlib.Path:
    """Writes the tables as Markdown."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(content), encoding="utf-8")
    return path


def markdown(content: dict[str, Any]) -> str:
    """The tables: an overview of gap closure, where the default does not win, then every table."""
    comparisons = content["comparisons"]
    seeds = sorted({comparison["seeds"] for comparison in comparisons})
    packages = {"ofb-tf": content["version"], **content["versions"]}
    versions = ", ".join(f"{name} {number}" for name, number in packages.items())
    lines = [
        "# Results",
        "",
        "Written by `ofb compare --markdown`, never by hand. To repeat:",
        "",
        "```",
        content["command"],
        "```",
        "",
        f"{content['date']}; seeds: {', '.join(map(str, seeds))}, numbered from 0; {versions}.",
        "",
        *_EXPLANATION,
        "",
        "## Gap closure",
        "",
        *_overview(comparisons),
        "",
        "## Where the default does not win",
        "",
        *_exceptions(comparisons),
    ]
    for group, members in itertools.groupby(comparisons, key=lambda c: c["group"]):
        lines += ["", f"## {group}"]
        for comparison in members:
            head, *rows = results.table_rows(comparison)
            lines += ["", f"### {comparison['title']}", "", _settings(comparison), ""]
            lines += _table(head, rows)
    return "\n".join(lines) + "\n"


_EXPLANATION = (
    "Every table is a streaming simulation: a snapshot of the model serves the stream and leaves",
    "forward records, each policy selects from every window by them, and the model trains on what",
    "was selected; `everything` trains on the whole window in each step. All policies of a seed",
    "share initial weights, data order and conditions. The metric is measured on clean held-out",
    "data; less is better; ± is one standard error over seeds.",
    "",
    "- **Gap closure**: 0 is uniform sampling at the same rate, 1 is training on everything;",
    "  its error is the jackknife over seeds.",
    "- **Calibration**: mean prediction over mean outcome (classes: confidence over accuracy).",
    "- **Rate**: what the policy realised. InfoBatch sets its own, so it trains on more, in more",
    "  steps; what it gains over the others is bought with that.",
    "- **ESS**: effective sample size of the weights, as a fraction of the selected.",
    "- **Stream to uniform**: part of the stream after which the policy was as good as uniform",
    "  sampling at its end.",
    "- **Seconds** are processor time of one core, all in memory: selection and training, and the",
    "  forward passes of serving. Models are small: read the cost from the backward column.",
)


def _settings(comparison: dict[str, Any]) -> str:
    refresh = comparison["refresh_interval"]
    every = f"every {refresh} windows" if refresh else "once a pass"
    return (
        f"{comparison['metric']}: {comparison['metric_text']}. "
        f"{comparison['stream_examples']:,} examples in all, passes: {comparison['passes']}; "
        f"window {comparison['window_size']}, optimiser steps a window: "
        f"{comparison['config']['steps_per_window']}; snapshot refreshed {every}; "
        f"Adam, learning rate {comparison['learning_rate']:g}; {comparison['seeds']} seeds."
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(head), _row(["---"] + ["---:"] * (len(head) - 1)), *map(_row, rows)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _overview(comparisons: list[dict[str, Any]]) -> list[str]:
    """Comparisons against policies; bold is the best of those that keep to the budget."""
    ends = (configs.UNIFORM, configs.EVERYTHING)
    names = dict.fromkeys(p for c in comparisons for p in c["policies"] if p not in ends)
    rows = []
    for comparison in comparisons:
        policies = comparison["policies"]
        equal_cost = [p for p in names if p in policies and within_budget(comparison, p)]
        best = min(equal_cost, key=lambda p: policies[p]["mean"])
        row = [comparison["title"]]
        for name in names:
            text = _closure(policies.get(name))
            row.append(f"**{text}**" if name == best and text != _NONE else text)
        rows.append(row)
    return _table(["comparison", *names], rows)


def _closure(figures: dict[str, Any] | None) -> str:
    if figures is None or figures["gap_closure"] is None:
        return _NONE
    error = figures["gap_closure_standard_error"]
    text = f"{figures['gap_closure']:.2f}"
    return text if error is None else f"{text} ± {error:.2f}"


def exceptions(comparisons: list[dict[str, Any]]) -> list[tuple[str, str, float, float, float]]:
    """Where a policy is better than the default by more than one standard error.

    Returns:
      Tuples of title, policy, by how much (in the metric), the paired standard error over seeds
      (0 for a single seed), and the policy's realised rate.
    """
    found = []
    for comparison in comparisons:
        for policy, figures in comparison["policies"].items():
            against = figures["against_default"]
            if against is None:
                continue
            error = against["standard_error"] or 0.0
            if -against["mean"] > error:
                realized = figures["realized_rate"]
                found.append((comparison["title"], policy, -against["mean"], error, realized))
    return found


def _exceptions(comparisons: list[dict[str, Any]]) -> list[str]:
    found = exceptions(comparisons)
    if not found:
        return ["Nowhere: `importance` beats or ties (within one standard error) every policy."]
    rows = [
        [title, policy, f"{better:.3g} ± {error:.2g}", f"{realized:.4f}"]
        for title, policy, better, error, realized in found
    ]
    return [
        "Policies that were better than `importance` by more than one standard error of the paired",
        "difference, with the rate that they realised.",
        "",
        *_table(["comparison", "policy", "better by", "rate"], rows),
    ]

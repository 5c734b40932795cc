"""Results for people: tables, `results.csv`, Markdown, and `report.html` with charts."""

import collections
import csv
import html
import io
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ofb_tf import tables
from ofb_tf.experiments import config as configs
from ofb_tf.experiments import summary

# Columns of results.csv: settings of a comparison, then what was measured of a policy.
_SETTINGS = (
    "dataset", "positive_rate", "rate", "window_size", "refresh_interval", "passes", "label_noise",
    "outliers", "missing_records", "steps_per_window", "uniform_mix", "selective_beta",
    "estimator", "budget",
)  # fmt: skip
_MEASURED = (
    "mean", "standard_error", "gap_closure", "gap_closure_standard_error", "calibration",
    "realized_rate", "mean_weight", "max_weight", "effective_sample_size", "backward_examples",
    "wall_seconds", "serving_seconds",
)  # fmt: skip
_TABLE_COLUMNS = (
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
_ENDS = (configs.UNIFORM, configs.EVERYTHING)
_NONE = "–"

COLUMNS = (
    ("Gap closure", "0 is uniform sampling at the same rate, 1 is training on everything;\n"
     "  its error is the jackknife over seeds."),
    ("Calibration", "mean prediction over mean outcome (classes: confidence over accuracy)."),
    ("Rate", "what the policy realised. InfoBatch sets its own, so it trains on more, in more\n"
     "  steps; what it gains over the others is bought with that."),
    ("ESS", "effective sample size of the weights, as a fraction of the selected."),
    ("Stream to uniform", "part of the stream after which the policy was as good as uniform\n"
     "  sampling at its end."),
    ("Seconds", "of `ofb compare` are processor time of one core, all in memory; of `ofb demo`\n"
     "  wall-clock, through files. Train: selection and training. Serving: forward passes, which\n"
     "  production pays for anyway. Models are small: read the cost from the backward column."),
)  # fmt: skip
"""Names of the columns that need an explanation, and the explanation."""
_EXPLANATION = """\
Every table is a streaming simulation: a snapshot of the model serves the stream and leaves
forward records, each policy selects from every window by them, and the model trains on what
was selected; `everything` trains on the whole window in each step. All policies of a seed
share initial weights, data order and conditions. The metric is measured on clean held-out
data; less is better; ± is one standard error over seeds."""
_EXCEPTIONS = """\
Policies that were better than `importance` by more than one standard error of the paired
difference, with the rate that they realised."""
_NO_EXCEPTION = "Nowhere: `importance` beats or ties (within one standard error) every policy."


def column_notes() -> str:
    """`COLUMNS` as plain text, one per line."""
    return "\n".join(f"{name}: {' '.join(text.split())}" for name, text in COLUMNS)


def table_rows(content: dict[str, Any]) -> list[list[str]]:
    """The table of one comparison: a row of headings, then a row per policy."""
    rows = [[heading.format(**content) for heading, _ in _TABLE_COLUMNS]]
    for policy, shown in content["policies"].items():
        error, until = shown["standard_error"], shown["stream_to_uniform"]
        texts = shown | {
            "policy": policy,
            "standard_error": _NONE if error is None else f"{error:.2g}",
            "gap_closure": _closure(shown, with_error=policy not in _ENDS),
            "stream_to_uniform": _NONE if until is None else f"{until:.2f}",
        }
        rows.append([text.format(**texts) for _, text in _TABLE_COLUMNS])
    return rows


def write(text: str, *path: str | os.PathLike) -> pathlib.Path:
    """Writes a text to a file, whose directory is made if absent; returns its path."""
    file = pathlib.Path(*path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="")
    return file


def as_json(content: dict[str, Any]) -> str:
    """The content of `results.json`."""
    return json.dumps(content, indent=1) + "\n"


def as_csv(content: dict[str, Any]) -> str:
    """The content of `results.csv`: a row per comparison and policy, a column per seed."""
    seeds = max((c["seeds"] for c in content["comparisons"]), default=0)
    head = ["title", *_SETTINGS, "metric", "policy", *_MEASURED]
    rows: list[list[Any]] = [head + [f"seed_{seed}" for seed in range(seeds)]]
    for comparison in content["comparisons"]:
        settings = [comparison["config"][name] for name in _SETTINGS]
        for policy, shown in comparison["policies"].items():
            row = [comparison["title"], *settings, comparison["metric"], policy]
            rows.append(row + [shown[name] for name in _MEASURED] + shown["values"])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def as_markdown(content: dict[str, Any]) -> str:
    """The outline of the results as Markdown, without charts."""
    forms = {"h2": "## {}", "h3": "### {}", "code": "```\n{}\n```", "p": "{}"}
    blocks = ["# Results"]
    for kind, value in _outline(content):
        if kind == "table":
            blocks.append(tables.format_table(value, tables.MARKDOWN))
        elif kind == "list":
            blocks.append("\n".join(f"- **{name}**: {text}" for name, text in value))
        elif kind != "chart":
            blocks.append(forms[kind].format(value))
    return "\n\n".join(blocks) + "\n"


def require_matplotlib() -> None:
    """Raises ImportError with the remedy if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The report needs matplotlib. Install it with: pip install ofb-tf[report]"
        ) from error


def as_html(results: dict[str, Any]) -> str:
    """The content of `report.html`: the outline as a page that stands alone, with charts."""
    blocks = []
    for kind, value in _outline(results):
        if kind == "table":
            block = tables.format_table(value, tables.HTML)
        elif kind == "list":
            items = "".join(f"<li>**{name}**: {html.escape(text)}</li>" for name, text in value)
            block = f"<ul>{items}</ul>"
        elif kind == "chart":
            block = _svg(*value)
        else:
            tag = "pre" if kind == "code" else kind
            block = f"<{tag}>{html.escape(value)}</{tag}>"
        if kind in ("p", "list", "table"):  # as in Markdown
            block = re.sub(r"`(.+?)`", r"<code>\1</code>", block)
            block = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", block)
        blocks.append(block)
    return _PAGE.format(body="\n".join(blocks))


def _outline(results: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What Markdown and page show, in order.

    Kinds: "p", "h2", "h3", "code" (text), "list" (pairs), "table" (rows), "chart" (for `_svg`).
    """
    single = {"title": f"{results.get('dataset')}, rate {results.get('rate')}", "group": "Policies"}
    comparisons = results.get("comparisons", [results | single])
    seeds = sorted({comparison["seeds"] for comparison in comparisons})
    versions = {"ofb-tf": results["version"], **results.get("versions", {})}
    about = [results["date"]] if "date" in results else []
    about.append(f"seeds: {', '.join(map(str, seeds))}, numbered from 0")
    about.append(", ".join(f"{name} {number}" for name, number in versions.items()))
    yield "p", "Written by `ofb`, never by hand. To repeat:"
    yield "code", results["command"]
    yield "p", "; ".join(about) + "."
    yield "p", _EXPLANATION
    yield "list", COLUMNS
    if not comparisons:
        yield "p", "No comparison is finished."
        return
    yield "h2", "Gap closure"
    yield "table", _overview(comparisons)
    yield "h2", "Where the default does not win"
    exceptions = [
        [b.title, b.policy, f"{b.better_by:.3g} ± {b.standard_error:.2g}", f"{b.realized_rate:.4f}"]
        for b in summary.better_than_default(comparisons)
    ]
    yield "p", _EXCEPTIONS if exceptions else _NO_EXCEPTION
    if exceptions:
        yield "table", [["comparison", "policy", "better by", "rate"], *exceptions]
    for group, members in itertools.groupby(comparisons, key=lambda c: c["group"]):
        contents = list(members)
        yield "h2", group
        for field, label, limits in _POINTS:
            yield "chart", (_draw_points, f"{label}: {group}", contents, field, label, limits)
        for content in contents:
            title = content["title"]
            yield "h3", title
            yield "p", _settings(content)
            yield "table", table_rows(content)
            for against, label in _CURVES.items():
                yield "chart", (_draw_curves, f"{title}: metric by {label}", content, against)
            if content["histograms"]:
                yield "chart", (_draw_histograms, f"{title}: losses by selection", content)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ofb-tf: policies compared</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; }}
svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-size: .875rem; }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid #ccc; text-align: left; }}
.numbers :is(th, td) {{ white-space: nowrap; }}
.numbers :is(th, td):not(:first-child) {{ text-align: right; }}
pre {{ white-space: pre-wrap; }}
</style>
</head>
<body>
<h1>Which examples to train on: policies compared</h1>
{body}
</body>
</html>
"""
_POINTS = (  # field, axis label, limits
    ("gap_closure", "gap closure: 0 as uniform, 1 as everything", (-1.0, 1.5)),
    ("calibration", "calibration: 1 is right", (0.5, 1.5)),
)
_CURVES = {
    "backward_examples": "examples in the backward pass",
    "train_seconds": "seconds of training",
}


def _svg(draw: Callable[..., None], label: str, *arguments: Any) -> str:
    """An inline SVG by `draw(axis, *arguments)`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    # The salt keeps the ids of different charts apart.
    with rc_context(_STYLE | {"svg.fonttype": "none", "svg.hashsalt": label}):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axis = figure.subplots()
        draw(axis, *arguments)
        axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        text = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=metadata)
    _, drawing = text.getvalue().split("<svg", 1)
    return f'<svg role="img" aria-label="{html.escape(label)}"{drawing}'


_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}
_COLOURS = {policy: f"C{number}" for number, policy in enumerate(configs.EVERY_POLICY)}


def _draw_curves(
    axis: Any, content: dict[str, Any], against: str, policies: Sequence[str] | None = None
) -> None:
    """Mean metric of policies over their seeds, with a band of one standard error.

    The untrained model is left out, and the frame ends above the curves of uniform, importance and
    everything; a policy that is worse leaves it at the top.
    """
    metric, ceilings = content["metric"], []
    for policy in policies or content["policies"]:
        curves = [curve[1:] or curve for curve in content["policies"][policy]["curves"]]
        x, _ = summary.mean_curve(curves, against)
        mean, error = summary.mean_curve(curves, metric)
        axis.plot(x, mean, color=_COLOURS.get(policy), marker=".", label=policy)
        if error is not None:
            axis.fill_between(x, mean - error, mean + error, color=_COLOURS.get(policy), alpha=0.2)
        if policy in (configs.IMPORTANCE, *_ENDS):
            ceilings.append(mean[len(mean) // 5 :].max())
    if np.isfinite(ceilings).all():
        axis.set_ylim(None, 1.1 * max(ceilings))
    axis.set_xscale("log" if against == "backward_examples" else "linear")
    axis.xaxis.set_minor_formatter("")  # its labels would overlap
    axis.set_xlabel(_CURVES[against])
    axis.set_ylabel(f"{metric} (less is better)")


def _draw_points(
    axis: Any, contents: Sequence[dict[str, Any]], field: str, label: str, limits: tuple
) -> None:
    """A field of every policy with its standard error, a row per comparison.

    What lies beyond the limits is left to the tables.
    """
    policies = dict.fromkeys(policy for content in contents for policy in content["policies"])
    for number, policy in enumerate(policies):
        rows = [row for row, c in enumerate(contents) if policy in c["policies"]]
        x, error = _values([contents[row] for row in rows], policy, field)
        y = [row + 0.08 * number for row in rows]
        style = {"fmt": "o", "markersize": 4, "color": _COLOURS.get(policy)}
        axis.errorbar(x, y, xerr=error, label=policy, **style)
    axis.set_yticks(range(len(contents)), [c["title"] for c in contents], fontsize=6)
    axis.invert_yaxis()
    axis.set_xlim(*limits)
    axis.set_xlabel(label)
    axis.figure.set_figheight(1.2 + 0.5 * len(contents))


def _values(contents: Sequence[dict[str, Any]], policy: str, field: str) -> tuple[list, list]:
    """A field of a policy in each comparison, NaN where it is None, and its standard errors."""
    shown = [content["policies"][policy] for content in contents]
    values = [np.nan if s[field] is None else s[field] for s in shown]
    return values, [s.get(f"{field}_standard_error") or 0.0 for s in shown]


def _draw_histograms(axis: Any, content: dict[str, Any]) -> None:
    """Recorded losses of the last interval: a solid line of the selected, a dotted of the rest."""
    for policy, groups in content["histograms"].items():
        both = np.concatenate([groups["selected"], groups["not_selected"]])
        both = both[both > 0]
        if not len(both):
            continue
        edges = np.geomspace(both.min(), max(both.max(), 1.001 * both.min()), 36)
        for group, line in (("selected", "-"), ("not_selected", ":")):
            share = np.histogram(groups[group], edges)[0] / max(len(groups[group]), 1)
            name = f"{policy}, {group.replace('_', ' ')}"
            axis.stairs(share, edges, color=_COLOURS.get(policy), linestyle=line, label=name)
    label = "loss recorded for the last interval, first seed"
    axis.set(xscale="log", xlabel=label, ylabel="share")


_SHOWN = {"dataset": configs.CLICK_STREAM, "positive_rate": 0.01, "rate": 0.1}


def write_picture(results: dict[str, Any], path: str | os.PathLike) -> pathlib.Path:
    """Draws README's picture of the standard suite; ValueError if the results do not have it.

    Left: the metric on the click stream against the examples in the backward pass. Right: the gap
    closure of importance sampling at every rate that a task was run at.
    """
    figure = draw_picture(results["comparisons"])
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def draw_picture(comparisons: Sequence[dict[str, Any]]) -> Any:
    """The matplotlib figure of `write_picture`, which says more."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    groups = collections.defaultdict(list)  # by all settings but the rate
    for comparison in comparisons:
        settings = {**comparison["config"], "rate": None, "policies": None}
        groups[json.dumps(settings, sort_keys=True)].append(comparison)
    lines = [sorted(m, key=lambda c: c["rate"]) for m in groups.values()]
    lines = [members for members in lines if len({c["rate"] for c in members}) > 1]
    shown = [c for c in comparisons if all(c["config"].get(k) == v for k, v in _SHOWN.items())]
    if not shown or not lines:
        raise ValueError(
            f"results must have a comparison with {_SHOWN} and one task at several rates, as those "
            f"of ofb compare --suite=standard. Received: {[c['title'] for c in comparisons]}"
        )
    with rc_context(_STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=140)
        left, right = figure.subplots(1, 2)
        _draw_curves(left, shown[0], "backward_examples", (configs.IMPORTANCE, *_ENDS))
        left.set_ylim(0, None)
        left.set_title(shown[0]["title"])
        left.legend(frameon=False)
        for number, members in enumerate(lines):
            # Lines are moved apart, or error bars would hide one another.
            x = [c["rate"] * 1.03 ** (number - len(lines) / 2) for c in members]
            y, error = _values(members, configs.IMPORTANCE, "gap_closure")
            title, marker = members[0]["title"].rsplit(", rate", 1)[0], "os^vDP"[number % 6]
            right.errorbar(x, y, yerr=error, label=title, marker=marker)
        rates = sorted({c["rate"] for members in lines for c in members})
        right.set_xscale("log")
        right.set_xticks(rates, [f"{rate:g}" for rate in rates])
        right.minorticks_off()
        right.set(
            ylim=(-0.3, 1.3),
            xlabel="rate: part of the stream in the backward pass (logarithmic)",
            ylabel="gap closure (0 uniform, 1 everything)",
            title="importance at every rate",
        )
        right.legend(edgecolor="none", loc="lower right")
    return figure


def _overview(comparisons: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Gap closure by comparison and policy; asterisks mark the best within the budget."""
    names = dict.fromkeys(p for c in comparisons for p in c["policies"] if p not in _ENDS)
    rows = [["comparison", *names]]
    for comparison in comparisons:
        first = summary.best(comparison)
        texts = {name: _closure(comparison["policies"].get(name)) for name in names}
        if texts.get(first, _NONE) != _NONE:
            texts[first] = f"**{texts[first]}**"
        rows.append([comparison["title"], *texts.values()])
    return rows


def _closure(shown: dict[str, Any] | None, with_error: bool = True) -> str:
    if shown is None or shown["gap_closure"] is None:
        return _NONE
    error = shown["gap_closure_standard_error"]
    text = f"{shown['gap_closure']:.2f}"
    return f"{text} ± {error:.2f}" if with_error and error is not None else text


def _settings(content: dict[str, Any]) -> str:
    interval = content["refresh_interval"]
    every = f"every {interval} windows" if interval else "once a pass"
    steps = content.get("config", {}).get("steps_per_window", 1)
    return (
        f"{content['metric']}: {content['metric_text']}. "
        f"{content['stream_examples']:,} examples in all, passes: {content['passes']}; "
        f"window {content['window_size']}, optimiser steps per window: {steps}; "
        f"snapshot refreshed {every}; "
        f"Adam, learning rate {content['learning_rate']:g}; {content['seeds']} seeds."
    )

"""Results for people: tables, `results.csv`, Markdown, and `report.html` with charts."""

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
from ofb_tf.pictures import STYLE

# Columns of results.csv: settings of a comparison, then what was measured of a policy.
_SETTINGS = (
    "dataset", "positive_rate", "rate", "window_size", "refresh_interval", "passes", "label_noise",
    "outliers", "missing_records", "steps_per_window", "uniform_mix", "selective_beta", "model",
    "estimator", "budget",
)  # fmt: skip
_MEASURED = (
    "mean", "standard_error", "gap_closure", "gap_closure_standard_error", "calibration",
    "realized_rate", "mean_weight", "max_weight", "effective_sample_size", "backward_examples",
    "wall_seconds", "serving_seconds", "cpu_seconds", "seconds_to_full_quality", "learning_rate",
)  # fmt: skip
_PROGRESSIVE = ("mean", "standard_error", "gap_closure", "gap_closure_standard_error")
_TABLE_COLUMNS = (
    ("policy", "{policy}"),
    ("{metric}", "{quality}"),
    ("train s", "{wall_seconds:.1f}"),
    ("CPU s", "{cpu_seconds:.1f}"),
    ("full quality s", "{seconds_to_full_quality}"),
    ("backward", "{backward_examples:,.0f}"),
    ("gap closure", "{gap_closure}"),
    ("calibration", "{calibration:.3f}"),
    ("rate", "{realized_rate:.4f}"),
    ("mean w", "{mean_weight:.3f}"),
    ("max w", "{max_weight:.2f}"),
    ("ESS", "{effective_sample_size:.2f}"),
    ("stream to uniform", "{stream_to_uniform}"),
    ("learning rate", "{learning_rate:g}"),
    ("warm-up s", "{warm_up_seconds:.1f}"),
    ("serving s", "{serving_seconds:.1f}"),
)
# Where the answers of serving are evaluated too.
_PROGRESSIVE_COLUMNS = (
    ("progressive", "{progressive_quality}"),
    ("gap closure, progressive", "{progressive_gap_closure}"),
)
_MAYBE_NEVER = {"stream_to_uniform": "{:.2f}", "seconds_to_full_quality": "{:.1f}"}
_ENDS = (configs.UNIFORM, configs.EVERYTHING)
_NONE = "–"

COLUMNS = (
    ("Train s, CPU s", "what training cost, by the wall clock and in processor time: reading,\n"
     "  loading records, selection, forward and backward passes. Trials of `ofb compare` are in\n"
     "  memory and run side by side, each on one core: compare their CPU s. Not in it:\n"
     "  evaluation, warm-up, serving, and no waiting: an interval of the stream is there before\n"
     "  training takes it up."),
    ("Full quality s", "seconds of training until the metric was what `everything` ended with:\n"
     "  first crossing of the mean curve over seeds, straight between evaluations. Wall-clock in\n"
     "  `ofb demo`, processor time in `ofb compare`."),
    ("Backward", "examples that went through forward and backward pass."),
    ("Gap closure", "0 is uniform sampling at the same rate, 1 is training on everything;\n"
     "  its error is the jackknife over seeds."),
    ("Calibration", "mean prediction over mean outcome (classes: confidence over accuracy)."),
    ("Rate", "what the policy realised. InfoBatch sets its own, so it trains on more, in more\n"
     "  steps; what it gains over the others is bought with that."),
    ("ESS", "effective sample size of the weights, as a fraction of the selected."),
    ("Stream to uniform", "part of the stream after which the policy was as good as uniform\n"
     "  sampling at its end."),
    ("Progressive", "the metric on the stream itself: every example answered by the model that\n"
     "  served at its time, which was trained on labels known before; in streams in the order of\n"
     "  time alone."),
    ("Learning rate", "of Adam. Where there are several, each policy is also shown at its best,\n"
     "  by the mean of the metric over seeds: a choice that favours all policies alike."),
    ("Warm-up s", "tracing selection and training step, once per process."),
    ("Serving s", "exporting snapshots, their forward passes and writing the records. Production\n"
     "  makes the forward passes anyway; where it does not, add them to the cost of training."),
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
    further = content.get("further_metrics", {})
    columns = [*_TABLE_COLUMNS]
    for name in further:
        columns += [
            (name, f"{{{name}_quality}}"),
            (f"gap closure, {name}", f"{{{name}_gap_closure}}"),
        ]
    if _is_progressive(content):
        columns += _PROGRESSIVE_COLUMNS
    rows = [[heading.format(**content) for heading, _ in columns]]
    for policy, shown in content["policies"].items():
        texts = shown | {"policy": policy} | _quality(shown, "", policy)
        texts |= _quality(shown["progressive"], "progressive_", policy)
        for name in further:
            texts |= _quality(shown["further"][name], f"{name}_", policy)
        texts |= {
            name: _NONE if shown[name] is None else form.format(shown[name])
            for name, form in _MAYBE_NEVER.items()
        }
        rows.append([text.format(**texts) for _, text in columns])
    return rows


def _is_progressive(content: dict[str, Any]) -> bool:
    return all(shown["progressive"] for shown in content["policies"].values())


def _on_stream(content: dict[str, Any]) -> dict[str, Any]:
    """A comparison with the progressive metric in place of that on held-out examples."""
    policies = {p: shown | shown["progressive"] for p, shown in content["policies"].items()}
    return content | {"policies": policies}


def _quality(shown: dict[str, Any] | None, prefix: str, policy: str) -> dict[str, Any]:
    """What `summary.quality` holds, as the columns of a table name it."""
    if shown is None:
        return {}
    error = shown["standard_error"]
    return {
        f"{prefix}quality": f"{shown['mean']:.5g} ± {_NONE if error is None else f'{error:.2g}'}",
        f"{prefix}gap_closure": _closure(shown, with_error=policy not in _ENDS),
    }


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
    head += [f"progressive_{name}" for name in _PROGRESSIVE]
    rows: list[list[Any]] = [head + [f"seed_{seed}" for seed in range(seeds)]]
    for comparison in content["comparisons"]:
        settings = [comparison["config"][name] for name in _SETTINGS]
        for policy, shown in comparison["policies"].items():
            row = [comparison["title"], *settings, comparison["metric"], policy]
            progressive = shown["progressive"] or dict.fromkeys(_PROGRESSIVE)
            row += [shown[name] for name in _MEASURED] + [
                progressive[name] for name in _PROGRESSIVE
            ]
            rows.append(row + shown["values"])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def as_markdown(content: dict[str, Any]) -> str:
    """The outline of the results as Markdown, without charts."""
    forms = {"h2": "## {}", "h3": "### {}", "code": "```\n{}\n```", "p": "{}"}
    blocks = ["# Results"]
    if "comparisons" in content:
        content = content | {"comparisons": _at_default_or_best(content["comparisons"])}
    for kind, value in _outline(content):
        if kind == "table":
            blocks.append(tables.format_table(value, tables.MARKDOWN))
        elif kind == "list":
            blocks.append("\n".join(f"- **{name}**: {text}" for name, text in value))
        elif kind != "chart":
            blocks.append(forms[kind].format(value))
    return "\n\n".join(blocks) + "\n"


def _at_default_or_best(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the members of sweeps at other learning rates than the default."""
    best = {c["title"].removesuffix(f", {configs.AT_BEST}") for c in comparisons}

    def is_member(one: dict[str, Any]) -> bool:
        rate = one["learning_rate"]
        named = f", learning rate {rate:g}" if rate else ""
        return named in one["title"] and one["title"].replace(named, "") in best

    default = configs.SimulationConfig.learning_rate
    return [c for c in comparisons if c["learning_rate"] in (None, default) or not is_member(c)]


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
    comparisons = results.get("comparisons", [results])
    seeds = sorted({comparison["seeds"] for comparison in comparisons})
    versions = {"ofb-tf": results["version"], **results.get("versions", {})}
    about = [results["date"]] if "date" in results else []
    about.append(f"seeds: {', '.join(map(str, seeds))}, numbered from 0")
    about.append(", ".join(f"{name} {number}" for name, number in versions.items()))
    yield "p", "Written by `ofb`, never by hand. To repeat:"
    yield "code", results["command"]
    yield "p", "; ".join(about) + "."
    if comparisons == [results]:
        yield "p", headline(results)
        yield from _of_one(results, f"{results['dataset']}, rate {results['rate']:g}")
    yield "p", _EXPLANATION
    yield "list", COLUMNS
    if comparisons == [results]:
        return
    if not comparisons:
        yield "p", "No comparison is finished."
        return
    yield "h2", "Gap closure"
    yield "table", _overview(comparisons)
    if streams := [_on_stream(one) for one in comparisons if _is_progressive(one)]:
        yield "h2", "Gap closure, progressive"
        yield "table", _overview(streams)
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
            yield from _of_one(content, content["title"])


def _of_one(content: dict[str, Any], title: str) -> Iterator[tuple[str, Any]]:
    """The part of `_outline` about one comparison, quality over seconds first."""
    yield "h3", title
    for against, label in _CURVES.items():
        yield "chart", (_draw_curves, f"{title}: metric by {label}", content, against)
    yield "table", table_rows(content)
    yield "p", _settings(content)


def headline(content: dict[str, Any]) -> str:
    """What each policy between the ends costs and gives, in fractions of everything's."""
    fields = {
        "wall_seconds": "train seconds",
        "cpu_seconds": "CPU seconds",
        "seconds_to_full_quality": "seconds to full quality",
    }
    whole, sentences = content["policies"][configs.EVERYTHING], []
    for policy, shown in content["policies"].items():
        if policy not in _ENDS:
            parts = [
                f"{shown[field] / whole[field]:.2f} of its {name}"
                if shown[field] and whole[field]
                else f"{name}: {_NONE}"
                for field, name in fields.items()
            ]
            sentence = f"{policy} against everything: {', '.join(parts)}"
            closures = [f"gap closure {_closure(shown)}"]
            closures += [f"{_closure(s)} by {name}" for name, s in shown.get("further", {}).items()]
            sentences.append(f"{sentence}; {', '.join(closures)}.")
    return "\n".join(sentences)


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
    "train_seconds": "seconds of training",
    "backward_examples": "examples in the backward pass",
}


def _svg(draw: Callable[..., None], label: str, *arguments: Any) -> str:
    """An inline SVG by `draw(axis, *arguments)`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    # The salt keeps the ids of different charts apart.
    with rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": label}):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axis = figure.subplots()
        draw(axis, *arguments)
        axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        text = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=metadata)
    _, drawing = text.getvalue().split("<svg", 1)
    return f'<svg role="img" aria-label="{html.escape(label)}"{drawing}'


_COLOURS = {policy: f"C{number}" for number, policy in enumerate(configs.EVERY_POLICY)}


def _draw_curves(axis: Any, content: dict[str, Any], against: str) -> None:
    """Mean metric of policies over their seeds, with a band of one standard error.

    The untrained model is left out, and the frame ends above the curves of uniform, importance and
    everything; a policy that is worse leaves it at the top.
    """
    metric, ceilings = content["metric"], []
    for policy, shown in content["policies"].items():
        curves = [curve[1:] or curve for curve in shown["curves"]]
        x, _ = summary.mean_curve(curves, against)
        mean, error = summary.mean_curve(curves, metric)
        axis.plot(x, mean, color=_COLOURS.get(policy), marker=".", label=policy)
        if error is not None:
            axis.fill_between(x, mean - error, mean + error, color=_COLOURS.get(policy), alpha=0.2)
        if policy in (configs.IMPORTANCE, *_ENDS):
            ceilings.append(mean[len(mean) // 5 :].max())
    whole = content["policies"][configs.EVERYTHING]["mean"]
    axis.axhline(whole, color="#888888", linestyle=":", linewidth=1, label="full quality")
    if np.isfinite(ceilings).all():
        axis.set_ylim(None, 1.1 * max(ceilings))
    if against == "backward_examples":
        axis.set_xscale("log")
    else:
        axis.set_xlim(0, None)
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


def write_picture(results: dict[str, Any], path: str | os.PathLike) -> pathlib.Path:
    """Draws a demo's metric over the seconds of training and by examples in the backward pass."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=140)
        for axis, against in zip(figure.subplots(1, 2, sharey=True), _CURVES, strict=True):
            _draw_curves(axis, results, against)
            axis.set_ylim(0, None)
        axis.legend(frameon=False)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


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
        for metric in comparison.get("further_metrics", {}):
            shown = [comparison["policies"].get(name) for name in names]
            texts_of = [_closure(one and one["further"][metric]) for one in shown]
            rows.append([f"{comparison['title']}, by {metric}", *texts_of])
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
    every = "every window" if interval == 1 else every
    steps = content.get("config", {}).get("steps_per_window", 1)
    texts = {content["metric"]: content["metric_text"], **content.get("further_metrics", {})}
    rate = content["learning_rate"]
    rates = "as in the table" if rate is None else f"{rate:g}"
    return (
        "".join(f"{metric}: {text}. " for metric, text in texts.items())
        + f"{content['stream_examples']:,} examples in all, passes: {content['passes']}; "
        f"window {content['window_size']}, optimiser steps per window: {steps}; "
        f"snapshot refreshed {every}; "
        f"Adam, learning rate {rates}; {content['seeds']} seeds."
    )

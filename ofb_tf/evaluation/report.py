"""An evaluation for people: tables and a picture."""

import os
import pathlib
from typing import Any

from ofb_tf import constants
from ofb_tf.evaluation.accumulator import RECORD_AGE, TIME
from ofb_tf.evaluation.gain import ADVICE_RATE
from ofb_tf.evaluation.heads import HEADS
from ofb_tf.evaluation.shadow import SERVED, SHADOW
from ofb_tf.pictures import STYLE

MAX_ROWS = 30
"""Rows of a table; the smaller groups beyond are left to the JSON, and counted."""
_COUNTS = {
    "examples": ("examples", ",d"),
    "without_record": ("without record", ",d"),
    "invalid_labels": ("invalid label", ",d"),
    "unusable": ("not finite", ",d"),
    "evaluated": ("evaluated", ",d"),
}
_COLUMNS = {
    "examples": ("examples", ",d"),
    constants.COVERAGE: ("coverage", ".1%"),
    constants.LOSS: ("loss", ".4g"),
    "normalized_entropy": ("NE", ".4f"),
    "r_squared": ("R²", ".4f"),
    "calibration": ("calibration", ".3f"),
    "accuracy": ("accuracy", ".4f"),
    "auc": ("AUC", ".4f"),
    "auc_error": ("± at most", ".4f"),
    "mean_score": ("score", ".4g"),
}
_GAIN = {
    "rate": ("rate", "g"),
    "variance_ratio": ("variance ratio", ".3f"),
    "predicted_gap_closure": ("predicted gap closure", ".2f"),
    constants.EFFECTIVE_SAMPLE_SIZE: ("ESS", ".2f"),
}
_SHADOW_GAIN = {
    "rate": ("rate", "g"),
    "variance_ratio": ("variance ratio by its own scores", ".3f"),
    "variance_ratio_by_served": ("by the served model's", ".3f"),
}
_UNDEFINED = "–"


def table_rows(content: dict[str, Any]) -> list[list[list[str]]]:
    """The tables of `evaluate`: counts, metrics by group, gain by rate, and those of a shadow."""
    if HEADS in content:
        totals = {name: head["total"] for name, head in content[HEADS].items()}
        totals["all heads"] = content["total"]
        tables = [_rows("head", totals, _COUNTS), _rows("head", totals, _columns(totals))]
        for name, head in content[HEADS].items():
            tables += _group_rows(head, f"{name}: ")
    else:
        totals = {"all": content["total"]}
        counts = [row[1:] for row in _rows("", totals, _COUNTS)]
        tables = [counts, _rows("", totals, _columns(totals)), *_group_rows(content)]
    tables.append(_gain_rows(content["gain"], _GAIN))
    if SHADOW in content:
        models = {name: content[SHADOW][name] for name in (SERVED, SHADOW)}
        tables.append(_rows("answered by both", models, _columns(totals)))
        tables.append(_gain_rows(content[SHADOW]["gain"], _SHADOW_GAIN))
    return tables


def notes(content: dict[str, Any]) -> list[str]:
    """What belongs below the tables; the last line is the advice, which a head alone has not."""
    lines = []
    for name, head in content.get(HEADS, {}).items():
        lines += [f"{name}: {line}" for line in notes(head)]
    if content.get(constants.CONFIDENT_ERROR) is not None:
        lines.append(
            f"Suspicious labels: {content[constants.CONFIDENT_ERROR]:.2%} contradict the most "
            f"confident quarter of the predictions, which expects "
            f"{content[constants.EXPECTED_CONFIDENT_ERROR]:.2%}."
        )
    if content["score_drift"] is not None:
        lines.append(
            f"Score drift: {content['score_drift']:+.1%} from the youngest to the oldest records."
        )
    if SHADOW in content:
        (here,) = (row for row in content[SHADOW]["gain"] if row["rate"] == ADVICE_RATE)
        ratios = [_text(here[name], form) for name, (_, form) in _SHADOW_GAIN.items()]
        lines.append(
            f"Shadow: at a rate of {ratios[0]}, selection by the served model's records leaves "
            f"{ratios[2]} of the variance of uniform sampling in the shadow model's gradients, "
            f"selection by its own {ratios[1]}."
        )
    return lines + ([content["advice"]] if "advice" in content else [])


def _columns(groups: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Those that any of the groups has."""
    has = {name for metrics in groups.values() for name in metrics}
    return {name: shown for name, shown in _COLUMNS.items() if name in has}


def _group_rows(content: dict[str, Any], prefix: str = "") -> list[list[list[str]]]:
    """A table by each version, age, time and feature."""
    columns = _columns({"": content["total"]})
    axes = (*content["by"].items(), *content["slices"].items())
    return [
        _rows(prefix + axis.replace("_", " "), groups, columns) for axis, groups in axes if groups
    ]


def _gain_rows(gain: list[dict[str, float | None]], columns: dict) -> list[list[str]]:
    rows = [[_text(row[name], form) for name, (_, form) in columns.items()] for row in gain]
    return [[heading for heading, _ in columns.values()], *rows]


def _rows(title: str, groups: dict[str, dict[str, Any]], columns: dict) -> list[list[str]]:
    largest = sorted(groups, key=lambda name: -groups[name]["examples"])[:MAX_ROWS]
    rows = [[title, *(heading for heading, _ in columns.values())]]
    for name, metrics in groups.items():
        if name in largest:
            row = [_text(metrics.get(field), form) for field, (_, form) in columns.items()]
            rows.append([name or '""', *row])
    if len(groups) > MAX_ROWS:
        left = sum(metrics["examples"] for metrics in groups.values())
        left -= sum(groups[name]["examples"] for name in largest)
        others = f"{len(groups) - MAX_ROWS} more"
        rows.append([others, f"{left:,d}", *[""] * (len(columns) - 1)])
    return rows


def _text(value: Any, form: str) -> str:
    return _UNDEFINED if value is None else format(value, form)


def write_picture(content: dict[str, Any], path: str | os.PathLike) -> pathlib.Path:
    """Draws quality and calibration over time, the score by age, and the gain by rate.

    Of several heads each has these, but for the gain, which is that of the selection for all.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heads = content.get(HEADS, {"": content})
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 6.4 * len(heads)), layout="constrained", dpi=140)
        parts = figure.subfigures(len(heads), 1, squeeze=False).flat
        for part, (name, head) in zip(parts, heads.items(), strict=True):
            if name:
                part.suptitle(name)
            axes = list(part.subplots(2, 2).flat)
            metrics = ("normalized_entropy", "r_squared", "loss")
            _draw_times(axes[0], head, next(q for q in metrics if q in head["total"]))
            _draw_times(axes[1], head, "calibration")
            _draw_ages(axes[2], head["by"][RECORD_AGE])
            _draw_gain(axes[3], content["gain"])
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_times(axis: Any, content: dict[str, Any], field: str) -> None:
    """A metric in each interval of time, and of the whole."""
    groups = content["by"][TIME]
    values = [_number(metrics.get(field)) for metrics in groups.values()]
    axis.plot(range(len(values)), values, marker=".")
    total = content["total"].get(field)
    if total is not None:
        axis.axhline(total, color="#888888", linestyle=":", linewidth=1, label="all")
        axis.legend(frameon=False)
    names = list(groups)
    shown = range(0, len(names), max(1, (len(names) + 3) // 4))
    axis.set_xticks(shown, [names[place].replace("T", "\n").split(".")[0] for place in shown])
    axis.set_ylabel(field.replace("_", " "))
    axis.set_xlabel("beginning of the interval (UTC)")


def _draw_ages(axis: Any, groups: dict[str, dict[str, Any]]) -> None:
    values = [_number(metrics["mean_score"]) for metrics in groups.values()]
    axis.barh(list(groups), values)
    axis.invert_yaxis()
    axis.set_xlabel("mean score (gradient-norm bound)")
    axis.set_ylabel("age of the record")


def _draw_gain(axis: Any, gain: list[dict[str, float | None]]) -> None:
    rates = [row["rate"] for row in gain]
    for name in ("predicted_gap_closure", constants.EFFECTIVE_SAMPLE_SIZE):
        values = [_number(row[name]) for row in gain]
        axis.plot(rates, values, marker=".", label=name.replace("_", " "))
    axis.set_xscale("log")
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.minorticks_off()
    axis.set_ylim(min(0.0, *axis.get_ylim()), 1.02)
    axis.set_xlabel("rate")
    axis.legend(frameon=False)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value

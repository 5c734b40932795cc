"""The report's charts, as inline SVG by matplotlib."""

import contextlib
import html
import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import report_style as style

_WIDTH = 4.4  # inches; at nine points, text is as large as the page's on a phone and on a desk
_MARKERS_A_CURVE = 8
_TITLE_LINE, _POLICY, _GAP = 0.15, 0.14, 0.12  # inches: in a row of dots
_TITLE_WIDTH = 54  # characters

CURVES = {
    "backward_examples": ("examples in the backward pass (logarithmic)", "What it cost"),
    "train_seconds": ("seconds of training", "Wall-clock"),
    "stream_examples": ("examples of the stream", "What the stream brought"),
}


def curves(results: dict[str, Any], against: str, name: str) -> str:
    """Mean metric of each policy over its seeds, with a band of one standard error.

    The frame ends above the curves of uniform, importance and everything; a policy that is worse
    leaves it at the top.

    Args:
      results: one comparison.
      against: a key of `CURVES`.
      name: unique in the page.

    Returns:
      SVG.
    """
    metric, policies = results["metric"], results["policies"]
    with _drawing(name, height=2.9) as (figure, axis):
        ceilings, floors = [], []
        for policy, figures in policies.items():
            x, mean, error = mean_curve(figures, metric, against)
            shown = style.look(policy)
            axis.plot(
                x,
                mean,
                color=shown.light,
                marker=shown.marker,
                markersize=4,
                markevery=max(1, len(x) // _MARKERS_A_CURVE),
                linewidth=1.6,
                gid=f"{name}-curve-{policy}",
            )
            if error is not None:
                axis.fill_between(
                    x, mean - error, mean + error, color=shown.light, alpha=0.2, linewidth=0
                )
            if policy in (configs.UNIFORM, configs.IMPORTANCE, configs.EVERYTHING):
                ceilings.append(mean[len(mean) // 5 :].max())
                floors.append(mean.min())
        if np.isfinite([*ceilings, *floors]).all() and max(ceilings) > min(floors):
            margin = 0.08 * (max(ceilings) - min(floors))
            axis.set_ylim(min(floors) - margin, max(ceilings) + margin)
        axis.set_xlabel(CURVES[against][0])
        axis.set_ylabel(metric)
        if against == "stream_examples":
            axis.xaxis.set_major_locator(_locator(5))
            axis.xaxis.set_major_formatter("{x:,.0f}")
        if against == "backward_examples":
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")  # its labels would overlap
    return _svg(figure, f"{metric} against {CURVES[against][0]}")


def mean_curve(
    figures: dict[str, Any], metric: str, against: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A policy's curve over its seeds, without the untrained model, which would set the scale.

    Args:
      figures: of one policy.
      metric: name of the metric.
      against: a key of `CURVES`.

    Returns:
      float64 `[n]`: the mean of `against`, the mean of the metric, and its standard error, or
      None for a single seed.
    """
    length = min(len(curve) for curve in figures["curves"])
    points = [curve[min(1, length - 1) : length] for curve in figures["curves"]]
    values = np.array([[point[metric] for point in curve] for curve in points], float)
    x = np.mean([[point[against] for point in curve] for curve in points], axis=0)
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return x, values.mean(0), error


def gap_closures(comparisons: Sequence[dict[str, Any]], titles: Sequence[str], name: str) -> str:
    """Gap closure of every policy with its standard error, a row a comparison.

    Args:
      comparisons: contents that have a gap or not.
      titles: the rows' titles.
      name: unique in the page.

    Returns:
      SVG.
    """
    rows = [
        {
            policy: (figures["gap_closure"], figures["gap_closure_standard_error"])
            for policy, figures in content["policies"].items()
            if policy not in (configs.UNIFORM, configs.EVERYTHING)
        }
        for content in comparisons
    ]
    with _drawing(name, height=_rows_height(rows, titles)) as (figure, axis):
        for at in (0.0, 1.0):
            axis.axvline(at, color=style.theme(style.MUTED), linewidth=0.8)
        _dots(axis, rows, titles, name, limits=(-1.0, 1.25))
        axis.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
        axis.set_xlabel("gap closure: 0 as uniform, 1 as everything")
    return _svg(figure, "gap closure of each policy")


def calibrations(comparisons: Sequence[dict[str, Any]], titles: Sequence[str], name: str) -> str:
    """Mean prediction over mean outcome of every policy, a row a comparison."""
    rows = [
        {policy: (figures["calibration"], None) for policy, figures in c["policies"].items()}
        for c in comparisons
    ]
    with _drawing(name, height=_rows_height(rows, titles)) as (figure, axis):
        axis.axvline(1.0, color=style.theme(style.MUTED), linewidth=0.8)
        values = [value for row in rows for value, _ in row.values() if value is not None]
        reach = np.clip(max([abs(value - 1) for value in values], default=0.1) * 1.1, 0.05, 0.6)
        _dots(axis, rows, titles, name, limits=(1 - reach, 1 + reach))
        axis.set_xlabel("calibration: 1 is right")
    return _svg(figure, "calibration of each policy")


def histograms(histograms: dict[str, dict[str, Any]], name: str) -> str:
    """Recorded losses of what each policy selected (filled) and left (line), a panel a policy."""
    num_rows = -(-len(histograms) // 2)
    with _drawing(name, 1.45 * num_rows + 0.3, num_rows, 2 if len(histograms) > 1 else 1) as (
        figure,
        axes,
    ):
        axes = np.ravel(axes)
        for axis in axes[len(histograms) :]:
            axis.set_visible(False)
        for axis, (policy, groups) in zip(axes, histograms.items(), strict=False):
            both = np.concatenate([groups["selected"], groups["not_selected"]])
            both = both[np.isfinite(both) & (both > 0)]
            if not len(both):
                axis.set_visible(False)
                continue
            low, high = np.quantile(both, [0.005, 1.0])
            edges = np.geomspace(low, max(high, 1.001 * low), 36)
            for group, fill in (("not_selected", False), ("selected", True)):
                losses = np.clip(groups[group], edges[0], edges[-1])
                share = np.histogram(losses, edges)[0] / max(len(losses), 1)
                colour = style.look(policy).light if fill else style.theme(style.TEXT)
                axis.stairs(
                    share,
                    edges,
                    fill=fill,
                    color=colour,
                    alpha=0.55 if fill else 1.0,
                    linewidth=0 if fill else 1.0,
                    gid=f"{name}-{group}-{policy}",
                )
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
            axis.set_yticks([])
            axis.set_title(policy, fontsize=9, color=style.theme(style.TEXT))
        figure.supxlabel("recorded loss", fontsize=9, color=style.theme(style.MUTED))
    return _svg(figure, "recorded losses of the selected and of the others")


def short_titles(comparisons: Sequence[dict[str, Any]]) -> list[str]:
    """Titles without the parts that all of them share."""
    parts = [content["title"].split(", ") for content in comparisons]
    shared = set(parts[0]).intersection(*parts) if len(parts) > 1 else set()
    return [", ".join(p for p in part if p not in shared) or ", ".join(part) for part in parts]


def _locator(ticks: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(ticks)


def _rows_height(rows: Sequence[dict[str, Any]], titles: Sequence[str]) -> float:
    lines = sum(len(_wrapped(title)) for title in titles)
    return 0.55 + _TITLE_LINE * lines + sum(_GAP + _POLICY * len(row) for row in rows)


def _wrapped(title: str) -> list[str]:
    return textwrap.wrap(title, _TITLE_WIDTH) or [""]


def _dots(axis: Any, rows: Sequence, titles: Sequence[str], name: str, limits: tuple) -> None:
    """Dots with error bars; what lies outside the limits is an arrow with its value."""
    y = 0.0
    axis.set_xlim(*limits)
    for number, (row, title) in enumerate(zip(rows, titles, strict=True)):
        lines = _wrapped(title)
        axis.annotate(
            "\n".join(lines),
            (0.0, y),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            va="top",
            linespacing=1.1,
            color=style.theme(style.TEXT),
        )
        y -= _TITLE_LINE * len(lines)
        if row and all(value is None for value, _ in row.values()):
            axis.annotate(
                "no gap",
                (0.0, y - 0.5 * _POLICY),
                ha="center",
                va="center",
                fontsize=8,
                color=style.theme(style.MUTED),
            )
        for policy, (value, error) in row.items():
            y -= 0.5 * _POLICY
            if value is not None and np.isfinite(value):
                _dot(axis, policy, value, error or 0.0, y, limits, f"{name}-{number}-{policy}")
            y -= 0.5 * _POLICY
        y -= _GAP
    axis.set_ylim(y + 0.5 * _GAP, 0.02)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def _dot(
    axis: Any, policy: str, value: float, error: float, y: float, limits: Any, gid: str
) -> None:
    colour = style.look(policy).light
    outside = not limits[0] <= value <= limits[1]
    if not outside:
        marker = style.look(policy).marker
        axis.errorbar(value, y, xerr=error, color=colour, linewidth=1.2, clip_on=True)
        axis.plot(value, y, color=colour, marker=marker, markersize=5.5, gid=gid, clip_on=False)
        return
    left = value < limits[0]
    edge = limits[0] if left else limits[1]
    axis.plot(edge, y, color=colour, marker="<" if left else ">", gid=gid, clip_on=False)
    axis.annotate(
        f"{value:.3g}",
        (edge, y),
        (6 if left else -6, 0),
        textcoords="offset points",
        ha="left" if left else "right",
        va="center",
        fontsize=7.5,
        color=colour,
    )


@contextlib.contextmanager
def _drawing(
    name: str, height: float, num_rows: int = 1, num_columns: int = 1
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes (an array where there are several)."""
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    settings: Any = {
        "font.size": 9,
        "text.color": style.theme(style.TEXT),
        "axes.labelcolor": style.theme(style.MUTED),
        "axes.edgecolor": style.theme(style.MUTED),
        "xtick.color": style.theme(style.MUTED),
        "ytick.color": style.theme(style.MUTED),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": style.theme(style.GRID),
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": name,  # ids of one chart do not meet those of another
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        yield figure, figure.subplots(num_rows, num_columns)
        for axis in figure.axes:
            axis.patch.set_alpha(0.0)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
        figure.svg_text = buffer.getvalue()  # type: ignore[attr-defined]


def _svg(figure: Any, label: str) -> str:
    text = figure.svg_text
    start = text.index("<svg") + len("<svg")
    return style.follow_page(
        f'<svg role="img" aria-label="{html.escape(label, quote=True)}"' + text[start:]
    )

r"""README's picture of the results, from the `results.json` of `ofb compare --suite=standard`.

```
.venv/bin/python tools/results_picture.py --results=out/standard/results.json \
    --output=docs/results.png
```

Left: the metric on the click stream against the examples that went through the backward pass.
Right: the share of the gap between uniform sampling and training on everything that importance
sampling closes, at every rate that a task was run at.
"""

import argparse
import collections
import json
import pathlib
import sys
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import report_charts
from ofb_tf.experiments import report_style as style

_SHOWN = {"dataset": configs.CLICK_STREAM, "positive_rate": 0.01, "rate": 0.1}
_CURVES = {
    configs.UNIFORM: "uniform, one in ten",
    configs.IMPORTANCE: "importance, one in ten",
    configs.EVERYTHING: "everything",
}
_MARKERS = "sovD^P"
_COLOURS = ("#0b6bcb", "#5a9bd8", "#08407a", "#b35309", "#1d8a4e", "#8b3fb0")


def _rest(comparison: dict[str, Any]) -> str:
    """All settings but the rate: equal for the tables that one line joins."""
    settings = dict(comparison["config"])
    for name in ("rate", "policies"):
        settings.pop(name, None)
    return json.dumps(settings, sort_keys=True)


def _lines(comparisons: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Comparisons by task, ascending in rate, of tasks that were run at several rates."""
    groups = collections.defaultdict(list)
    for comparison in comparisons:
        groups[_rest(comparison)].append(comparison)
    return {
        members[0]["title"].rsplit(", rate", 1)[0]: sorted(members, key=lambda c: c["rate"])
        for members in groups.values()
        if len({c["rate"] for c in members}) > 1
    }


def _draw_curves(axis: Axes, comparison: dict[str, Any]) -> None:
    metric = comparison["metric"]
    top = 0.0
    for policy, label in _CURVES.items():
        figures, look = comparison["policies"][policy], style.look(policy)
        x, mean, error = report_charts.mean_curve(figures, metric, "backward_examples")
        axis.plot(x, mean, color=look.light, linewidth=2, label=label)
        axis.plot(x[-1], mean[-1], color=look.light, marker=look.marker, markersize=7)
        if error is not None:
            axis.fill_between(x, mean - error, mean + error, color=look.light, alpha=0.2, lw=0)
        top = max(top, mean[len(mean) // 5])
    axis.set_ylim(0, 1.1 * top)
    axis.set_xscale("log")
    axis.set_xlabel("examples in the backward pass (logarithmic)")
    axis.set_ylabel(f"{metric} (less is better)")
    axis.set_title(comparison["title"])
    axis.legend(frameon=False)


def _draw_rates(axis: Axes, lines: dict[str, list[dict[str, Any]]]) -> None:
    for at in (0.0, 1.0):
        axis.axhline(at, color=style.theme(style.MUTED), linewidth=1)
    for number, (task, comparisons) in enumerate(lines.items()):
        figures = [c["policies"][configs.IMPORTANCE] for c in comparisons]
        axis.errorbar(
            # Lines are moved apart, or error bars would hide one another.
            [c["rate"] * 1.03 ** (number - len(lines) / 2) for c in comparisons],
            [f["gap_closure"] for f in figures],
            yerr=[f["gap_closure_standard_error"] or 0.0 for f in figures],
            label=task,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linewidth=1.5,
        )
    rates = sorted({c["rate"] for comparisons in lines.values() for c in comparisons})
    axis.set_xscale("log")
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.minorticks_off()
    axis.set_ylim(-0.3, 1.3)
    axis.set_xlabel("rate: part of the stream in the backward pass (logarithmic)")
    axis.set_ylabel("gap closure (0 uniform, 1 everything)")
    axis.set_title("importance at every rate")
    axis.legend(edgecolor="none", framealpha=1.0, loc="lower right")


def draw(comparisons: list[dict[str, Any]]) -> Figure:
    """The picture.

    Raises:
      ValueError: there is no comparison to show on the left, or none at several rates.
    """
    lines = _lines(comparisons)
    shown = [c for c in comparisons if all(c["config"].get(k) == v for k, v in _SHOWN.items())]
    if not shown or not lines:
        raise ValueError(
            f"results must have a comparison with {_SHOWN} and one task at several rates, as those "
            f"of ofb compare --suite=standard. Received: {[c['title'] for c in comparisons]}"
        )
    settings = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": style.theme(style.GRID),
    }
    with rc_context(settings):
        figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=140)
        left, right = figure.subplots(1, 2)
        _draw_curves(left, shown[0])
        _draw_rates(right, lines)
    return figure


def main(argv: list[str]) -> int:
    """Writes the picture; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=pathlib.Path, required=True, help="of ofb compare")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="PNG file")
    arguments = parser.parse_args(argv)
    content = json.loads(arguments.results.read_text(encoding="utf-8"))
    try:
        draw(content["comparisons"]).savefig(arguments.output)
    except ValueError as error:
        print(f"{arguments.results}: {error}", file=sys.stderr)
        return 2
    print("Wrote", arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

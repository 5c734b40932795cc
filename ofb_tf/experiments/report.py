"""`report.html`: one page that stands alone, of one experiment or of many comparisons."""

import html
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ofb_tf.experiments import report_charts as charts
from ofb_tf.experiments import report_page as page
from ofb_tf.experiments import report_reading as readings
from ofb_tf.experiments import results as results_lib

_OF_A_COMPARISON = ("backward_examples", "train_seconds")


def write_report(results: dict[str, Any], directory: str | os.PathLike) -> pathlib.Path:
    """Writes `report.html` from the content of `results.json`.

    Args:
      results: what `results.summarise` or `comparison.summarise` gives.
      directory: where to; made where absent.

    Returns:
      The page's path.

    Raises:
      ImportError: matplotlib is not installed; the message says how to install it.
    """
    require_matplotlib()
    path = pathlib.Path(directory) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(results), encoding="utf-8")
    return path


def require_matplotlib() -> None:
    """Raises ImportError with the remedy where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The report needs matplotlib. Install it with: pip install ofb-tf[report]"
        ) from error


def render(results: dict[str, Any]) -> str:
    """The page as HTML."""
    return _comparisons(results) if "comparisons" in results else _experiment(results)


def _experiment(results: dict[str, Any]) -> str:
    """The page of one experiment, as `ofb demo` writes it."""
    *sentences, note = results_lib.reading(results)
    parts = [page.paragraph(sentence) for sentence in sentences]
    parts += [
        page.heading("What each policy did"),
        page.table(results_lib.table_rows(results)),
        page.paragraph(f"{_metric_note(results)} {_COLUMNS_NOTE} {note}", note=True),
        page.heading("Learning curves"),
        *_curves(results, ("stream_examples", *_OF_A_COMPARISON), "experiment"),
        *_histograms(results, "experiment"),
        *_repeat(results["command"], f"ofb-tf {results['version']}; {_settings(results)}"),
    ]
    title = (
        f"{results['dataset']}: one backward in {1 / results['rate']:.3g}, "
        "chosen by what serving computed"
    )
    return page.page(title, parts)


def _comparisons(results: dict[str, Any]) -> str:
    """The page of many comparisons, as `ofb compare` writes it."""
    comparisons = results["comparisons"]
    titles = [content["title"] for content in comparisons]
    parts = ["<p>No comparison is finished.</p>"] if not comparisons else []
    if comparisons:
        parts += _summary(comparisons, titles)
    numbered = [(f"comparison{number}", content) for number, content in enumerate(comparisons)]
    groups = [
        (group, list(members))
        for group, members in itertools.groupby(numbered, key=lambda pair: pair[1]["group"])
    ]
    parts += _charts_of_groups(groups)
    for group, members in groups:
        parts.append(page.heading(group))
        parts += [
            page.details(content["title"], _one(content, name), is_open=name == "comparison0")
            for name, content in members
        ]
    versions = {"ofb-tf": results["version"], **results.get("versions", {})}
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    about = f"{packages}; {results['date']} (UTC)."
    parts += _repeat(results["command"], about)
    return page.page("Which examples to train on: policies compared", parts)


def _summary(comparisons: Sequence[dict[str, Any]], titles: Sequence[str]) -> list[str]:
    exceptions = readings.exceptions(comparisons, titles)
    return [
        page.paragraph(
            "A snapshot of the model serves a stream and records its outputs; a policy chooses, by "
            "those records and the labels, the part of the stream that the model is trained on. "
            "Every policy has the same stream, the same first weights, the same optimiser and, but "
            "for those that say otherwise, the same number of examples in the backward pass."
        ),
        page.heading("Who wins where"),
        page.points(readings.overview(comparisons)),
        page.table(readings.against_uniform(comparisons)),
        page.table(readings.winners(comparisons, titles), wrap=True),
        page.paragraph(
            "Best: the least mean over seeds among policies that keep the budget; uniform sampling "
            "takes part. One standard error: of the difference of two means.",
            note=True,
        ),
        page.heading("Where another policy beat the default", 3),
        page.points(exceptions)
        if exceptions
        else page.paragraph("Nowhere by more than one standard error."),
        page.heading("When not to use it"),
        page.points(readings.when_not_to_use(comparisons, titles)),
    ]


def _charts_of_groups(groups: Sequence[tuple[str, list]]) -> list[str]:
    """Gap closure and calibration, a chart for each group of comparisons."""
    parts = []
    draws = (
        ("How much of the gap each policy closes", charts.gap_closures, _CLOSURE_NOTE, "closure"),
        ("Calibration", charts.calibrations, _CALIBRATION_NOTE, "calibration"),
    )
    for heading, draw, note, kind in draws:
        figures: list[Any] = []
        policies: dict[str, Any] = {}
        for number, (group, members) in enumerate(groups):
            contents = [content for _, content in members]
            policies |= dict.fromkeys(p for content in contents for p in content["policies"])
            svg = draw(contents, charts.short_titles(contents), f"{kind}{number}")
            figures.append(page.figure(svg, "", title=group))
        if figures:
            parts += [page.heading(heading), page.legend(policies), page.paragraph(note, note=True)]
            parts.append(page.figures(figures))
    return parts


def _one(content: dict[str, Any], name: str) -> list[str]:
    """A comparison: sentences, table, curves, histograms, settings."""
    return [
        page.paragraph(readings.of_one(content)),
        page.table(results_lib.table_rows(content)),
        page.paragraph(_metric_note(content), note=True),
        *_curves(content, _OF_A_COMPARISON, name),
        *_histograms(content, name),
        page.paragraph(_settings(content), note=True),
    ]


def _curves(results: dict[str, Any], axes: Sequence[str], name: str) -> list[str]:
    note = f"mean over {results['seeds']} seeds; band: one standard error."
    figures = [
        page.figure(
            charts.curves(results, against, f"{name}-{against}"),
            f"{charts.CURVES[against][1]}: {note}",
        )
        for against in axes
    ]
    return [
        page.legend(results["policies"]),
        page.figures(figures),
        page.paragraph(
            "A curve that leaves the frame at the top is worse than what the frame holds; its end "
            "is in the table.",
            note=True,
        ),
    ]


def _histograms(results: dict[str, Any], name: str) -> list[str]:
    histograms = results["histograms"]
    if not histograms:
        return []
    counts = "; ".join(
        f"{policy} {_size(groups, 'selected'):,} and left {_size(groups, 'not_selected'):,}"
        for policy, groups in histograms.items()
    )
    caption = (
        "Losses that the serving snapshot had on the last interval's examples (first seed), as "
        f"shares of each group. Filled: selected. Line: left out. Selected by {counts}."
    )
    return [
        page.heading("What each policy selects", 3),
        page.figure(charts.histograms(histograms, f"{name}-losses"), caption),
    ]


def _size(groups: dict[str, Any], group: str) -> int:
    """How many losses a group had, of which there may be only quantiles."""
    return groups.get(f"num_{group}", len(groups[group]))


def _repeat(command: str, about: str) -> list[str]:
    return [
        page.heading("To repeat this"),
        f"<p><code>{html.escape(command)}</code></p>",
        page.paragraph(about, note=True),
    ]


def _metric_note(results: dict[str, Any]) -> str:
    return f"{results['metric']}: {results['metric_text']}; less is better."


def _settings(results: dict[str, Any]) -> str:
    interval = results["refresh_interval"]
    refreshed = f"every {interval} windows" if interval else "once a pass"
    return (
        f"{results['seeds']} seeds, numbered from 0; {results['stream_examples']:,} examples, "
        f"passes: {results['passes']}; window {results['window_size']}; serving snapshot refreshed "
        f"{refreshed}; Adam, learning rate {results['learning_rate']:g}, for every policy alike."
    )


_COLUMNS_NOTE = (
    "± is the standard error over seeds. Gap closure: 0 is uniform sampling, 1 is training on "
    "everything. Calibration: mean prediction over mean outcome (for classes: confidence over "
    "accuracy). ESS: effective sample size of the weights, as a fraction. Stream to uniform: the "
    "part of the stream after which the policy was as good as uniform sampling at its end."
)
_CLOSURE_NOTE = (
    "0 is as good as uniform sampling at the same rate, 1 as good as training on everything. Bars: "
    "one standard error over seeds (jackknife). An arrow at the edge: beyond the chart, with its "
    "value. No gap: training on everything was no better than uniform sampling."
)
_CALIBRATION_NOTE = (
    "Mean prediction over mean outcome on held-out examples; for classes, mean confidence over "
    "accuracy. An arrow at the edge: beyond the chart, with its value."
)

"""`report.html`: one page that stands alone, with figures as inline SVG."""

import html
import io
import os
import pathlib
from typing import Any

import numpy as np

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import results as results_lib

_COLOURS = {
    configs.UNIFORM: "#7a7a7a",
    configs.IMPORTANCE: "#0b6bcb",
    configs.EVERYTHING: "#1d8a4e",
}
_OTHER_COLOURS = ("#c2571a", "#8b3fb0", "#b3872b", "#c02f5e", "#3f8f9e")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 46rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
figure {{ margin: 1rem 0; }} svg {{ width: 100%; height: auto; }}
figcaption, .note {{ color: #555; font-size: .9rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; white-space: nowrap; }}
th, td {{ text-align: right; padding: .35rem .6rem; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; position: sticky; left: 0; background: #fff; }}
code {{ background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(results: dict[str, Any], directory: str | os.PathLike) -> pathlib.Path:
    """Writes `report.html` from the content of `results.json`.

    Args:
      results: what `results.summarise` gives.
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
    title = (
        f"{results['dataset']}: one backward in {1 / results['rate']:.3g}, "
        "chosen by what serving computed"
    )
    sentences = results_lib.reading(results)
    parts = [f"<p>{html.escape(sentence)}</p>" for sentence in sentences[:-1]]
    parts += ["<h2>What each policy did</h2>", _table(results)]
    parts.append(
        f'<p class="note">{html.escape(results["metric"])}: {html.escape(results["metric_text"])}; '
        "less is better. ± is the standard error over seeds. Gap closure: 0 is uniform sampling, "
        "1 is training on everything. Calibration: mean prediction over mean outcome (for classes: "
        "confidence over accuracy). ESS: effective sample size of the weights, as a fraction. "
        "Stream to uniform: the part of the stream after which the policy was as good as uniform "
        "sampling at its end. "
        f"{html.escape(sentences[-1])}</p>"
    )
    parts.append("<h2>Learning curves</h2>")
    for against, (_, heading) in _CURVES.items():
        caption = f"{heading}. Line: mean over {results['seeds']} seeds; band: one standard error."
        parts.append(_figure(_plot_curves(results, against), caption))
    for policy, histogram in results["histograms"].items():
        caption = (
            f"Losses that the serving snapshot had on the last interval's examples (first seed): "
            f"those that {policy} selected, and those that it left out, each as shares. What "
            "serving got wrong is chosen more often, and its weight is smaller in turn."
        )
        parts += [
            f"<h2>What {html.escape(policy)} selects</h2>",
            _figure(_plot_histogram(histogram), caption),
        ]
    parts += [
        "<h2>To repeat this</h2>",
        f"<p><code>{html.escape(results['command'])}</code></p>",
        f'<p class="note">ofb-tf {html.escape(results["version"])}; {results["seeds"]} seeds, '
        f"numbered from 0; {results['stream_examples']:,} examples, passes: "
        f"{results['passes']}; window {results['window_size']}; serving snapshot refreshed every "
        f"{results['refresh_interval']} windows; Adam, learning rate {results['learning_rate']:g}, "
        "for every policy alike.</p>",
    ]
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def _table(results: dict[str, Any]) -> str:
    head, *rows = results_lib.table_rows(results)
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return (
        '<div class="scroll"><table>' + "".join(f"<tr>{x}</tr>" for x in lines) + "</table></div>"
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


_CURVES = {
    "stream_examples": ("examples of the stream", "What the stream brought"),
    "backward_examples": ("examples in the backward pass", "What it cost, logarithmic"),
}


def colour(policy: str, policies: list[str]) -> str:
    """A policy's colour, the same in every figure."""
    if policy in _COLOURS:
        return _COLOURS[policy]
    others = [name for name in policies if name not in _COLOURS]
    return _OTHER_COLOURS[others.index(policy) % len(_OTHER_COLOURS)]


def _plot_curves(results: dict[str, Any], against: str) -> str:
    figure, axis = _axes()
    metric = results["metric"]
    highest = 0.0
    for policy, figures in results["policies"].items():
        shade = colour(policy, list(results["policies"]))
        # The untrained model would set the scale.
        curves = [curve[1:] for curve in figures["curves"]]
        values = np.array([[point[metric] for point in curve] for curve in curves])
        x = np.mean([[point[against] for point in curve] for curve in curves], axis=0)
        mean = values.mean(0)
        error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0 * mean
        axis.plot(x, mean, color=shade, label=policy, linewidth=2)
        axis.fill_between(x, mean - error, mean + error, color=shade, alpha=0.2, linewidth=0)
        highest = max(highest, *mean[len(mean) // 10 :])
    axis.set_ylim(top=1.05 * highest)
    axis.set_xlabel(_CURVES[against][0])
    axis.set_ylabel(metric)
    if against == "backward_examples":
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter("")  # its labels would overlap
    axis.legend(frameon=False)
    return _svg(figure)


def _plot_histogram(histogram: dict[str, list[float]]) -> str:
    figure, axis = _axes()
    both = np.concatenate([histogram["selected"], histogram["not_selected"]])
    both = both[both > 0]
    edges = np.geomspace(*np.quantile(both, [0.001, 1.0]), 60) if len(both) else np.ones(2)
    for name, shade in (("not_selected", "#7a7a7a"), ("selected", "#0b6bcb")):
        losses = np.clip(histogram[name], edges[0], None)
        counts, _ = np.histogram(losses, edges)
        share = counts / max(len(losses), 1)
        axis.stairs(share, edges, fill=True, alpha=0.45, color=shade)
        axis.stairs(share, edges, color=shade, label=f"{name.replace('_', ' ')} ({len(losses):,})")
    axis.set_xscale("log")
    axis.set_xlabel("recorded loss")
    axis.set_ylabel("share of each group")
    axis.legend(frameon=False)
    return _svg(figure)


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return figure, axis


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

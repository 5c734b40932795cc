"""The HTML page of a sampler's statistics."""

import html
from collections.abc import Sequence
from typing import Any

from tfx_components.statistics import SplitStatistics, Tally

_MAX_SLICES = 100
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, td.text { text-align: left; }
.passed { color: #1a7f37; } .failed { color: #b42318; font-weight: 600; }
"""
_COLUMNS = (
    ("examples", lambda t: f"{t.num_examples:,}"),
    ("with record", lambda t: f"{t.coverage:.1%}"),
    ("selected", lambda t: f"{t.num_selected:,}"),
    ("expected", lambda t: f"{t.expected_selected:,.1f}"),
    ("rate", lambda t: f"{t.realized_rate:.4f}"),
    ("mean weight", lambda t: f"{t.mean_weight:.3f}"),
    ("largest weight", lambda t: f"{t.max_weight:.3f}"),
    ("effective sample size", lambda t: f"{t.effective_sample_size:.3f}"),
)


def render(
    config: dict[str, Any], splits: dict[str, SplitStatistics], checks: Sequence, blessed: bool
) -> str:
    """The page.

    Args:
      config: the sampler's settings.
      splits: its statistics by split.
      checks: `sampling_validator.Check`s.
      blessed: the verdict.

    Returns:
      A complete HTML document that loads nothing.
    """
    verdict = ("passed", "Blessed") if blessed else ("failed", "Not blessed")
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Sampling</title>",
        f"<style>{_STYLE}</style><h1>Sampling: <span class='{verdict[0]}'>{verdict[1]}</span></h1>",
        "<h2>Checks</h2><table><tr><th>split</th><th>check</th><th></th><th></th></tr>",
    ]
    for check in checks:
        mark = ("passed", "passed") if check.passed else ("failed", "failed")
        message = "" if check.passed else html.escape(check.message)
        parts.append(
            f"<tr><td>{html.escape(check.split)}</td><td class='text'>{html.escape(check.name)}"
            f"</td><td class='{mark[0]}'>{mark[1]}</td><td class='text'>{message}</td></tr>"
        )
    parts.append("</table>")
    for name, split in splits.items():
        parts.append(f"<h2>Split {html.escape(name)}</h2>")
        slices = sorted(split.slices.items(), key=lambda item: -item[1].num_examples)
        rows = [("all", split.total), *slices[:_MAX_SLICES]]
        parts.append(_table(rows))
        if len(slices) > _MAX_SLICES:
            parts.append(f"<p>{len(slices) - _MAX_SLICES} smaller slices are not shown.</p>")
        if split.examples_by_version:
            parts.append("<h3>Model versions of the records</h3>")
            counts = sorted(split.examples_by_version.items())
            cells = "".join(
                f"<tr><td>{html.escape(version)}</td><td>{count:,}</td></tr>"
                for version, count in counts
            )
            parts.append(f"<table><tr><th>version</th><th>examples</th></tr>{cells}</table>")
    settings = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in config.items()
    )
    parts.append(f"<h2>Settings</h2><table>{settings}</table></html>\n")
    return "\n".join(parts)


def _table(rows: Sequence[tuple[str, Tally]]) -> str:
    header = "".join(f"<th>{title}</th>" for title, _ in _COLUMNS)
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{show(tally)}</td>" for _, show in _COLUMNS)
        + "</tr>"
        for name, tally in rows
    )
    return f"<table><tr><th></th>{header}</tr>{body}</table>"

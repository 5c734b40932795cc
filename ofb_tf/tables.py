"""The one formatter of tables (text, Markdown, HTML) and of times. Imports nothing heavy."""

import datetime
import html
from collections.abc import Sequence

from ofb_tf.checks import check_choice

TEXT, MARKDOWN, HTML = "text", "markdown", "html"


def format_table(
    rows: Sequence[Sequence[str]],
    style: str = TEXT,
    *,
    header: bool = True,
    numbers: bool = True,
) -> str:
    """The lines of a table of strings, its rows of equal length.

    `header` sets the first row apart (Markdown always has one); `numbers` aligns all columns but
    the first to the right.
    """
    check_choice("style", style, (TEXT, MARKDOWN, HTML))
    if style == MARKDOWN:
        head, *body = rows
        rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))
    if style == HTML:
        tags = ["th" if header and number == 0 else "td" for number in range(len(rows))]
        lines = [
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, row in zip(tags, rows, strict=True)
        ]
        attribute = ' class="numbers"' if numbers else ""
        return "\n".join([f"<table{attribute}>", *lines, "</table>"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if header:
        rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_time(microseconds: int | None) -> str:
    """Microseconds since 1970 as ISO 8601, in UTC; "-" for None."""
    if microseconds is None:
        return "-"
    try:
        moment = datetime.datetime.fromtimestamp(microseconds / 1e6, datetime.timezone.utc)
    except (ValueError, OverflowError, OSError):
        return f"{microseconds} microseconds"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

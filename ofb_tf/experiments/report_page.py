"""The report's HTML: page, tables, figures and legends, without what they show."""

import html
from collections.abc import Iterable, Sequence

from ofb_tf.experiments import report_style as style

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 66rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }}
p, ul.points, h1, h2, h3 {{ max-width: 46rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; }}
h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .5rem; }}
h3 {{ font-size: 1rem; margin: 1.5rem 0 .25rem; }}
.figures {{ display: grid; gap: 1.5rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }}
figure {{ margin: .75rem 0; min-width: 0; max-width: 32rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-family: system-ui, sans-serif !important; }}
figcaption, .note {{ color: var(--muted); font-size: .875rem; }}
.scroll {{ overflow-x: auto; margin: .75rem 0; }}
table {{ border-collapse: collapse; font-size: .875rem; white-space: nowrap; }}
th, td {{ text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--grid); }}
th {{ font-weight: 600; }}
th:first-child, td:first-child {{ text-align: left; position: sticky; left: 0;
  background: var(--page); }}
table.wrap td:first-child {{ white-space: normal; min-width: 10rem; max-width: 22rem; }}
.legend {{ list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0;
  margin: .75rem 0; font-size: .875rem; }}
code {{ background: var(--code); padding: .1rem .3rem; overflow-wrap: anywhere; }}
details {{ border-top: 1px solid var(--grid); padding: .5rem 0; }}
summary {{ cursor: pointer; font-weight: 600; padding: .25rem 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page.

    Args:
      title: plain text.
      parts: HTML, one after the other.
    """
    return _PAGE.format(
        title=html.escape(title),
        body="\n".join(parts),
        light=style.css_variables(dark=False),
        dark=style.css_variables(dark=True),
    )


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph of plain text."""
    attribute = ' class="note"' if note else ""
    return f"<p{attribute}>{html.escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    """A heading of plain text."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def points(sentences: Iterable[str]) -> str:
    """A list of plain sentences."""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="points">{items}</ul>'


def table(rows: Sequence[Sequence[str]], wrap: bool = False) -> str:
    """A table that scrolls inside its own box; the first row is the head.

    Args:
      rows: plain text.
      wrap: whether the first column may take several lines.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    head, *body = rows
    lines = line(head, "th") + "".join(line(cells, "td") for cells in body)
    attribute = ' class="wrap"' if wrap else ""
    return f'<div class="scroll" tabindex="0"><table{attribute}>{lines}</table></div>'


def figure(svg: str, caption: str, title: str = "") -> str:
    """A figure of one chart: a title above it, where there is one, and a caption below."""
    above = f"<h3>{html.escape(title)}</h3>" if title else ""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{above}{svg}{below}</figure>"


def figures(parts: Iterable[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(parts)}</div>'


def legend(policies: Iterable[str]) -> str:
    """Marker and colour of each policy."""
    items = "".join(
        f'<li><span style="color:var(--{style.variable(policy)})">{style.look(policy).glyph}'
        f"</span> {html.escape(policy)}</li>"
        for policy in policies
    )
    return f'<ul class="legend">{items}</ul>'


def details(title: str, parts: Iterable[str], is_open: bool = False) -> str:
    """A part of the page that is unfolded on demand."""
    attribute = " open" if is_open else ""
    body = "\n".join(parts)
    return f"<details{attribute}><summary>{html.escape(title)}</summary>\n{body}\n</details>"

"""Tables, CSV, Markdown, the page and the picture show what the results hold."""

import csv
import html.parser
import io
import math
import re
import sys

import numpy as np
import pytest

from ofb_tf.experiments import report, summary
from ofb_tf.pictures import require_matplotlib
from tests.experiments.conftest import VALUES, summarize

Figure = pytest.importorskip("matplotlib.figure").Figure

ALL = VALUES | {"top_loss": [9.0, 8.0], "info_batch": [1.0, 2.0]}
SETTINGS = dict.fromkeys(report._SETTINGS) | {"policies": list(ALL), "steps_per_window": 4}


def comparison(title="mnist, rate 0.1", group="Some group", values=ALL, rate=0.1, **settings):
    config = SETTINGS | {"rate": rate} | settings
    return summarize(values, rate=rate, title=title, group=group, config=config)


@pytest.fixture(name="content")
def _content():
    return {
        "command": "ofb compare --output_dir='<out>'",
        "version": "1.2.3",
        "versions": {"tensorflow": "2.16"},
        "date": "2026-11-22",
        "comparisons": [
            comparison(),
            comparison("mnist, rate 0.2", values=VALUES, rate=0.2),
            comparison("no gap", "Other group", VALUES | {"everything": [9.0, 9.0]}),
        ],
    }


class Page(html.parser.HTMLParser):
    """Fails on tags that do not close in order; keeps ids, and the addresses of attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [v for name, v in attrs if name in ("href", "src", "xlink:href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(text):
    """Parses a page and checks that it needs no network."""
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "@import" not in text and "@font-face" not in text
    references = page.addresses + re.findall(r"url\(([^)]*)\)", text)
    assert all(reference.startswith("#") for reference in references)
    for name in {reference[1:] for reference in references}:
        assert page.ids.count(name) == 1  # charts do not use one another's clip paths
    return page


def test_page_of_one_simulation():
    text = report.as_html(summarize())
    assert read(text).tags.count("svg") == 2
    # Quality over seconds comes first, then the table.
    first, table = text.index("metric by seconds of training"), text.index("<table")
    assert first < text.index("metric by examples in the backward pass") < table
    assert "ofb demo --dataset=&#x27;&lt;mnist&gt;&#x27;" in text
    assert "<td>0.75 ± 0.25</td>" in text


def test_page_of_comparisons(content):
    text = report.as_html(content)
    assert read(text).tags.count("svg") == 2 * 2 + 3 * 2
    assert "2026-11-22" in text and "&lt;out&gt;" in text
    for one in content["comparisons"]:
        assert f"<h3>{one['title']}</h3>" in text
        for shown in one["policies"].values():
            assert f"<td>{shown['mean']:.5g} ± {shown['standard_error']:.2g}</td>" in text
    assert "<td>info_batch</td><td>1 ± 0</td><td>0.6000</td>" in text


def test_figures_that_are_not_finite_or_absent_do_not_break_the_page(content):
    values = {policy: group[:1] for policy, group in ALL.items()} | {"top_loss": [math.nan]}
    read(report.as_html({**content, "comparisons": [comparison(values=values)]}))
    assert "No comparison is finished" in report.as_html({**content, "comparisons": []})


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install ofb-tf\[report\]"):
        require_matplotlib()


def test_csv_has_every_value(content):
    rows = list(csv.DictReader(io.StringIO(report.as_csv(content))))
    assert len(rows) == 5 + 3 + 3
    (row,) = [r for r in rows if r["policy"] == "top_loss"]
    assert (row["title"], row["metric"], row["rate"]) == ("mnist, rate 0.1", "test_loss", "0.1")
    shown = content["comparisons"][0]["policies"]["top_loss"]
    assert float(row["mean"]) == shown["mean"]
    assert float(row["gap_closure"]) == shown["gap_closure"]
    assert [float(row["seed_0"]), float(row["seed_1"])] == shown["values"]


def test_markdown_shows_figures_and_who_wins(content):
    text = report.as_markdown(content)
    assert "| mnist, rate 0.1 | **0.75 ± 0.25** |" in text
    assert "| no gap | – | – | – |" in text
    assert "### mnist, rate 0.1" in text and "## Other group" in text
    assert "optimiser steps per window: 4" in text
    assert "ofb compare --output_dir" in text and "tensorflow 2.16" in text
    assert "| mnist, rate 0.1 | info_batch | 1 ± 0 | 0.6000 |" in text  # B7: as in the page
    for line in text.splitlines():
        assert line == line.rstrip()
    content["comparisons"] = content["comparisons"][1:]
    assert "Nowhere: `importance` beats or ties" in report.as_markdown(content)


def test_curves_show_every_policy_over_seconds_and_over_examples(tmp_path):
    content = summarize(ALL)
    for field in ("train_seconds", "backward_examples"):
        axis = Figure().subplots()
        report._draw_curves(axis, content, field)
        *lines, full_quality = axis.lines
        for line, shown in zip(lines, content["policies"].values(), strict=True):
            curves = [curve[1:] for curve in shown["curves"]]
            np.testing.assert_allclose(line.get_xdata(), summary.mean_curve(curves, field)[0])
            means = summary.mean_curve(curves, "test_loss")[0]
            np.testing.assert_allclose(line.get_ydata(), means)
        assert set(full_quality.get_ydata()) == {content["policies"]["everything"]["mean"]}
    path = report.write_picture(content, tmp_path / "docs" / "x.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_table_leads_with_what_a_user_pays_and_gets():
    head, *rows = report.table_rows(summarize())
    assert head[:6] == ["policy", "test_loss", "train s", "CPU s", "full quality s", "backward"]
    assert rows[1][:6] == ["importance", "2.5 ± 0.5", "4.0", "3.0", "–", "100"]
    better = summarize(VALUES | {"importance": [1.0, 2.5]})
    assert report.headline(better) == (
        "importance against everything: 1.00 of its train seconds, 1.00 of its CPU seconds, "
        "0.75 of its seconds to full quality; gap closure 1.12 ± 0.12."
    )
    assert "seconds to full quality: –" in report.headline(summarize())


def test_progressive_columns_and_learning_rates_show_where_they_are(content):
    plain = report.as_markdown(content)
    assert "progressive |" not in plain and "Gap closure, progressive" not in plain
    assert "learning rate 0.001;" in plain
    # Twice the metric on the stream: the same gap closure, and other figures.
    stream = comparison("flights, rate 0.1", values=VALUES)
    served = summarize(VALUES, progressive=2.0, title=stream["title"], group="Streams")
    served |= {"config": stream["config"], "learning_rate": None}
    content["comparisons"].append(served)
    text = report.as_markdown(content)
    (table,) = text.split("## Gap closure, progressive\n\n")[1:]
    assert table.splitlines()[2] == "| flights, rate 0.1 | **0.75 ± 0.25** |"
    head, *rows = report.table_rows(served)
    assert head[-2:] == ["progressive", "gap closure, progressive"]
    assert rows[1][-2:] == ["5 ± 1", "0.75 ± 0.25"]
    assert rows[1][head.index("learning rate")] == "0.001"
    assert "learning rate as in the table;" in text
    rows = list(csv.DictReader(io.StringIO(report.as_csv(content))))
    assert [r["progressive_mean"] for r in rows if r["title"] == "flights, rate 0.1"] == [
        "8.0", "5.0", "4.0",
    ]  # fmt: skip
    assert {r["progressive_mean"] for r in rows if r["title"] == "no gap"} == {""}
    read(report.as_html(content))

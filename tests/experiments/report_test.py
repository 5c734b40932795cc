"""The report stands alone and shows what the results hold."""

import html.parser
import math
import re
import sys

import pytest

from ofb_tf.experiments import report, report_charts, report_reading, report_style
from tests.experiments import report_content

pytest.importorskip("matplotlib")

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Balance(html.parser.HTMLParser):
    """Fails on tags that do not close in order; keeps the ids."""

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_stands_alone(text):
    assert 'name="viewport"' in text
    for fetched in ("<script", "<link", "<img", "@import", "url(http", 'src="', "@font-face"):
        assert fetched not in text
    for address in re.findall(r'(?:xlink:)?href="([^"]*)"', text):
        assert address.startswith("#")
    for reference in re.findall(r"url\(([^)]*)\)", text):
        assert reference.startswith("#")
    page = Balance()
    page.feed(text)
    assert page.open == []
    return page


@pytest.fixture(name="comparisons", scope="module")
def _comparisons():
    return report_content.comparisons()


@pytest.fixture(name="text", scope="module")
def _text(comparisons, tmp_path_factory):
    return report.write_report(comparisons, tmp_path_factory.mktemp("report")).read_text()


def test_page_of_one_experiment(make_results, tmp_path):
    text = report.write_report(make_results(), tmp_path / "new").read_text()
    assert_stands_alone(text)
    assert text.count("<svg") == text.count("</svg>") == 4
    assert "ofb demo --dataset=mnist" in text
    assert "1.2.3" in text
    assert "closed 75% of" in text
    assert "0.75" in text


def test_page_of_many_comparisons(comparisons, text):
    assert_stands_alone(text)
    # Three groups with two charts each; six comparisons with two curves and a histogram each.
    assert text.count("<svg") == 3 * 2 + 6 * 3
    for content in comparisons["comparisons"]:
        assert f"<summary>{content['title']}</summary>" in text
        importance = content["policies"]["importance"]
        assert f"{importance['mean']:.5g} ± " in text
    for policy in report_content.EVERY_POLICY:
        assert f'id="comparison0-backward_examples-curve-{policy}"' in text
        assert f'id="comparison0-train_seconds-curve-{policy}"' in text
        assert f'id="calibration0-0-{policy}"' in text
        if policy not in ("uniform", "everything"):
            assert f'id="closure0-0-{policy}"' in text
            assert f'id="comparison0-losses-selected-{policy}"' in text
    assert "2026-11-22" in text
    assert "no gap" in text  # everything is worse than uniform in one comparison


def test_clip_paths_and_markers_of_charts_do_not_meet(text):
    """Ids that are referred to are unique in the page."""
    referred = set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text))
    ids = assert_stands_alone(text).ids
    assert referred
    assert all(ids.count(name) == 1 for name in referred)


def test_charts_follow_the_page(text):
    """Every drawn colour is a variable, and every variable has a value on both kinds of page."""
    charts = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    colours = set(re.findall(r"#[0-9a-fA-F]{6}\b", charts))
    assert not colours & {look.light for look in report_style._LOOKS.values()}
    assert colours <= {"#000000", "#ffffff"}  # matplotlib's style sheet and the hidden patch
    used = set(re.findall(r"var\(--(\w+)\)", text))
    for dark in (False, True):
        declared = dict(re.findall(r"--(\w+): (#\w{6});", report_style.css_variables(dark)))
        assert used <= set(declared)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_the_page(dark):
    """WCAG 2: 3 to 1 for graphics, 4.5 to 1 for text."""
    page = luminance(report_style._THEME[report_style.PAGE][dark])
    looks = [*report_style._LOOKS.values(), *report_style._OTHER_LOOKS]
    needed = [(look.dark if dark else look.light, 3.0) for look in looks]
    needed += [(report_style._THEME[n][dark], 4.5) for n in (report_style.TEXT, report_style.MUTED)]
    for colour, least in needed:
        high, low = sorted([luminance(colour), page], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= least, colour


def test_names_are_escaped(make_results, text):
    content = make_results()
    content["command"] = "ofb demo --dataset='<b>'"
    assert "<b>" not in report.render(content)
    assert "<out>" not in text


def test_no_comparison_at_all():
    empty = {"comparisons": [], "command": "ofb compare", "version": "1", "date": "2026-01-01"}
    assert "No comparison is finished" in report.render(empty)


def test_figures_that_are_not_finite_are_left_out(comparisons):
    content = report_content.comparison("a", "b", seeds=1, top_loss=math.nan)
    text = report.render({**comparisons, "comparisons": [content]})
    assert 'id="closure0-0-importance"' in text
    assert 'id="closure0-0-top_loss"' not in text
    assert "best at this budget: importance" in text.lower()


def test_who_wins_by_hand(comparisons):
    """Finals 1.2 for importance; 1.15 for info_batch, which is over the budget; 1.0 everything."""
    first, ties = report_reading.best(comparisons["comparisons"][0])
    assert (first, ties) == ("importance", [])
    assert report_reading.best(comparisons["comparisons"][5])[0] == "bottom_loss"
    equal = report_content.comparison("a", "b", loss_matching=2.0, importance=2.0, bottom_loss=2.0)
    for figures in equal["policies"].values():
        figures.update(standard_error=0.1)
    equal["policies"]["importance"]["mean"] = 1.95
    equal["policies"]["uniform"]["mean"] = 1.95 + 0.1 * 2**0.5
    equal["policies"]["loss_matching"]["mean"] = 1.95 + 0.1 * 2**0.5 + 1e-6
    equal["policies"]["bottom_loss"]["mean"] = 5.0
    assert report_reading.best(equal) == ("importance", ["uniform"])


def test_exceptions_name_what_beat_the_default(comparisons):
    contents = comparisons["comparisons"]
    titles = [content["title"] for content in contents]
    found = report_reading.exceptions(contents, titles)
    assert not [text for text in found if text.startswith("mnist, rate 0.1:")]
    assert [text for text in found if "bottom_loss was better than importance by" in text]
    assert [text for text in found if text.startswith("mnist, rate 0.3: uniform was better")]
    assert not [text for text in found if "info_batch" in text]
    paired = report_content.comparison("a", "b")
    paired["policies"]["uniform"]["against_default"] = {"mean": -0.5, "standard_error": 0.1}
    assert report_reading.exceptions([paired], ["a"])[0].startswith(
        "a: uniform was better than importance by 0.5 ± 0.1"
    )
    paired["policies"]["uniform"]["against_default"] = {"mean": -0.5, "standard_error": 0.6}
    assert report_reading.exceptions([paired], ["a"]) == []


def test_tables_of_standings(comparisons):
    contents = comparisons["comparisons"]
    rows = {row[0]: row[1:] for row in report_reading.against_uniform(contents)}
    assert rows["importance"] == ["6", "4", "0", "2"]
    assert rows["top_loss"] == ["4", "0", "0", "4"]
    assert report_reading.overview(contents)[0].startswith("In 4 of 6 comparisons, importance")
    assert "60% of the stream" in report_reading.overview(contents)[1]


def test_when_not_to_use_it_follows_the_figures(comparisons):
    contents = comparisons["comparisons"]
    text = " ".join(report_reading.when_not_to_use(contents, [c["title"] for c in contents]))
    assert "mnist, rate 0.3: training on everything was no better than uniform" in text
    assert "0.1 of labels random: importance was worse than uniform" in text
    assert "mnist, rate 0.1: importance" not in text
    off = report_content.comparison("off", "b")
    for importance, everything, advised in ((1.2, 1.0, True), (1.0, 1.1, False), (0.8, 1.1, True)):
        off["policies"]["importance"]["calibration"] = importance
        off["policies"]["everything"]["calibration"] = everything
        text = " ".join(report_reading.when_not_to_use([off], ["off"]))
        assert (f"off: calibration under importance was {importance:.2f}" in text) == advised


def test_short_titles_leave_out_what_all_share():
    def titled(*titles):
        return report_charts.short_titles([{"title": title} for title in titles])

    assert titled("a, rate 0.1", "b, rate 0.1") == ["a", "b"]
    assert titled("a, rate 0.1") == ["a, rate 0.1"]
    assert titled("a, x", "a, x") == ["a, x", "a, x"]


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install ofb-tf\[report\]"):
        report.require_matplotlib()

"""The one table formatter."""

import pytest

from ofb_tf.tables import format_table

ROWS = [["name", "count"], ["a", "1,000"], ["bcdefg", "<2>"]]


def test_text():
    assert format_table(ROWS).splitlines() == [
        "name    count",
        "------  -----",
        "a       1,000",
        "bcdefg    <2>",
    ]
    plain = format_table(ROWS, header=False, numbers=False)
    assert plain.splitlines() == ["name    count", "a       1,000", "bcdefg  <2>"]


def test_markdown():
    assert format_table(ROWS, "markdown").splitlines() == [
        "| name | count |",
        "| --- | ---: |",
        "| a | 1,000 |",
        "| bcdefg | <2> |",
    ]


def test_html_is_escaped():
    text = format_table(ROWS, "html")
    assert "<tr><th>name</th><th>count</th></tr>" in text
    assert "<tr><td>bcdefg</td><td>&lt;2&gt;</td></tr>" in text


def test_unknown_style():
    with pytest.raises(
        ValueError, match="style must be one of .'text', 'markdown', 'html'.. Received"
    ):
        format_table(ROWS, "latex")

"""The report stands alone and shows what the results hold."""

import sys

import pytest

from ofb_tf.experiments import report

pytest.importorskip("matplotlib")


def test_page_stands_alone(make_results, tmp_path):
    text = report.write_report(make_results(), tmp_path / "new").read_text()
    assert text.count("<svg") == text.count("</svg>") == 3
    assert 'name="viewport"' in text
    for fetched in ("<script", "<link", "<img", "@import", "url(http", 'src="http'):
        assert fetched not in text
    assert "ofb demo --dataset=mnist" in text
    assert "1.2.3" in text
    assert "closed 75% of" in text
    assert "0.75" in text


def test_names_are_escaped(make_results):
    content = make_results()
    content["command"] = "ofb demo --dataset='<b>'"
    assert "<b>" not in report.render(content)


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install ofb-tf\[report\]"):
        report.require_matplotlib()

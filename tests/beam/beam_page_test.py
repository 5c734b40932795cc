"""docs/beam.md runs as it is printed, in a process that has no TFX; the reference is complete."""

import os
import pathlib
import re

import ofb_tf.beam
from tests.processes import python

ROOT = pathlib.Path(__file__).parents[2]


def test_the_page_runs_without_tfx(tmp_path):
    text = (ROOT / "docs" / "beam.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```py\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4
    hidden = "import sys; sys.modules.update(dict.fromkeys(('tfx', 'tfx_components')))\n"
    (tmp_path / "page.py").write_text(hidden + "".join(blocks), encoding="utf-8")
    printed = python(
        tmp_path / "page.py", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=400
    )
    assert re.search(r"^2000 records$", printed, re.MULTILINE)
    assert re.search(r"^imported 2 of 2 calls$", printed, re.MULTILINE)
    (selected,) = re.findall(r"^selected (\d+) of 2000$", printed, re.MULTILINE)
    assert 150 < int(selected) < 250  # 200 expected, with a standard deviation below 14


def test_the_reference_shows_the_public_names():
    page = (ROOT / "docs" / "api" / "beam.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: ofb_tf\.beam\.(\w+)$", page, re.MULTILINE)
    assert sorted(shown) == sorted(ofb_tf.beam.__all__)

"""The tutorial of the TFX components runs from top to bottom."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "colab"))
import make_notebooks

pytestmark = [pytest.mark.e2e, pytest.mark.tfx]


def test_notebook_runs(tmp_path):
    """Its own assertions raise, and it shows at least one picture."""
    assert make_notebooks.shows_picture(make_notebooks.run("tfx_pipeline", tmp_path))

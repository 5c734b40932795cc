"""The tutorials of colab/: in step with their scripts, and they run from top to bottom."""

import importlib.util
import pathlib
import sys

import nbformat
import pytest

COLAB = pathlib.Path(__file__).parents[2] / "colab"
TFX_NOTEBOOK = "tfx_pipeline"  # tests/e2e runs it
HAS_TFX = importlib.util.find_spec("tfx") is not None

sys.path.insert(0, str(COLAB))
import make_notebooks  # noqa: E402


def test_every_script_has_a_notebook_and_the_other_way_round():
    names = set(make_notebooks.NAMES)
    assert {path.stem for path in COLAB.glob("*.ipynb")} == names
    assert {path.stem for path in COLAB.glob("*.py")} == names | {"make_notebooks"}


@pytest.mark.parametrize("name", make_notebooks.NAMES)
def test_notebook_equals_its_script(name):
    """`make notebooks-sync` mends it."""
    written = (COLAB / f"{name}.ipynb").read_text(encoding="utf-8")
    assert written.rstrip() == nbformat.writes(make_notebooks.notebook(name)).rstrip()


@pytest.mark.parametrize("name", make_notebooks.NAMES)
def test_notebook_starts_with_badge_and_installation_and_has_no_outputs(name):
    notebook = nbformat.read(COLAB / f"{name}.ipynb", as_version=4)
    badge, installation, *_ = notebook.cells
    address = (
        "https://colab.research.google.com/github/"
        f"{make_notebooks.REPOSITORY}/blob/main/colab/{name}.ipynb"
    )
    assert badge.cell_type == "markdown" and badge.source.startswith("[![Open in Colab]")
    assert f"]({address})" in badge.source.splitlines()[0]
    assert installation.cell_type == "code"
    assert 'find_spec("ofb_tf") is None' in installation.source
    assert f"github.com/{make_notebooks.REPOSITORY}" in installation.source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.parametrize("name", make_notebooks.NAMES)
def test_the_address_stands_in_one_place(name):
    script = (COLAB / f"{name}.py").read_text(encoding="utf-8")
    assert "OWNER/REPO" in script
    assert make_notebooks.REPOSITORY not in script


@pytest.mark.slow
@pytest.mark.skipif(HAS_TFX, reason="runs in the core environment")
@pytest.mark.parametrize("name", [n for n in make_notebooks.NAMES if n != TFX_NOTEBOOK])
def test_notebook_runs(name, tmp_path):
    """Its own assertions raise, and it shows at least one picture."""
    executed = make_notebooks.run(name, tmp_path)
    assert make_notebooks.shows_picture(executed)
    assert (tmp_path / f"{name}.ipynb").is_file()

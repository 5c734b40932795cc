"""Writes the tutorials' notebooks from their scripts, and runs them.

```
python colab/make_notebooks.py sync
python colab/make_notebooks.py run quickstart --output_dir=out/notebooks
```
"""

import argparse
import pathlib
import shutil
import time

import jupytext
import nbclient
import nbformat

HERE = pathlib.Path(__file__).resolve().parent
# The only place that names the repository; the scripts say OWNER/REPO.
REPOSITORY = "ofb-tf/ofb-tf"
NAMES = ("quickstart", "choosing_a_policy", "tfx_pipeline")
CELL_SECONDS = 900


def notebook(name: str) -> nbformat.NotebookNode:
    """Converts a script to a notebook without outputs; deterministic.

    Args:
      name: NAME of the script `colab/NAME.py`, in jupytext's percent format.

    Returns:
      A notebook in nbformat 4.5.
    """
    text = (HERE / f"{name}.py").read_text(encoding="utf-8").replace("OWNER/REPO", REPOSITORY)
    made = jupytext.reads(text, fmt="py:percent")
    for number, cell in enumerate(made.cells):
        cell.id = f"{name}-{number}"  # jupytext draws ids at random
        cell.metadata = {}
    made.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    made.nbformat, made.nbformat_minor = 4, 5
    nbformat.validate(made)
    return made


def sync() -> None:
    """Writes every `colab/NAME.ipynb`."""
    for name in NAMES:
        nbformat.write(notebook(name), HERE / f"{name}.ipynb")


def run(name: str, output_dir: pathlib.Path) -> nbformat.NotebookNode:
    """Executes a notebook in a kernel of this Python.

    Args:
      name: NAME of the notebook.
      output_dir: directory of the executed copy `NAME.ipynb`, which is also written if the run
        fails; the notebook runs in its subdirectory NAME, which is emptied first.

    Returns:
      The executed notebook.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised; the message has its traceback.
    """
    work = output_dir / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    executed = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        executed,
        timeout=CELL_SECONDS,
        startup_timeout=CELL_SECONDS,  # a busy machine takes more than Jupyter's minute
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
    )
    try:
        client.execute()
    finally:
        nbformat.write(executed, output_dir / f"{name}.ipynb")
    return executed


def shows_picture(executed: nbformat.NotebookNode) -> bool:
    """Whether an executed notebook ran every code cell once, in order, and shows a picture."""
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    in_order = [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    data = [output.get("data", {}) for cell in code for output in cell.outputs]
    return in_order and any("image/png" in one for one in data)


def main() -> None:
    """Syncs or runs notebooks, as the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["sync", "run"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--output_dir", type=pathlib.Path, default=pathlib.Path("out/notebooks"))
    arguments = parser.parse_args()
    if arguments.action == "sync":
        sync()
    for name in arguments.names:
        began = time.monotonic()
        run(name, arguments.output_dir)
        print(f"{arguments.output_dir / name}.ipynb: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

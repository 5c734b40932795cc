"""README, documentation and docstrings: their code runs, and what they name is there.

Ruff (rules D and DOC102) checks that docstrings are there and name a function's parameters.
"""

import ast
import functools
import importlib
import pathlib
import re
import textwrap

import keras
import numpy as np
import pytest

import ofb_tf
from ofb_tf.testing import tiny_dataset

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
FOLDERS = "ofb_tf|tfx_components|tests|benchmarks|docs|colab|requirements"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)(?:::(\w+))?`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
# Fenced as `python`; code of other libraries is fenced as `py`, TFX code is only compared.
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ +```python\n(.*?)^ +```", re.DOTALL | re.MULTILINE)
RUN = ("README.md", "docs/index.md", "docs/operations.md", "docs/migrating.md")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def nodes(*packages):
    """Every syntax node of the packages."""
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


@functools.cache
def functions_in(path):
    tree = ast.parse(read(path))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_paths_and_tests_exist(document):
    text = document.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not links
    for path, test in PATH.findall(text):
        assert (ROOT / path).exists(), path
        assert not test or test in functions_in(path), f"{path}::{test}"


@pytest.mark.parametrize("name", RUN)
def test_code_runs_in_order(name, tmp_path, monkeypatch):
    """Streams, layers and a model, which the text leaves to the reader, are given here."""
    monkeypatch.chdir(tmp_path)
    examples = tiny_dataset(9600)
    whole = next(examples.batch(9600).as_numpy_iterator())
    with ofb_tf.ForwardRecordWriter("records") as writer:
        writer.write(whole["example_id"], whole["logits"])
    inputs = keras.Input((2,), name="feature")
    model = ofb_tf.OFBModel(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    given = {
        "keras": keras,
        "example_ids": whole["example_id"],
        "logits": whole["logits"],
        "examples": examples.map(lambda x: {k: x[k] for k in ("example_id", "feature", "label")}),
        "inputs": inputs,
        "outputs": model.outputs[0],
        "model": model,
    }
    blocks = BLOCK.findall(read(name))
    assert blocks
    for number, code in enumerate(blocks):
        exec(compile(code, f"{name}, block {number}", "exec"), given)  # noqa: S102
    assert np.isfinite(given["model"].history.history["loss"]).all()


def test_tfx_components_have_the_arguments_that_the_pages_give_them():
    functions = (n for n in nodes("tfx_components") if isinstance(n, ast.FunctionDef))
    parameters = {n.name: {a.arg for a in n.args.args} for n in functions if n.name[0].isupper()}
    foreign = re.findall(r"^```py\n(.*?)^```", read("docs/migrating.md"), re.DOTALL | re.MULTILINE)
    used = set()
    for code in BLOCK.findall(read("docs/tfx.md")) + foreign:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in parameters:
                used.add(name)
                assert {keyword.arg for keyword in node.keywords} <= parameters[name], name
    assert used >= {"ForwardRecordGen", "OFBSampler", "SamplingValidator"}


def test_messages_in_troubleshooting_are_in_the_source():
    """An f-string's fields are written as `…` on the page."""
    strings = []
    for node in nodes("ofb_tf", "tfx_components"):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
            strings.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.append(node.value)
    messages = re.findall(r"^\| `([^`]+)` \|", read("docs/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 30
    source = "\n".join(strings)
    assert not [message for message in messages if message not in source]


def examples():
    for path in sorted((ROOT / "ofb_tf").rglob("*.py")):
        for number, code in enumerate(INDENTED.findall(path.read_text(encoding="utf-8"))):
            yield pytest.param(textwrap.dedent(code), id=f"{path.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize("code", examples())
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {"dataset": tiny_dataset(2400)})  # noqa: S102 - a policy's example has a dataset


@pytest.mark.parametrize(
    "package",
    ["ofb_tf", "ofb_tf.datasets", "ofb_tf.serving", "ofb_tf.streaming", "ofb_tf.records"],
)
def test_reference_shows_the_public_names(package):
    """Whoever removes a public name deprecates it first; whoever adds one documents it."""
    pages = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/api/*.md"))
    shown = set(re.findall(rf"^::: {re.escape(package)}\.(\w+)$", pages, re.MULTILINE))
    modules = {"hashing", "testing"}  # shown as a whole
    public = set(importlib.import_module(package).__all__)
    if package == "ofb_tf.records":
        public -= set(ofb_tf.__all__)  # shown there
    assert shown - modules == public

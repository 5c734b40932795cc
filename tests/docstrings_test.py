"""Docstrings: their examples run, and every public name is in the API reference.

Ruff (rules D and DOC102) checks that docstrings are there and name a function's parameters.
"""

import ast
import importlib
import pathlib
import re
import warnings

import pytest

from ofb_tf.testing import tiny_dataset

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def examples():
    for path in sorted((ROOT / "ofb_tf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, DOCUMENTED):
                for code in BLOCK.findall(ast.get_docstring(node) or ""):
                    name = getattr(node, "name", "module")
                    yield pytest.param(code, id=f"{path.relative_to(ROOT)}:{name}")


@pytest.mark.parametrize("code", examples())
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {"dataset": tiny_dataset(2400)})  # noqa: S102 - a policy's example has a dataset


def in_reference(module):
    """Public names of a module that docs/api shows."""
    pages = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    return set(re.findall(rf"^::: {re.escape(module)}\.(\w+)$", pages, re.MULTILINE))


def current(module, name):
    """Whether a public name can be imported without a deprecation warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(module, name)
    return not any(issubclass(one.category, DeprecationWarning) for one in caught)


@pytest.mark.parametrize("package", ["ofb_tf", "ofb_tf.datasets", "ofb_tf.serving"])
def test_reference_shows_the_public_names(package):
    """Whoever removes a public name deprecates it first; whoever adds one documents it."""
    module = importlib.import_module(package)
    public = {name for name in module.__all__ if current(module, name)}
    modules = {"hashing", "testing"}  # shown as a whole
    assert in_reference(package) - modules == public


def test_reference_shows_the_records_package():
    public = set(importlib.import_module("ofb_tf.records").__all__)
    assert public <= in_reference("ofb_tf.records") | in_reference("ofb_tf")

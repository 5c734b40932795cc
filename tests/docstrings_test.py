"""Public docstrings: they are there, their examples run, and they name what the code has."""

import ast
import functools
import importlib
import pathlib
import re

import pytest

from ofb_tf.testing import tiny_dataset

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path for package in ("ofb_tf", "tfx_components") for path in (ROOT / package).rglob("*.py")
)
MODULES = ("ofb_tf", "ofb_tf.datasets", "ofb_tf.records", "ofb_tf.serving")
NEED_AN_EXAMPLE = (
    "ofb_sample",
    "join_forward_records",
    "ForwardRecordWriter",
    "ForwardRecords.load",
    "OFBModel",
    "Importance",
    "Policy",
    "RecordForwardPasses",
    "SelectionGuard",
)
# Called by Keras, gRPC and Beam, whose documentation says with what.
HOOKS = re.compile(r"on_\w+|(un)?subscribe|\w+_stream|stream_\w+|expand")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def documented(path):
    """(qualified name, node, docstring) of a module and of all public things in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [("", tree, ast.get_docstring(tree))]

    def visit(node, prefix):
        for child in node.body:
            if isinstance(child, (*FUNCTIONS, ast.ClassDef)) and child.name[0] != "_":
                found.append((prefix + child.name, child, ast.get_docstring(child)))
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")

    visit(tree, "")
    return found


EVERYTHING = [
    pytest.param(node, doc or "", id=f"{path.relative_to(ROOT)}:{name}")
    for path in FILES
    for name, node, doc in documented(path)
]
EXAMPLES = [
    pytest.param(code, id=f"{path.relative_to(ROOT)}:{name}")
    for path in FILES
    if path.is_relative_to(ROOT / "ofb_tf")
    for name, _, doc in documented(path)
    for code in BLOCK.findall(doc or "")
]


def section(doc, title):
    """Names in a section of a docstring: what stands before the colons."""
    text = re.search(rf"^{title}:\n((?:  .*\n|\n)+)", doc + "\n", re.MULTILINE)
    return re.findall(r"^  (\*{0,2}\w+):", text[1], re.MULTILINE) if text else []


def parameters(node):
    """Names of a function's parameters, or of a class's constructor's or fields."""
    if isinstance(node, ast.ClassDef):
        constructors = [n for n in node.body if getattr(n, "name", "") == "__init__"]
        return parameters(constructors[0]) if constructors else fields(node)
    a = node.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args)]
    names += [f"*{a.vararg.arg}"] if a.vararg else []
    names += [arg.arg for arg in a.kwonlyargs] + ([f"**{a.kwarg.arg}"] if a.kwarg else [])
    return names[names[:1] in (["self"], ["cls"]) :]


def fields(node):
    names = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
    return [name for name in names if name[0] != "_"]


def is_record(node):
    """Whether a class is a dataclass or a NamedTuple."""
    return "dataclass" in " ".join(map(ast.unparse, node.decorator_list)) or "NamedTuple" in map(
        ast.unparse, node.bases
    )


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {"dataset": tiny_dataset(2400)})  # noqa: S102 - a policy's example has a dataset


def test_the_main_names_have_examples():
    shown = {
        name
        for path in FILES
        for name, node, doc in documented(path)
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and BLOCK.search(doc or "")
    }
    assert not set(NEED_AN_EXAMPLE) - shown


@pytest.mark.parametrize(("node", "doc"), EVERYTHING)
def test_docstring_and_signature_agree(node, doc):
    assert doc, "no docstring"
    if isinstance(node, ast.Module):
        return
    args = section(doc, "Args")
    if args:
        assert args == parameters(node)
    if isinstance(node, ast.ClassDef) and is_record(node):
        assert set(section(doc, "Attributes")) in ({*fields(node)}, set())


def public_nodes():
    """Functions and classes behind the public names, with the public methods of classes."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    for module in (*MODULES, "ofb_tf.testing"):
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", None) or dir(loaded):
            value = getattr(loaded, name)
            path = files.get(getattr(value, "__module__", None))
            if path is None or (module == "ofb_tf.testing" and value.__module__ != module):
                continue
            for qualified, node, doc in documented(path):
                if qualified.split(".")[0] == name and isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                    yield pytest.param(node, doc or "", id=f"{module}.{qualified}")


@pytest.mark.parametrize(("node", "doc"), public_nodes())
def test_public_docstrings_are_whole(node, doc):
    """Parameters are described, and what is raised is named."""
    if HOOKS.fullmatch(node.name):
        return
    body = node
    if isinstance(node, ast.ClassDef):
        names = ("__init__", "__post_init__")
        constructors = [n for n in node.body if getattr(n, "name", "") in names]
        doc = "\n\n".join([doc, *(ast.get_docstring(n) or "" for n in constructors)])
        body = ast.Module(constructors, [])
    described = section(doc, "Args") or section(doc, "Attributes")
    assert described or not parameters(node), "parameters are not described"
    raised = {
        ast.unparse(n.exc.func)
        for n in ast.walk(body)
        if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
    }
    assert not {name for name in raised if name not in doc}


def test_every_public_name_is_in_the_reference():
    pages = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            assert {f"{module}.{name}", f"ofb_tf.{name}"} & shown, f"{module}.{name}"
    for _, node, _ in documented(ROOT / "ofb_tf" / "testing.py")[1:]:
        assert f"ofb_tf.testing.{node.name}" in shown

"""The documentation names tests: they exist, and every claim of METHOD.md has one."""

import ast
import functools
import pathlib
import re

import pytest

from ofb_tf.selection import POLICIES

ROOT = pathlib.Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+_test\.py)::(\w+)`")
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))


@functools.cache
def names_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def claims(text):
    """The items of lists, each with its following lines."""
    return re.findall(r"^- (.*?)(?=^- |^#|\Z)", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_tests_exist(document):
    for path, name in NAMED.findall(document.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), path
        assert name.startswith("test_") and name in names_in(path), f"{path}::{name}"


def test_every_claim_of_the_method_names_its_test():
    found = claims((ROOT / "docs" / "METHOD.md").read_text(encoding="utf-8"))
    assert len(found) > 20
    for claim in found:
        assert NAMED.search(claim), claim


def test_every_policy_is_described():
    text = (ROOT / "docs" / "METHOD.md").read_text(encoding="utf-8")
    policies = text[text.index("## Policies") :]
    for name in POLICIES:
        assert f"`{name}`" in policies

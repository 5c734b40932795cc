"""The pages' Python blocks run, a page's one after the other; quoted messages are in the source."""

import ast
import pathlib
import re

import keras
import pytest

import ofb_tf
from ofb_tf.testing import tiny_dataset

ROOT = pathlib.Path(__file__).parents[1]
# Other frameworks' code is fenced as `py`, TFX's is checked below.
PAGES = ("index", "operations", "migrating")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
STRINGS = (ast.Constant, ast.JoinedStr)


def read(page):
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = tiny_dataset(9600)
    with ofb_tf.ForwardRecordWriter("records") as writer:
        for batch in examples.batch(960):
            writer.write(batch["example_id"], batch["logits"])
    inputs = keras.Input((2,), name="feature")
    model = ofb_tf.OFBModel(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    fields = ("example_id", "feature", "label")
    given = {
        "examples": examples.map(lambda x: {name: x[name] for name in fields}),
        "inputs": inputs,
        "outputs": model.outputs[0],
        "model": model,
    }
    blocks = BLOCK.findall(read(page))
    assert blocks
    for number, code in enumerate(blocks):
        exec(compile(code, f"{page}.md, block {number}", "exec"), given)  # noqa: S102


def test_components_in_tfx_md_have_the_arguments_they_are_given():
    parameters, used = {}, set()
    for path in (ROOT / "tfx_components").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name[0].isupper():
                parameters[node.name] = {arg.arg for arg in node.args.args}
    foreign = re.findall(r"^```py\n(.*?)^```", read("migrating"), re.DOTALL | re.MULTILINE)
    for code in BLOCK.findall(read("tfx")) + foreign:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in parameters:
                name = ast.unparse(node.func)
                used.add(name)
                assert {keyword.arg for keyword in node.keywords} <= parameters[name], name
    assert used >= {"ForwardRecordGen", "OFBSampler", "SamplingValidator"}


def source_strings():
    """Every string of the packages; what an f-string fills in is `…`."""
    for package in ("ofb_tf", "tfx_components"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        v.value if isinstance(v, ast.Constant) else "…" for v in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_messages_of_the_troubleshooting_page_are_the_librarys():
    messages = re.findall(r"^\| `([^`]+)` \|", read("troubleshooting"), re.MULTILINE)
    assert len(messages) > 40
    strings = list(source_strings())
    unknown = [message for message in messages if not any(message in s for s in strings)]
    assert not unknown

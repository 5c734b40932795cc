"""The programs of docs/ecosystem.md run: a newcomer's first ones, and other learners."""

import ast
import importlib.util
import pathlib
import re
import runpy

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from tests.streams import serialized_example

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "ecosystem.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FIRST, OTHER = (BLOCK.findall(section) for section in PAGE.split("## Other learners"))
N = 640


@pytest.fixture(name="given")
def _given(tmp_path, monkeypatch):
    """The data that the page starts from."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 8)).astype(np.float32)
    click = (x[:, 0] + 0.3 * rng.normal(size=N) > 0).astype(np.int64)
    rows = [f"{age:.3f},{income:.3f},{y}" for (age, income), y in zip(x[:, :2], click, strict=True)]
    pathlib.Path("data.csv").write_text("\n".join(["age,income,bought", *rows]), encoding="utf-8")
    with tf.io.TFRecordWriter("data.tfrecord") as writer:
        for i in range(N):
            writer.write(serialized_example(example_id=i, label=click[i], x=x[i]))
    return {"x": x, "y": click, "click": click, "conversion": np.where(click == 1, x[:, 1] > 0, -1)}


@pytest.mark.parametrize("number", range(len(FIRST)))
def test_a_first_program_is_short_and_runs(number, given):
    code = FIRST[number]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(compile(code, f"first program {number}", "exec"), given)  # noqa: S102
    history = given["model"].history.history
    assert np.isfinite(history["loss"]).all()
    assert len(ofb_tf.ForwardRecords.load("records")) == N


@pytest.mark.parametrize("code", OTHER, ids=["sklearn", "lightgbm", "ydf", "pytorch"])
def test_another_learner_learns_from_the_selection(code, given):
    packages = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    for name in packages:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # LightGBM needs the system's libgomp
            pytest.skip(f"{name} is not there: {error}")
    if "torch" in packages and importlib.util.find_spec("triton"):
        pytest.skip("Triton and TensorFlow end a process that loads both: LLVM's options clash")
    x, y = given["x"], given["y"]
    records = ofb_tf.ForwardRecords.from_columns(np.arange(N), x[:, 0])
    examples = tf.data.Dataset.from_tensor_slices((x, y)).enumerate()
    sampler = ofb_tf.ofb_sample(records=records, rate=0.5, window_size=N, batch_size=32, seed=0)
    given |= {"train": examples.apply(sampler), "test_x": x, "test_y": y}
    exec(compile(code, "another learner", "exec"), given)  # noqa: S102
    assert given["accuracy"] > 0.8


def test_the_example_of_two_heads_learns_both(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["two_heads.py", "--num_examples=51200", "--positive_rate=0.2"])
    runpy.run_path(str(DOCS / "examples" / "two_heads.py"), run_name="__main__")
    before, after = (
        ast.literal_eval(line.partition(": ")[2]) for line in capsys.readouterr().out.splitlines()
    )
    assert set(before) == set(after) == {"click", "conversion"}
    for head, divergence in after.items():
        assert divergence < 0.7 * before[head]

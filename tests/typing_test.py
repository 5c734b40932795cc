"""Types as a user's checker sees them: right code passes, wrong code is named."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

# Strict for the user's file; what the package itself has is for `make types`.
_FLAGS = ("--strict", "--config-file=", "--follow-imports=silent", "--ignore-missing-imports")
ROOT = pathlib.Path(__file__).parents[1]

# The type checker is a tool of the core environment; the TFX stack's has none.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="needs mypy, as in requirements/core.txt"
)

RIGHT = """
from typing import Any

import numpy as np
import ofb_tf

with ofb_tf.ForwardRecordWriter("records", num_outputs=1) as writer:
    writer.write(np.arange(3), np.zeros([3, 1]), model_version=7)
written: int = writer.counts.num_written

records: ofb_tf.ForwardRecords = ofb_tf.ForwardRecords.load(["records"], as_of=None)
policy: ofb_tf.Policy = ofb_tf.Importance(uniform_mix=0.2)
sampler: ofb_tf.OFBSampler = ofb_tf.ofb_sample(records=records, rate=0.1, policy=policy)
transform: ofb_tf.DatasetTransform = ofb_tf.join_forward_records("records")
guard = ofb_tf.SelectionGuard(fall_back=True)
ofb_tf.ofb_sample(policy=guard.policy("importance"), batch_size=None)
model: ofb_tf.OFBModel = ofb_tf.OFBModel.wrap(object(), backward_rate=0.1)
version: str = ofb_tf.__version__


def mean_weight(sampler: ofb_tf.OFBSampler, stream: Any) -> float:
    return sampler.statistics(stream)["mean_weight"]
"""
WRONG = {
    'ofb_tf.ofb_sample(rate="0.1")': "arg-type",
    "ofb_tf.ofb_sample(0.1)": "call-arg",
    "ofb_tf.ofb_sample(rates=0.1)": "call-arg",
    'ofb_tf.ForwardRecordWriter("records", num_outputs=1.5)': "arg-type",
    'ofb_tf.ForwardRecordWriter("records").counts.written': "attr-defined",
    'ofb_tf.ForwardRecords.load("records", as_of="now")': "arg-type",
    'ofb_tf.Importance(uniform_mix="much")': "arg-type",
    "count: str = ofb_tf.ForwardRecordWriter('records').counts.num_written": "assignment",
    "ofb_tf.OFBModel(label_key=3)": "arg-type",
    "ofb_tf.RecordForwardPasses('records')": "call-arg",
    "ofb_tf.SelectionGuard(max_variance_ratio='1')": "arg-type",
    "ofb_tf.no_such_name": "attr-defined",
}


def _mypy(code: str, directory: pathlib.Path) -> subprocess.CompletedProcess:
    (directory / "user.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "mypy", *_FLAGS, "user.py"],
        cwd=directory,
        # An editable install is not on the path that mypy follows.
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_users_code_passes_and_wrong_code_is_named(tmp_path):
    """One run for all wrong lines: a run costs seconds."""
    lines = ["import ofb_tf", *WRONG]
    run = _mypy("\n".join(lines) + "\n", tmp_path)
    errors: dict[int, str] = {}
    for number, error in re.findall(r"^user.py:(\d+): error: (.*)$", run.stdout, re.MULTILINE):
        errors[int(number)] = errors.get(int(number), "") + error
    missed = [line for number, line in enumerate(lines, 1) if number > 1 and number not in errors]
    assert not missed, run.stdout
    for number, (line, code) in enumerate(WRONG.items(), 2):
        assert f"[{code}]" in errors[number], (line, errors[number])
    run = _mypy(RIGHT, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr

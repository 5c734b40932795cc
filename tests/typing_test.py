"""Types as a user's checker sees them: correct code passes, each mistake is reported."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

# Strict for the user's file; the package's own annotations are checked by `make types`.
FLAGS = ("--strict", "--config-file=", "--follow-imports=silent", "--ignore-missing-imports")
ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="needs mypy, as in requirements/core.txt"
)

# A comment names the error that mypy must report on its line.
CODE = """
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


ofb_tf.ofb_sample(rate="0.1")  # arg-type
ofb_tf.ofb_sample(0.1)  # call-arg
ofb_tf.ofb_sample(rates=0.1)  # call-arg
ofb_tf.ForwardRecordWriter("records", num_outputs=1.5)  # arg-type
ofb_tf.ForwardRecordWriter("records").counts.written  # attr-defined
ofb_tf.ForwardRecords.load("records", as_of="now")  # arg-type
ofb_tf.Importance(uniform_mix="much")  # arg-type
count: str = ofb_tf.ForwardRecordWriter("records").counts.num_written  # assignment
ofb_tf.OFBModel(label_key=3)  # arg-type
ofb_tf.RecordForwardPasses("records")  # call-arg
ofb_tf.SelectionGuard(max_variance_ratio="1")  # arg-type
ofb_tf.no_such_name  # attr-defined
"""


def test_mypy_reports_the_mistakes_and_nothing_else(tmp_path):
    (tmp_path / "user.py").write_text(CODE)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *FLAGS, "user.py"],
        cwd=tmp_path,
        # An editable install is not on the path that mypy follows.
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    found = re.findall(r"^user.py:(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE)
    expected = {
        (str(number), comment[1])
        for number, line in enumerate(CODE.splitlines(), 1)
        if (comment := re.search(r"  # ([\w-]+)$", line))
    }
    assert expected <= set(found), run.stdout + run.stderr
    assert {line for line, _ in expected} == {line for line, _ in found}, run.stdout

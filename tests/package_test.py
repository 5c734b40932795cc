"""The package as a whole: optional parts stay optional, public names are pinned."""

import os
import pathlib
import subprocess
import sys

import pytest

import ofb_tf

ROOT = pathlib.Path(__file__).parents[1]

PUBLIC = {
    "BackupIterator",
    "BottomLoss",
    "DatasetTransform",
    "ForwardRecordWriter",
    "ForwardRecords",
    "Importance",
    "Inclusion",
    "InfoBatch",
    "LossMatching",
    "OFBModel",
    "OFBSampler",
    "OFBTensorBoard",
    "PartitionedRecords",
    "Policy",
    "RecordForwardPasses",
    "SelectionGuard",
    "SelectiveBackprop",
    "TopLoss",
    "Uniform",
    "Window",
    "__version__",
    "join_forward_records",
    "ofb_sample",
}
OPTIONAL = ("tfx", "apache_beam", "grpc", "matplotlib", "tensorflow_serving", "kfp")


def test_import_pulls_in_no_optional_part():
    # TensorFlow itself may import grpc; what counts is what ofb_tf adds to it.
    code = (
        "import sys, tensorflow, keras; keras.Model; before = set(sys.modules); import ofb_tf; "
        "print(' '.join(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = {name.split(".")[0] for name in run.stdout.split()}
    assert "ofb_tf" in added
    assert not added & set(OPTIONAL)


def _ofb(*arguments):
    """`ofb` in a process of its own, whose environment does not quieten TensorFlow."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    code = (
        "import sys; from ofb_tf import cli; code = cli.main(sys.argv[1:]); "
        "print('tensorflow' in sys.modules); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("arguments", [("--help",), ("help",)])
def test_help_is_quiet_and_loads_no_tensorflow(arguments):
    run = _ofb(*arguments)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: ofb COMMAND")
    assert run.stdout.endswith("False\n")


def test_public_names():
    """Who removes one deprecates it first; who adds one writes it down here and in CHANGELOG.md."""
    assert set(ofb_tf.__all__) == PUBLIC
    assert ofb_tf.__all__ == sorted(ofb_tf.__all__)
    assert all(getattr(ofb_tf, name) is not None for name in ofb_tf.__all__)

"""The same records and the same sample on every runner: in memory, in processes, on an engine."""

import hashlib
import json
import pathlib
import shutil
import socket
import subprocess
import urllib.request

import apache_beam as beam
import numpy as np
import pytest

import ofb_tf
from tfx_components import artifacts
from tfx_components.forward_record_gen import ForwardRecordGen

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FLINK_JOB_SERVER = "localhost:8099"
_FLINK_REST = "http://127.0.0.1:8081/overview"


def _digest(directory: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def run(data, as_examples, sample, tmp_path):
    """A function from Beam's arguments to (records, examples, statistics) as content hashes."""
    examples = as_examples(data)
    with ofb_tf.ForwardRecordWriter(tmp_path / "serving") as writer:
        writer.write(data.ids[200:], data.logits[200:], timestamp=5, model_version=2)
        writer.write(data.ids[:900], data.logits[:900] + 1.0, timestamp=9, model_version=3)

    def with_runner(name: str, argv: list[str]):
        records = artifacts.ForwardRecords()
        records.uri = str(tmp_path / f"records-{name}")
        ForwardRecordGen.test_call(
            forward_records=records,
            records_pattern=str(tmp_path / "serving"),
            num_partitions=5,
            beam_pipeline=beam.Pipeline(argv=argv),
        )
        sampled, statistics = sample(
            examples, records, name=name, argv=argv, slice_features=["city"]
        )
        split = json.loads((pathlib.Path(statistics.uri) / "statistics.json").read_text())
        loaded = ofb_tf.ForwardRecords.load(records.uri)
        columns = (loaded.example_ids, loaded.logits, loaded.model_versions, loaded.timestamps)
        return (
            [np.asarray(column).tobytes() for column in columns],
            _digest(pathlib.Path(sampled.uri)),
            split["splits"]["train"]["total"],
        )

    return with_runner


@pytest.fixture
def in_memory(run):
    return run("in_memory", ["--direct_running_mode=in_memory"])


def _check_equal(actual, expected):
    assert actual[0] == expected[0]
    assert actual[1] == expected[1]
    # Sums of weights may be added in another order.
    assert actual[2] == pytest.approx(expected[2], rel=1e-12)
    assert expected[2]["num_selected"] > 200


def test_multi_processing_equals_in_memory(run, in_memory):
    argv = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    _check_equal(run("processes", argv), in_memory)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(shutil.which("go") is None, reason="Prism is built with Go")
def test_prism_equals_in_memory(run, in_memory):
    """A portable runner in a process of its own: the API that Flink and Dataflow are driven by."""
    port = _free_port()
    subprocess.run([_ROOT / "tools" / "prism.sh", "up", str(port)], check=True)
    try:
        argv = [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{port}",
            "--environment_type=LOOPBACK",
        ]
        _check_equal(run("prism", argv), in_memory)
    finally:
        subprocess.run([_ROOT / "tools" / "prism.sh", "down"], check=True)


@pytest.mark.flink
def test_flink_equals_in_memory(run, in_memory):
    """On the cluster of `make flink-up`: one job manager, two task managers."""
    try:
        with urllib.request.urlopen(_FLINK_REST, timeout=5) as answer:
            overview = json.load(answer)
    except OSError:
        pytest.skip("there is no Flink cluster: make flink-up")
    assert overview["taskmanagers"] == 2
    argv = [
        "--runner=PortableRunner",
        f"--job_endpoint={_FLINK_JOB_SERVER}",
        "--environment_type=LOOPBACK",
        "--parallelism=2",
    ]
    _check_equal(run("flink", argv), in_memory)

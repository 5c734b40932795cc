"""The same records and the same sample on every runner: in memory, in processes, on an engine."""

import contextlib
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
from tfx_testing import generate

import ofb_tf
from ofb_tf.beam import ImportRecords

_RUNNERS = pathlib.Path(__file__).resolve().parents[1] / "runners"


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
    (tmp_path / "logs").mkdir()
    rows = list(zip(data.ids.tolist(), data.logits.tolist(), strict=True))[:500]
    halves = {
        "request": [{"instances": [{"example_id": i}]} for i, _ in rows],
        "response": [{"predictions": [{"logits": [z]}]} for _, z in rows],
    }
    for kind, bodies in halves.items():
        events = [
            {"type": f"serving.{kind}", "id": call, "time": "2026-05-01T12:00:00Z", "data": body}
            for call, body in enumerate(bodies, 1)
        ]
        (tmp_path / "logs" / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, events)))
    with ofb_tf.ForwardRecordWriter(tmp_path / "serving") as writer:
        writer.write(data.ids[200:], data.logits[200:], timestamp=5, model_version=2)
        writer.write(data.ids[:900], data.logits[:900] + 1.0, timestamp=9, model_version=3)

    def with_runner(name: str, argv: list[str]):
        records = generate(
            tmp_path / f"records-{name}",
            records_pattern=str(tmp_path / "serving"),
            num_partitions=5,
            beam_pipeline=beam.Pipeline(argv=argv),
        )
        imported = tmp_path / f"imported-{name}"
        with beam.Pipeline(argv=argv) as pipeline:
            logs = str(tmp_path / "logs" / "*.jsonl")
            _ = pipeline | ImportRecords(logs, imported, format="cloudevents", num_outputs=1)
        sampled, statistics = sample(
            examples, records, name=name, argv=argv, slice_features=["city"]
        )
        split = json.loads((pathlib.Path(statistics.uri) / "statistics.json").read_text())
        loaded = [ofb_tf.ForwardRecords.load(directory) for directory in (records.uri, imported)]
        assert len(loaded[1]) == len(rows)
        columns = [
            (each.example_ids, each.logits, each.model_versions, each.timestamps) for each in loaded
        ]
        return (
            [np.asarray(column).tobytes() for each in columns for column in each],
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


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20_000, 30_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise OSError("no free ports")


def _portable(port: int) -> list[str]:
    endpoint = f"--job_endpoint=localhost:{port}"
    return ["--runner=PortableRunner", endpoint, "--environment_type=LOOPBACK"]


def _needs(command: str, what: str):
    return pytest.mark.skipif(
        shutil.which(command) is None, reason=f"{what}, and there is no {command!r} on the PATH"
    )


@_needs("go", "Prism is built with Go 1.21 or newer (https://go.dev/dl)")
def test_prism_equals_in_memory(run, in_memory):
    """A portable runner in another process, by the API that also drives Flink and Dataflow."""
    port = _free_ports(1)
    subprocess.run([_RUNNERS / "prism.sh", "up", str(port)], check=True)
    try:
        _check_equal(run("prism", _portable(port)), in_memory)
    finally:
        subprocess.run([_RUNNERS / "prism.sh", "down"], check=True)


@pytest.fixture
def flink():
    """A new Flink cluster: the port of its REST API; that of Beam's job server is two higher."""
    port = _free_ports(5)
    try:
        subprocess.run([_RUNNERS / "flink.sh", "up", str(port)], check=True)
        yield port
    finally:
        subprocess.run([_RUNNERS / "flink.sh", "down", str(port)], check=True)


def _ask(port: int, path: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return json.load(answer)


def _workers(port: int, job: str) -> set[str]:
    """Task managers that took part in a job."""
    found = set()
    for vertex in _ask(port, f"jobs/{job}")["vertices"]:
        managers = _ask(port, f"jobs/{job}/vertices/{vertex['id']}/taskmanagers")["taskmanagers"]
        found |= {manager["taskmanager-id"] for manager in managers}
    return found


@pytest.mark.flink
@_needs("mvn", "Flink's jars come by Maven (Debian: maven, openjdk-17-jre-headless)")
def test_flink_equals_in_memory(run, in_memory, flink):
    """A real cluster: one job manager, two task managers."""
    assert _ask(flink, "overview")["taskmanagers"] == 2
    argv = [*_portable(flink + 2), "--parallelism=2"]
    _check_equal(run("flink", argv), in_memory)
    jobs = _ask(flink, "jobs/overview")["jobs"]
    assert [job["state"] for job in jobs] == ["FINISHED"] * 3
    assert all(len(_workers(flink, job["jid"])) == 2 for job in jobs)

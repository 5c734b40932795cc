"""The programs of docs/recording.md: what was answered is recorded, also when SIGTERM comes.

`grpc_test.py` runs `serve_and_record.py`.
"""

import concurrent.futures
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ofb_tf.records import ForwardRecords
from tests.processes import python

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
pytestmark = pytest.mark.slow


def start(example, *arguments):
    """Starts a program, and waits for its first line."""
    command = [sys.executable, EXAMPLES / example, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def terminate(process):
    """Sends SIGTERM, and waits for the end; returns what was printed until then."""
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=240)[0]


def complete_records(directory):
    """The records of a directory where no file is open."""
    assert {path.suffix for path in directory.iterdir()} == {".ofbr"}
    return ForwardRecords.load(directory)


def test_gunicorn_loses_no_accepted_request_at_sigterm():
    for name in ("fastapi", "gunicorn", "uvicorn_worker"):
        pytest.importorskip(name)
    printed = python(EXAMPLES / "gunicorn_load.py", "--requests=3000", timeout=900)
    assert re.search(r"SIGTERM after 1500 answers: 1[5-9]\d\d requests answered", printed), printed
    assert "3000 requests answered with 200" in printed
    assert "0 of them open; 0 lost" in printed
    # Requests that were broken off may be recorded twice.
    workers = re.findall(r"worker \d+: recorded (\d+), lost (\d+)", printed)
    assert len(workers) == 4
    assert sum(int(recorded) for recorded, _ in workers) >= 3000
    assert {lost for _, lost in workers} == {"0"}


@pytest.mark.parametrize("flags", [[], ["--asyncio"]], ids=["sync", "asyncio"])
def test_a_grpc_server_records_what_it_has_answered_at_sigterm(tmp_path, flags):
    grpc = pytest.importorskip("grpc")
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    import tensorflow as tf
    from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

    process, address = start("grpc_server.py", tmp_path / "records", *flags)
    answered = []

    def call(stub, first):
        """Calls until the server does not answer any more."""
        for example_id in range(first, first + 10**6):
            request = predict_pb2.PredictRequest()
            request.inputs["example_id"].CopyFrom(tf.make_tensor_proto([example_id], tf.int64))
            x = np.full([1, 8], example_id % 7, np.float32)
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
            try:
                response = stub.Predict(request)
            except grpc.RpcError as error:
                return error.code()
            logits = tf.make_ndarray(response.outputs["logits"])
            answered.append((example_id, logits.item()))
        raise AssertionError("the server does not end")

    with (
        grpc.insecure_channel(address) as channel,
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        stub = PredictionServiceStub(channel)
        codes = [threads.submit(call, stub, first * 10**6) for first in range(4)]
        while len(answered) < 300:
            time.sleep(0.01)
        printed = terminate(process)
        assert {code.result() for code in codes} <= {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        }
    records = complete_records(tmp_path / "records")
    logits = dict(zip(records.example_ids.numpy(), records.logits.numpy()[:, 0], strict=True))
    assert all(logits[example_id] == logit for example_id, logit in answered)
    assert f"recorded {len(logits)}, lost 0" in printed
    assert process.returncode == 0


def test_a_predict_job_goes_on_where_sigterm_ended_it(tmp_path):
    records = tmp_path / "records"
    process, line = start("predict_job.py", records, "--examples=1000000")
    assert line == "1000000 examples to predict"
    while not list(records.glob("*.open")):  # until the first block is written
        time.sleep(0.01)
    terminate(process)
    assert process.returncode == 143
    first = len(complete_records(records))
    assert 0 < first < 1_000_000
    # In order of the ids: what is recorded is what comes first.
    count = first + 5000
    printed = python(EXAMPLES / "predict_job.py", records, f"--examples={count}")
    assert "5000 examples to predict\nrecorded 5000 examples" in printed
    np.testing.assert_array_equal(complete_records(records).example_ids, np.arange(count))


def test_actors_record(tmp_path):
    printed = python(EXAMPLES / "actor.py", tmp_path, "--requests=1000")
    assert printed.count("recorded 500, lost 0") == 2
    check_unit_requests(complete_records(tmp_path))


def check_unit_requests(records):
    """Each of 1,000 examples has one of eight features; their weights go evenly from -1 to 1."""
    ids = np.arange(1000)
    np.testing.assert_array_equal(records.example_ids, ids)
    np.testing.assert_allclose(records.logits[:, 0], ids % 8 / 3.5 - 1, atol=1e-6)


def test_ray_serve_records(tmp_path):
    """Not in CI: `pip install 'ray[serve]'`, which takes 400 MB."""
    pytest.importorskip("ray")
    printed = python(EXAMPLES / "ray_server.py", tmp_path, "--requests=1000", timeout=300)
    assert "1000 requests answered" in printed
    check_unit_requests(complete_records(tmp_path))


def test_logs_of_others_become_records(tmp_path):
    pytest.importorskip("tensorflow_serving.apis")
    printed = python(EXAMPLES / "import_logs.py", tmp_path)
    assert len(re.findall(r"records written +1,000", printed)) == 2
    records = complete_records(tmp_path / "records")
    np.testing.assert_array_equal(records.example_ids, np.arange(2000))
    np.testing.assert_allclose(records.logits[:, 0], np.arange(2000) / 1000, rtol=1e-6)
    np.testing.assert_array_equal(records.model_versions, [3] * 1000 + [0] * 1000)

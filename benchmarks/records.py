"""The serving plane: writing and reading forward records, and what recording adds to a call."""

import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import grpc
import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc

from benchmarks import inputs
from benchmarks.parts import Part, Row, Run, Settings, of
from ofb_tf.records import ForwardRecordWriter, reader
from ofb_tf.serving import export_recording_model
from ofb_tf.serving.channel import RecordingChannel
from ofb_tf.serving.interceptor import RecordingInterceptor
from ofb_tf.serving.local_server import predict_request
from ofb_tf.serving.recorder import PredictionRecorder

_MILLION = 1_000_000
_CALL_BATCH = 256
_CALLS_A_SECOND = 200
_INSTANCES_A_CALL = 64
# Short turns, so that what else the machine does meets both alike.
_CALLS_A_TURN = 20
_TURNS = 200


def _write(settings: Settings) -> Run:
    """Batches of 256 with one output, one thread, to the last flush."""
    count = settings.count(4 * _MILLION)
    ids = inputs.scattered_ids(count)
    logits = inputs.logits_of(ids)

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as directory:
            start, cpu = time.perf_counter(), time.process_time()
            with ForwardRecordWriter(directory, num_outputs=1) as writer:
                for first in range(0, count, _CALL_BATCH):
                    part = slice(first, first + _CALL_BATCH)
                    writer.write(ids[part], logits[part], model_version=7)
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            on_disk = sum(path.stat().st_size for path in pathlib.Path(directory).iterdir())
        return {
            "items": count,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "bytes_a_record": on_disk / count,
        }

    return run


def _read(settings: Settings) -> Run:
    """Record files to arrays."""
    count = settings.count(10 * _MILLION)
    directory = str(inputs.record_files(settings, count))
    reader.read_columns(directory)

    def run() -> int:
        columns = reader.read_columns(directory)
        return len(columns.arrays["example_id"])

    return run


def _prepare_read(settings: Settings) -> None:
    inputs.record_files(settings, settings.count(10 * _MILLION))


def _calls(settings: Settings) -> Run:
    """Paced calls to a server in a process of its own, by each kind of channel in turn.

    "plain again" is the plain channel once more: what it adds is the noise of the measurement.
    """
    turns = settings.count(_TURNS)
    requests = _requests()
    stack = contextlib.ExitStack()
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    address = stack.enter_context(_server(directory))
    plain = grpc.insecure_channel(address)

    def turn(channel: grpc.Channel) -> list[float]:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        latencies = []
        due = time.perf_counter()
        for number in range(_CALLS_A_TURN):
            due += 1 / _CALLS_A_SECOND
            time.sleep(max(due - time.perf_counter(), 0))
            start = time.perf_counter()
            stub.Predict(requests[number % len(requests)])
            latencies.append(time.perf_counter() - start)
        return latencies

    for _ in range(3):
        turn(plain)

    def run() -> dict[str, float]:
        _ = stack  # keeps the server alive
        with PredictionRecorder(ForwardRecordWriter(f"{directory}/records")) as recorder:
            channels = {
                "plain": plain,
                "plain_again": plain,
                "recording_channel": RecordingChannel(plain, recorder),
                "recording_interceptor": grpc.intercept_channel(
                    plain, RecordingInterceptor(recorder)
                ),
                "empty_interceptor": grpc.intercept_channel(plain, _EmptyInterceptor()),
            }
            latencies = {name: [] for name in channels}
            order = np.random.default_rng(0)
            for number in range(turns):
                for name in order.permutation(list(channels)):
                    if number % 4 and name.endswith("interceptor"):
                        continue  # no goals of theirs
                    latencies[name] += turn(channels[name])
                    recorder.flush()
        recorded = len(latencies["recording_channel"]) + len(latencies["recording_interceptor"])
        assert recorder.counts.num_recorded == recorded * _INSTANCES_A_CALL, recorder.counts
        figures = {"items": sum(len(values) for values in latencies.values())}
        for percentile in (50, 99):
            without = np.percentile(latencies["plain"] + latencies["plain_again"], percentile)
            figures[f"p{percentile}_ms"] = without * 1e3
            found = {name: np.percentile(latencies[name], percentile) for name in channels}
            for name in list(channels)[1:]:
                added = found[name] / (found["plain"] if name == "plain_again" else without) - 1
                figures[f"{name}_p{percentile}"] = added * 100
        return figures

    return run


class _EmptyInterceptor(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation, client_call_details, request):
        return continuation(client_call_details, request)


def _requests() -> list:
    generator = np.random.default_rng(0)
    requests = []
    for number in range(8):
        serialized = []
        for row in range(_INSTANCES_A_CALL):
            example = tf.train.Example()
            feature = example.features.feature
            feature["example_id"].int64_list.value.append(number * _INSTANCES_A_CALL + row)
            feature["x"].float_list.value.extend(generator.normal(size=39))
            serialized.append(example.SerializeToString())
        requests.append(predict_request(serialized))
    return requests


@contextlib.contextmanager
def _server(directory: str) -> Iterator[str]:
    x = keras.Input([39], name="x")
    hidden = keras.layers.Dense(256, "relu")(keras.layers.Dense(256, "relu")(x))
    model = keras.Model(x, keras.layers.Dense(1)(hidden))
    spec = {
        "example_id": tf.io.FixedLenFeature([], tf.int64),
        "x": tf.io.FixedLenFeature([39], tf.float32),
    }
    export_recording_model(model, f"{directory}/model", spec, task="binary")
    command = [sys.executable, "-m", "ofb_tf.serving.local_server", f"{directory}/model"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)


_CHANNELS = "channels in turn"
_FIGURES = {
    "RecordingChannel": "recording_channel",
    "RecordingInterceptor": "recording_interceptor",
    "an interceptor that does nothing": "empty_interceptor",
    "the same channel again (noise)": "plain_again",
}


def _added(what: str, percentile: int, goal: float | None = None) -> Row:
    figure = of(_CHANNELS, f"{_FIGURES[what]}_p{percentile}")
    return Row(f"p{percentile} added by {what} (%)", figure, at_most=goal)


PARTS = (
    Part(
        name="records_write",
        title="Writing records of one output in batches of 256, one thread",
        item="record",
        peers={"ofb_tf": _write},
        rows=(
            Row(
                "million records written a second (wall-clock)",
                lambda m: 1 / m["ofb_tf"]["wall_us"],
                at_least=2,
            ),
            Row(
                "million records written per CPU second",
                lambda m: 1 / m["ofb_tf"]["cpu_us"],
            ),
            Row("bytes a record on disk", of("ofb_tf", "bytes_a_record"), at_most=16),
        ),
    ),
    Part(
        name="records_read",
        title="Reading 10 million records of one output to arrays",
        item="record",
        peers={"ofb_tf": _read},
        prepare=_prepare_read,
        rows=(
            Row(
                "million records read a second (wall-clock)",
                lambda m: 1 / m["ofb_tf"]["wall_us"],
                at_least=10,
            ),
            Row("million records read per CPU second", lambda m: 1 / m["ofb_tf"]["cpu_us"]),
        ),
    ),
    Part(
        name="interceptor",
        title="Predict calls of 64 instances, 200 a second, to a server on the loopback interface",
        item="call",
        peers={_CHANNELS: _calls},
        repeats=2,
        rows=(
            Row("p50 without recording (ms)", of(_CHANNELS, "p50_ms")),
            Row("p99 without recording (ms)", of(_CHANNELS, "p99_ms")),
            *(_added("RecordingChannel", p, goal) for p, goal in ((50, 2), (99, 5))),
            *(_added("RecordingInterceptor", p) for p in (50, 99)),
            *(_added("an interceptor that does nothing", p) for p in (50, 99)),
            *(_added("the same channel again (noise)", p) for p in (50, 99)),
        ),
    ),
)

"""Writing and reading forward records, and what recording adds to a Predict call."""

import contextlib
import pathlib
import tempfile
import time

import grpc
import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from benchmarks import inputs
from benchmarks.clock import timed
from benchmarks.parts import Part, Row, Run, Settings, millions_per_second, of
from docs.examples import local_server
from ofb_tf import constants
from ofb_tf.records import ForwardRecordWriter, reader
from ofb_tf.serving import PredictionRecorder, export_recording_model, record_stub

_MILLION = 1_000_000
_WRITE_BATCH = 256
_CALLS_PER_SECOND = 200
_EXAMPLES_PER_CALL = 64
# Short turns, so that other load on the machine affects all stubs alike.
_CALLS_PER_TURN = 20
_TURNS = 200


def _write(settings: Settings) -> Run:
    """Batches of 256 with one output, one thread, to the last flush."""
    count = settings.count(4 * _MILLION)
    ids = inputs.scattered_ids(count)
    logits = inputs.logits_of(ids)

    def write(directory: str) -> None:
        with ForwardRecordWriter(directory, num_outputs=1) as writer:
            for first in range(0, count, _WRITE_BATCH):
                part = slice(first, first + _WRITE_BATCH)
                writer.write(ids[part], logits[part], model_version=7)

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as directory:
            figures, _ = timed(lambda: write(directory))
            on_disk = sum(path.stat().st_size for path in pathlib.Path(directory).iterdir())
        return figures | {"items": count, "bytes_per_record": on_disk / count}

    return run


def _read(settings: Settings) -> Run:
    """Record files to arrays."""
    count = settings.count(10 * _MILLION)
    directory = str(inputs.record_files(settings, count))
    reader.read_columns(directory)

    def run() -> int:
        columns = reader.read_columns(directory)
        return len(columns.arrays[constants.EXAMPLE_ID])

    return run


def _prepare_read(settings: Settings) -> None:
    inputs.record_files(settings, settings.count(10 * _MILLION))


def _calls(settings: Settings) -> Run:
    """Paced calls to a server in a separate process, through each kind of stub in turn.

    "plain again" is the plain stub once more: what it adds is the noise of the measurement.
    """
    turns = settings.count(_TURNS)
    requests = _requests()
    stack = contextlib.ExitStack()
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    _export(f"{directory}/model")
    channel = grpc.insecure_channel(stack.enter_context(local_server.served(f"{directory}/model")))
    intercepted = grpc.intercept_channel(channel, _EmptyInterceptor())
    plain = PredictionServiceStub(channel)

    def turn(stub: PredictionServiceStub) -> list[float]:
        latencies = []
        due = time.perf_counter()
        for number in range(_CALLS_PER_TURN):
            due += 1 / _CALLS_PER_SECOND
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
            stubs = {
                "plain": plain,
                "plain_again": plain,
                "record_stub": record_stub(plain, recorder),
                "empty_interceptor": PredictionServiceStub(intercepted),
            }
            latencies = {name: [] for name in stubs}
            order = np.random.default_rng(0)
            for number in range(turns):
                for name in order.permutation(list(stubs)):
                    if number % 4 and name == "empty_interceptor":
                        continue  # it has no goal
                    latencies[name] += turn(stubs[name])
                    recorder.flush()
        recorded = len(latencies["record_stub"]) * _EXAMPLES_PER_CALL
        assert recorder.counts.num_recorded == recorded, recorder.counts
        figures = {"items": sum(len(values) for values in latencies.values())}
        for percentile in (50, 99):
            without = np.percentile(latencies["plain"] + latencies["plain_again"], percentile)
            figures[f"p{percentile}_ms"] = without * 1e3
            found = {name: np.percentile(latencies[name], percentile) for name in stubs}
            for name in list(stubs)[1:]:
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
        for row in range(_EXAMPLES_PER_CALL):
            example = tf.train.Example()
            feature = example.features.feature
            example_id = number * _EXAMPLES_PER_CALL + row
            feature[constants.EXAMPLE_ID].int64_list.value.append(example_id)
            feature["x"].float_list.value.extend(generator.normal(size=39))
            serialized.append(example.SerializeToString())
        requests.append(local_server.predict_request(serialized))
    return requests


def _export(path: str) -> None:
    x = keras.Input([39], name="x")
    hidden = keras.layers.Dense(256, "relu")(keras.layers.Dense(256, "relu")(x))
    model = keras.Model(x, keras.layers.Dense(1)(hidden))
    spec = {
        constants.EXAMPLE_ID: tf.io.FixedLenFeature([], tf.int64),
        "x": tf.io.FixedLenFeature([39], tf.float32),
    }
    export_recording_model(model, path, spec, task=constants.BINARY)


_STUBS = "stubs in turn"


def _added(what: str, figure: str, percentile: int, goal: float | None = None) -> Row:
    value = of(_STUBS, f"{figure}_p{percentile}")
    return Row(f"p{percentile} added by {what} (%)", value, at_most=goal)


PARTS = (
    Part(
        name="records_write",
        title="Writing records of one output in batches of 256, one thread",
        item="record",
        peers={"ofb_tf": _write},
        rows=(
            Row(
                "million records written per second (wall-clock)",
                millions_per_second("ofb_tf", "wall"),
                at_least=2,
            ),
            Row("million records written per CPU second", millions_per_second("ofb_tf")),
            Row("bytes per record on disk", of("ofb_tf", "bytes_per_record"), at_most=16),
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
                "million records read per second (wall-clock)",
                millions_per_second("ofb_tf", "wall"),
                at_least=10,
            ),
            Row("million records read per CPU second", millions_per_second("ofb_tf")),
        ),
    ),
    Part(
        name="recording",
        title="Predict calls of 64 examples, 200 per second, to a server on the loopback interface",
        item="call",
        peers={_STUBS: _calls},
        repeats=2,
        rows=(
            Row("p50 without recording (ms)", of(_STUBS, "p50_ms")),
            Row("p99 without recording (ms)", of(_STUBS, "p99_ms")),
            *(_added("record_stub", "record_stub", p, goal) for p, goal in ((50, 2), (99, 5))),
            *(_added("an interceptor that does nothing", "empty_interceptor", p) for p in (50, 99)),
            *(_added("the same stub again (noise)", "plain_again", p) for p in (50, 99)),
        ),
    ),
)

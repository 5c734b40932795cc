"""What each way of recording adds to a call: percentiles of its latency, with and without."""

import asyncio
import contextlib
import functools
import http.client
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import grpc
import grpc.aio
import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from benchmarks.parts import Part, Row, Run, Settings, of
from docs.examples import local_server
from ofb_tf import constants
from ofb_tf.records import ForwardRecordWriter
from ofb_tf.serving import (
    PredictionRecorder,
    RecordPredictions,
    export_recording_model,
    record_stub,
)

_CALLS_PER_SECOND = 200
_EXAMPLES_PER_CALL = 64
# Short turns, so that other load on the machine affects all ways alike, but longer than what is
# recorded waits in the queue: what is written after a turn is not measured.
_CALLS_PER_TURN = 200
_BATCHES_PER_TURN = 1000
_TURNS = 20
_BATCH = 256
_EXAMPLES = pathlib.Path(local_server.__file__).parent
# Ends when its standard input does, which is when the process that started it ends.
_UVICORN = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
import fastapi_server, uvicorn
recorder = fastapi_server.recorder
write = recorder.write

@fastapi_server.app.post("/{way}")
def switch(way: str) -> int:
    recorder.flush()
    recorder.write = write if way == "recorded" else lambda *unused, **also_unused: None
    return recorder.counts.num_recorded

threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
uvicorn.run(fastapi_server.app, uds=sys.argv[2], log_level="warning", timeout_keep_alive=3600)
"""

Turn = Callable[[], list[float]]
"""Makes some calls, and returns their latencies in seconds."""


def _in_turn(turns: Mapping[str, Turn], number: int) -> dict[str, float]:
    """Every way in random order, again and again; percentiles against "plain".

    "plain again" is the plain way once more: what it adds is the noise of the measurement.
    """
    ways = {"plain_again": turns["plain"], **turns}
    latencies: dict[str, list[float]] = {name: [] for name in ways}
    order = np.random.default_rng(0)
    for _ in range(number):
        for name in order.permutation(list(ways)):
            latencies[name] += ways[name]()
    figures: dict[str, float] = {"items": sum(len(values) for values in latencies.values())}
    for percentile in (50, 99):
        without = np.percentile(latencies["plain"] + latencies["plain_again"], percentile)
        figures[f"p{percentile}_ms"] = without * 1e3
        found = {name: np.percentile(latencies[name], percentile) for name in ways}
        for name in ways:
            added = found[name] / (found["plain"] if name == "plain_again" else without) - 1
            figures[f"{name}_p{percentile}"] = added * 100
    return figures


def _paced() -> Iterator[int]:
    """The numbers of a turn's calls, each when it is due."""
    due = time.perf_counter()
    for number in range(_CALLS_PER_TURN):
        due += 1 / _CALLS_PER_SECOND
        time.sleep(max(due - time.perf_counter(), 0))
        yield number


def _stubs(settings: Settings) -> Run:
    """Calls to a server in a separate process through each kind of stub."""
    requests, stack, directory = _requests(), contextlib.ExitStack(), tempfile.mkdtemp()
    channel = grpc.insecure_channel(stack.enter_context(_served(directory)))
    intercepted = grpc.intercept_channel(channel, _EmptyInterceptor())
    plain = PredictionServiceStub(channel)

    def turn(stub: PredictionServiceStub) -> list[float]:
        latencies = []
        for number in _paced():
            start = time.perf_counter()
            stub.Predict(requests[number % len(requests)])
            latencies.append(time.perf_counter() - start)
        return latencies

    for _ in range(3):
        turn(plain)

    def run() -> dict[str, float]:
        _ = stack  # keeps the server alive
        with _recorder(directory) as recorder:
            recorded = record_stub(plain, recorder)
            return _in_turn(
                {
                    "plain": lambda: turn(plain),
                    "recorded": _then_flush(lambda: turn(recorded), recorder),
                    "interceptor": lambda: turn(PredictionServiceStub(intercepted)),
                },
                settings.count(_TURNS),
            )

    return run


def _async_stubs(settings: Settings) -> Run:
    """The same through stubs of grpc.aio."""
    requests, stack, directory = _requests(), contextlib.ExitStack(), tempfile.mkdtemp()
    address = stack.enter_context(_served(directory))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def plain_stub() -> PredictionServiceStub:
        return PredictionServiceStub(grpc.aio.insecure_channel(address))

    plain = loop.run_until_complete(plain_stub())

    async def calls(stub: PredictionServiceStub) -> list[float]:
        latencies = []
        due = time.perf_counter()
        for number in range(_CALLS_PER_TURN):
            due += 1 / _CALLS_PER_SECOND
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            start = time.perf_counter()
            await stub.Predict(requests[number % len(requests)])
            latencies.append(time.perf_counter() - start)
        return latencies

    def turn(stub: PredictionServiceStub) -> list[float]:
        return loop.run_until_complete(calls(stub))

    for _ in range(3):
        turn(plain)

    def run() -> dict[str, float]:
        _ = stack
        with _recorder(directory) as recorder:
            recorded = record_stub(plain, recorder)
            return _in_turn(
                {
                    "plain": lambda: turn(plain),
                    "recorded": _then_flush(lambda: turn(recorded), recorder),
                },
                settings.count(_TURNS),
            )

    return run


def _fastapi(settings: Settings) -> Run:
    """Requests to a server in a separate process, which records in some turns.

    One server for both: two processes of one program differ by some percent.
    """
    generator = np.random.default_rng(0)
    bodies = [
        json.dumps(
            {
                "example_id": list(range(number, number + _EXAMPLES_PER_CALL)),
                "x": generator.normal(size=(_EXAMPLES_PER_CALL, 8)).tolist(),
            }
        )
        for number in range(8)
    ]
    connection = _uvicorn(tempfile.mkdtemp())

    def post(path: str, body: str = "") -> bytes:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return answer

    def turn(way: str) -> list[float]:
        recorded = int(post(f"/{way}"))
        latencies = []
        for number in _paced():
            start = time.perf_counter()
            post("/predict", bodies[number % len(bodies)])
            latencies.append(time.perf_counter() - start)
        expected = len(latencies) * _EXAMPLES_PER_CALL if way == "recorded" else 0
        assert int(post("/plain")) - recorded == expected
        return latencies

    turns = {way: functools.partial(turn, way) for way in ("plain", "recorded")}
    for _ in range(3):
        for each in turns.values():
            each()
    return lambda: _in_turn(turns, settings.count(_TURNS))


def _predict(settings: Settings) -> Run:
    """Batches of one `model.predict`, from the start of each to the start of the next."""
    directory = tempfile.mkdtemp()
    model = _model()
    model.compile()
    x = np.random.default_rng(0).normal(size=(_BATCH * (_BATCHES_PER_TURN + 1), 39))
    ids = np.arange(len(x))

    def turn(*callbacks: keras.callbacks.Callback) -> list[float]:
        clock = _Clock()
        model.predict(x, _BATCH, callbacks=[clock, *callbacks], verbose=0)
        return np.diff(clock.starts).tolist()

    for _ in range(3):
        turn()

    def run() -> dict[str, float]:
        with (
            ForwardRecordWriter(f"{directory}/written") as writer,
            _recorder(directory) as recorder,
        ):
            of_recorder = RecordPredictions(recorder, ids)
            return _in_turn(
                {
                    "plain": turn,
                    "recorded": _then_flush(lambda: turn(of_recorder), recorder),
                    "written": lambda: turn(RecordPredictions(writer, ids)),
                },
                settings.count(_TURNS),
            )

    return run


class _Clock(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.starts = []

    def on_predict_batch_begin(self, batch, logs=None):
        self.starts.append(time.perf_counter())


class _EmptyInterceptor(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation, client_call_details, request):
        return continuation(client_call_details, request)


def _then_flush(turn: Turn, recorder: PredictionRecorder) -> Turn:
    """So that what one way has left to do is not part of the next one's turn."""

    def run() -> list[float]:
        latencies = turn()
        recorder.flush()
        counts = recorder.counts
        assert counts.num_full + counts.num_unusable + counts.num_write_errors == 0, counts
        assert counts.num_recorded > 0, counts
        return latencies

    return run


def _recorder(directory: str) -> PredictionRecorder:
    return PredictionRecorder(ForwardRecordWriter(f"{directory}/records"))


def _served(directory: str) -> contextlib.AbstractContextManager[str]:
    spec = {
        constants.EXAMPLE_ID: tf.io.FixedLenFeature([], tf.int64),
        "x": tf.io.FixedLenFeature([39], tf.float32),
    }
    export_recording_model(_model(), f"{directory}/model", spec, task=constants.BINARY)
    return local_server.served(f"{directory}/model")


def _model() -> keras.Model:
    x = keras.Input([39], name="x")
    hidden = keras.layers.Dense(256, "relu")(keras.layers.Dense(256, "relu")(x))
    return keras.Model(x, keras.layers.Dense(1)(hidden))


def _uvicorn(directory: str) -> http.client.HTTPConnection:
    """Starts a server, and connects to it."""
    path = os.path.join(directory, "socket")
    command = [sys.executable, "-c", _UVICORN, _EXAMPLES, path]
    environment = os.environ | {"RECORDS_DIR": f"{directory}/records"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    while not os.path.exists(path):
        assert process.poll() is None, "the server ended before it listened"
        time.sleep(0.1)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    return connection


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


_STUBS, _ASYNC, _FASTAPI, _PREDICT = "record_stub", "record_stub, asyncio", "FastAPI", "predict"
_WAYS = {_STUBS: _stubs, _ASYNC: _async_stubs, _FASTAPI: _fastapi, _PREDICT: _predict}
if importlib.util.find_spec("fastapi") is None:
    del _WAYS[_FASTAPI]


def _rows(peer: str, what: str, by: str, *others: tuple[str, str]) -> list[Row]:
    """The percentiles of one way, and what recording adds to them."""
    if peer not in _WAYS:
        return []
    rows = []
    for percentile, goal in ((50, 2), (99, 5)):
        name = f"p{percentile}"
        rows.append(Row(f"{name} of {what} without recording (ms)", of(peer, f"{name}_ms")))
        recorded = of(peer, f"recorded_{name}")
        rows.append(Row(f"{name} added to {what} by {by} (%)", recorded, at_most=goal))
        for figure, other in (*others, ("plain_again", "nothing (noise)")):
            value = of(peer, f"{figure}_{name}")
            rows.append(Row(f"{name} added to {what} by {other} (%)", value))
    return rows


PARTS = (
    Part(
        name="recording",
        title="Calls of 64 examples, 200 per second, to a server on this machine, and batches of "
        "256 in model.predict",
        item="call",
        peers=_WAYS,
        repeats=2,
        rows=[
            *_rows(_STUBS, "Predict", "record_stub", ("interceptor", "an empty interceptor")),
            *_rows(_ASYNC, "Predict in asyncio", "record_stub"),
            *_rows(_FASTAPI, "a FastAPI request", "PredictionRecorder.write"),
            *_rows(
                *(_PREDICT, "a batch of model.predict", "RecordPredictions and a recorder"),
                ("written", "RecordPredictions and a writer"),
            ),
        ],
    ),
)

"""A gRPC server of TensorFlow Serving's protocol that records what it answers, sync or asyncio.

The servicer offers request and response to the recorder, and returns. SIGTERM ends the server as
usual: no call is accepted any more, those that are running are answered, and then the recorder
completes its files.

    pip install 'ofb-tf[serving]'
    python docs/examples/grpc_server.py records --port=8500
    python docs/examples/grpc_server.py records --port=8500 --asyncio

Clients do not change. Where only the client is yours, record there: `serve_and_record.py`.
"""

import argparse
import asyncio
import os
import signal
from concurrent import futures
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import grpc.aio
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import (
    PredictionServiceServicer,
    add_PredictionServiceServicer_to_server,
)

from ofb_tf.records import ForwardRecordWriter
from ofb_tf.serving import PredictionRecorder

WEIGHTS = np.linspace(-1.0, 1.0, 8, dtype=np.float32)  # the model
GRACE_SECONDS = 10.0


def predict(request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    """Answers with the ids of the request and a logit for each."""
    logits = tf.make_ndarray(request.inputs["x"]) @ WEIGHTS
    response = predict_pb2.PredictResponse()
    response.model_spec.CopyFrom(request.model_spec)
    response.outputs["example_id"].CopyFrom(request.inputs["example_id"])
    response.outputs["logits"].CopyFrom(tf.make_tensor_proto(logits[:, None]))
    return response


class Servicer(PredictionServiceServicer):
    """Answers and records."""

    def __init__(self, recorder: PredictionRecorder):
        self._recorder = recorder

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        response = predict(request)
        self._recorder.offer(request, response)
        return response


class AsyncServicer(PredictionServiceServicer):
    """The same for a server of grpc.aio."""

    def __init__(self, recorder: PredictionRecorder):
        self._recorder = recorder

    async def Predict(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        response = predict(request)
        self._recorder.offer(request, response)
        return response


def serve(recorder: PredictionRecorder, address: str) -> None:
    """Serves with threads until SIGTERM."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_PredictionServiceServicer_to_server(Servicer(recorder), server)
    port = server.add_insecure_port(address)
    server.start()
    signal.signal(signal.SIGTERM, lambda *unused: server.stop(GRACE_SECONDS))
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


async def serve_async(recorder: PredictionRecorder, address: str) -> None:
    """Serves in an event loop until SIGTERM."""
    server = grpc.aio.server()
    add_PredictionServiceServicer_to_server(AsyncServicer(recorder), server)
    port = server.add_insecure_port(address)
    await server.start()
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    print(f"127.0.0.1:{port}", flush=True)
    await terminated.wait()
    await server.stop(GRACE_SECONDS)


def main() -> None:
    """Prints the address once it serves, and at the end what was recorded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", help="directory of the records")
    parser.add_argument("--port", type=int, default=0, help="any free one by default")
    parser.add_argument("--asyncio", action="store_true")
    arguments = parser.parse_args()
    writer = ForwardRecordWriter(arguments.records, on_error="drop")
    with PredictionRecorder(writer) as recorder:
        address = f"127.0.0.1:{arguments.port}"
        if arguments.asyncio:
            asyncio.run(serve_async(recorder, address))
        else:
            serve(recorder, address)
    counts = recorder.counts
    lost = counts.num_responses - counts.num_recorded + writer.counts.num_dropped
    print(f"recorded {counts.num_recorded}, lost {lost}")


if __name__ == "__main__":
    main()

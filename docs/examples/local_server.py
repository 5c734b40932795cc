"""A minimal server of TensorFlow Serving's Predict call, to try recording without TF Serving.

It serves one SavedModel through `PredictionService.Predict`, for examples, tests and benchmarks,
not for production. Needs grpc: `pip install ofb-tf[serving]`. In a separate process:

  python docs/examples/local_server.py MODEL_DIR [PORT]
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from ofb_tf.serving.export import EXAMPLES, SIGNATURE


class LocalPredictionServer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Serves the `serving_default` signature of a SavedModel on the loopback interface.

    Attributes:
      address: `127.0.0.1:port`.
      version: the model version in responses.
    """

    def __init__(
        self,
        model_directory: str | os.PathLike,
        *,
        version: int = 1,
        port: int = 0,
        workers: int = 4,
    ):
        """Loads the model.

        Args:
          model_directory: what `export_recording_model` wrote.
          version: the model version in responses.
          port: 0 for any free one.
          workers: number of serving threads.
        """
        self.version = version
        self._signature = tf.saved_model.load(os.fspath(model_directory)).signatures[SIGNATURE]
        self._server = grpc.server(futures.ThreadPoolExecutor(workers))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"

    def Predict(self, request: Any, context: Any) -> Any:
        """Answers one call."""
        if EXAMPLES not in request.inputs:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"input {EXAMPLES!r} is missing")
        try:
            examples = tf.constant(tf.make_ndarray(request.inputs[EXAMPLES]), tf.string)
            outputs = self._signature(**{EXAMPLES: examples})
        except (tf.errors.OpError, TypeError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:500])
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = self.version
        response.model_spec.signature_name = SIGNATURE
        for name, tensor in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
        return response

    def start(self) -> "LocalPredictionServer":
        """Begins to answer."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Stops at once."""
        self._server.stop(None).wait()

    def __enter__(self) -> "LocalPredictionServer":
        return self.start()

    def __exit__(self, *unused: object) -> None:
        self.stop()


def predict_request(serialized: list[bytes], model_name: str = "model") -> Any:
    """A `PredictRequest` of serialized tf.Examples."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = SIGNATURE
    request.inputs[EXAMPLES].CopyFrom(tf.make_tensor_proto(serialized, tf.string))
    return request


@contextlib.contextmanager
def served(model_directory: str) -> Iterator[str]:
    """Serves a model in a separate process; yields the server's address."""
    process = subprocess.Popen(
        [sys.executable, __file__, model_directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"the server ended with code {process.wait()} before it was ready")
        yield address
    finally:
        process.stdin.close()
        process.wait(30)


def main(argv: list[str]) -> int:
    """Serves until standard input ends; prints the address."""
    if len(argv) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    port = int(argv[1]) if len(argv) == 2 else 0
    with LocalPredictionServer(argv[0], port=port) as server:
        print(server.address, flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

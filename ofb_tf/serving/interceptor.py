"""gRPC client interceptors that record the answers of `PredictionService.Predict`.

Needs grpc: `pip install ofb-tf[serving]`.

```python
import grpc
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

import ofb_tf
from ofb_tf.serving.interceptor import RecordingInterceptor
from ofb_tf.serving.recorder import PredictionRecorder

writer = ofb_tf.ForwardRecordWriter("records", on_error="drop")
with PredictionRecorder(writer) as recorder:
    channel = grpc.insecure_channel("localhost:8500")
    channel = grpc.intercept_channel(channel, RecordingInterceptor(recorder))
    stub = PredictionServiceStub(channel)  # stub.Predict(request) as before
```
"""

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from ofb_tf.serving.channel import PREDICT, record_call
from ofb_tf.serving.recorder import PredictionRecorder


class RecordingInterceptor(grpc.UnaryUnaryClientInterceptor):
    """For channels of `grpc`, through `grpc.intercept_channel`; see `RecordingChannel` too."""

    def __init__(self, recorder: PredictionRecorder):
        """Records into a recorder.

        Args:
          recorder: takes the answers; its owner closes it.
        """
        self._recorder = recorder

    def intercept_unary_unary(
        self, continuation: Callable, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """Hands the response on when it is there; the call itself is untouched.

        Args:
          continuation: makes the call.
          client_call_details: its method and metadata.
          request: `PredictRequest`.

        Returns:
          The call.
        """
        call = continuation(client_call_details, request)
        if _method(client_call_details) == PREDICT:
            call.add_done_callback(lambda done: record_call(self._recorder, request, done))
        return call


class AsyncRecordingInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """For channels of `grpc.aio`, as one of their `interceptors`."""

    def __init__(self, recorder: PredictionRecorder):
        """Records into a recorder.

        Args:
          recorder: takes the answers; its owner closes it.
        """
        self._recorder = recorder

    async def intercept_unary_unary(
        self, continuation: Callable, client_call_details: Any, request: Any
    ) -> Any:
        """Hands the response on when it is there; the call itself is untouched.

        Args:
          continuation: makes the call.
          client_call_details: its method and metadata.
          request: `PredictRequest`.

        Returns:
          The call.
        """
        call = await continuation(client_call_details, request)
        if _method(client_call_details) != PREDICT:
            return call
        try:
            response = await call
        except grpc.aio.AioRpcError:
            self._recorder.count_failure()
        else:
            self._recorder.offer(request, response)
        return call


def _method(details: Any) -> str:
    return details.method.decode() if isinstance(details.method, bytes) else details.method

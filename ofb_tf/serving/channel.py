"""A gRPC channel that records, for callers who count microseconds.

grpc's own interceptors look the method up anew at each call, which costs some 60 microseconds
whatever the interceptor does. This channel wraps the callable of Predict once, when the stub is
made. Needs grpc: `pip install ofb-tf[serving]`.

```python
import grpc
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

import ofb_tf
from ofb_tf.serving.channel import RecordingChannel
from ofb_tf.serving.recorder import PredictionRecorder

writer = ofb_tf.ForwardRecordWriter("records", on_error="drop")
with PredictionRecorder(writer) as recorder:
    channel = RecordingChannel(grpc.insecure_channel("localhost:8500"), recorder)
    stub = PredictionServiceStub(channel)  # stub.Predict(request) as before
```
"""

from collections.abc import Callable
from typing import Any

import grpc

from ofb_tf.serving.recorder import PredictionRecorder

PREDICT = "/tensorflow.serving.PredictionService/Predict"


class RecordingChannel(grpc.Channel):
    """Another channel, of which the answers to Predict are recorded."""

    def __init__(self, channel: grpc.Channel, recorder: PredictionRecorder):
        """Wraps a channel.

        Args:
          channel: closed with this one.
          recorder: takes the answers; its owner closes it.
        """
        self._channel = channel
        self._recorder = recorder

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The channel's own callable, recorded where the method is Predict.

        Args:
          method: the full name of the method.
          *args: as of `grpc.Channel.unary_unary`.
          **kwargs: as of `grpc.Channel.unary_unary`.

        Returns:
          A callable as the channel's own.
        """
        inner = self._channel.unary_unary(method, *args, **kwargs)
        return _RecordedCallable(inner, self._recorder) if method == PREDICT else inner

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As the channel's."""
        return self._channel.unary_stream(*args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As the channel's."""
        return self._channel.stream_unary(*args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As the channel's."""
        return self._channel.stream_stream(*args, **kwargs)

    def subscribe(self, callback: Callable, try_to_connect: bool = False) -> None:
        """As the channel's."""
        self._channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable) -> None:
        """As the channel's."""
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def __enter__(self) -> "RecordingChannel":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class _RecordedCallable(grpc.UnaryUnaryMultiCallable):
    def __init__(self, inner: grpc.UnaryUnaryMultiCallable, recorder: PredictionRecorder):
        self._inner = inner
        self._recorder = recorder

    def __call__(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            response = self._inner(request, *args, **kwargs)
        except grpc.RpcError:
            self._recorder.count_failure()
            raise
        self._recorder.offer(request, response)
        return response

    def with_call(self, request: Any, *args: Any, **kwargs: Any) -> tuple[Any, grpc.Call]:
        try:
            response, call = self._inner.with_call(request, *args, **kwargs)
        except grpc.RpcError:
            self._recorder.count_failure()
            raise
        self._recorder.offer(request, response)
        return response, call

    def future(self, request: Any, *args: Any, **kwargs: Any) -> grpc.Future:
        call = self._inner.future(request, *args, **kwargs)
        call.add_done_callback(lambda done: record_call(self._recorder, request, done))
        return call


def record_call(recorder: PredictionRecorder, request: Any, call: Any) -> None:
    """Offers the answer of a call that has ended, or counts its failure."""
    if call.code() is grpc.StatusCode.OK:
        recorder.offer(request, call.result())
    else:
        recorder.count_failure()

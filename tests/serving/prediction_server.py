"""A real gRPC server of PredictionService over a SavedModel, on the loopback interface."""

import contextlib
from concurrent import futures

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

EXAMPLES = "examples"


class PredictionServer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers Predict with `serving_default`; `version` and `change` may be set while it runs."""

    def __init__(self, path, version=1):
        self.signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        self.version = version
        self.change = None  # a function of the response, to break it, or one that raises

    def Predict(self, request, context):
        outputs = self.signature(examples=tf.constant(tf.make_ndarray(request.inputs[EXAMPLES])))
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = self.version
        for name, tensor in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
        if self.change is not None:
            if self.change == "error":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the model is loading")
            self.change(response)
        return response


@contextlib.contextmanager
def running(service):
    """Starts the server; yields its address."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def predict_request(serialized, name="ads"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs[EXAMPLES].CopyFrom(tf.make_tensor_proto(serialized))
    return request

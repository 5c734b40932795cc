import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import ForwardRecords, ForwardRecordWriter

pytest.importorskip("tensorflow_serving.apis")
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from ofb_tf.serving.channel import RecordingChannel
from ofb_tf.serving.interceptor import AsyncRecordingInterceptor, RecordingInterceptor
from ofb_tf.serving.local_server import LocalPredictionServer, predict_request
from ofb_tf.serving.recorder import PredictionRecorder


class BreakableServer(LocalPredictionServer):
    """A server whose answers a test may spoil: `change` is "error" or a function of a response."""

    change = None

    def Predict(self, request, context):
        response = super().Predict(request, context)
        if self.change == "error":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the model is loading")
        if self.change is not None:
            self.change(response)
        return response


@pytest.fixture(scope="module")
def service(exported):
    with BreakableServer(exported) as server:
        yield server


@pytest.fixture(scope="module")
def address(service):
    return service.address


@pytest.fixture(autouse=True)
def healthy(service):
    service.version, service.change = 1, None


@pytest.fixture(params=["interceptor", "channel"])
def kind(request):
    return request.param


def recording_stub(address, recorder, kind="interceptor"):
    channel = grpc.insecure_channel(address)
    if kind == "channel":
        channel = RecordingChannel(channel, recorder)
    else:
        channel = grpc.intercept_channel(channel, RecordingInterceptor(recorder))
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def plain_answer(address, request):
    with grpc.insecure_channel(address) as channel:
        return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)


def test_every_answer_is_recorded_and_passed_on_unchanged(
    address, service, examples, tmp_path, kind
):
    ids, _, serialized = examples
    answers = {}
    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        stub = recording_stub(address, recorder, kind)
        for start in range(0, 64, 16):
            service.version = 1 + start // 32  # two versions of the model, one after the other
            request = predict_request(serialized[start : start + 16])
            answers[start] = stub.Predict(request)
            assert answers[start] == plain_answer(address, request)
        service.version = 2
        answer, call = stub.Predict.with_call(predict_request(serialized[:16]))
        assert call.code() is grpc.StatusCode.OK
        assert answer.model_spec.version.value == 2
        future = stub.Predict.future(predict_request(serialized[:16]))
        assert tf.make_ndarray(future.result().outputs["example_id"]).tolist() == ids[:16].tolist()
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.example_ids, ids)
    logits = np.concatenate([tf.make_ndarray(a.outputs["logits"]) for a in answers.values()])
    np.testing.assert_array_equal(records.logits, logits)
    np.testing.assert_array_equal(records.model_versions[:16], [2] * 16)
    np.testing.assert_array_equal(records.model_versions[16:], [1] * 16 + [2] * 32)
    assert recorder.counts.num_responses == 6
    assert recorder.counts.num_recorded == 96
    now = time.time() * 1e6
    assert (np.abs(records.timestamps.numpy() - now) < 60e6).all()


def test_the_asyncio_channel_records_too(address, examples, tmp_path):
    ids, _, serialized = examples

    async def call(recorder, service_change=None):
        interceptors = [AsyncRecordingInterceptor(recorder)]
        async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            requests = [predict_request(serialized[i : i + 8]) for i in range(0, 64, 8)]
            return await asyncio.gather(*(stub.Predict(r) for r in requests))

    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        answers = asyncio.run(call(recorder))
    got = [tf.make_ndarray(answer.outputs["example_id"]) for answer in answers]
    np.testing.assert_array_equal(np.concatenate(got), ids)
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, ids)


def test_errors_reach_the_caller_and_are_counted(address, service, examples, tmp_path, kind):
    request = predict_request(examples[2][:4])
    service.change = "error"

    async def call(recorder):
        interceptors = [AsyncRecordingInterceptor(recorder)]
        async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
            await prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)

    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        with pytest.raises(grpc.RpcError) as error:
            recording_stub(address, recorder, kind).Predict(request)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "is loading" in error.value.details()
        with pytest.raises(grpc.aio.AioRpcError):
            asyncio.run(call(recorder))
    assert recorder.counts.num_failed_calls == 2
    assert recorder.counts.num_responses == 0


def drop(name):
    return lambda response: response.outputs.pop(name)


def replace(name, value):
    return lambda response: response.outputs[name].CopyFrom(tf.make_tensor_proto(value))


@pytest.mark.parametrize(
    "change",
    [
        drop("logits"),
        drop("example_id"),
        replace("logits", np.zeros([3, 4], np.float32)),
        replace("logits", np.zeros([4, 5], np.float32)),
        replace("logits", np.float32(1.0)),
        replace("logits", [["a"] * 4] * 4),
        replace("example_id", [1.5] * 4),
        lambda response: response.outputs["logits"].tensor_shape.dim.add(),
        lambda response: response.outputs["logits"].ClearField("dtype"),
    ],
)
def test_unusable_answers_are_passed_on_and_counted(address, service, examples, tmp_path, change):
    request = predict_request(examples[2][:4])
    with PredictionRecorder(ForwardRecordWriter(tmp_path, num_outputs=4)) as recorder:
        stub = recording_stub(address, recorder)
        service.change = change
        assert stub.Predict(request) == plain_answer(address, request)
        service.change = None
        stub.Predict(request)
    assert recorder.counts.num_unusable == 1
    assert recorder.last_error is not None
    assert len(ForwardRecords.load(tmp_path)) == 4


def test_a_full_queue_drops_and_counts_and_never_waits(address, examples, tmp_path):
    request = predict_request(examples[2][:4])
    answer = plain_answer(address, request)
    writer = ForwardRecordWriter(tmp_path)
    release = threading.Event()
    write = writer.write
    writer.write = lambda *a, **k: (release.wait(30), write(*a, **k))
    recorder = PredictionRecorder(writer, queue_size=10, poll_seconds=0.001)
    start = time.perf_counter()
    for _ in range(200):
        recorder.offer(request, answer)
    assert time.perf_counter() - start < 5
    release.set()
    recorder.close()
    assert recorder.counts.num_full >= 189 - 1
    assert recorder.counts.num_recorded == 4 * (200 - recorder.counts.num_full)
    recorder.offer(request, answer)  # after close: counted, not raised
    assert recorder.counts.num_full + recorder.counts.num_recorded // 4 == 201


def test_ids_from_the_request_and_other_models(address, examples, tmp_path):
    from ofb_tf import hashing

    with PredictionRecorder(
        ForwardRecordWriter(tmp_path), id_output=None, model_name="ads"
    ) as recorder:
        stub = recording_stub(address, recorder)
        stub.Predict(predict_request(examples[2][:8], "ads"))
        stub.Predict(predict_request(examples[2][8:], "other"))
    expected = np.sort(hashing.fingerprint(examples[2][:8]).numpy())
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, expected)


def test_other_methods_pass_through(address, tmp_path, kind):
    from tensorflow_serving.apis import get_model_metadata_pb2

    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        with pytest.raises(grpc.RpcError) as error:
            recording_stub(address, recorder, kind).GetModelMetadata(
                get_model_metadata_pb2.GetModelMetadataRequest()
            )
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert recorder.counts.num_failed_calls == 0


def test_a_broken_writer_does_not_stop_serving(address, examples, tmp_path, caplog):
    writer = ForwardRecordWriter(tmp_path)

    def fail(*unused, **also_unused):
        raise OSError("No space left on device")

    writer.write = fail
    with PredictionRecorder(writer) as recorder:
        stub = recording_stub(address, recorder)
        for _ in range(3):
            stub.Predict(predict_request(examples[2]))
    assert recorder.counts.num_write_errors == 3
    assert "No space left" in str(recorder.last_error)
    assert "No space left" in caplog.text


@pytest.mark.parametrize("arguments", [{"queue_size": 0}, {"poll_seconds": 0}])
def test_arguments_out_of_range(tmp_path, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        PredictionRecorder(ForwardRecordWriter(tmp_path), **arguments)


def test_the_local_server_refuses_what_it_cannot_parse(address):
    for request in (predict_request([b"not an example"]), predict_pb2.PredictRequest()):
        with pytest.raises(grpc.RpcError) as error:
            plain_answer(address, request)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT

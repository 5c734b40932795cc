import asyncio
import contextlib
import pathlib
import re
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import hashing
from ofb_tf.records import ForwardRecords, ForwardRecordWriter
from ofb_tf.serving import PredictionRecorder, record_stub
from tests.processes import python

pytest.importorskip("tensorflow_serving.apis")
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from docs.examples import local_server
from docs.examples.local_server import LocalPredictionServer, predict_request


class BreakableServer(LocalPredictionServer):
    """A server whose responses a test can spoil: `change` is "error" or a function of one."""

    change = None

    def Predict(self, request, context):
        response = super().Predict(request, context)
        if self.change == "error":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the model is loading")
        if self.change is not None:
            self.change(response)
        return response


class SyncInterceptor(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation, client_call_details, request):
        return continuation(client_call_details, request)


class AsyncInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation, client_call_details, request):
        return await continuation(client_call_details, request)


@pytest.fixture(scope="module")
def service(exported):
    with BreakableServer(exported) as server:
        yield server


@pytest.fixture
def address(service):
    service.version, service.change = 1, None
    return service.address


@pytest.fixture(params=["plain", "intercepted"])
def kind(request):
    return request.param


def recording_stub(address, recorder, kind="plain"):
    channel = grpc.insecure_channel(address)
    if kind == "intercepted":
        channel = grpc.intercept_channel(channel, SyncInterceptor())
    return record_stub(PredictionServiceStub(channel), recorder)


@contextlib.asynccontextmanager
async def async_stub(address, recorder, kind="plain"):
    interceptors = [AsyncInterceptor()] if kind == "intercepted" else None
    async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
        yield record_stub(PredictionServiceStub(channel), recorder)


def plain_answer(address, request):
    with grpc.insecure_channel(address) as channel:
        return PredictionServiceStub(channel).Predict(request)


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


def test_an_asyncio_stub_records_too(address, examples, tmp_path, kind):
    ids, _, serialized = examples

    async def calls(recorder):
        async with async_stub(address, recorder, kind) as stub:
            requests = [predict_request(serialized[i : i + 8]) for i in range(0, 64, 8)]
            answers = await asyncio.gather(*(stub.Predict(r) for r in requests[1:]))
            call = stub.Predict(requests[0], timeout=30)
            first = await call
            assert recorder.counts.num_responses == 8  # at the latest when the caller goes on
            assert await call.code() is grpc.StatusCode.OK
            return [first, *answers]

    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        answers = asyncio.run(calls(recorder))
    got = [tf.make_ndarray(answer.outputs["example_id"]) for answer in answers]
    np.testing.assert_array_equal(np.concatenate(got), ids)
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, ids)


def test_errors_reach_the_caller_and_are_counted(address, service, examples, tmp_path, kind):
    request = predict_request(examples[2][:4])
    service.change = "error"

    async def fail(recorder):
        async with async_stub(address, recorder, kind) as stub:
            with pytest.raises(grpc.aio.AioRpcError, match="is loading"):
                await stub.Predict(request)
            cancelled = stub.Predict(request)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled

    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        predict = recording_stub(address, recorder, kind).Predict
        for call in (predict, predict.with_call, lambda r: predict.future(r).result()):
            with pytest.raises(grpc.RpcError) as error:
                call(request)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "is loading" in error.value.details()
        asyncio.run(fail(recorder))
    assert recorder.counts.num_failed_calls == 5
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


def test_ids_from_the_request_and_other_models(address, examples, tmp_path):
    with PredictionRecorder(
        ForwardRecordWriter(tmp_path), id_output=None, model_name="ads"
    ) as recorder:
        stub = recording_stub(address, recorder)
        stub.Predict(predict_request(examples[2][:8], "ads"))
        stub.Predict(predict_request(examples[2][8:], "other"))
    expected = np.sort(hashing.fingerprint(examples[2][:8]).numpy())
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, expected)
    assert recorder.counts.num_responses == 1


def test_only_predict_of_the_copy_is_recorded(address, examples, tmp_path):
    with (
        PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder,
        grpc.insecure_channel(address) as channel,
    ):
        stub = PredictionServiceStub(channel)
        recorded = record_stub(stub, recorder)
        stub.Predict(predict_request(examples[2]))
        with pytest.raises(grpc.RpcError) as error:
            recorded.GetModelMetadata(get_model_metadata_pb2.GetModelMetadataRequest())
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert recorder.counts.num_responses == recorder.counts.num_failed_calls == 0


def test_the_local_server_refuses_what_it_cannot_parse(address):
    for request in (predict_request([b"not an example"]), predict_pb2.PredictRequest()):
        with pytest.raises(grpc.RpcError) as error:
            plain_answer(address, request)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.slow
def test_serving_recording_and_training_from_the_records(tmp_path):
    example = pathlib.Path(local_server.__file__).with_name("serve_and_record.py")
    printed = python(example, "--num_windows=4", f"--records_dir={tmp_path}/records")
    assert "recorded 4096 examples of 64 calls, lost 0" in printed
    # b = rate x window, rounded at random in each window: 409 or 410 of 1024 x 4, in batches.
    selected = int(re.search(r"selected (\d+) of 4096", printed)[1])
    assert 380 <= selected <= 412
    before, after = re.search(r"before training (\S+), after (\S+)", printed).groups()
    assert float(after) < float(before)
    assert {path.suffix for path in (tmp_path / "records").iterdir()} == {".ofbr"}

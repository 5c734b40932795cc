import json
import threading
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import ForwardRecords, ForwardRecordWriter
from ofb_tf.serving import PredictionRecorder
from tests.processes import python

pytest.importorskip("tensorflow_serving.apis")
from tensorflow_serving.apis import model_pb2, predict_pb2

REQUEST = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(name="ads"))


def answer(*ids):
    response = predict_pb2.PredictResponse()
    response.outputs["example_id"].CopyFrom(tf.make_tensor_proto(ids, tf.int64))
    response.outputs["logits"].CopyFrom(tf.make_tensor_proto(np.ones([len(ids), 2], np.float32)))
    return response


@pytest.fixture
def stalled(tmp_path):
    """A writer whose `write` waits until the event is set, and the event."""
    writer, release = ForwardRecordWriter(tmp_path), threading.Event()
    write = writer.write
    writer.write = lambda *a, **k: (release.wait(30), write(*a, **k))
    yield writer, release
    release.set()


def test_a_full_queue_drops_and_counts_and_never_waits(stalled):
    writer, release = stalled
    recorder = PredictionRecorder(writer, queue_size=10, poll_seconds=0.001)
    start = time.perf_counter()
    for _ in range(200):
        recorder.offer(REQUEST, answer(1, 2, 3, 4))
    assert time.perf_counter() - start < 5
    release.set()
    recorder.close()
    assert recorder.counts.num_full == 190
    assert recorder.counts.num_recorded == 40
    recorder.offer(REQUEST, answer(5))  # after close: counted, not raised
    assert recorder.counts.num_full == 191


@pytest.mark.parametrize("model_name", [None, "ads"])
@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (REQUEST, None),
        (REQUEST, b"raw bytes"),
        (REQUEST, REQUEST),
        (REQUEST, tf.train.Example()),
        (b"raw bytes", b"raw bytes"),
        (None, None),
    ],
)
def test_other_messages_are_counted_and_stop_nothing(tmp_path, model_name, request_, response):
    with PredictionRecorder(ForwardRecordWriter(tmp_path), model_name=model_name) as recorder:
        recorder.offer(request_, response)
        recorder.flush()
        assert recorder.counts.num_unusable == 1
        assert f" and {type(response).__name__}. Offer deserialized" in str(recorder.last_error)
        recorder.offer(REQUEST, answer(1, 2))
    assert recorder.counts.num_responses == 2
    assert recorder.counts.num_recorded == 2
    assert len(ForwardRecords.load(tmp_path)) == 2


def test_a_request_that_names_no_model_is_not_taken_for_the_models(tmp_path):
    with PredictionRecorder(ForwardRecordWriter(tmp_path), model_name="ads") as recorder:
        recorder.offer(b"serialized already", answer(1))
    assert (recorder.counts.num_unusable, recorder.counts.num_recorded) == (1, 0)
    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        recorder.offer(b"serialized already", answer(1))
    assert (recorder.counts.num_unusable, recorder.counts.num_recorded) == (0, 1)


def test_a_broken_writer_does_not_stop_serving(tmp_path, caplog):
    writer = ForwardRecordWriter(tmp_path)
    writer.write = mock.Mock(side_effect=OSError("No space left on device"))
    with PredictionRecorder(writer) as recorder:
        for number in range(3):
            recorder.offer(REQUEST, answer(number))
    assert recorder.counts.num_write_errors == 3
    assert "No space left" in str(recorder.last_error)
    assert "No space left" in caplog.text


def test_no_thread_to_be_had_does_not_stop_serving(tmp_path):
    recorder = PredictionRecorder(ForwardRecordWriter(tmp_path))
    with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError):
        recorder.offer(REQUEST, answer(1))
    assert isinstance(recorder.last_error, RuntimeError)
    recorder.offer(REQUEST, answer(2))
    recorder.close()
    assert recorder.counts.num_recorded == 2


def test_close_does_not_wait_for_a_stalled_disk(stalled, caplog):
    writer, release = stalled
    recorder = PredictionRecorder(writer)
    for number in range(7):
        recorder.offer(REQUEST, answer(number))
    start = time.perf_counter()
    recorder.close(timeout=0.2)
    assert 0.2 <= time.perf_counter() - start < 5
    assert recorder.counts.num_abandoned == 7
    assert isinstance(recorder.last_error, TimeoutError)
    assert "did not finish within 0.2 seconds; 7 responses are lost" in caplog.text
    recorder.close(timeout=0.01)
    assert recorder.counts.num_abandoned == 7
    release.set()
    recorder.close()  # now the write ends; what waited behind it stays lost
    assert len(ForwardRecords.load(writer.directory)) == 1


@pytest.mark.parametrize("arguments", [{"queue_size": 0}, {"poll_seconds": 0}])
def test_arguments_out_of_range(tmp_path, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        PredictionRecorder(ForwardRecordWriter(tmp_path), **arguments)


PROGRAM = """
import dataclasses, json, os, sys, threading
import tensorflow as tf
from ofb_tf.records import ForwardRecordWriter, writer as writer_module
from ofb_tf.serving import PredictionRecorder
from tests.serving.recorder_test import REQUEST, answer

def offer(recorder, *numbers):
    for number in numbers:
        recorder.offer(REQUEST, answer(number))

"""
FORK = """
recorder = PredictionRecorder(ForwardRecordWriter(sys.argv[1]), poll_seconds=0.1)
offer(recorder, *range(10))
recorder.flush()
offer(recorder, *range(10, 20))  # they wait at the fork, and are the parent's
child = os.fork()
offer(recorder, *(range(100, 600) if child == 0 else range(20, 30)))
if child:
    os.waitpid(child, 0)
recorder.flush()
print(json.dumps([child, dataclasses.asdict(recorder.counts)]))
offer(recorder, 1 if child else 100)  # again, and left to the interpreter's exit
"""
STALL = """
writer_module._EXIT_SECONDS = 0.2
tf.io.TFRecordWriter.write = lambda *unused: threading.Event().wait()
recorder = PredictionRecorder(ForwardRecordWriter(sys.argv[1], block_records=1))
offer(recorder, *range(5))
recorder.close(timeout=0.2)
print(json.dumps(recorder.counts.num_abandoned))
"""


def run(program, directory):
    printed = python("-c", PROGRAM + program, directory, timeout=90)
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.slow
def test_a_forked_worker_records_into_its_own_files(tmp_path):
    counts = {bool(child): counts for child, counts in run(FORK, tmp_path)}
    assert counts[True]["num_responses"] == counts[True]["num_recorded"] == 30
    assert counts[False]["num_responses"] == counts[False]["num_recorded"] == 500
    files = list(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".ofbr", ".ofbr"]
    parent, child = sorted((ForwardRecords.load(file) for file in files), key=len)
    np.testing.assert_array_equal(parent.example_ids, range(30))
    np.testing.assert_array_equal(child.example_ids, range(100, 600))
    assert (parent.counts.num_read, child.counts.num_read) == (31, 501)


@pytest.mark.slow
def test_a_stalled_disk_does_not_keep_the_process_from_exiting(tmp_path):
    assert run(STALL, tmp_path) == [5]

import json
import pathlib
import tempfile
import threading
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st

from ofb_tf import hashing
from ofb_tf.records import ForwardRecords, ForwardRecordWriter, reader
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


def test_a_queue_that_is_half_full_does_not_wait_for_the_next_look(tmp_path):
    with PredictionRecorder(
        ForwardRecordWriter(tmp_path), queue_size=10, poll_seconds=3600
    ) as recorder:
        for _ in range(4):
            recorder.offer(REQUEST, answer(1, 2, 3, 4))
        time.sleep(0.2)
        assert recorder.counts.num_recorded == 0
        recorder.offer(REQUEST, answer(1, 2, 3, 4))
        deadline = time.monotonic() + 60
        while recorder.counts.num_recorded < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert recorder.counts.num_recorded == 20


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
    for number in range(20):
        recorder.offer(REQUEST, answer(number))
    start = time.perf_counter()
    recorder.close(timeout=0.2)
    assert 0.2 <= time.perf_counter() - start < 5
    assert recorder.counts.num_abandoned == 20
    assert isinstance(recorder.last_error, TimeoutError)
    assert "did not finish within 0.2 seconds; 20 responses are lost" in caplog.text
    recorder.close(timeout=0.01)
    assert recorder.counts.num_abandoned == 20
    release.set()
    recorder.close()  # now the write ends; what waited behind it stays lost
    assert len(ForwardRecords.load(writer.directory)) == 16


def test_write_records_what_the_writer_would(tmp_path):
    logits = np.array([[0.5, -1.0], [2.0, 3.0]], np.float32)
    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        recorder.write(["a", "b"], logits, model_version=[3, 4], timestamp=5)
        recorder.write([7], probabilities=[[0.25, 0.75]])
        before = time.time() * 1e6
        recorder.write([1.5], logits[:1])  # what does not fit is counted, not raised
        recorder.write([8], logits)
        recorder.write([9])
        recorder.flush()
        recorder.write([11], logits[:1])
    recorder.write([12], logits[:1])
    counts = recorder.counts
    assert (counts.num_responses, counts.num_recorded, counts.num_full) == (7, 4, 1)
    assert (counts.num_unusable, counts.num_write_errors) == (3, 0)
    records = ForwardRecords.load(tmp_path)
    of_id = dict(zip(records.example_ids.numpy().tolist(), range(4), strict=True))
    a, b = hashing.fingerprint(["a", "b"]).numpy().tolist()
    rows = [of_id[name] for name in (a, b, 7, 11)]
    expected = np.concatenate([logits, np.log([[0.25, 0.75]]), logits[:1]])
    np.testing.assert_allclose(records.logits.numpy()[rows], expected, rtol=1e-6)
    np.testing.assert_array_equal(records.model_versions.numpy()[rows], [3, 4, 0, 0])
    timestamps = records.timestamps.numpy()[rows]
    np.testing.assert_array_equal(timestamps[:2], [5, 5])
    assert (np.abs(timestamps[2:] - before) < 60e6).all()


_ONE, _TWO = np.array([[0.5, -1.0]], np.float32), np.array([[2.0, 3.0], [-4.0, 5.0]])
_CALLS = (
    lambda i: (([i], _ONE), {}),
    lambda i: (([i, -i], _TWO), {"model_version": 3}),
    lambda i: ((np.array([i], np.int32), _ONE.tolist()), {"model_version": np.array([4])}),
    lambda i: (([str(i), "b"], _TWO), {"timestamp": np.array([i, 8])}),
    lambda i: (([i], [[1, 2]]), {}),
    lambda i: (([i],), {"probabilities": [[0.25, 0.75]]}),
    lambda i: (([i], {"a": [0.5], "b": [1.5]}), {}),
    lambda i: ((np.zeros([0], int), np.zeros([0, 2])), {}),
    lambda i: (([i], np.full([1, 2], np.nan)), {}),
    # What the writer refuses.
    lambda i: (([i], _TWO), {}),
    lambda i: (([i, -i], _ONE), {}),
    lambda i: (([True], _ONE), {}),
    lambda i: (([i], _ONE > 0), {}),
    lambda i: (([i], _ONE), {"model_version": 0.5}),
    lambda i: (([i], _ONE), {"model_version": [1, 2]}),
    lambda i: (([i], _ONE), {"timestamp": np.uint64(2**63)}),
    lambda i: (([i], _ONE), {"loss": [1.0]}),
    lambda i: (([i], [["a", "b"]]), {}),
    lambda i: (([2**70], _ONE), {}),
    lambda i: ((i, _ONE), {}),
)  # fmt: skip


@given(st.lists(st.sampled_from(_CALLS), max_size=40))
@example([_CALLS[9], _CALLS[10]])  # together they have as many ids as logits
def test_responses_written_together_are_those_written_one_by_one(make):
    calls = [one(number) for number, one in enumerate([_CALLS[0], *make])]
    with tempfile.TemporaryDirectory() as directory:
        with ForwardRecordWriter(f"{directory}/one") as writer:
            refused = 0
            for arguments, options in calls:
                try:
                    writer.write(*arguments, **{"timestamp": 5, **options})
                except ValueError:
                    refused += 1
        recorder = PredictionRecorder(ForwardRecordWriter(f"{directory}/all"), poll_seconds=3600)
        for arguments, options in calls:
            recorder.write(*arguments, **{"timestamp": 5, **options})
        recorder.close()
        assert (recorder.counts.num_unusable, recorder.counts.num_write_errors) == (refused, 0)
        assert recorder.counts.num_recorded == writer.counts.num_records
        expected, found = (
            reader.join_blocks(
                name, reader.read_blocks(str(next(pathlib.Path(directory, name).iterdir())))
            )
            for name in ("one", "all")
        )
    np.testing.assert_array_equal(found.version_table, expected.version_table)
    for name, column in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], column)


def test_responses_of_one_kind_take_one_call_of_the_writer(tmp_path):
    writer = ForwardRecordWriter(tmp_path)
    writer.write = mock.Mock(side_effect=writer.write)
    with PredictionRecorder(writer, poll_seconds=3600) as recorder:
        for number in range(16):
            recorder.write([number], _ONE)
    assert (writer.write.call_count, recorder.counts.num_recorded) == (1, 16)


@pytest.mark.parametrize("arguments", [{"queue_size": 0}, {"poll_seconds": 0}])
def test_arguments_out_of_range(tmp_path, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        PredictionRecorder(ForwardRecordWriter(tmp_path), **arguments)


PROGRAM = """
import dataclasses, io, json, multiprocessing, os, signal, sys, time
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
os.mkfifo(sys.argv[1] + "/fifo")
disk = os.open(sys.argv[1] + "/fifo", os.O_RDWR | os.O_NONBLOCK)  # nobody reads
try:
    while True:
        os.write(disk, bytes(4096))
except BlockingIOError:
    pass
writer_module.open = lambda path, mode, **kwargs: io.FileIO(sys.argv[1] + "/fifo", mode)
for compression in (None, "GZIP"):
    writer = ForwardRecordWriter(sys.argv[1], block_records=10, compression=compression)
    recorder = PredictionRecorder(writer, queue_size=100)
    for number in range(9):
        recorder.write([number], [[0.0]])
    while recorder.counts.num_recorded < 9:
        time.sleep(0.01)
    recorder.write([9], [[0.0]])  # fills a block
    time.sleep(0.5)
    # Were the GIL held while the disk stalls, this thread would never get here.
    for number in range(1000):
        recorder.write([number], [[0.0]])
    recorder.close(timeout=0.2)
    print(json.dumps(dataclasses.asdict(recorder.counts)))
"""
FULL = """
writer_module.open = lambda path, mode, **kwargs: io.FileIO("/dev/full", mode)
writer = ForwardRecordWriter(sys.argv[1], on_error="drop")
recorder = PredictionRecorder(writer)
for number in range(100):
    recorder.write([number], [[0.0]])
recorder.flush()
print(json.dumps([writer.counts.num_dropped, str(writer.last_error)]))
del writer_module.open  # there is room again
for number in range(100, 150):
    recorder.write([number], [[0.0]])
recorder.close()
print(json.dumps(dataclasses.asdict(recorder.counts)))
"""
# Made in the parent, as with gunicorn --preload; the workers answer until they get SIGTERM.
WORKERS = """
recorder = PredictionRecorder(ForwardRecordWriter(sys.argv[1]), queue_size=100_000)
accepted = multiprocessing.Array("q", 4, lock=False)  # one slot per writer
running = multiprocessing.Barrier(5)

def serve(worker):
    # A handler that raises may do so in a callback of the garbage collector, which ignores it.
    ended = []
    signal.signal(signal.SIGTERM, lambda *unused: ended.append(True))
    running.wait()
    while not ended:
        recorder.write([worker * 1_000_000 + accepted[worker]], [[float(worker)]])
        accepted[worker] += 1
        if accepted[worker] % 100 == 0:
            time.sleep(0.001)
    sys.exit(worker)

forked = []
for worker in (0, 1):
    child = os.fork()
    if not child:
        serve(worker)
    forked.append(child)
context = multiprocessing.get_context("fork")
processes = [context.Process(target=serve, args=(worker,)) for worker in (2, 3)]
for process in processes:
    process.start()
running.wait()
while min(accepted) < 1000:
    time.sleep(0.01)
for pid in (*forked, *(process.pid for process in processes)):
    os.kill(pid, signal.SIGTERM)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in forked]
for process in processes:
    process.join()
    codes.append(process.exitcode)
print(json.dumps([codes, list(accepted)]))
"""


def run(program, directory):
    printed = python("-c", PROGRAM + program, directory)
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
def test_a_stalled_disk_stops_neither_callers_nor_the_exit(tmp_path):
    for counts in run(STALL, tmp_path):
        # Nine are in the buffer, and 100 wait with the one that is being written.
        assert (counts["num_recorded"], counts["num_abandoned"]) == (9, 100)
        assert counts["num_responses"] == 1010
        assert counts["num_full"] == 1010 - 109


@pytest.mark.slow
def test_a_full_disk_is_counted_and_tried_again(tmp_path):
    (dropped, error), counts = run(FULL, tmp_path)
    assert dropped == 100
    assert "No space left" in error
    assert counts["num_recorded"] == counts["num_responses"] == 150
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, range(100, 150))


@pytest.mark.slow
def test_workers_of_one_directory_lose_nothing_at_sigterm(tmp_path):
    ((codes, accepted),) = run(WORKERS, tmp_path)
    assert codes == [0, 1, 2, 3]
    assert {path.suffix for path in tmp_path.iterdir()} == {".ofbr"}  # none is left open
    records = ForwardRecords.load(tmp_path)
    ids = records.example_ids.numpy()
    for worker, count in enumerate(accepted):
        of_worker = ids[ids // 1_000_000 == worker] % 1_000_000
        assert count >= 1000
        assert len(of_worker) == count
        np.testing.assert_array_equal(of_worker, np.arange(len(of_worker)))
    np.testing.assert_array_equal(records.logits[:, 0], ids // 1_000_000)

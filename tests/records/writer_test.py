import glob
import os
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import hashing
from ofb_tf.records import ForwardRecords, ForwardRecordWriter, writer


def names(directory):
    return sorted(os.path.splitext(name)[1] for name in os.listdir(directory))


def test_a_round_trip_keeps_every_value(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.permutation(20_000).astype(np.int64) - 10_000
    logits = rng.normal(size=(20_000, 3)).astype(np.float32)
    times = rng.integers(0, 2**50, 20_000)
    versions = rng.integers(-5, 5, 20_000)
    with ForwardRecordWriter(tmp_path, num_outputs=3) as w:
        for start in range(0, 20_000, 700):
            part = slice(start, start + 700)
            w.write(ids[part], logits[part], model_version=versions[part], timestamp=times[part])
    assert names(tmp_path) == [".ofbr"]
    records = ForwardRecords.load(tmp_path)
    order = np.argsort(ids)
    np.testing.assert_array_equal(records.example_ids, ids[order])
    np.testing.assert_array_equal(records.logits, logits[order])
    np.testing.assert_array_equal(records.timestamps, times[order])
    np.testing.assert_array_equal(records.model_versions, versions[order])
    assert records.losses is None
    assert records.num_outputs == 3
    assert w.counts.num_written == w.counts.num_records == 20_000


def test_tensors_single_outputs_losses_and_string_ids(tmp_path):
    with ForwardRecordWriter(tmp_path) as w:
        w.write(tf.constant(["a", "b"]), tf.constant([0.5, -1.0]), loss=[0.25, 4.0])
    records = ForwardRecords.load(tmp_path)
    expected = sorted(
        zip(hashing.fingerprint(["a", "b"]).numpy(), [0.5, -1.0], [0.25, 4.0], strict=True)
    )
    np.testing.assert_array_equal(records.example_ids, [e[0] for e in expected])
    np.testing.assert_array_equal(records.logits[:, 0], [e[1] for e in expected])
    np.testing.assert_array_equal(records.losses, [e[2] for e in expected])


def test_losses_alone_have_no_outputs(tmp_path):
    with ForwardRecordWriter(tmp_path) as w:
        w.write([1, 2], loss=[0.5, 0.25])
    records = ForwardRecords.load(tmp_path)
    assert records.num_outputs == 0
    assert records.logits is None


def test_float16_halves_the_logits(tmp_path):
    logits = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    with ForwardRecordWriter(tmp_path, logits_dtype="float16") as w:
        w.write(np.arange(100), logits)
    records = ForwardRecords.load(tmp_path)
    assert records.logits.dtype == tf.float16
    np.testing.assert_array_equal(records.logits, logits.astype(np.float16))


def test_nonfinite_logits_are_written_as_given_and_counted(tmp_path):
    logits = np.array([[1.0, np.nan], [np.inf, 0.0], [1.0, 2.0]], np.float32)
    with ForwardRecordWriter(tmp_path) as w:
        w.write([1, 2, 3], logits, loss=[1.0, np.nan, 2.0])
    assert w.counts.num_nonfinite == 2
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.logits, logits)
    assert records.counts.num_nonfinite == 2


@pytest.mark.parametrize("compression", [None, "GZIP", "ZLIB"])
def test_flushed_records_are_read_from_the_open_file(tmp_path, compression):
    w = ForwardRecordWriter(tmp_path, compression=compression)
    w.write(np.arange(10), np.zeros((10, 1)))
    w.flush()
    w.write(np.arange(10, 20), np.zeros((10, 1)))
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.example_ids, np.arange(10))
    assert records.counts.num_open_files == 1
    w.close()
    assert len(ForwardRecords.load(tmp_path)) == 20


def test_the_flush_interval_writes_out_what_waits(tmp_path):
    with ForwardRecordWriter(tmp_path, flush_seconds=0.05) as w:
        w.write([1], [0.5])
        deadline = time.monotonic() + 10
        while w.counts.num_written == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(ForwardRecords.load(tmp_path)) == 1


@pytest.mark.parametrize(
    "limit",
    [{"max_file_records": 100}, {"max_file_bytes": 500}, {"max_file_seconds": 1e-9}],
)
def test_files_roll_over(tmp_path, limit):
    with ForwardRecordWriter(tmp_path, block_records=50, **limit) as w:
        w.write(np.arange(500), np.zeros((500, 1)))
    assert w.counts.num_files >= 5
    assert names(tmp_path) == [".ofbr"] * w.counts.num_files
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, np.arange(500))


def test_sixteen_threads_share_a_writer(tmp_path):
    w = ForwardRecordWriter(tmp_path, num_outputs=2, block_records=100, max_file_records=3000)

    def work(thread):
        for start in range(0, 1000, 37):
            ids = np.arange(start, min(start + 37, 1000)) * 16 + thread
            w.write(ids, np.stack([ids, -ids], 1).astype(np.float32), model_version=thread)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    w.close()
    records = ForwardRecords.load(tmp_path)
    ids = records.example_ids.numpy()
    np.testing.assert_array_equal(ids, np.arange(16_000))
    np.testing.assert_array_equal(records.logits, np.stack([ids, -ids], 1))
    np.testing.assert_array_equal(records.model_versions, ids % 16)
    assert records.counts.num_duplicates == 0


def test_a_clock_set_back_does_not_make_new_records_old(tmp_path, monkeypatch):
    clock = [1_000_000_000_000, 2_000_000_000_000]
    with ForwardRecordWriter(tmp_path) as w:
        monkeypatch.setattr(writer.time, "time_ns", lambda: clock.pop() if clock else 0)
        w.write([1], [1.0])
        w.write([1], [2.0])
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.logits, [[2.0]])
    np.testing.assert_array_equal(records.timestamps, [2_000_000_000])


def test_records_go_to_other_file_systems():
    directory = "ram://writer-test"
    with ForwardRecordWriter(directory) as w:
        w.write([3, 1], [0.5, 0.25])
    np.testing.assert_array_equal(ForwardRecords.load(directory).example_ids, [1, 3])


def leave_behind(directory, num_records=100):
    """An open file whose writer is gone, as after a kill."""
    w = ForwardRecordWriter(directory, block_records=10)
    w.write(np.arange(num_records), np.zeros((num_records, 1)))
    w._file._unlock()
    return w._file._open_path, w


def test_a_dead_writers_file_is_finalised_without_its_partial_block(tmp_path):
    path, w = leave_behind(tmp_path)
    with open(path, "ab") as file:
        file.write(tfrecord.frame(bytes(100))[:60])
    ForwardRecordWriter(tmp_path).close()
    assert names(tmp_path) == [".ofbr"]
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.example_ids, np.arange(100))
    assert records.counts.num_open_files == 0
    del w


def test_a_living_writers_file_is_left_alone(tmp_path):
    first = ForwardRecordWriter(tmp_path)
    first.write([1], [1.0])
    first.flush()
    ForwardRecordWriter(tmp_path).close()
    assert names(tmp_path) == [".open"]
    first.write([2], [1.0])
    first.close()
    assert len(ForwardRecords.load(tmp_path)) == 2


def test_a_forked_child_writes_a_file_of_its_own(tmp_path):
    with ForwardRecordWriter(tmp_path, num_outputs=1) as w:
        w.write([1], [1.0])
        child = os.fork()
        if not child:
            # TensorFlow's threads are gone in a child; the writer's own state is what counts.
            os._exit(0 if w._buffered == 0 and w._file is None else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert len(ForwardRecords.load(tmp_path)) == 1


def test_a_failed_write_raises_or_drops_and_the_next_one_goes_to_a_new_file(tmp_path, monkeypatch):
    for on_error in ("raise", "drop"):
        directory = tmp_path / on_error
        w = ForwardRecordWriter(directory, on_error=on_error, flush_seconds=None)
        w.write([1], [1.0])
        w.flush()

        def fail(*unused):
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

        monkeypatch.setattr(w._file._writer, "write", fail)
        w.write([2], [1.0])
        if on_error == "raise":
            with pytest.raises(tf.errors.ResourceExhaustedError, match="No space"):
                w.flush()
        else:
            w.flush()
        assert w.counts.num_dropped == 1
        assert "No space" in str(w.last_error)
        w.write([3], [1.0])
        w.close()
        assert names(directory) == [".ofbr", ".ofbr"]
        np.testing.assert_array_equal(ForwardRecords.load(directory).example_ids, [1, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_outputs": 0}, "num_outputs must be positive. Received: 0"),
        ({"logits_dtype": "int8"}, "logits_dtype must be one of"),
        ({"compression": "LZ4"}, "compression must be one of"),
        ({"on_error": "ignore"}, "on_error must be one of"),
        ({"flush_seconds": 0}, "flush_seconds must be positive"),
        ({"max_file_bytes": -1}, "max_file_bytes must be positive"),
        ({"block_records": 9000}, "block_records must be at most 8192. Received: 9000"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        ForwardRecordWriter(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"example_ids": [[1]], "logits": [1.0]}, r"example_ids must have shape \[n\]"),
        ({"example_ids": [1.5], "logits": [1.0]}, "example_ids must be integers or strings"),
        ({"example_ids": [1], "logits": [[1.0]]}, r"logits must have shape \[1, 2\]"),
        ({"example_ids": [1], "logits": [1.0]}, r"logits must have shape \[1, 2\]"),
        ({"example_ids": [1], "logits": [["a", "b"]]}, "logits must be floats"),
        ({"example_ids": [1]}, "logits or loss must be given"),
        ({"example_ids": [1], "logits": [[1.0, 2.0]], "loss": [1.0, 2.0]}, r"loss must have shape"),
        ({"example_ids": [1], "logits": [[1, 2]], "model_version": 2**64}, "must fit into int64"),
        ({"example_ids": [1], "logits": [[1, 2]], "timestamp": [1, 2]}, "timestamp must be int64"),
        ({"example_ids": [1], "loss": [1.0]}, "same columns in every call"),
    ],
)
def test_input_that_does_not_fit(tmp_path, arguments, message):
    with ForwardRecordWriter(tmp_path, num_outputs=2) as w:
        w.write([7], [[0.0, 1.0]])
        with pytest.raises(ValueError, match=message):
            w.write(arguments.pop("example_ids"), **arguments)
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, [7])


def test_writing_after_close_says_so(tmp_path):
    w = ForwardRecordWriter(tmp_path)
    w.close()
    w.close()
    with pytest.raises(RuntimeError, match="closed"):
        w.write([1], [1.0])
    assert glob.glob(str(tmp_path / "*")) == []

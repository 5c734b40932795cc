import concurrent.futures
import os
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import hashing
from ofb_tf.records import ForwardRecords, ForwardRecordWriter, blocks, files, schema, writer
from tests.records.record_files import write


def suffixes(directory):
    return sorted(os.path.splitext(name)[1] for name in os.listdir(directory))


def fail(*unused):
    raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")


def test_a_round_trip_keeps_every_value(tmp_path):
    rng = np.random.default_rng(0)
    given = {
        "example_ids": rng.permutation(20_000) - 10_000,
        "logits": rng.normal(size=(20_000, 3)).astype(np.float32),
        "timestamp": rng.integers(0, 2**50, 20_000),
        "model_version": rng.integers(-5, 5, 20_000),
    }
    with ForwardRecordWriter(tmp_path, num_outputs=3) as w:
        for start in range(0, 20_000, 700):
            w.write(**{name: values[start : start + 700] for name, values in given.items()})
    assert suffixes(tmp_path) == [".ofbr"]
    records = ForwardRecords.load(tmp_path)
    order = np.argsort(given["example_ids"])
    np.testing.assert_array_equal(records.example_ids, given["example_ids"][order])
    np.testing.assert_array_equal(records.logits, given["logits"][order])
    np.testing.assert_array_equal(records.timestamps, given["timestamp"][order])
    np.testing.assert_array_equal(records.model_versions, given["model_version"][order])
    assert (records.losses, records.num_outputs) == (None, 3)
    assert w.counts.num_written == w.counts.num_records == 20_000


@pytest.mark.parametrize("ids", [["a", "b"], [b"a", b"a\0", b"a\0\0", b"\0"]])
def test_tensors_single_outputs_losses_and_string_ids(tmp_path, ids):
    logits, losses = tf.range(-0.5, len(ids) - 1), np.arange(len(ids)) / 4
    fingerprints = hashing.fingerprint(tf.constant(ids)).numpy()
    expected = sorted(zip(fingerprints, logits, losses, strict=True))
    for name, values in (("list", ids), ("tensor", tf.constant(ids))):
        write(tmp_path / name, values, logits, loss=losses)
        records = ForwardRecords.load(tmp_path / name)
        got = zip(records.example_ids, records.logits[:, 0], records.losses, strict=True)
        assert list(got) == expected


def test_losses_alone_have_no_outputs(tmp_path):
    with ForwardRecordWriter(tmp_path) as w:
        w.write([1, 2], loss=[0.5, 0.25])
    records = ForwardRecords.load(tmp_path)
    assert (records.num_outputs, records.logits) == (0, None)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_logits_are_written_as_given_and_nonfinite_ones_counted(tmp_path, dtype):
    logits = np.array([[1.0, np.nan], [np.inf, 0.0], [1.0, 0.1]], np.float32)
    with ForwardRecordWriter(tmp_path, logits_dtype=dtype) as w:
        w.write([1, 2, 3], logits, loss=[1.0, np.nan, 2.0])
    records = ForwardRecords.load(tmp_path)
    assert records.logits.dtype == dtype
    np.testing.assert_array_equal(records.logits, logits.astype(dtype))
    assert w.counts.num_nonfinite == records.counts.num_nonfinite == 2


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


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_the_flush_interval_writes_out_what_waits(tmp_path):
    with ForwardRecordWriter(tmp_path, flush_seconds=0.05) as w:
        w.write([1], [0.5])
        wait_until(lambda: w.counts.num_written)
        assert len(ForwardRecords.load(tmp_path)) == 1


@pytest.mark.parametrize(
    "limit", [{"max_file_records": 100}, {"max_file_bytes": 500}, {"max_file_seconds": 1e-9}]
)
def test_files_roll_over(tmp_path, limit):
    with ForwardRecordWriter(tmp_path, block_records=50, **limit) as w:
        w.write(np.arange(500), np.zeros((500, 1)))
    assert w.counts.num_files >= 5
    assert suffixes(tmp_path) == [".ofbr"] * w.counts.num_files
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, np.arange(500))


def test_sixteen_threads_share_a_writer(tmp_path):
    w = ForwardRecordWriter(tmp_path, num_outputs=2, block_records=100, max_file_records=3000)
    together = threading.Barrier(16)

    def work(thread):
        together.wait()
        for start in range(0, 1000, 37):
            ids = np.arange(start, min(start + 37, 1000)) * 16 + thread
            w.write(ids, np.stack([ids, -ids], 1).astype(np.float32), model_version=thread)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
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


def test_an_idle_writer_completes_its_file_in_time(tmp_path):
    with ForwardRecordWriter(tmp_path, flush_seconds=0.02, max_file_seconds=0.1) as w:
        w.write([1], [0.5])
        wait_until(lambda: suffixes(tmp_path) == [".ofbr"])
        w.write([2], [0.5])
    assert len(ForwardRecords.load(tmp_path)) == 2


def test_a_second_writer_leaves_open_files_alone(tmp_path):
    first = ForwardRecordWriter(tmp_path)
    first.write([1], [1.0])
    first.flush()
    ForwardRecordWriter(tmp_path).close()
    assert suffixes(tmp_path) == [".open"]
    first.write([2], [1.0])
    first.close()
    assert len(ForwardRecords.load(tmp_path)) == 2


def test_a_failed_write_raises_or_drops_and_the_next_one_goes_to_a_new_file(tmp_path, monkeypatch):
    for on_error in ("raise", "drop"):
        directory = tmp_path / on_error
        w = ForwardRecordWriter(directory, on_error=on_error, flush_seconds=None)
        w.write([1], [1.0])
        w.flush()
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
        assert suffixes(directory) == [".ofbr", ".open"]  # the first one's whole block is kept
        np.testing.assert_array_equal(ForwardRecords.load(directory).example_ids, [1, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_outputs": 0}, "num_outputs must be at least 1. Received: 0"),
        ({"logits_dtype": "int8"}, "logits_dtype must be one of"),
        ({"compression": "LZ4"}, "compression must be one of"),
        ({"on_error": "ignore"}, "on_error must be one of"),
        ({"flush_seconds": 0}, "flush_seconds must be positive"),
        ({"max_file_bytes": -1}, "max_file_bytes must be at least 1"),
        ({"block_records": 9000}, "block_records must be in .1, 8192.. Received: 9000"),
        ({"num_outputs": 3, "top_k": 3}, "top_k must be less than num_outputs=3"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        ForwardRecordWriter(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"example_ids": [[1]], "logits": [1.0]}, r"example_ids must have shape \[n\]"),
        ({"example_ids": [1.5], "logits": [1.0]}, "example_ids must be integers that fit"),
        ({"example_ids": [1], "logits": [[1.0]]}, r"logits must have shape \[1, 2\]"),
        ({"example_ids": [1], "logits": [1.0]}, r"logits must have shape \[1, 2\]"),
        ({"example_ids": [1], "logits": [["a", "b"]]}, "logits must be floats"),
        ({"example_ids": [1]}, "logits or loss must be given"),
        ({"example_ids": [1], "logits": [[1.0, 2.0]], "loss": [1.0, 2.0]}, r"loss must have shape"),
        ({"example_ids": [1], "logits": [[1, 2]], "model_version": 2**64}, "fit into int64"),
        ({"example_ids": [1], "logits": [[1, 2]], "timestamp": [1, 2]}, "timestamp must be"),
        ({"example_ids": [1], "logits": [[1, 2]], "timestamp": np.uint64(2**63)}, "that fit into"),
        ({"example_ids": [], "logits": [1.0, 2.0]}, r"logits must have shape \[0, 2\]"),
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
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_first_batch_does_not_fix_the_width(tmp_path):
    with ForwardRecordWriter(tmp_path) as w:
        for arguments in (
            {"logits": np.zeros((5, 7))},
            {"logits": np.zeros((3, 7)), "loss": [1.0]},
            {"logits": np.zeros((3, 7)), "timestamp": [1]},
        ):
            with pytest.raises(ValueError, match="write: "):
                w.write([1, 2, 3], **arguments)
        w.write([1, 2, 3], np.zeros((3, 10)))
    assert ForwardRecords.load(tmp_path).num_outputs == 10


def test_numpys_integers_are_integers(tmp_path):
    numbers = {"block_records": np.int32(10), "max_file_records": np.uint16(20)}
    with ForwardRecordWriter(tmp_path, num_outputs=np.int64(2), **numbers) as w:
        w.write(np.arange(40, dtype=np.uint8), np.zeros((40, 2)), model_version=np.int16(3))
    assert w.counts.num_files == 2
    with pytest.raises(TypeError):
        ForwardRecordWriter(tmp_path, num_outputs=2.0)


@pytest.mark.parametrize("empty", [[], np.zeros((0, 3)), tf.zeros([0, 1])])
def test_no_records_are_no_records(tmp_path, empty):
    with ForwardRecordWriter(tmp_path) as w:
        w.write([], empty)
        w.write([1], [[1.0, 2.0]])
        w.write(np.zeros(0, np.int64), empty, loss=None)
    assert w.counts.num_records == 1
    assert ForwardRecords.load(tmp_path).num_outputs == 2


def test_wide_records_go_into_smaller_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "MAX_BLOCK_BYTES", 20_000)
    monkeypatch.setattr(files, "MAX_BLOCK_BYTES", 20_000)
    logits = np.random.default_rng(0).normal(size=(50, 500)).astype(np.float32)
    with ForwardRecordWriter(tmp_path / "in") as w:
        w.write(np.arange(50), logits)
    assert w.counts.num_blocks == 8  # 7 records of 2032 bytes each
    records = ForwardRecords.load(tmp_path / "in")
    np.testing.assert_array_equal(records.logits, logits)
    writer.write_record_file(str(tmp_path / "again.ofbr"), records)
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path / "again.ofbr").logits, logits)
    with ForwardRecordWriter(tmp_path) as w, pytest.raises(ValueError, match="larger than a block"):
        w.write([1], np.zeros((1, 5000)))


@pytest.mark.parametrize("compression", ["", "GZIP", "ZLIB"])
def test_a_record_file_appears_whole_or_not_at_all(tmp_path, monkeypatch, compression):
    path = tmp_path / "any name"
    first = ForwardRecords.from_columns([3, 1], [[1.0], [2.0]], timestamps=[5, 6])
    writer.write_record_file(str(path), first, compression=compression)
    assert os.listdir(tmp_path) == ["any name"]
    loaded = ForwardRecords.load(path)
    for name, column in first.columns.items():
        np.testing.assert_array_equal(loaded.columns[name], column)
    assert files.compression_of(str(path)) == compression
    before = path.read_bytes()
    monkeypatch.setattr(blocks, "encode_footer", fail)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        writer.write_record_file(str(path), ForwardRecords.from_columns([7], [[1.0]]))
    assert os.listdir(tmp_path) == ["any name"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (blocks, "encode_block"),
        (tf.io.TFRecordWriter, "write"),
        (writer.ForwardRecordWriter, "_tend"),
        (files, "rename"),
    ],
    ids=["encode", "write", "written", "rename"],
)
def test_an_exception_of_a_signal_handler_loses_nothing(tmp_path, monkeypatch, where, name):
    """As `sys.exit` in a handler of SIGTERM raises SystemExit, wherever the main thread is."""
    called = getattr(where, name)

    def interrupted(*arguments):
        monkeypatch.undo()
        called(*arguments)
        raise SystemExit

    with ForwardRecordWriter(tmp_path, block_records=10, max_file_records=10) as w:
        w.write(np.arange(10), np.ones(10))
        monkeypatch.setattr(where, name, interrupted)
        with pytest.raises(SystemExit):
            w.write(np.arange(10, 20), np.ones(10))
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, np.arange(20))

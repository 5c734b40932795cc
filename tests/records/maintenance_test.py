import os
import pathlib
import time

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import (
    ForwardRecords,
    ForwardRecordWriter,
    maintenance,
    partition_of,
    read_schema,
    reader,
    sorted_file_dataset,
)
from tests.records import record_files
from tests.records.record_files import cut, flip

HOUR = 3_600_000_000


def write(directory, seed, timestamp=None):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 400, 500) * 7919 - 1_000_000
    times = rng.integers(0, 20, 500) if timestamp is None else timestamp
    arguments = {"model_version": rng.integers(0, 5, 500), "timestamp": times}
    record_files.write(directory, ids, rng.normal(size=(500, 2)), block_records=64, **arguments)


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "records"
    for seed in range(3):
        write(path, seed)
    return path


def assert_same(got, expected):
    for name in ("example_ids", "logits", "timestamps", "model_versions"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


def test_compact_keeps_what_loading_keeps(directory, tmp_path):
    expected = ForwardRecords.load(directory)
    report = maintenance.compact(directory, tmp_path / "out", records_per_file=100)
    assert len(report.files) == -(-len(expected) // 100)
    assert report.num_written == len(expected)
    assert report.read.num_duplicates == 1500 - len(expected)
    assert_same(ForwardRecords.load(tmp_path / "out"), expected)
    columns = sorted_file_dataset(report.files[0], read_schema(report.files)).get_single_element()
    np.testing.assert_array_equal(columns["example_id"], expected.example_ids[:100])
    assert len(os.listdir(directory)) == 3


def leave_open(directory, ids, *, age, missing=0, **arguments):
    """An open file that a killed writer left behind, `age` seconds ago."""
    before = set(os.listdir(directory)) if directory.exists() else set()
    w = ForwardRecordWriter(directory, block_records=10, flush_seconds=None)
    w.write(ids, np.zeros((len(ids), 2)), **arguments)
    (name,) = set(os.listdir(directory)) - before
    path = directory / name
    data = path.read_bytes()
    w.close()
    (directory / name.removesuffix(".open")).unlink()
    path.write_bytes(data[: len(data) - missing])
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize("command", ["compact", "partition"])
def test_old_open_files_are_read_like_closed_ones(tmp_path, command):
    old = leave_open(tmp_path / "in", np.arange(20), age=8000, missing=5)
    young = leave_open(tmp_path / "in", np.arange(100, 120), age=5000)
    write(tmp_path / "in", 0)
    run = getattr(maintenance, command)
    arguments = (3,) if command == "partition" else ()
    report = run(tmp_path / "in", tmp_path / "default", *arguments)
    ids = set(ForwardRecords.load(tmp_path / "default").example_ids.numpy())
    assert ids & set(range(200)) == set(range(10))  # the old one's only whole block
    assert (report.num_open_skipped, report.read.num_open_files) == (1, 1)
    report = run(tmp_path / "in", tmp_path / "all", *arguments, open_file_max_age=4000)
    assert set(ForwardRecords.load(tmp_path / "all").example_ids.numpy()) > set(range(100, 120))
    assert (report.num_open_skipped, report.read.num_open_files) == (0, 2)
    assert old.exists() and young.exists()


def test_compact_in_place_removes_all_inputs_but_young_open_ones(directory):
    old = leave_open(directory, np.arange(20), age=8000)
    inputs = list(directory.iterdir())
    young = leave_open(directory, np.arange(100, 120), age=5)
    assert old in inputs
    expected = ForwardRecords.load(inputs)
    report = maintenance.compact(directory, directory, delete_inputs=True, compression="GZIP")
    assert sorted(report.removed) == sorted(map(str, inputs))
    assert report.num_open_skipped == 1
    assert sorted(map(str, directory.iterdir())) == sorted([str(young), *report.files])
    assert_same(ForwardRecords.load(report.files), expected)


def test_a_damaged_input_is_never_removed(directory, tmp_path):
    damaged = sorted(directory.iterdir())[1]
    flip(damaged)
    with pytest.raises(reader.CorruptRecordsError):
        maintenance.compact(directory, tmp_path / "out", delete_inputs=True)
    assert len(list(directory.iterdir())) == 3
    report = maintenance.compact(directory, tmp_path / "out", delete_inputs=True, on_corrupt="skip")
    assert list(directory.iterdir()) == [damaged]
    assert report.read.num_corrupt_blocks == 1


@pytest.mark.parametrize(
    ("num_partitions", "spool_records"), [(1, 100), (5, 100), (1, 10**6), (5, 10**6), (40, 10**6)]
)
def test_partitions_are_sorted_disjoint_and_complete(
    directory, tmp_path, monkeypatch, num_partitions, spool_records
):
    monkeypatch.setattr(maintenance, "_SPOOL_RECORDS", spool_records)
    expected = ForwardRecords.load(directory)
    report = maintenance.partition(directory, tmp_path / "out", num_partitions)
    assert sorted(os.listdir(tmp_path / "out")) == [
        f"partition-{p:05d}-of-{num_partitions:05d}.ofbr" for p in range(num_partitions)
    ]
    assert report.read.num_duplicates == 1500 - len(expected)
    schema = read_schema(report.files)
    for index in list(range(num_partitions))[:20]:
        (columns,) = sorted_file_dataset(report.files[index], schema)
        here = partition_of(expected.example_ids.numpy(), num_partitions) == index
        np.testing.assert_array_equal(columns["example_id"], expected.example_ids.numpy()[here])
    assert_same(ForwardRecords.load(tmp_path / "out"), expected)


def test_partition_refuses_a_directory_in_use(directory):
    with pytest.raises(FileExistsError, match="empty"):
        maintenance.partition(directory, directory, 4)
    with pytest.raises(ValueError, match="num_partitions must be in"):
        maintenance.partition(directory, directory / "x", 0)
    for command, arguments in ((maintenance.partition, (2,)), (maintenance.compact, ())):
        with pytest.raises(ValueError, match="compression must be one of"):
            command(directory, directory / "x", *arguments, compression="LZ4")
        with pytest.raises(ValueError, match="open_file_max_age must be at least 0"):
            command(directory, directory / "x", *arguments, open_file_max_age=-1)


def test_partition_leaves_nothing_behind_when_it_fails(directory, tmp_path):
    cut(sorted(directory.iterdir())[0], 100)
    with pytest.raises(reader.CorruptRecordsError):
        maintenance.partition(directory, tmp_path / "out", 3)
    assert list((tmp_path / "out").iterdir()) == []


def test_expire_removes_old_files_and_rewrites_mixed_ones(tmp_path):
    write(tmp_path, 0, timestamp=0)
    write(tmp_path, 1, timestamp=np.where(np.arange(500) % 2, 0, 10 * HOUR))
    write(tmp_path, 2, timestamp=10 * HOUR)
    first, second, third = sorted(tmp_path.iterdir())
    untouched = third.read_bytes()
    kept = {second: reader.read_columns(second), third: reader.read_columns(third)}
    dry = maintenance.expire(tmp_path, max_age=3600, now=10 * 3600 + 1, dry_run=True)
    assert len(list(tmp_path.iterdir())) == 3
    report = maintenance.expire(tmp_path, max_age=3600, now=10 * 3600 + 1)
    assert report == dry
    assert report.num_expired == 750
    assert report.removed == [str(first)]
    assert report.files == [str(second)]
    assert sorted(tmp_path.iterdir()) == [second, third]
    assert third.read_bytes() == untouched
    for name in ("example_id", "logits"):
        np.testing.assert_array_equal(
            reader.read_columns(second).arrays[name], kept[second].arrays[name][::2]
        )
    for max_age in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="max_age must be positive and finite"):
            maintenance.expire(tmp_path, max_age=max_age)


def test_expire_leaves_young_open_files(tmp_path):
    with ForwardRecordWriter(tmp_path) as w:
        w.write([1], [[1.0]], timestamp=0)
        w.flush()
        with pytest.raises(FileNotFoundError, match="open files only.*7200 seconds"):
            maintenance.expire(tmp_path, max_age=1)
    assert maintenance.expire(tmp_path, max_age=1).num_expired == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", [0, 5])
def test_expire_is_a_guarantee_for_open_files_of_dead_writers(tmp_path, missing):
    times = np.repeat([0, 10 * HOUR], 10)  # one block each
    gone = leave_open(
        tmp_path, np.arange(20), age=8000, timestamp=np.zeros(20, int), missing=missing
    )
    mixed = leave_open(tmp_path, np.arange(20), age=8000, timestamp=times)
    kept = leave_open(
        tmp_path, np.arange(20), age=8000, timestamp=times + 20 * HOUR, missing=missing
    )
    young = leave_open(tmp_path, np.arange(20), age=5, timestamp=times)
    arguments = {"max_age": 3600, "now": 10 * 3600 + 1}
    dry = maintenance.expire(tmp_path, **arguments, dry_run=True)
    assert {gone, mixed, kept, young} == set(tmp_path.iterdir())
    report = maintenance.expire(tmp_path, **arguments)
    assert report == dry
    closed = mixed.with_suffix("")
    assert (report.num_open_skipped, report.files) == (1, [str(closed)])
    assert sorted(report.removed) == sorted([str(gone), str(mixed)])
    assert set(tmp_path.iterdir()) == {closed, kept, young}
    np.testing.assert_array_equal(ForwardRecords.load(closed).example_ids, np.arange(10, 20))


def test_maintenance_on_other_file_systems():
    directory = "ram://maintenance-test"
    name = f"{directory}/records-1.ofbr"
    with ForwardRecordWriter("ram://maintenance-source") as w:
        w.write([1, 2], [0.5, 0.25], timestamp=[0, 10 * HOUR])
    (source,) = tf.io.gfile.glob("ram://maintenance-source/*.ofbr")
    tf.io.gfile.makedirs(directory)
    tf.io.gfile.copy(source, f"{name}.open")
    report = maintenance.expire(directory, max_age=3600, now=10 * 3600, open_file_max_age=0)
    assert (report.num_expired, report.removed) == (1, [f"{name}.open"])
    assert tf.io.gfile.listdir(directory) == ["records-1.ofbr"]
    np.testing.assert_array_equal(ForwardRecords.load(directory).example_ids, [2])


@pytest.mark.parametrize("name", ["served.rec", "served", "a.ofbr.bak"])
def test_expire_rewrites_a_file_of_any_name(tmp_path, name):
    write(tmp_path, 1, timestamp=np.where(np.arange(500) % 2, 0, 10 * HOUR))
    (source,) = tmp_path.iterdir()
    path = source.rename(tmp_path / name)
    report = maintenance.expire(path, max_age=3600, now=10 * 3600 + 1)
    assert (report.num_expired, report.files) == (250, [str(path)])
    assert list(tmp_path.iterdir()) == [path]
    assert ForwardRecords.load(path).counts.num_read == 250


def test_inspect_sums_up(directory):
    summary = maintenance.inspect(directory)
    records = ForwardRecords.load(directory)
    assert (summary.num_records, summary.num_ids) == (1500, len(records))
    assert (summary.num_duplicates, summary.num_outputs) == (1500 - len(records), 2)
    assert (summary.first_timestamp, summary.last_timestamp) == (0, 19)
    assert sum(summary.model_versions.values()) == 1500
    assert set(summary.model_versions) == set(range(5))
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert summary.num_bytes == size
    assert summary.bytes_per_instance == size / 1500


def test_verify_lists_the_damage(directory):
    whole, damaged, short = sorted(directory.iterdir())
    flip(damaged)
    cut(short, 10)
    reports = {pathlib.Path(r.path): r for r in maintenance.verify(directory)}
    assert reports[whole].damages == ()
    assert reports[whole].num_records == 500
    assert "checksum" in reports[damaged].damages[0].reason
    assert "ends inside" in reports[short].damages[0].reason
    assert reports[short].num_records == 500


def test_maintenance_of_top_k_records(tmp_path):
    logits = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    record_files.write(tmp_path / "in", np.arange(50), logits, writer={"top_k": 3})
    report = maintenance.partition(tmp_path / "in", tmp_path / "out", 2)
    records = ForwardRecords.load(report.files)
    order = records.class_ids.numpy()
    np.testing.assert_array_equal(order, np.argsort(-logits, axis=1)[:, :3])
    np.testing.assert_array_equal(records.logits, np.take_along_axis(logits, order, 1))
    np.testing.assert_allclose(records.logsumexp, tf.reduce_logsumexp(logits, 1), rtol=1e-6)
    squares = tf.reduce_sum(tf.nn.softmax(logits) ** 2, 1)
    np.testing.assert_allclose(records.sum_squared_probabilities, squares, rtol=1e-5)
    assert records.num_outputs == 20

"""Faults that really happen: kills, full disks, flipped bits, paths that point elsewhere."""

import json
import os
import pathlib
import pickle
import random
import subprocess

import faulty_processes
import numpy as np
import pytest

from ofb_tf.records import CorruptRecordsError, ForwardRecords, maintenance
from tests.processes import python
from tests.records.record_files import write, write_tfrecords


def run(name, directory):
    return json.loads(python(faulty_processes.__file__, name, directory))


def assert_right(records):
    ids = records.example_ids.numpy()
    np.testing.assert_array_equal(records.logits, faulty_processes.logits_of(ids))


@pytest.mark.slow
def test_fifty_kills_lose_nothing_that_was_flushed(tmp_path):
    flushed = run("kill_writers", tmp_path)
    assert len(flushed) == 50
    for directory, count in flushed.items():
        before = ForwardRecords.load(directory)
        assert_right(before)
        ids = before.example_ids.numpy()
        np.testing.assert_array_equal(ids, np.arange(len(ids)))  # no hole, nothing twice
        assert len(ids) >= count > 0
        np.testing.assert_array_equal(
            before.model_versions, ids // faulty_processes.BATCH * faulty_processes.BATCH
        )
        maintenance.compact(directory, directory, delete_inputs=True, open_file_max_age=0)
        after = ForwardRecords.load(directory)
        np.testing.assert_array_equal(after.example_ids, ids)
        assert (after.counts.num_open_files, after.counts.num_files) == (0, 1)


@pytest.mark.slow
def test_an_exit_without_close_loses_nothing(tmp_path):
    run("forget_to_close", tmp_path)
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.example_ids, np.arange(10))
    assert records.counts.num_open_files == 0


@pytest.mark.slow
def test_a_forked_child_never_touches_its_parents_file(tmp_path):
    for directory, status in run("fork_writers", tmp_path).items():
        assert status == 0, directory
        expected = [*range(300), *(range(1000, 1120) if directory.endswith("write") else ())]
        records = ForwardRecords.load(directory)
        np.testing.assert_array_equal(records.example_ids, expected)
        assert (records.counts.num_duplicates, records.counts.num_open_files) == (0, 0)
        assert_right(records)


@pytest.mark.slow
def test_a_hostile_file_is_an_error_in_bounded_memory(tmp_path):
    result = run("read_hostile_files", tmp_path / "hostile")
    assert len(result["raised"]) == 3 * (5 * 2 * 3 + 1)
    for name, message in result["raised"].items():
        assert "claims" in message, name
    assert result["size"] < 3_000_000
    assert result["after"] - result["before"] < 50_000  # kilobytes


@pytest.fixture
def small_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root; the quota test covers the rest")
    yield
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [("write_against_a_file_size_limit", "too large"), ("fill", "No space left")],
)
def test_a_full_disk_drops_and_counts(tmp_path, request, name, message):
    if name == "fill":
        request.getfixturevalue("small_disk")
    counts = run(name, tmp_path)
    records = ForwardRecords.load(tmp_path)
    assert_right(records)
    assert 0 < counts["num_dropped"] < 40_000
    assert counts["num_written"] == len(records) == 40_000 - counts["num_dropped"]
    assert message in counts["error"]


@pytest.mark.slow
def test_flips_and_truncations_are_detected_and_yield_nothing_wrong(tmp_path):
    ids = np.arange(200)
    logits = faulty_processes.logits_of(ids)
    good = write(tmp_path / "good", ids, logits, block_records=20, timestamp=ids)
    data = pathlib.Path(good).read_bytes()
    generator = random.Random(0)
    bad = tmp_path / "bad.ofbr"
    for trial in range(1200):
        broken = bytearray(data)
        position = generator.randrange(len(data))
        if trial % 4 == 0:
            del broken[position:]
        elif trial % 4 == 1:
            del broken[position : position + 1 + generator.randrange(20)]
        else:
            for place in generator.sample(range(len(data)), generator.choice([1, 1, 2, 8])):
                broken[place] ^= 1 << generator.randrange(8)
        bad.write_bytes(broken)
        if trial % 5:
            with pytest.raises(CorruptRecordsError):
                ForwardRecords.load(bad)
            continue
        try:
            records = ForwardRecords.load(bad, on_corrupt="skip")
        except ValueError as error:  # not one block left
            assert "hold no whole block" in str(error), trial
            continue
        assert records.counts.num_corrupt_blocks > 0, trial
        assert_right(records)
        assert set(records.example_ids.numpy()) <= set(range(200))


def test_nothing_is_written_outside_the_directory(tmp_path):
    inside = tmp_path / "inside"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim.ofbr.open").write_bytes(b"not ours")
    write(inside, [1, 2], timestamp=0)
    link = inside / "link.ofbr.open"  # a name in the directory that points elsewhere
    link.symlink_to(outside / "victim.ofbr.open")
    maintenance.expire(link, max_age=1, open_file_max_age=0)
    assert not link.is_symlink()
    assert (outside / "victim.ofbr.open").read_bytes() == b"not ours"
    maintenance.partition(inside, inside / "parts", 3)
    maintenance.compact(inside, inside, delete_inputs=True)
    assert sorted(os.listdir(tmp_path)) == ["inside", "outside"]
    assert os.listdir(outside) == ["victim.ofbr.open"]


def test_what_is_in_a_file_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/exploded",)

    path = write_tfrecords(tmp_path / "bomb.ofbr", [pickle.dumps(Bomb())])
    with pytest.raises(CorruptRecordsError):
        ForwardRecords.load(path)
    assert not (tmp_path / "exploded").exists()

import pathlib
import pickle

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import CorruptRecordsError, files
from tests.records.record_files import write_tfrecords

RECORDS = [bytes([i]) * (20 + 4 * i) for i in range(5)]
STARTS = np.cumsum([0] + [len(r) + files.FRAME_BYTES for r in RECORDS])


def read(path):
    """The TFRecords, and where they end in damage, if so."""
    found = []
    try:
        for _, data in files.read_frames(str(path)):
            found.append(data)
    except CorruptRecordsError as error:
        return found, error.damage.offset
    return found, None


@pytest.mark.parametrize("compression", ["", "GZIP", "ZLIB"])
def test_a_whole_file_reads_with_offsets(tmp_path, compression):
    path = write_tfrecords(tmp_path / "f", RECORDS, compression)
    assert files.compression_of(path) == compression
    assert list(files.read_frames(path)) == list(zip(STARTS[:-1], RECORDS, strict=True))
    assert [data for _, data in files.read_frames(path, limit=2)] == RECORDS[:2]
    assert files.check_headers(path) == compression


def test_every_truncation_keeps_the_whole_records(tmp_path):
    data = pathlib.Path(write_tfrecords(tmp_path / "f", RECORDS)).read_bytes()
    for size in range(len(data)):
        whole = int(np.searchsorted(STARTS, size, side="right")) - 1
        damage = None if size == STARTS[whole] else STARTS[whole]
        (tmp_path / "cut.ofbr").write_bytes(data[:size])
        assert read(tmp_path / "cut.ofbr") == (RECORDS[:whole], damage), size
        (tmp_path / "cut.ofbr.open").write_bytes(data[:size])
        assert read(tmp_path / "cut.ofbr.open") == (RECORDS[:whole], None), size


def test_a_flip_anywhere_loses_the_rest_and_names_the_place(tmp_path):
    data = pathlib.Path(write_tfrecords(tmp_path / "f", RECORDS)).read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        (tmp_path / "bad").write_bytes(flipped)
        hit = int(np.searchsorted(STARTS, position, side="right")) - 1
        assert read(tmp_path / "bad") == (RECORDS[:hit], STARTS[hit]), position


@pytest.mark.parametrize("compression", ["GZIP", "ZLIB"])
def test_a_cut_or_flipped_compressed_file_ends_in_damage(tmp_path, compression):
    records = [np.random.default_rng(i).bytes(3000) for i in range(5)]
    data = pathlib.Path(write_tfrecords(tmp_path / "f", records, compression)).read_bytes()
    for size in (*range(20, len(data), 500), len(data) - 1):
        (tmp_path / "cut.ofbr").write_bytes(data[:size])
        found, damage = read(tmp_path / "cut.ofbr")
        assert found == records[: len(found)]
        assert damage is not None
        (tmp_path / "cut.ofbr.open").write_bytes(data[:size])
        assert read(tmp_path / "cut.ofbr.open") == (found, None)
    for position in range(20, len(data) - 20, 500):
        flipped = bytearray(data)
        flipped[position] ^= 1
        (tmp_path / "bad").write_bytes(flipped)
        found, damage = read(tmp_path / "bad")
        assert found == records[: len(found)]
        assert damage is not None


@pytest.mark.parametrize("length", [0x9C78, 0x0178, 0x088B1F, 0x5E78])
def test_a_length_that_looks_like_a_compressed_files_first_bytes(tmp_path, length):
    record = np.random.default_rng(0).bytes(length)
    path = write_tfrecords(tmp_path / "f", [record])
    assert files.compression_of(path) == ""
    assert read(path) == ([record], None)


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert read(tmp_path / "empty") == ([], None)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
    with tf.io.gfile.GFile("ram://files-test", "wb") as file:
        file.write(pathlib.Path(write_tfrecords(tmp_path / "f", RECORDS)).read_bytes())
    assert read("ram://files-test") == (RECORDS, None)


def test_the_error_survives_pickling(tmp_path):
    error = pickle.loads(pickle.dumps(files.corrupt("a.ofbr", 7, "a reason")))
    assert error.damage == files.CorruptBlock("a.ofbr", 7, "a reason")
    assert "'a.ofbr' at byte 7: a reason" in str(error)


def test_patterns(tmp_path):
    first, second = tmp_path / "1.ofbr", tmp_path / "2.ofbr.open"
    for path in (first, second, tmp_path / "README", tmp_path / "any_name"):
        path.touch()
    both = [str(first), str(second)]
    for pattern in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/?.ofbr*", [second, first, tmp_path]):
        assert files.match_files(pattern) == both
    assert files.match_files(tmp_path / "any_name") == [str(tmp_path / "any_name")]


@pytest.mark.parametrize("name", ["file[1].ofbr", "a*b.ofbr", "what?.ofbr", "[x].ofbr.open"])
def test_brackets_in_names_are_taken_literally(tmp_path, name):
    directory = tmp_path / "dir[1]" / "sub"
    directory.mkdir(parents=True)
    path = directory / name
    path.touch()
    for pattern in (path, directory, f"{directory}/*", f"{tmp_path}/dir[1]/s*/*"):
        assert files.match_files(pattern) == [str(path)]
    (tmp_path / "dir1").mkdir()
    (tmp_path / "dir1" / "x.ofbr").touch()
    assert files.match_files(f"{tmp_path}/dir[0-9]/*") == [str(tmp_path / "dir1" / "x.ofbr")]


def test_patterns_that_name_nothing(tmp_path):
    (tmp_path / "README").write_text("not records")
    with pytest.raises(FileNotFoundError, match="1 files, none of them a record file"):
        files.match_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="matches nothing"):
        files.match_files(tmp_path / "*.ofbr")
    with pytest.raises(FileNotFoundError, match="none of them a record file"):
        files.match_files(f"{tmp_path}/R*")
    for nothing in ([], "", [tmp_path, ""]):
        with pytest.raises(ValueError, match="at least one .* none of them empty"):
            files.match_files(nothing)

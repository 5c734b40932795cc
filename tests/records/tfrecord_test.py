import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.records import tfrecord

RECORDS = [bytes([i]) * (20 + 4 * i) for i in range(5)]
STARTS = np.cumsum([0] + [len(r) + tfrecord.FRAME_BYTES for r in RECORDS])


def write(path, compression=""):
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in RECORDS:
            writer.write(record)
    return str(path)


def split(items):
    items = list(items)
    return (
        [i[1] for i in items if not isinstance(i, tfrecord.Damage)],
        [i for i in items if isinstance(i, tfrecord.Damage)],
    )


@pytest.mark.parametrize("compression", ["", "GZIP", "ZLIB"])
def test_a_whole_file_reads_with_offsets(tmp_path, compression):
    path = write(tmp_path / "f", compression)
    assert tfrecord.compression_of(path) == compression
    assert list(tfrecord.read_records(path)) == list(zip(STARTS[:-1], RECORDS, strict=True))


def test_frame_and_checksum_are_tensorflows(tmp_path):
    path = write(tmp_path / "f")
    assert b"".join(map(tfrecord.frame, RECORDS)) == pathlib.Path(path).read_bytes()


def test_every_truncation_keeps_the_whole_records_and_reports_the_rest(tmp_path):
    data = pathlib.Path(write(tmp_path / "f")).read_bytes()
    for size in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:size])
        records, damages = split(tfrecord.read_records(str(tmp_path / "cut")))
        whole = int(np.searchsorted(STARTS, size, side="right")) - 1
        assert records == RECORDS[:whole], size
        assert [d.at_end for d in damages] == ([] if size == STARTS[whole] else [True]), size


def test_a_flip_anywhere_costs_one_record_and_is_reported(tmp_path):
    data = pathlib.Path(write(tmp_path / "f")).read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        (tmp_path / "bad").write_bytes(flipped)
        records, damages = split(tfrecord.read_records(str(tmp_path / "bad")))
        hit = int(np.searchsorted(STARTS, position, side="right")) - 1
        assert records == RECORDS[:hit] + RECORDS[hit + 1 :], position
        assert [d.offset for d in damages] == [STARTS[hit]], position


def test_missing_bytes_inside_a_file_cost_what_they_touch(tmp_path):
    data = pathlib.Path(write(tmp_path / "f")).read_bytes()
    cut = data[: STARTS[2] + 20] + data[STARTS[2] + 25 :]
    (tmp_path / "bad").write_bytes(cut)
    records, damages = split(tfrecord.read_records(str(tmp_path / "bad")))
    assert records[:2] == RECORDS[:2]
    assert set(records) <= set(RECORDS)
    assert RECORDS[-1] in records
    assert damages


def test_compressed_files_end_at_their_damage(tmp_path):
    data = pathlib.Path(write(tmp_path / "f", "GZIP")).read_bytes()
    (tmp_path / "cut").write_bytes(data[:-12])
    records, damages = split(tfrecord.read_records(str(tmp_path / "cut")))
    assert records == RECORDS[: len(records)]
    assert len(damages) == 1


def test_an_empty_file_has_nothing(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert list(tfrecord.read_records(str(tmp_path / "empty"))) == []


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(tf.errors.NotFoundError):
        list(tfrecord.read_records(str(tmp_path / "none")))

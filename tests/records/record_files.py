"""What the record tests share: a file of records, and damage to a file."""

import os
import pathlib

import numpy as np
import tensorflow as tf

from ofb_tf.records import ForwardRecordWriter


def write(directory, ids, logits=None, *, block_records=10, writer=None, **arguments):
    """Writes records with a writer's own arguments; returns the path of their file."""
    with ForwardRecordWriter(directory, block_records=block_records, **(writer or {})) as w:
        w.write(ids, np.zeros((len(ids), 1)) if logits is None else logits, **arguments)
    return str(max(pathlib.Path(directory).iterdir(), key=lambda path: path.stat().st_mtime_ns))


def write_tfrecords(path, records, compression=""):
    """Writes any bytes as TFRecords; returns the path."""
    with tf.io.TFRecordWriter(str(path), compression) as w:
        for record in records:
            w.write(record)
    return str(path)


def flip(path, position=None, value=None):
    """Changes one byte of a file, in the middle unless told otherwise."""
    data = bytearray(pathlib.Path(path).read_bytes())
    position = len(data) // 2 if position is None else position
    data[position] = data[position] ^ 1 if value is None else value
    pathlib.Path(path).write_bytes(data)


def cut(path, count):
    """Removes the last bytes of a file."""
    os.truncate(path, os.path.getsize(path) - count)

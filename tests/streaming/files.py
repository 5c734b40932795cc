"""A small stream in directories: files of examples and of records, with times of arrival."""

import os
import pathlib

import numpy as np
import tensorflow as tf

import ofb_tf

START = 1_700_000_000.0  # seconds since 1970
FEATURES = {
    "example_id": tf.io.FixedLenFeature([], tf.int64),
    "label": tf.io.FixedLenFeature([], tf.int64),
    "x": tf.io.FixedLenFeature([2], tf.float32),
}


def parse(serialized):
    return tf.io.parse_example(serialized, FEATURES)


class Stream:
    """`n` examples with two features, a label that depends on them, and recorded logits."""

    def __init__(self, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.ids = rng.permutation(10 * n)[:n].astype(np.int64)
        self.x = rng.normal(size=[n, 2]).astype(np.float32)
        self.labels = (self.x[:, 0] + rng.normal(size=n) > 1.5).astype(np.int64)
        self.logits = (self.x[:, :1] - 1.5).astype(np.float32)

    def write_examples(self, directory, name: str, rows, arrived: float) -> None:
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = directory / f"{name}.tmp"
        with tf.io.TFRecordWriter(str(unfinished)) as writer:
            for row in rows:
                writer.write(self.example(row).SerializeToString())
        _finish(unfinished, directory / f"{name}.tfrecord", arrived)

    def write_records(self, directory, name: str, rows, arrived: float, *, age=0.0, logits=None):
        """Records that were made `age` seconds before their file was finished."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        logits = self.logits[rows] if logits is None else logits
        timestamps = np.full(len(rows), round((arrived - age) * 1e6))
        with ofb_tf.ForwardRecordWriter(str(directory / f"{name}.tmp")) as writer:
            writer.write(self.ids[rows], logits, model_version=1, timestamp=timestamps)
        (file,) = (directory / f"{name}.tmp").iterdir()
        _finish(file, directory / f"{name}.ofbr", arrived)
        (directory / f"{name}.tmp").rmdir()

    def example(self, row: int) -> tf.train.Example:
        feature = {
            "example_id": tf.train.Feature(
                int64_list=tf.train.Int64List(value=[int(self.ids[row])])
            ),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(self.labels[row])])),
            "x": tf.train.Feature(float_list=tf.train.FloatList(value=self.x[row].tolist())),
        }
        return tf.train.Example(features=tf.train.Features(feature=feature))


def _finish(unfinished: pathlib.Path, path: pathlib.Path, arrived: float) -> None:
    nanoseconds = round(arrived * 1e9)
    os.utime(unfinished, ns=(nanoseconds, nanoseconds))
    unfinished.rename(path)

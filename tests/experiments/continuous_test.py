"""Examples as tf.Examples and back, and what one fit reads from directories that grow."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import streaming
from ofb_tf.experiments import continuous, serialized

FIELDS = {
    "example_id": tf.constant([3, -5, 2**62]),
    "floats": tf.constant([[1.5, -0.0], [np.inf, 1e-38], [0.1, 3.0]]),
    "precise": tf.constant([0.1, np.pi, 1e300], tf.float64),
    "pixels": tf.constant(np.arange(244, 256, dtype=np.uint8).reshape(3, 2, 2)),
    "flag": tf.constant([True, False, True]),
    "text": tf.constant([b"", b"\xff\x00", "ü".encode()]),
    "several": tf.constant([[b"a", b"b"], [b"", b"c"], [b"d", b""]]),
}


def test_every_dtype_and_shape_comes_back():
    parsed = tf.function(serialized.parser(FIELDS))(list(serialized.serialize(FIELDS)))
    assert parsed.keys() == FIELDS.keys()
    for name, values in FIELDS.items():
        assert parsed[name].dtype == values.dtype
        np.testing.assert_array_equal(parsed[name], values)


def write(directory, name, ids):
    directory.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(directory / "unfinished.tmp")) as writer:
        for example in serialized.serialize({"example_id": tf.constant(ids)}):
            writer.write(example)
    (directory / "unfinished.tmp").rename(directory / f"{name}.tfrecord")


def test_everything_is_read_once_in_batches_over_files_until_the_end(tmp_path):
    log = streaming.ExampleDirectory(tmp_path / "examples")
    feed = continuous.WholeFeed(log, serialized.parser({"example_id": tf.constant([0])}), 4)
    write(tmp_path / "examples", "0", list(range(6)))
    batches = iter(feed.dataset().map(lambda fields: fields["example_id"]))
    assert next(batches).numpy().tolist() == [0, 1, 2, 3]
    assert feed.is_used(6, 1) and not feed.is_used(6, 0)
    write(tmp_path / "examples", "1", [6, 7, 8, 9, 10])
    feed.end()  # also of a file that no look has found yet
    assert [batch.numpy().tolist() for batch in batches] == [[4, 5, 6, 7], [8, 9, 10]]


def test_the_first_batch_waits_for_no_further_file(tmp_path):
    log = streaming.ExampleDirectory(tmp_path / "examples")
    feed = continuous.WholeFeed(log, serialized.parser({"example_id": tf.constant([0])}), 4)
    write(tmp_path / "examples", "0", list(range(6)))
    # What is read ahead, and dropped, ends with the file: otherwise this would wait for ever.
    first = feed.dataset(only_first=True).prefetch(8)
    for _ in range(3):
        assert [fields["example_id"].numpy().tolist() for fields in first] == [[0, 1, 2, 3]]


def test_an_error_of_fit_is_raised_by_wait():
    class Model:
        def fit(self, dataset, **settings):
            raise ValueError("diverged")

    training = continuous.Training(Model(), None)
    with pytest.raises(ValueError, match="diverged"):
        training.wait()

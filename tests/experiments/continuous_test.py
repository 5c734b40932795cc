"""What one fit reads from directories that grow."""

import pytest
import tensorflow as tf

from ofb_tf import streaming
from ofb_tf.datasets import tf_examples
from ofb_tf.experiments import continuous


def write(directory, name, ids):
    directory.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(directory / "unfinished.tmp")) as writer:
        for example in tf_examples.serialize({"example_id": tf.constant(ids)}):
            writer.write(example)
    (directory / "unfinished.tmp").rename(directory / f"{name}.tfrecord")


def test_everything_is_read_once_in_batches_over_files_until_the_end(tmp_path):
    log = streaming.ExampleDirectory(tmp_path / "examples")
    feed = continuous.WholeFeed(log, tf_examples.parser({"example_id": tf.constant([0])}), 4)
    write(tmp_path / "examples", "0", list(range(6)))
    batches = iter(feed.dataset().map(lambda fields: fields["example_id"]))
    assert next(batches).numpy().tolist() == [0, 1, 2, 3]
    assert feed.is_used(6, 1) and not feed.is_used(6, 0)
    write(tmp_path / "examples", "1", [6, 7, 8, 9, 10])
    feed.end()  # also of a file that no look has found yet
    assert [batch.numpy().tolist() for batch in batches] == [[4, 5, 6, 7], [8, 9, 10]]


def test_the_first_batch_waits_for_no_further_file(tmp_path):
    log = streaming.ExampleDirectory(tmp_path / "examples")
    feed = continuous.WholeFeed(log, tf_examples.parser({"example_id": tf.constant([0])}), 4)
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

"""The join and the sampler under a tf.data service: a real dispatcher and two worker processes."""

import contextlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.datasets import ClickStream

pytestmark = pytest.mark.slow

service = tf.data.experimental.service

_EXAMPLE = pathlib.Path(__file__).parents[2] / "docs" / "examples" / "data_service.py"
_WINDOW = 128
_NUM_EXAMPLES = 48 * _WINDOW
_STREAM = ClickStream(num_examples=_NUM_EXAMPLES, positive_rate=0.1)
_WORKER_NAME = "worker.txt"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A dispatcher and workers, each in a directory with its name in a file."""
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=0))
    with contextlib.ExitStack() as stack:
        for name in ("first", "second"):
            directory = tmp_path_factory.mktemp(name)
            (directory / _WORKER_NAME).write_text(name)
            worker = subprocess.Popen(
                [sys.executable, str(_EXAMPLE), f"--worker_of={dispatcher.target.split('//')[1]}"],
                cwd=directory,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            stack.enter_context(worker.stdout)
            assert worker.stdout.readline() == "worker ready\n"
        yield dispatcher.target


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of five examples in six."""
    directory = str(tmp_path_factory.mktemp("records"))
    window = _STREAM.generate(np.arange(_NUM_EXAMPLES))
    kept = np.arange(_NUM_EXAMPLES) % 6 != 0
    logits = np.log(window["click_probability"] / (1 - window["click_probability"]))
    with ofb_tf.ForwardRecordWriter(directory, num_outputs=1) as writer:
        writer.write(window["example_id"].numpy()[kept], logits[kept], model_version=4)
    return directory


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The stream in eight files of six windows each."""
    return _STREAM.write_tfrecords(tmp_path_factory.mktemp("examples"), num_shards=8)


def _windows():
    return _STREAM.dataset(batched=True, window_size=_WINDOW)


def _distributed(dataset, address):
    """The dataset as two workers process it; every element names its worker."""
    named = dataset.map(lambda element: element | {"worker": tf.io.read_file(_WORKER_NAME)})
    return named.apply(
        service.distribute(processing_mode=service.ShardingPolicy.DYNAMIC, service=address)
    )


def _rows(dataset, fields):
    """Sorted tuples of scalar fields, over all elements or batches."""
    columns = [[] for _ in fields]
    for element in dataset.as_numpy_iterator():
        for column, field in zip(columns, fields, strict=True):
            column.extend(np.atleast_1d(element[field]).tolist())
    return sorted(zip(*columns, strict=True))


def test_the_join_sees_every_example_once(address, records):
    joined = _windows().unbatch().apply(ofb_tf.join_forward_records(records))
    fields = ("example_id", "has_record", "model_version")
    rows = _rows(_distributed(joined, address), fields)
    assert rows == [(i, i % 6 != 0, 4 if i % 6 else -1) for i in range(_NUM_EXAMPLES)]


@pytest.mark.parametrize("redraw", [True, False])
def test_rate_one_lets_every_example_through_once(address, records, redraw):
    dataset = _windows().apply(
        ofb_tf.ofb_sample(
            records=records,
            rate=1.0,
            window_size=_WINDOW,
            batch_size=_WINDOW,
            batched_input=True,
            seed=3,
            redraw_each_iteration=redraw,
        )
    )
    rows = _rows(_distributed(dataset, address), ("example_id", "importance_weight"))
    assert rows == [(i, 1.0) for i in range(_NUM_EXAMPLES)]


def test_both_workers_take_part(address, records):
    # Long enough that neither can be done before the other has begun; read until both were seen.
    endless = ClickStream(num_examples=10**9).dataset(batched=True, window_size=_WINDOW)
    dataset = endless.apply(
        ofb_tf.ofb_sample(records=records, window_size=_WINDOW, batch_size=16, batched_input=True)
    )
    workers = set()
    for element in _distributed(dataset, address).take(20_000).as_numpy_iterator():
        workers.add(element["worker"])
        if len(workers) == 2:
            break
    assert workers == {b"first", b"second"}


@pytest.mark.parametrize("redraw", [True, False])
@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("late_decode", [False, True])
def test_poisson_selection_equals_the_plain_run(
    address, records, shards, late_decode, batch_size, redraw
):
    def build():
        if late_decode:
            source = tf.data.Dataset.from_tensor_slices(shards).flat_map(tf.data.TFRecordDataset)
            options = {"parse_fn": ClickStream.parse_fn}
        else:
            source, options = _windows(), {"batched_input": True}
        return source.apply(
            ofb_tf.ofb_sample(
                records=records,
                policy=ofb_tf.Importance(design="poisson"),
                task="binary",
                window_size=_WINDOW,
                batch_size=batch_size,
                seed=17,
                redraw_each_iteration=redraw,
                **options,
            )
        )

    fields = ("example_id", "importance_weight", "click_probability")
    plain = _rows(build(), fields)
    assert 0.08 * _NUM_EXAMPLES < len(plain) < 0.12 * _NUM_EXAMPLES
    assert len({weight for _, weight, _ in plain}) > 100
    assert _rows(_distributed(build(), address), fields) == plain


def test_example_runs():
    result = subprocess.run(
        [sys.executable, str(_EXAMPLE), "--num_windows=6"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "at most once: True" in result.stdout
    assert "weight for weight: True" in result.stdout

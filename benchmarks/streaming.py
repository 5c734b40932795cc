"""A stream of growing directories against the batch path: the same files, join and selection."""

import os
import pathlib
from collections.abc import Callable

import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.clock import timed
from benchmarks.parts import Part, Row, Run, Settings, of, ratio
from ofb_tf import constants, streaming
from ofb_tf.datasets import ClickStream

_COPIES = 8
_DAY = 86_400.0
_BATCH_PATH, _STREAM = "ofb_sample on finished files", "SampledStream"


def _logs(settings: Settings) -> pathlib.Path:
    """The click stream's files several times, and its records, a file for each."""
    directory = settings.inputs / "stream"
    if not directory.is_dir():
        begun = directory.with_name("stream.open")
        for name in ("examples", "records"):
            (begun / name).mkdir(parents=True, exist_ok=True)
        records = inputs.click_records()
        with ofb_tf.ForwardRecordWriter(begun / "once", num_outputs=1) as writer:
            writer.write(records.example_ids.numpy(), records.logits.numpy())
        (once,) = (begun / "once").iterdir()
        for copy in range(_COPIES):
            os.link(once, begun / "records" / f"{copy}.ofbr")
            for path in inputs.click_files(settings):
                os.link(path, begun / "examples" / f"{copy}-{pathlib.Path(path).name}")
        begun.rename(directory)
    return directory


def _sampler(**settings: object) -> ofb_tf.OFBSampler:
    return inputs.sample(parse_fn=ClickStream.parse_fn, task=constants.BINARY, **settings)


def _number(settings: Settings) -> int:
    return inputs.NUM_CLICKS * (1 if settings.quick else _COPIES)


def _measured(dataset: tf.data.Dataset, settings: Settings) -> Run:
    """All of a dataset, from its first batch on: starting an iterator is measured elsewhere."""

    def run() -> dict[str, float]:
        iterator = iter(dataset)
        next(iterator)

        def read() -> int:
            return sum(1 for _ in iterator)

        figures, _ = timed(read)
        return figures | {"items": _number(settings)}

    return run


def _batch_path(settings: Settings) -> Run:
    directory = _logs(settings)
    files = sorted(map(str, (directory / "examples").iterdir()))
    sampler = _sampler(records=str(directory / "records" / "0.ofbr"))
    dataset = tf.data.TFRecordDataset(files).take(_number(settings)).apply(sampler)
    return _measured(dataset, settings)


def _stream(settings: Settings) -> Run:
    directory = _logs(settings)
    stream = streaming.SampledStream(
        _sampler(max_age=1e4 * _DAY),
        examples=streaming.ExampleDirectory(directory / "examples"),
        records=streaming.RecordDirectory(directory / "records"),
        follow=False,
    )
    batches = int(_number(settings) * inputs.RATE) // inputs.BATCH
    return _measured(stream.dataset().take(batches), settings)


def _rate(peer: str) -> Callable:
    return lambda medians: 1e6 / medians[peer]["wall_us"]


PARTS = (
    Part(
        name="stream",
        title="39-feature TFRecords: a stream of files against the batch path, late decode",
        item="input example",
        prepare=_logs,
        peers={_BATCH_PATH: _batch_path, _STREAM: _stream},
        rows=(
            Row("stream: examples per second, from files", _rate(_STREAM), at_least=300_000),
            Row("batch path: examples per second, the same files", _rate(_BATCH_PATH)),
            Row(
                "stream against the batch path, CPU per example (×)",
                ratio("cpu_us", _STREAM, _BATCH_PATH),
            ),
            Row("stream: CPU µs per example", of(_STREAM, "cpu_us")),
        ),
    ),
)

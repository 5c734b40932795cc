"""What it costs to start sampling, and to go on with new records."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.clock import timed
from benchmarks.parts import Medians, Part, Row, Run, Settings
from ofb_tf import constants

_NUM_RECORDS = 100_000
_REPEATS = 10


def _records(version: int) -> ofb_tf.ForwardRecords:
    ids = np.arange(_NUM_RECORDS)
    logits = np.random.default_rng(version).normal(size=_NUM_RECORDS).astype(np.float32)
    return ofb_tf.ForwardRecords.from_columns(ids, logits, model_versions=version)


def _examples() -> tf.data.Dataset:
    ids = np.arange(_NUM_RECORDS)
    fields = {constants.EXAMPLE_ID: ids, constants.LABEL: ids % 2}
    features = {f"feature_{i}": ids.astype(np.float32) for i in range(39)}
    return tf.data.Dataset.from_tensor_slices(fields | features)


def _windows(iterator: Iterator, count: int) -> None:
    for _ in itertools.islice(iterator, count):
        pass


def _update(settings: Settings) -> Run:
    """Updates a running sampler; the windows that follow are timed alone, and subtracted."""
    sampler = inputs.sample(records=_records(0), updatable=True)
    iterator = iter(_examples().repeat().apply(sampler))
    versions = itertools.cycle([_records(1), _records(2)])
    _windows(iterator, 20)

    def run() -> dict[str, float]:
        def refresh() -> None:
            for _ in range(_REPEATS):
                sampler.update(next(versions))
                _windows(iterator, 2)

        plain, _ = timed(lambda: _windows(iterator, 2 * _REPEATS))
        refreshed, _ = timed(refresh)
        figures = {name: max(refreshed[name] - plain[name], 0.0) for name in plain}
        return figures | {"items": _REPEATS}

    return run


def _repeated(work: Callable[[], object]) -> Run:
    work()

    def run() -> int:
        for _ in range(_REPEATS):
            work()
        return _REPEATS

    return run


def _first_apply(settings: Settings) -> Run:
    records, examples = _records(0), _examples()
    return _repeated(lambda: examples.apply(inputs.sample(records=records)))


def _second_apply(settings: Settings) -> Run:
    sampler, examples = inputs.sample(records=_records(0)), _examples()
    return _repeated(lambda: examples.apply(sampler))


def _start(settings: Settings) -> Run:
    sampled = _examples().apply(inputs.sample(records=_records(0)))
    return _repeated(lambda: iter(sampled))


def _start_updatable(settings: Settings) -> Run:
    sampled = _examples().apply(inputs.sample(records=_records(0), updatable=True))
    return _repeated(lambda: iter(sampled))


def _start_plain(settings: Settings) -> Run:
    batches = _examples().batch(inputs.BATCH).map(lambda batch: batch, tf.data.AUTOTUNE)
    return _repeated(lambda: iter(batches))


def _seconds(peer: str) -> Callable[[dict[str, Medians]], float]:
    return lambda medians: medians[peer]["cpu_us"] / 1e6


PARTS = (
    Part(
        name="refresh",
        title="Starting, and going on with new records (39 features, 100,000 records)",
        item="time",
        peers={
            "update": _update,
            "first apply": _first_apply,
            "second apply": _second_apply,
            "iterator start": _start,
            "iterator start, updatable": _start_updatable,
            "iterator start, batches alone": _start_plain,
        },
        rows=(
            Row(
                "new records into a running sampler, CPU seconds beyond loading",
                _seconds("update"),
                at_most=0.05,
            ),
            Row("first apply of a sampler, CPU seconds", _seconds("first apply")),
            Row("second apply, CPU seconds", _seconds("second apply"), at_most=0.05),
            Row("iterator start, CPU seconds", _seconds("iterator start"), at_most=0.06),
            Row(
                "iterator start with updatable records, CPU seconds",
                _seconds("iterator start, updatable"),
                at_most=0.06,
            ),
            Row(
                "iterator start of batches alone, CPU seconds",
                _seconds("iterator start, batches alone"),
            ),
        ),
        repeats=5,
    ),
)

"""Writing and reading forward records."""

import pathlib
import tempfile

from benchmarks import inputs
from benchmarks.clock import timed
from benchmarks.parts import Part, Row, Run, Settings, millions_per_second, of
from ofb_tf import constants
from ofb_tf.records import ForwardRecordWriter, reader

_MILLION = 1_000_000
_WRITE_BATCH = 256


def _write(settings: Settings) -> Run:
    """Batches of 256 with one output, one thread, to the last flush."""
    count = settings.count(4 * _MILLION)
    ids = inputs.scattered_ids(count)
    logits = inputs.logits_of(ids)

    def write(directory: str) -> None:
        with ForwardRecordWriter(directory, num_outputs=1) as writer:
            for first in range(0, count, _WRITE_BATCH):
                part = slice(first, first + _WRITE_BATCH)
                writer.write(ids[part], logits[part], model_version=7)

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as directory:
            figures, _ = timed(lambda: write(directory))
            on_disk = sum(path.stat().st_size for path in pathlib.Path(directory).iterdir())
        return figures | {"items": count, "bytes_per_record": on_disk / count}

    return run


def _read(settings: Settings) -> Run:
    """Record files to arrays."""
    count = settings.count(10 * _MILLION)
    directory = str(inputs.record_files(settings, count))
    reader.read_columns(directory)

    def run() -> int:
        columns = reader.read_columns(directory)
        return len(columns.arrays[constants.EXAMPLE_ID])

    return run


def _prepare_read(settings: Settings) -> None:
    inputs.record_files(settings, settings.count(10 * _MILLION))


PARTS = (
    Part(
        name="records_write",
        title="Writing records of one output in batches of 256, one thread",
        item="record",
        peers={"ofb_tf": _write},
        rows=(
            Row(
                "million records written per second (wall-clock)",
                millions_per_second("ofb_tf", "wall"),
                at_least=2,
            ),
            Row("million records written per CPU second", millions_per_second("ofb_tf")),
            Row("bytes per record on disk", of("ofb_tf", "bytes_per_record"), at_most=16),
        ),
    ),
    Part(
        name="records_read",
        title="Reading 10 million records of one output to arrays",
        item="record",
        peers={"ofb_tf": _read},
        prepare=_prepare_read,
        rows=(
            Row(
                "million records read per second (wall-clock)",
                millions_per_second("ofb_tf", "wall"),
                at_least=10,
            ),
            Row("million records read per CPU second", millions_per_second("ofb_tf")),
        ),
    ),
)

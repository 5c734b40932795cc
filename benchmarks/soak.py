"""A stream at full speed for minutes: is its memory flat once the records' horizon is full?

examples:
  python -m benchmarks.soak --minutes=20
  python -m benchmarks.soak --minutes=20 --json=out/soak.json

A process goes on adding files of 39-feature tf.Examples, and their records, and deletes old ones;
it stays a few files ahead of `SampledStream`, which joins, selects and decodes in this process. A
file arrives as one minute of simulated time, and records count for `--horizon` minutes, so that
their number depends on no speed. Files are written once, so that reading is what takes time: each
comes again when its records are too old to count, with new ones. As by a trainer, the state is
taken every few batches. Once a minute: examples, examples per second, resident records, and memory:
what is resident, and what of it the C library's allocator has given out (on Linux). Where the first
grows and the second does not, it is the allocator that keeps what was freed.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
from typing import Any

# TensorFlow warns of every id that replaces another one.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.clock import cpu_seconds
from benchmarks.parts import Settings
from ofb_tf import constants, streaming
from ofb_tf.datasets import ClickStream

_MINUTE = 60.0
_START = 1_700_000_000.0  # when the first file arrives, in simulated time
_FILE_EXAMPLES = inputs.NUM_CLICKS // 4
_AHEAD, _KEPT = 8, 8  # files that are written ahead, and kept behind the reader's place
_STATE_EVERY = 20  # batches
_FIRST_ID = 1 << 62  # a varint of nine bytes, as all ids that follow
_VARINT_BYTES = 9


def _ids_as_features(ids: np.ndarray) -> list[bytes]:
    """Serialized tf.Examples with the id alone; behind another one they replace its id."""
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[_FIRST_ID]))
    features = tf.train.Features(feature={constants.EXAMPLE_ID: feature})
    template = tf.train.Example(features=features).SerializeToString()
    sevens = ids[:, None] >> (7 * np.arange(_VARINT_BYTES))
    varints = (sevens & 0x7F | 0x80).astype(np.uint8)
    varints[:, -1] &= 0x7F
    rows = np.tile(np.frombuffer(template, np.uint8), (len(ids), 1))
    rows[:, -_VARINT_BYTES:] = varints
    return [row.tobytes() for row in rows]


def _generate(directory: pathlib.Path, sources: list[str], horizon: int, done: Any) -> None:
    """Adds files for ever, a few ahead of the reader's place, and deletes old ones.

    Args:
      directory: gets `examples` and `records`.
      sources: files of examples, which are copied with new ids.
      horizon: files of records that count at a time.
      done: a shared value: the number of examples that were read.
    """
    records = inputs.click_records()
    logits = records.logits.numpy()[:_FILE_EXAMPLES]
    copies = _copies(directory / "copies", sources, horizon + 2 * (_AHEAD + _KEPT))
    for number in itertools.count():
        while number * _FILE_EXAMPLES - done.value > _AHEAD * _FILE_EXAMPLES:
            time.sleep(0.01)
        arrived = _START + number * _MINUTE
        path, ids = copies[number % len(copies)]
        made = directory / "made"
        with ofb_tf.ForwardRecordWriter(made, num_outputs=1) as writer:
            writer.write(ids, logits, timestamp=round(arrived * constants.MICROSECONDS))
        (file,) = made.iterdir()
        _appear(file, directory / "records" / f"{number:06d}.ofbr", arrived)
        (made / "examples").hardlink_to(path)
        _appear(made / "examples", directory / "examples" / f"{number:06d}", arrived)
        passed = done.value // _FILE_EXAMPLES - _KEPT
        for name, kept in (("records", horizon), ("examples", 0)):
            for path in (directory / name).iterdir():
                if int(path.stem) < passed - kept:
                    path.unlink()


def _copies(
    directory: pathlib.Path, sources: list[str], number: int
) -> list[tuple[pathlib.Path, np.ndarray]]:
    """So many files of examples with ids that no other one has, and their ids."""
    directory.mkdir()
    contents = [
        list(tf.data.TFRecordDataset(path).as_numpy_iterator())[:_FILE_EXAMPLES] for path in sources
    ]
    copies = []
    for copy in range(number):
        ids = _FIRST_ID + np.arange(copy * _FILE_EXAMPLES, (copy + 1) * _FILE_EXAMPLES)
        path, content = directory / f"{copy:06d}", contents[copy % len(contents)]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example, id_ in zip(content, _ids_as_features(ids), strict=True):
                writer.write(example + id_)
        copies.append((path, ids))
    return copies


def _appear(file: pathlib.Path, path: pathlib.Path, arrived: float) -> None:
    os.utime(file, (arrived, arrived))
    file.rename(path)


def _soak(directory: pathlib.Path, minutes: float, horizon: int, done: Any) -> list[dict]:
    """Reads for so long; a dict of figures per minute."""
    stream = streaming.SampledStream(
        inputs.sample(
            parse_fn=ClickStream.parse_fn, task=constants.BINARY, max_age=horizon * _MINUTE
        ),
        examples=streaming.ExampleDirectory(directory / "examples"),
        records=streaming.RecordDirectory(directory / "records"),
        poll_interval=0.1,
    )
    report, figures = streaming.StreamReport(stream), []
    begin = last = time.monotonic()
    cpu = cpu_seconds()
    for number, _ in enumerate(stream.dataset(), 1):
        if number % _STATE_EVERY:
            continue
        stream.state(number)
        status = stream.status()
        done.value = int(status["examples"])
        now = time.monotonic()
        if now - last < _MINUTE:
            continue
        status = report.report()
        names = ("examples", "examples_per_second", "coverage", "resident_records")
        figures.append(
            {"minute": round((now - begin) / _MINUTE, 2)}
            | {name: round(status[name], 4) for name in names}
            | {
                "cpu_us": round(
                    1e6 * (cpu_seconds() - cpu) / (status["examples_per_second"] * (now - last)), 2
                ),
                "resident_mebibytes": round(inputs.resident_bytes() / 2**20, 1),
                "allocated_mebibytes": round(inputs.allocated_bytes() / 2**20, 1),
            }
        )
        print(json.dumps(figures[-1]), flush=True)
        last, cpu = now, cpu_seconds()
        if now - begin >= minutes * _MINUTE:
            break
    stream.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--horizon", type=int, default=60, help="files of 50,000 records in memory")
    parser.add_argument("--json", help="a file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        sources = inputs.click_files(Settings(inputs=directory))
        for log in ("examples", "records"):
            (directory / log).mkdir()
        context = multiprocessing.get_context("spawn")
        done = context.Value("q", 0)
        generator = context.Process(
            target=_generate, args=(directory, sources, arguments.horizon, done), daemon=True
        )
        generator.start()
        try:
            figures = _soak(directory, arguments.minutes, arguments.horizon, done)
        finally:
            generator.terminate()
            generator.join()
    full = [each for each in figures if each["examples"] > arguments.horizon * _FILE_EXAMPLES]
    resident = [each["resident_mebibytes"] for each in full]
    if resident:
        print(
            f"resident memory with the horizon full, {len(full)} minutes: "
            f"{min(resident):,.0f} to {max(resident):,.0f} MiB, at the end {resident[-1]:,.0f} MiB"
        )
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

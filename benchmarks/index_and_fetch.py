"""Reading only the selected examples, by index and offset, against scanning all of them.

examples:
  python -m benchmarks.index_and_fetch
  python -m benchmarks.index_and_fetch --sizes=2048,8192 --rates=0.1 --json=out/fetch.json

Real files of serialized tf.Examples (id, label, and lists of 64 floats) are written once; every
peer delivers the same parsed, weighted batches of the same selection, which is checked. Figures are
per example of the stream, without those of starting an iterator: passes over a file that is in the
page cache, medians of repeats in which the peers take turns. "cold" is one pass, with the start,
over a file that the page cache has been asked to forget; bytes are then those read from the disk.

peers:
  scan              TFRecordDataset, ofb_sample(parse_fn=...)
  scan, GZIP        the same on a compressed file
  fetch             ExampleIndex
  fetch, plain      the same by a tf.data function call per example
  Python, mmap      selected keys in a Python generator, which slices the mapped file
  ArrayRecord       selected keys in a Python generator, which reads by row; uncompressed, and
  ArrayRecord, zstd compressed, group_size 1; both only where array_record is installed
"""

import argparse
import importlib.util
import json
import mmap
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.clock import timed
from benchmarks.example_index import BYTE_OFFSET, ExampleIndex, write_example_index
from ofb_tf.tables import format_table

_FLOATS = 64
_MIN_EXAMPLES, _MIN_BYTES = 2 * inputs.WINDOW, 1 << 26
_PARALLEL = tf.data.AUTOTUNE
_BASE = "scan"


class Peers:
    """The peers for files of one size at one rate: name → function of the number of passes."""

    def __init__(self, directory: pathlib.Path, size: int, rate: float) -> None:
        self.count = max(_MIN_EXAMPLES, _MIN_BYTES // size)
        self._floats = max(1, round((size - 40) / (4 * _FLOATS + 22)))  # features of 64 floats
        self._path = str(directory / f"{size}.tfrecord")
        self.files = {_BASE: self._path, "scan, GZIP": f"{self._path}.gz"}
        rows = {"ArrayRecord": "uncompressed", "ArrayRecord, zstd": "zstd:3"}
        if importlib.util.find_spec("array_record"):
            self.files |= {name: f"{self._path}.{how[:4]}" for name, how in rows.items()}
        self._write({name: rows[name] for name in self.files if name in rows})
        logits = np.random.default_rng(1).normal(-2.0, 2.0, [self.count, 1]).astype(np.float32)
        self._records = ofb_tf.ForwardRecords.from_columns(np.arange(self.count), logits)
        self._rate = rate
        self._index = ExampleIndex(self._path)
        self.build: dict[str, Callable[[int], tf.data.Dataset]] = {
            _BASE: lambda passes: self._scan("", passes),
            "scan, GZIP": lambda passes: self._scan("GZIP", passes),
            "fetch": lambda passes: self._fetch(passes),
            "fetch, plain": lambda passes: self._selected(passes).flat_map(self._plain),
            "Python, mmap": lambda passes: self._from_python(self._slice, passes),
        }
        for name in rows:
            if name in self.files:
                self.build[name] = lambda passes, name=name: self._from_python(
                    lambda batches: self._read_rows(self.files[name], batches), passes
                )

    def files_of(self, peer: str) -> list[str]:
        """What a peer reads."""
        examples = self.files.get(peer, self._path)
        return [examples] if peer.startswith("scan") else [examples, f"{self._path}.index"]

    def _example(self, number: int, rng: np.random.Generator) -> bytes:
        example = tf.train.Example()
        feature = example.features.feature
        feature["example_id"].int64_list.value.append(number)
        feature["label"].int64_list.value.append(number % 2)
        values = rng.integers(0, 1000, [self._floats, _FLOATS]).astype(np.float32)
        for column, floats in enumerate(values):
            feature[f"feature_{column}"].float_list.value.extend(floats)
        return example.SerializeToString()

    def _parse(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        names = (f"feature_{column}" for column in range(self._floats))
        floats = dict.fromkeys(names, tf.io.FixedLenFeature([_FLOATS], tf.float32))
        return tf.io.parse_example(serialized, inputs.ID_AND_LABEL | floats)

    def _write(self, row_files: dict[str, str]) -> None:
        if all(os.path.exists(path) for path in (*self.files.values(), f"{self._path}.index")):
            return
        rng = np.random.default_rng(0)
        writers = [
            tf.io.TFRecordWriter(self._path),
            tf.io.TFRecordWriter(self.files["scan, GZIP"], "GZIP"),
        ]
        for name, how in row_files.items():
            from array_record.python.array_record_module import ArrayRecordWriter

            writers.append(ArrayRecordWriter(self.files[name], f"group_size:1,{how}"))
        for number in range(self.count):
            serialized = self._example(number, rng)
            for writer in writers:
                writer.write(serialized)
        for writer in writers:
            writer.close()
        write_example_index(self._path)

    def _sample(self, **settings: object) -> ofb_tf.OFBSampler:
        return inputs.sample(records=self._records, rate=self._rate, **settings)

    def _scan(self, compression: str, passes: int) -> tf.data.Dataset:
        path = self.files["scan, GZIP" if compression else _BASE]
        stream = tf.data.TFRecordDataset(path, compression).repeat(passes)
        return stream.apply(self._sample(parse_fn=self._parse))

    def _selected(self, passes: int) -> tf.data.Dataset:
        return self._index.keys().repeat(passes).apply(self._sample(batched_input=True))

    def _fetch(self, passes: int) -> tf.data.Dataset:
        fetch = self._index.fetch(self._parse, batch_size=inputs.BATCH)
        return self._selected(passes).apply(fetch)

    def _plain(self, batch: dict[str, tf.Tensor]) -> tf.data.Dataset:
        def read(offset: tf.Tensor) -> tf.data.Dataset:
            variant = tf.raw_ops.TFRecordDatasetV2(
                filenames=[self._path],
                compression_type="",
                buffer_size=tf.constant(0, tf.int64),
                byte_offsets=tf.reshape(offset, [1]),
            )
            return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(1)

        offsets = tf.data.Dataset.from_tensor_slices(batch[BYTE_OFFSET])
        weight = batch["importance_weight"]
        whole = offsets.flat_map(read).batch(tf.size(weight, tf.int64))
        return whole.map(lambda data: self._parse(data) | {"importance_weight": weight})

    def _from_python(self, read: Callable, passes: int) -> tf.data.Dataset:
        def generate() -> Iterator:
            return read(self._selected(passes).prefetch(2).as_numpy_iterator())

        signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.float32))
        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
        return dataset.map(
            lambda data, weight: self._parse(data) | {"importance_weight": weight}, _PARALLEL
        )

    def _slice(self, batches: Iterator) -> Iterator:
        with (
            open(self._path, "rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
        ):
            for batch in batches:
                values = []
                for offset in batch[BYTE_OFFSET].tolist():
                    length = int.from_bytes(data[offset : offset + 8], "little")
                    values.append(data[offset + 12 : offset + 12 + length])
                yield np.array(values, object), batch["importance_weight"]

    def _read_rows(self, path: str, batches: Iterator) -> Iterator:
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(path, "readahead_buffer_size:0")
        for batch in batches:  # ids are row numbers
            values = reader.read(batch["example_id"].tolist())
            yield np.array(values, object), batch["importance_weight"]
        reader.close()


def _bytes_read(name: str) -> int:
    """A counter of this process: "rchar", what calls returned, or "read_bytes", from the disk."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)[name])


def _measure(run: Callable[[], int], counter: str) -> dict[str, float]:
    before = _bytes_read(counter)
    figures, _ = timed(run)
    return figures | {"bytes": _bytes_read(counter) - before}


def _warm(short: tf.data.Dataset, long: tf.data.Dataset, items: int) -> dict[str, float]:
    start = _measure(lambda: inputs.consume(short), "rchar")
    run = _measure(lambda: inputs.consume(long), "rchar")
    return {name: (run[name] - start[name]) / items for name in run}


def _cold(dataset: tf.data.Dataset, paths: list[str], items: int) -> dict[str, float]:
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    run = _measure(lambda: inputs.consume(dataset), "read_bytes")
    return {name: value / items for name, value in run.items()}


def _check(datasets: dict[str, tf.data.Dataset]) -> None:
    """Raises AssertionError unless all peers deliver the same."""
    expected = None
    for name, dataset in datasets.items():
        batches = [(b["example_id"], b["importance_weight"]) for b in dataset.as_numpy_iterator()]
        ids, weights = (np.concatenate(column) for column in zip(*batches, strict=True))
        expected = (ids, weights) if expected is None else expected
        assert np.array_equal(ids, expected[0]) and np.array_equal(weights, expected[1]), name


def compare(
    directory: pathlib.Path, size: int, rate: float, only: list[str], repeats: int, passes: int
) -> list[dict]:
    """A dict of figures per peer: medians per example of the stream."""
    peers = Peers(directory, size, rate)
    peers.build = {k: v for k, v in peers.build.items() if k == _BASE or not only or k in only}
    short = {name: build(1) for name, build in peers.build.items()}
    long = {name: build(1 + passes) for name, build in peers.build.items()}
    _check(short)
    warm: dict[str, list] = {name: [] for name in peers.build}
    cold: dict[str, list] = {name: [] for name in peers.build}
    for _ in range(repeats):
        for name in peers.build:
            warm[name].append(_warm(short[name], long[name], peers.count * passes))
            cold[name].append(_cold(short[name], peers.files_of(name), peers.count))

    def median(samples: list[dict], figure: str) -> float:
        return statistics.median(sample[figure] for sample in samples)

    rows = []
    for name in peers.build:
        row = {"bytes per example": size, "rate": rate, "peer": name}
        row["CPU µs"] = median(warm[name], "cpu_seconds") * 1e6
        row["wall µs"] = median(warm[name], "wall_seconds") * 1e6
        row["bytes read"] = median(warm[name], "bytes")
        row["cold wall µs"] = median(cold[name], "wall_seconds") * 1e6
        row["cold bytes"] = median(cold[name], "bytes")
        rows.append(row)
    for row in rows:
        row["CPU, scan = 1"] = row["CPU µs"] / rows[0]["CPU µs"]
    return rows


def main(argv: list[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.index_and_fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", default="512,2048,8192,32768", help="bytes of an example")
    parser.add_argument("--rates", default="0.1,0.02", help="fractions that are selected")
    parser.add_argument("--peers", default="", help="separated by semicolons; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="how often the peers take turns")
    parser.add_argument("--passes", type=int, default=4, help="measured passes over a warm file")
    parser.add_argument("--inputs", default="out/bench/fetch", help="directory of input files")
    parser.add_argument("--json", help="a file for the figures")
    arguments = parser.parse_args(argv)
    directory = pathlib.Path(arguments.inputs)
    directory.mkdir(parents=True, exist_ok=True)
    only = [name.strip() for name in arguments.peers.split(";") if name]
    rows = []
    for size in map(int, arguments.sizes.split(",")):
        for rate in map(float, arguments.rates.split(",")):
            start = time.perf_counter()
            load = os.getloadavg()[0]
            added = compare(directory, size, rate, only, arguments.repeats, arguments.passes)
            seconds = time.perf_counter() - start
            print(f"{size} bytes, rate {rate}: {seconds:.0f} s, load average {load:.1f}")
            cells = [[_text(value) for value in row.values()] for row in added]
            print(format_table([list(added[0]), *cells]), flush=True)
            rows += added
            if arguments.json:
                pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())

"""`make fuzz`: mutated record files and logs through every reader, for a given time.

Inputs are made of valid ones, by their structure: TFRecords keep right checksums around mutated
messages, JSON stays JSON around a mutated value, and plain bytes are mutated too. The same target
and seed make the same input. A finding is an exception that is not documented, a process that
dies, an input that takes 10 seconds of CPU or 512 MiB, a report that does not add up, or a
record that nobody wrote.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback

import numpy as np
import tensorflow as tf

from ofb_tf import records
from ofb_tf.records import files, importers, reader

DOCUMENTED = (ValueError, FileNotFoundError)
MAX_SECONDS, MAX_KILOBYTES = 10.0, 512 * 1024
LOGS = pathlib.Path(__file__).parent / "records" / "logs"
ROWS = 24
START = 1_714_564_800_000_000  # of the valid rows, in microseconds
NUMBERS = (
    0,
    1,
    -1,
    77,
    2**31,
    2**31 - 1,
    2**53 + 1,
    2**63,
    2**63 - 1,
    -(2**63),
    10**40,
    1e308,
    0.5,
)
TEXTS = ("", "a", "007", "NaN", "-Infinity", "\0", "\ud800", "é" * 50, "[" * 2000, "2255-01-01")


class Finding(AssertionError):
    """What must not happen."""


def mutate_bytes(rng, data):
    """Flips, cuts, repeats, inserts and overwrites a few times."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        begin = rng.randrange(len(data))
        end = min(len(data), begin + rng.choice((1, 2, 4, 8, 64, 1024)))
        kind = rng.randrange(7)
        if kind == 0:
            data[begin] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[begin] = rng.randrange(256)
        elif kind == 2:
            del data[begin:end]
        elif kind == 3:
            data[begin:begin] = data[begin:end]
        elif kind == 4:
            data[begin:begin] = rng.randbytes(end - begin)
        elif kind == 5:
            number = rng.choice((0, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**28 + 1))
            data[begin : begin + 8] = number.to_bytes(8, "little")
        elif rng.random() < 0.3:
            del data[begin:]
    return bytes(data)


def junk(rng, depth=0):
    """Any JSON value."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return rng.choice((None, True, False, float("nan"), float("inf")))
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4):
        return rng.choice(TEXTS)
    if kind == 5:
        return {rng.choice(("data", "shape", "id", "logits", "a")): junk(rng, depth + 1)}
    return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]


def mutate_json(rng, value):
    """A copy in which one value, at any depth, is replaced, removed, repeated or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.1:
            return rest
        new = rng.choice((key, key, key, key, "x"))
        return {**rest, new: mutate_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        changed = [mutate_json(rng, value[place])] * rng.choice((0, 1, 1, 1, 1, 2))
        return [*value[:place], *changed, *value[place + 1 :]]
    if isinstance(value, str) and value[:1] in ("{", "[") and rng.random() < 0.7:
        return json.dumps(mutate_json(rng, json.loads(value)))
    return [value] if rng.random() < 0.1 else junk(rng)


class Targets:
    """One method per reader: makes an input from a generator, reads it and checks the result."""

    def __init__(self, directory):
        self.directory = directory
        self.path = os.path.join(directory, "input")
        ids = np.arange(1000, 1000 + ROWS)
        with records.ForwardRecordWriter(os.path.join(directory, "valid"), block_records=8) as w:
            w.write(ids, self.logits_of(ids), model_version=ids % 3, timestamp=START + ids)
        (self.valid,) = pathlib.Path(directory, "valid").iterdir()
        self.schema = records.read_schema(str(self.valid))
        self.write(self.valid.read_bytes())
        self.stored = records.sorted_file_dataset(self.path, self.schema)  # traced once
        self.blocks = [r.numpy() for r in tf.data.TFRecordDataset(str(self.valid))]

    def logits_of(self, ids):
        return np.stack([ids % 1009, -(ids % 7)], axis=1).astype(np.float32)

    def names(self):
        found = ["record_bytes", "record_blocks", "graph", "jsonl", "csv", "text_bytes"]
        found += [f"calls_{path.stem}" for path in sorted(LOGS.glob("*.jsonl"))]
        try:
            import tensorflow_serving.apis.prediction_log_pb2  # noqa: F401

            found.append("prediction_log")
        except ImportError:
            pass
        try:
            import pyarrow  # noqa: F401

            found += ["parquet", "arrow", "parquet_payloads"]
        except ImportError:
            pass
        return found

    def run(self, name, rng):
        """Reads one input; returns whether it was accepted, or raises a Finding."""
        target, _, argument = name.partition("_") if name.startswith("calls_") else (name, "", "")
        begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            getattr(self, target)(rng, *([argument] if argument else []))
            accepted = True
        except Finding:
            raise
        except DOCUMENTED:
            accepted = False
        except Exception as error:
            raise Finding(traceback.format_exc(limit=-4)) from error
        seconds = time.process_time() - begin  # whatever else the machine does
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if seconds > MAX_SECONDS or kilobytes > MAX_KILOBYTES:
            raise Finding(f"{seconds:.1f} seconds, {kilobytes // 1024} MiB")
        return accepted

    def write(self, data):
        pathlib.Path(self.path).write_bytes(data)

    def write_blocks(self, blocks):
        with tf.io.TFRecordWriter(self.path) as writer:
            for block in blocks:
                writer.write(block)

    def mutated_blocks(self, rng):
        """A block whose message or one of whose features is mutated, under a right checksum."""
        blocks = list(self.blocks)
        place = rng.randrange(len(blocks))
        if rng.random() < 0.3:
            blocks[place] = mutate_bytes(rng, blocks[place])
        else:
            example = tf.train.Example.FromString(blocks[place])
            feature = example.features.feature[rng.choice(sorted(example.features.feature))]
            if feature.bytes_list.value:
                feature.bytes_list.value[0] = mutate_bytes(rng, feature.bytes_list.value[0])
            else:
                feature.int64_list.value[:] = [
                    rng.choice([n for n in NUMBERS if isinstance(n, int) and -(2**63) <= n < 2**63])
                ] * rng.choice((1, 1, 1, 0, 2))
            blocks[place] = example.SerializeToString()
        return blocks

    def check_columns(self, columns):
        size = len(columns)
        if any(len(data) != size for data in columns.arrays.values()):
            raise Finding("columns of different lengths")

    def record_bytes(self, rng):
        self.write(mutate_bytes(rng, self.valid.read_bytes()))
        columns = reader.read_columns(self.path, on_corrupt=rng.choice(("error", "skip")))
        ids = columns.arrays["example_id"]
        if not np.array_equal(columns.arrays["logits"], self.logits_of(ids)):
            raise Finding("a record that nobody wrote")

    def record_blocks(self, rng):
        self.write_blocks(self.mutated_blocks(rng))
        self.check_columns(reader.read_columns(self.path, on_corrupt="skip"))
        records.verify(self.path)

    def graph(self, rng):
        if rng.random() < 0.2:
            self.write(mutate_bytes(rng, self.valid.read_bytes()))
        else:
            self.write_blocks(self.mutated_blocks(rng))
        try:
            files.check_headers(self.path)  # as sorted_file_dataset does for a name
            (columns,) = self.stored
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            raise ValueError("documented") from error
        if len({len(data) for data in columns.values()}) != 1:
            raise Finding("columns of different lengths")

    def imported(self, format, **arguments):
        """Imports the input; checks that the report adds up and that times are times."""
        with tempfile.TemporaryDirectory(dir=self.directory) as output:
            report = importers.import_records(
                self.path, output, format=format, bad_rows="list", **arguments
            )
            if report.num_bad_rows != len(report.bad_rows) or report.num_bad_rows != sum(
                report.reasons.values()
            ):
                raise Finding(f"bad rows do not add up: {report}")
            if report.num_rows < report.num_bad_rows:
                raise Finding(f"more bad rows than rows: {report}")
            if not report.num_records:
                return {}
            columns = reader.read_columns(output)
        self.check_columns(columns)
        times = columns.arrays["timestamp"]
        if len(columns) != report.num_records:
            raise Finding(f"{len(columns)} records of {report.num_records}")
        if (
            format not in ("prediction_log",)
            and not ((times >= 946_684_800_000_000) & (times < 4_102_444_800_000_000)).all()
        ):
            raise Finding(f"a record in 1970 or 2255: {times}")
        if format in ("jsonl", "csv", "parquet", "arrow") and (
            report.num_rows != report.num_records + report.num_bad_rows
        ):
            raise Finding(f"rows do not add up: {report}")
        return dict(
            zip(
                columns.arrays["example_id"].tolist(),
                columns.arrays["logits"].tolist(),
                strict=True,
            )
        )

    def rows(self):
        return [
            {"example_id": i, "logits": [i / 2, -i / 4], "model_version": 3, "timestamp": START + i}
            for i in range(ROWS)
        ]

    def others_are_right(self, found, changed):
        """Rows that were not mutated were written as they were, unless one of their id follows."""
        wrong = [i for i in range(ROWS) if i != changed and found.get(i) != [i / 2, -i / 4]]
        if len(wrong) > 1:  # the mutated row may have the id of one other
            raise Finding(f"rows {wrong} are wrong, though only row {changed} was mutated")

    def jsonl(self, rng):
        rows = self.rows()
        changed = rng.randrange(1, ROWS)
        rows[changed] = mutate_json(rng, rows[changed])
        self.write("\n".join(map(json.dumps, rows)).encode("utf-8", "surrogatepass"))
        self.others_are_right(self.imported("jsonl", num_outputs=2), changed)

    def csv(self, rng):
        lines = [f'{r["example_id"]},"{r["logits"]}",3,{r["timestamp"]}' for r in self.rows()]
        changed = rng.randrange(1, ROWS)
        line = mutate_bytes(rng, lines[changed].encode())
        if not set(line) & set(b'"\r\n'):  # which would reach into other lines
            lines[changed] = line.decode("utf-8", "surrogateescape")
        text = "\n".join(["example_id,logits,model_version,timestamp", *lines])
        self.write(text.encode("utf-8", "surrogateescape"))
        self.others_are_right(self.imported("csv", num_outputs=2), changed)

    def text_bytes(self, rng):
        header = b"example_id,logits,model_version,timestamp\n" * rng.randrange(2)
        lines = header + b"\n".join(json.dumps(row).encode() for row in self.rows())
        self.write(mutate_bytes(rng, lines))
        self.imported(rng.choice(("jsonl", "csv")))

    def calls(self, rng, name):
        format = "cloudevents" if name in ("kserve", "seldon") else name
        lines = (LOGS / f"{name}.jsonl").read_text().splitlines()
        place = rng.randrange(len(lines))
        if rng.random() < 0.2:
            lines[place] = mutate_bytes(rng, lines[place].encode()).decode("utf-8", "replace")
        else:
            lines[place] = json.dumps(mutate_json(rng, json.loads(lines[place])))
        self.write("\n".join(lines).encode("utf-8", "surrogatepass"))
        self.imported(format)

    def prediction_log(self, rng):
        from tensorflow_serving.apis import prediction_log_pb2

        entries = []
        for i in range(4):
            log = prediction_log_pb2.PredictionLog()
            outputs = log.predict_log.response.outputs
            outputs["example_id"].CopyFrom(tf.make_tensor_proto([i]))
            outputs["logits"].CopyFrom(tf.make_tensor_proto([[i / 2, -i / 4]]))
            log.log_metadata.timestamp_secs = START // 10**6
            entries.append(log.SerializeToString(deterministic=True))
        place = rng.randrange(4)
        entries[place] = mutate_bytes(rng, entries[place])
        self.write_blocks(entries)
        self.imported("prediction_log")

    def table(self, rng, format, table):
        import pyarrow as pa
        from pyarrow import parquet

        sink = pa.BufferOutputStream()
        if format == "parquet":
            codec = rng.choice(("none", "snappy", "zstd", "gzip"))
            checks = {"write_page_checksum": True} if pa.__version__ >= "13" else {}
            parquet.write_table(table, sink, compression=codec, row_group_size=9, **checks)
        else:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=9)
        self.write(mutate_bytes(rng, sink.getvalue().to_pybytes()))

    def parquet(self, rng, format="parquet"):
        import pyarrow as pa

        self.table(rng, format, pa.Table.from_pylist(self.rows()))
        self.imported(format)

    def arrow(self, rng):
        self.parquet(rng, "arrow")

    def parquet_payloads(self, rng):
        import pyarrow as pa

        lines = (LOGS / "vertex.jsonl").read_text().splitlines()
        self.table(rng, "parquet", pa.Table.from_pylist([json.loads(line) for line in lines]))
        self.imported("vertex")


def work(names, seed, seconds, inputs, progress):
    """Tries inputs in this process; prints a line of JSON per finding, and the counts."""
    counts = {}
    with tempfile.TemporaryDirectory() as directory:
        targets = Targets(directory)
        names = names or targets.names()
        end = time.monotonic() + seconds
        while time.monotonic() < end and (inputs is None or inputs > 0):
            for name in names:
                if name == "graph" and seed % 10:
                    continue  # an iterator takes half a second, most of all inputs of a round
                progress.write_text(json.dumps([name, seed, counts]))
                rng = random.Random(f"{name}-{seed}")
                tried, accepted, found = counts.get(name, (0, 0, 0))
                try:
                    accepted += targets.run(name, rng)
                except Finding as finding:
                    found += 1
                    print(json.dumps({"target": name, "seed": seed, "finding": str(finding)}))
                counts[name] = (tried + 1, accepted, found)
            seed += 1
            inputs = None if inputs is None else inputs - 1
    progress.write_text(json.dumps([None, seed, counts]))


def main(argv=None):
    """Runs workers one after another, so that one that dies is a finding and not the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--inputs", type=int, help="of every target, instead of --seconds")
    parser.add_argument("--only", default="", help="targets, separated by commas")
    parser.add_argument("--progress", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    names = [name for name in arguments.only.split(",") if name]
    seconds = 1e9 if arguments.inputs else arguments.seconds
    if arguments.progress:
        work(names, arguments.seed, seconds, arguments.inputs, arguments.progress)
        return 0
    begin, seed, totals, findings = time.monotonic(), arguments.seed, {}, []
    with tempfile.TemporaryDirectory() as directory:
        progress = pathlib.Path(directory, "progress")
        while True:
            left = seconds - (time.monotonic() - begin)
            progress.write_text(json.dumps([None, seed, {}]))
            command = [sys.executable, "-m", "tests.fuzz", f"--seed={seed}", f"--seconds={left}"]
            command += [f"--progress={progress}", f"--only={arguments.only}"]
            command += [f"--inputs={arguments.inputs}"] if arguments.inputs else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            findings += [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
            name, last, counts = json.loads(progress.read_text())
            for target, more in counts.items():
                totals[target] = [
                    a + b for a, b in zip(totals.get(target, (0, 0, 0)), more, strict=True)
                ]
            if not done.returncode:
                break
            if name is None:  # it did not begin
                raise RuntimeError(f"the worker ended with {done.returncode}; see above")
            findings.append({"target": name, "seed": last, "finding": f"died: {done.returncode}"})
            seed = last + 1
    print(f"{'target':20} {'inputs':>9} {'accepted':>9} {'findings':>9}")
    for target, row in totals.items():
        print(f"{target:20} {row[0]:9,} {row[1]:9,} {row[2]:9,}")
    total = sum(row[0] for row in totals.values())
    print(f"{total:,} inputs in {time.monotonic() - begin:.0f} s, {len(findings)} findings")
    for finding in findings[:20]:
        print("\n{target} --seed={seed}\n{finding}".format(**finding))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

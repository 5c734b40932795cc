"""The cost of ForwardRecordGen and OFBSampler at scale: time, memory, shuffled bytes.

```
.venv-tfx/bin/python -m benchmarks.tfx_scale --examples=200000,1000000 --runner=multi_processing
```

Click-stream examples of 39 features in files of 125,000, a record for 98% of them, rate 0.1. Each
step runs in a separate process; peak memory is that of the largest process of the step.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

_RATE = 0.1
_COVERED = 0.98
_PER_FILE = 125_000
_RUNNERS = {
    "in_memory": ["--direct_running_mode=in_memory"],
    "multi_processing": ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
}


def _write_inputs(root: pathlib.Path, count: int) -> dict:
    """Examples in `Split-train`, and the records that serving would have written."""
    import numpy as np

    import ofb_tf
    from benchmarks import inputs
    from ofb_tf.datasets import ClickStream

    stream = ClickStream(num_examples=count)
    files = stream.write_tfrecords(
        root / "examples" / "Split-train", num_shards=max(2, -(-count // _PER_FILE))
    )
    with ofb_tf.ForwardRecordWriter(root / "serving", num_outputs=1) as writer:
        for first in range(0, count, 100_000):
            ids = np.arange(first, min(first + 100_000, count))
            logits = inputs.click_logits(stream.generate(ids)).astype(np.float32)
            kept = np.random.default_rng(first).random(len(ids)) < _COVERED
            writer.write(ids[kept], logits[kept, None])
    return {"bytes": sum(pathlib.Path(file).stat().st_size for file in files)}


def _artifacts(root: pathlib.Path) -> tuple:
    from tfx.types import standard_artifacts

    from tfx_components import artifacts

    examples, records = standard_artifacts.Examples(), artifacts.ForwardRecords()
    examples.uri, records.uri = str(root / "examples"), str(root / "records")
    examples.split_names = json.dumps(["train"])
    return examples, records


def _generate_records(root: pathlib.Path, argv: list[str], partitions: int) -> dict:
    import apache_beam as beam

    from tfx_components.forward_record_gen import ForwardRecordGen

    start = time.monotonic()
    ForwardRecordGen.test_call(
        forward_records=_artifacts(root)[1],
        records_pattern=str(root / "serving"),
        num_partitions=partitions,
        beam_pipeline=beam.Pipeline(argv=argv),
    )
    return {"seconds": time.monotonic() - start}


def _sample(root: pathlib.Path, argv: list[str]) -> dict:
    import apache_beam as beam
    from tfx.types import standard_artifacts

    from tfx_components import artifacts
    from tfx_components.ofb_sampler import OFBSampler

    examples, records = _artifacts(root)
    sampled, found = standard_artifacts.Examples(), artifacts.SamplingStatistics()
    sampled.uri, found.uri = str(root / "sampled"), str(root / "statistics")
    start = time.monotonic()
    OFBSampler.test_call(
        examples=examples,
        forward_records=records,
        sampled_examples=sampled,
        sampling_statistics=found,
        task="binary",
        id_feature="example_id",
        rate=_RATE,
        beam_pipeline=beam.Pipeline(argv=argv),
    )
    seconds = time.monotonic() - start
    total = artifacts.read_statistics(found.uri)[1]["train"].total
    return {
        "seconds": seconds,
        "rate": total.realized_rate,
        "bytes_share": total.bytes_written / total.bytes_read,
        "budget_error": total.expected_selected / (_RATE * total.num_examples) - 1.0,
    }


def _count_bytes(root: pathlib.Path) -> dict:
    """Runs the stages by hand, in one process; returns the encoded size of what leaves each."""
    from apache_beam import coders

    from ofb_tf.beam import examples as example_files
    from ofb_tf.beam import partition as record_stages
    from ofb_tf.beam import sample as stages
    from ofb_tf.beam import sources
    from ofb_tf.evaluation.tfrecords import match_examples
    from tfx_components import artifacts

    size = {"keys": 0, "rows": 0, "selected": 0, "records": 0}
    encode = coders.FastPrimitivesCoder().encode

    def counted(name: str, elements: Iterator) -> Iterator:
        for element in elements:
            size[name] += len(encode(element))
            yield element

    examples, records = _artifacts(root)
    found = artifacts.Manifest.read(records.uri)
    for file in (root / "serving").iterdir():
        for _ in counted(
            "records",
            record_stages._read_file(str(file), sources.read_record_file, found.num_partitions),
        ):
            pass
    config = stages.SamplerConfig(task="binary", rate=_RATE)
    files = match_examples(str(root / "examples" / "Split-train"))
    spec = example_files.probe(files, "example_id", "label", ())
    partitions = {}
    for number, file in enumerate(files):
        for partition, columns in counted(
            "keys", stages._read_keys((number, (file, "")), spec, found.num_partitions)
        ):
            partitions.setdefault(partition, []).append(columns)
    all_rows, summaries = [], []
    for item in partitions.items():
        rows, summary, _ = stages._join(item, config, records.uri, found)
        all_rows += counted("rows", iter([rows]))
        summaries.append(summary.value)
    num_examples = sum(len(rows["example_id"]) for rows in all_rows)
    merged = stages.ScoreSummary.merge(summaries)
    inclusion = stages.solve(merged, **config.budget())
    for rows in all_rows:
        *selected, _ = stages._select(rows, inclusion, config)
        for _ in counted("selected", iter(selected)):
            pass
    per_row = {name: total / num_examples for name, total in size.items()}
    return {
        "per_row": per_row | {"records": size["records"] / found.num_read},
        "summary_megabytes": sum(map(len, map(encode, summaries))) / len(summaries) / 1e6,
    }


def _run(step: str, root: pathlib.Path, count: int, runner: str) -> dict:
    """Runs a step in a separate process; adds the peak memory of its largest process."""
    import psutil

    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.tfx_scale",
        f"--step={step}",
        f"--root={root}",
    ]
    command += [f"--root={root}", f"--examples={count}", f"--runner={runner}"]
    peak = 0
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max([peak, *_peaks(process)])
            time.sleep(0.25)
        if child.returncode:
            log.seek(0)
            raise RuntimeError(f"{step} failed:\n{log.read()[-3000:]}")
        result = json.loads(child.stdout.read().splitlines()[-1])
    return result | {"peak_gib": peak / 2**20}


def _peaks(process) -> Iterator[int]:
    """Peak resident kilobytes of a process and its descendants that are still alive."""
    import psutil

    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return
    for member in family:
        try:
            status = pathlib.Path(f"/proc/{member.pid}/status").read_text()
        except OSError:
            continue
        yield from (int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)


def _measure(count: int, runner: str, keep: pathlib.Path | None) -> str:
    root = pathlib.Path(tempfile.mkdtemp(prefix=f"ofb-scale-{count}-", dir=keep))
    try:
        _run("inputs", root, count, runner)
        records = _run("records", root, count, runner)
        sampler = _run("sampler", root, count, runner)
        found = _run("bytes", root, count, runner)
    finally:
        shutil.rmtree(root)
    stages = ", ".join(f"{name} {size:.1f}" for name, size in found["per_row"].items())
    return (
        f"{count:>11,}  {runner:<17}{records['seconds']:>9.1f}{sampler['seconds']:>9.1f}"
        f"{records['peak_gib']:>9.2f}{sampler['peak_gib']:>9.2f}{sampler['bytes_share']:>9.3f}"
        f"{sampler['rate']:>9.4f}{sampler['budget_error']:>10.1e}   {stages}; "
        f"{found['summary_megabytes']:.2f} MB per summary"
    )


def main() -> None:
    """Prints a row per number of examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", default="1000000", help="Comma-separated numbers.")
    parser.add_argument("--runner", default="multi_processing", choices=_RUNNERS)
    parser.add_argument("--directory", type=pathlib.Path, help="For the data, 1.1 kB per example.")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.step:
        print(
            "   examples  runner            records  sampler  records  sampler    bytes  realised"
            "    budget   encoded bytes per example or record\n"
            "                                     s        s      GiB      GiB   out/in     rate"
            "     error"
        )
        for count in map(int, arguments.examples.split(",")):
            print(_measure(count, arguments.runner, arguments.directory), flush=True)
        return
    count = int(arguments.examples)
    steps = {
        "inputs": lambda: _write_inputs(arguments.root, count),
        "records": lambda: _generate_records(
            arguments.root, _RUNNERS[arguments.runner], max(4, count // 250_000)
        ),
        "sampler": lambda: _sample(arguments.root, _RUNNERS[arguments.runner]),
        "bytes": lambda: _count_bytes(arguments.root),
    }
    print(json.dumps(steps[arguments.step]()))


if __name__ == "__main__":
    main()

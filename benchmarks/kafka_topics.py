"""Examples per second from topics of a broker, from directories, and from the batch path.

Not part of `make bench`: start a broker by `make kafka-up`, then
`python -m benchmarks.kafka_topics [--servers=127.0.0.1:9092] [--copies=4]`.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable

import tensorflow as tf
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

import ofb_tf
from benchmarks import inputs
from benchmarks.clock import timed
from benchmarks.parts import Settings
from ofb_tf import constants, streaming
from ofb_tf.datasets import ClickStream
from ofb_tf.serving import KafkaRecordWriter

_MAX_AGE = 1e9
_PARTITIONS = 2
_REPEATS = 3


def _sampler(**settings: object) -> ofb_tf.OFBSampler:
    return inputs.sample(parse_fn=ClickStream.parse_fn, task=constants.BINARY, **settings)


def _send(servers: str, files: list[str], copies: int) -> tuple[str, str]:
    """Topics with the click stream, so many times, and its records."""
    topics = (f"examples-{uuid.uuid4().hex}", f"records-{uuid.uuid4().hex}")
    new = [NewTopic(topics[0], _PARTITIONS, 1), NewTopic(topics[1], 1, 1)]
    admin = AdminClient({"bootstrap.servers": servers})
    for created in admin.create_topics(new).values():
        created.result()
    records = inputs.click_records()
    with KafkaRecordWriter(servers, topics[1]) as writer:
        writer.write(records.example_ids.numpy(), records.logits.numpy())
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 50})
    values = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    for _ in range(copies):
        for number, value in enumerate(values):
            producer.produce(topics[0], value, partition=number % _PARTITIONS)
            if not number % 10_000:
                producer.flush()
    producer.flush()
    return topics


def _stream(examples: streaming.Log, records: streaming.Log) -> tf.data.Dataset:
    stream = streaming.SampledStream(
        _sampler(max_age=_MAX_AGE), examples=examples, records=records, follow=False
    )
    return stream.dataset()


def _measure(name: str, dataset: tf.data.Dataset, number: int) -> None:
    """Medians over reading all of a dataset, each time from its first batch on."""

    def read() -> dict[str, float]:
        iterator = iter(dataset)
        next(iterator)
        return timed(lambda: sum(1 for _ in iterator))[0]

    read()  # traces
    runs = [read() for _ in range(_REPEATS)]
    wall, cpu = (
        statistics.median(run[clock] for run in runs) for clock in ("wall_seconds", "cpu_seconds")
    )
    print(
        f"{name:<12} {number / wall:>12,.0f} examples/s {1e6 * cpu / number:>8.2f} µs CPU/example",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", default="127.0.0.1:9092")
    parser.add_argument("--copies", type=int, default=4)
    arguments = parser.parse_args()
    try:
        AdminClient({"bootstrap.servers": arguments.servers}).list_topics(timeout=10.0)
    except KafkaException as error:
        parser.error(f"no broker answers at {arguments.servers} ({error}); see make kafka-up")
    with tempfile.TemporaryDirectory() as name:
        _run(arguments.servers, arguments.copies, pathlib.Path(name))


def _run(servers: str, copies: int, directory: pathlib.Path) -> None:
    files = inputs.click_files(Settings(inputs=directory))
    number = inputs.NUM_CLICKS * copies
    records = inputs.click_records()
    with ofb_tf.ForwardRecordWriter(directory / "records", num_outputs=1) as writer:
        writer.write(records.example_ids.numpy(), records.logits.numpy())
    (directory / "examples").mkdir()
    for path in map(pathlib.Path, files):
        path.touch()  # they arrive after their records
        for copy in range(copies):
            (directory / "examples" / f"{copy}-{path.name}").hardlink_to(path)
    topics = _send(servers, files, copies)
    time.sleep(3.0)  # until the last interval is complete
    paths: dict[str, Callable[[], tf.data.Dataset]] = {
        "batch": lambda: (
            tf.data.TFRecordDataset(files)
            .repeat(copies)
            .apply(_sampler(records=str(directory / "records")))
        ),
        "directories": lambda: _stream(
            streaming.ExampleDirectory(directory / "examples"),
            streaming.RecordDirectory(directory / "records"),
        ),
        "topics": lambda: _stream(
            streaming.ExampleTopic(servers, topics[0]), streaming.RecordTopic(servers, topics[1])
        ),
    }
    for name, path in paths.items():
        _measure(name, path(), number)


if __name__ == "__main__":
    main()

"""A Kafka broker for tests, and what they write to it."""

import contextlib
import functools
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from ofb_tf.serving import KafkaRecordWriter

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RUNNER = _ROOT / "tests" / "runners" / "kafka.sh"
JARS = _ROOT / ".cache" / "kafka" / "libs"


class Broker:
    """The broker of tests/runners/kafka.sh on a free port."""

    def __init__(self) -> None:
        self.port = _free_port()
        self.servers = f"127.0.0.1:{self.port}"
        self._topics = 0

    def run(self, command: str) -> None:
        done = subprocess.run(
            [str(_RUNNER), command, str(self.port)], capture_output=True, text=True
        )
        print(done.stdout + done.stderr, file=sys.stderr)
        assert done.returncode == 0, done.stderr

    def restart(self) -> None:
        self.run("kill")
        self.run("start")

    @functools.cached_property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.servers, "log_level": 0})

    def topic(self, partitions: int = 1, **config: str) -> str:
        """The name of a new topic."""
        self._topics += 1
        name = f"topic-{os.getpid()}-{self._topics}"
        config = {key.replace("_", "."): value for key, value in config.items()}
        _done(self.admin.create_topics([NewTopic(name, partitions, 1, config=config)]))
        return name

    def add_partitions(self, topic: str, total: int) -> None:
        _done(self.admin.create_partitions([NewPartitions(topic, total)]))

    def configure(self, topic: str, name: str, value: str) -> None:
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        _done(self.admin.incremental_alter_configs([resource]))

    def send(self, topic: str, values, partition: int = 0) -> None:
        """Sends and waits until all are there."""
        producer = Producer(
            {"bootstrap.servers": self.servers, "log_level": 0, "enable.idempotence": True}
        )
        for value in values:
            producer.produce(topic, value, partition=partition)
        assert producer.flush(60) == 0

    def send_examples(self, topic: str, stream, rows, partition: int = 0) -> None:
        self.send(topic, [stream.example(row).SerializeToString() for row in rows], partition)

    def send_records(self, topic: str, stream, rows, logits=None) -> None:
        logits = stream.logits[rows] if logits is None else logits
        with KafkaRecordWriter(self.servers, topic, block_records=64) as writer:
            writer.write(stream.ids[rows], logits, model_version=1)
        assert writer.counts.num_written == len(np.asarray(rows)), writer.last_error

    def oldest(self, topic: str, partition: int = 0) -> int:
        """The first offset that retention has left."""
        with self._consumer() as consumer:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), 10)[0]

    def committed(self, topic: str, group: str, partition: int = 0) -> int:
        """What a group has committed; below 0 for nothing."""
        with self._consumer(group) as consumer:
            return consumer.committed([TopicPartition(topic, partition)], 30)[0].offset

    @contextlib.contextmanager
    def _consumer(self, group: str = "tests"):
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": group})
        try:
            yield consumer
        finally:
            consumer.close()


def wait_for(what: str, condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds:.0f} s"
        time.sleep(0.1)


def _done(futures) -> None:
    for future in futures.values():
        future.result()


def _free_port() -> int:
    """The first of two free ports in a row."""
    for port in range(20_000, 30_000, 2):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for each in (port, port + 1):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
            return port
    raise OSError("no free ports")

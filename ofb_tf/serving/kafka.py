"""`KafkaRecordWriter`: forward records to a Kafka topic (extra `kafka`)."""

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from confluent_kafka import KafkaException, Producer

from ofb_tf import constants
from ofb_tf.checks import check_count
from ofb_tf.records import blocks
from ofb_tf.records.schema import MAX_BLOCK_RECORDS, Schema
from ofb_tf.records.writer import BlockWriter

_MESSAGE_BYTES = 1_000_000  # a broker takes 1,048,588 unless told otherwise
_CLOSE_SECONDS = 30.0


class KafkaRecordWriter(BlockWriter):
    """Writes forward records to a Kafka topic; safe to share between threads.

    A message is a block of the record format, what `streaming.RecordTopic` reads. It takes the
    place of `ForwardRecordWriter`, also in `PredictionRecorder`. `write` never waits for the
    broker: messages wait in a local queue, and a block that finds it full, or that the broker has
    not taken after `message.timeout.ms` (5 minutes), is dropped and counted. A writer that is
    still open when the interpreter exits is closed then. After a fork the child starts with an
    empty buffer and a producer of its own; what waited is sent by the parent.

    ```py
    from ofb_tf.serving import KafkaRecordWriter, PredictionRecorder

    writer = KafkaRecordWriter("localhost:9092", "forward-records")
    recorder = PredictionRecorder(writer)
    ```

    Attributes:
      topic: where the blocks go.
      counts: `WriterCounts`: records count as written when the broker has confirmed them.
      last_error: the last reason for which a block was dropped, or None.
    """

    _producer: Producer | None

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        num_outputs: int | None = None,
        top_k: int | None = None,
        logits_dtype: str = "float32",
        flush_seconds: float | None = 1.0,
        block_records: int = MAX_BLOCK_RECORDS,
        max_queue_bytes: int = 1 << 26,
        on_error: str = "drop",
        settings: Mapping[str, Any] | None = None,
    ):
        """Makes the producer; does not wait for the broker.

        Args:
          servers: of the brokers, such as "host:9092,host2:9092".
          topic: where the blocks go; it must exist, unless the broker creates topics.
          num_outputs: as for `ForwardRecordWriter`.
          top_k: as for `ForwardRecordWriter`.
          logits_dtype: as for `ForwardRecordWriter`.
          flush_seconds: the longest time that a record waits for its block to be full.
          block_records: records per message, 1 to 8192; fewer where a message would be larger than
            `message.max.bytes` (1,000,000).
          max_queue_bytes: of the messages that wait for the broker.
          on_error: "drop" counts what is lost because the queue is full; "raise" lets `write` raise
            OSError, too. What is lost later is counted.
          settings: more of librdkafka's, such as {"compression.type": "zstd"}.

        Raises:
          ValueError: an argument is out of range.
          TypeError: an integer argument is not one.
          confluent_kafka.KafkaException: an unknown setting.
        """
        settings = dict(settings or {})
        super().__init__(
            num_outputs=num_outputs,
            top_k=top_k,
            logits_dtype=logits_dtype,
            flush_seconds=flush_seconds,
            block_records=block_records,
            on_error=on_error,
            max_block_bytes=int(settings.get("message.max.bytes", _MESSAGE_BYTES)),
        )
        self.topic = topic
        self._settings = {
            "bootstrap.servers": servers,
            "log_level": 2,  # otherwise it logs each attempt to connect
            "enable.idempotence": True,  # no message twice, none out of order
            "queue.buffering.max.kbytes": -(-check_count("max_queue_bytes", max_queue_bytes) >> 10),
            "message.max.bytes": _MESSAGE_BYTES,
            **settings,
        }
        self._producer = Producer(self._settings)

    def flush(self) -> None:
        """Sends what is buffered and waits until the broker has confirmed it, at most 30 seconds.

        Raises:
          OSError: the queue is full (`on_error="raise"`).
        """
        super().flush()
        if self._producer is not None:
            self._producer.flush(_CLOSE_SECONDS)

    def _reset(self) -> None:
        super()._reset()
        self._producer = None

    def _leak(self) -> None:
        # Its destructor would wait for threads that only the parent process has.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._producer))

    def _put(self, schema: Schema, columns: dict[str, np.ndarray]) -> None:
        if self._producer is None:
            self._producer = Producer(self._settings)
        count = len(columns[constants.EXAMPLE_ID])
        confirm = functools.partial(self._confirm, count)
        try:
            self._producer.produce(
                self.topic, blocks.encode_block(schema, columns), on_delivery=confirm
            )
        except (BufferError, KafkaException) as error:
            raise OSError(f"A block of {count} records for {self.topic!r}: {error}") from error

    def _tend(self) -> None:
        if self._producer is not None:
            self._producer.poll(0)  # calls _confirm

    def _finish(self) -> None:
        if self._producer is None:
            return
        if self._producer.flush(_CLOSE_SECONDS):
            self._producer.purge()
            self._producer.flush(1.0)  # calls _confirm for what was lost

    def _confirm(self, count: int, error: Any, message: Any) -> None:
        with self._lock:
            if error is not None:
                self.counts.num_dropped += count
                self.last_error = KafkaException(error)
            else:
                self.counts.num_written += count
                self.counts.num_blocks += 1

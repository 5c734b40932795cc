"""Logs of Kafka topics (extra `kafka`): the broker's clock cuts them into segments."""

import collections
import dataclasses
import json
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from ofb_tf import constants
from ofb_tf.checks import check_count
from ofb_tf.records import blocks
from ofb_tf.records.reader import Columns, join_blocks
from ofb_tf.records.schema import Schema
from ofb_tf.streaming.logs import Segment

_LOGGER = logging.getLogger(__name__)
_QUIET = {"log_level": 2}  # librdkafka logs each attempt to connect; errors are counted
# When its queue is full, librdkafka waits so long before it fetches more; a second by default.
_PROMPT = {"fetch.queue.backoff.ms": 10}
_TIMEOUT = 5.0  # seconds that a request may take
_CONSUME_SECONDS = 0.2  # between two looks at whether the reader was closed
_RETRY_SECONDS = 0.5
_MAX_CONSUMED = 16_384  # messages at a time
_HELD_BYTES = 1 << 27  # of messages that came before their segment's turn
_MESSAGE_OVERHEAD = 512
_MAX_SEGMENTS = 64  # or a few more, per poll
_FATAL = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
)


@dataclasses.dataclass
class TopicCounts:
    """Counters of a topic's readers in this process.

    Attributes:
      num_messages: messages read, also those that are rejected.
      num_rejected: of these, messages that could not be decoded.
      num_skipped: offsets without a message: of transactions, and of compaction.
      num_errors: errors that are expected to pass, as while a broker restarts.
    """

    num_messages: int = 0
    num_rejected: int = 0
    num_skipped: int = 0
    num_errors: int = 0


class Topic:
    """What topics of examples and of records have in common.

    The broker's clock cuts a topic into intervals, and a segment is what all partitions received
    in one, or a part of that. So the segments, their order and their times of arrival depend on
    what the broker holds, and not on when it is read. The topic must have
    `message.timestamp.type=LogAppendTime`; what was written before it was so cannot be read.

    Args:
      servers: of the brokers, such as "host:9092,host2:9092".
      topic: its name. It must exist.
      partitions: those to read; None for all, also those that are added later. Of several trainers
        give each its own. With partitions named, an added one is an error: nobody would read it.
      group: the consumer group to which offsets are committed after each checkpoint, for those who
        watch the lag; None to commit nothing. A partition that a restored state does not know,
        because another trainer of the group had it, begins where that one committed.
      interval: seconds, at least 0.1: a longer one makes larger segments.
      grace: seconds after the end of an interval at which it is complete: more than the brokers'
        clocks are behind this machine's, and than replication or a transaction takes.
      segment_messages: messages of one partition in a segment, at most.
      rejected_directory: where messages that cannot be decoded are kept, in files of TFRecords;
        None to leave them in the topic alone. They are counted and logged.
      settings: more of librdkafka's, such as {"security.protocol": "SSL"}.

    Attributes:
      counts: `TopicCounts` of all readers.
      last_error: the last of the errors that are expected to pass.

    Raises:
      ValueError: an argument out of range.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        *,
        partitions: Collection[int] | None = None,
        group: str | None = None,
        interval: float = 1.0,
        grace: float = 1.0,
        segment_messages: int = 16_384,
        rejected_directory: str | os.PathLike | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not (0.1 <= interval < math.inf and 0.0 <= grace < math.inf):
            raise ValueError(
                "interval must be at least 0.1 and grace at least 0, both finite. Received: "
                f"interval={interval!r}, grace={grace!r}"
            )
        if partitions is not None and not len(partitions):
            raise ValueError("partitions must name at least one partition, or be None for all.")
        self.topic, self.group = topic, group
        self.partitions = None if partitions is None else sorted(set(partitions))
        self.interval, self.grace = interval, grace
        self.segment_messages = check_count("segment_messages", segment_messages)
        self.settings = {"bootstrap.servers": servers, **(settings or {})}
        self.counts = TopicCounts()
        self.last_error: KafkaError | None = None
        self._rejected = None if rejected_directory is None else os.fspath(rejected_directory)

    def follow(self, position: Mapping[str, int] | None = None) -> "TopicFollower":
        """A reader; its position is the next offset of each partition."""
        return TopicFollower(self, position)

    def decode(self, messages: Sequence[Message]) -> Any:
        """What a segment of these messages holds."""
        raise NotImplementedError

    def reject(self, values: Sequence[bytes], reason: str) -> None:
        """Counts messages that cannot be decoded, and keeps them aside."""
        before = self.counts.num_rejected
        self.counts.num_rejected += len(values)
        if before.bit_length() < self.counts.num_rejected.bit_length():  # a log must not flood
            _LOGGER.warning(
                "Topic %r: %d messages rejected so far, the last one because of: %s",
                self.topic,
                self.counts.num_rejected,
                reason,
            )
        if self._rejected is not None:
            tf.io.gfile.makedirs(self._rejected)
            name = f"{self.topic}-{time.time_ns() // 1000:016d}-{uuid.uuid4().hex[:8]}.tfrecord"
            with tf.io.TFRecordWriter(os.path.join(self._rejected, name)) as writer:
                for value in values:
                    writer.write(value)

    def pass_over(self, error: KafkaError) -> None:
        """Counts an error that is expected to pass; raises any other as a KafkaException."""
        if error.fatal() or error.code() in _FATAL:
            raise KafkaException(error)
        self.note(error)

    def note(self, error: KafkaError) -> None:
        """Counts an error, and logs the first, second, fourth, …: a log must not flood."""
        self.counts.num_errors += 1
        self.last_error = error
        if not self.counts.num_errors & (self.counts.num_errors - 1):
            _LOGGER.warning("Topic %r (error %d): %s", self.topic, self.counts.num_errors, error)


class ExampleTopic(Topic):
    """A topic of examples: each message is a serialized tf.Example.

    A message without a usable id and label is rejected: counted and kept aside, while the stream
    goes on without it. An example that its producer sent twice is two examples; a producer with
    `enable.idempotence` sends none twice.

    Args:
      servers: of the brokers, such as "host:9092,host2:9092".
      topic: its name. It must exist, with `message.timestamp.type=LogAppendTime`.
      **settings: of `ofb_tf.streaming.kafka.Topic`: `partitions`, `group`, `interval`, `grace`,
        `segment_messages`, `rejected_directory`, `settings` (of librdkafka).
    """

    element_spec = tf.TensorSpec([], tf.string)

    def __init__(self, servers: str, topic: str, **settings: Any) -> None:
        super().__init__(servers, topic, **settings)

    def decode(self, messages: Sequence[Message]) -> tf.Tensor:
        """The messages' values; those without a value are empty."""
        return tf.constant([message.value() or b"" for message in messages], tf.string)


class RecordTopic(Topic):
    """A topic of forward records: each message is a block, as `KafkaRecordWriter` sends them.

    A message that is no block is rejected: counted and kept aside. Of a record that was sent twice
    the newest counts, so it does no harm.

    Args:
      servers: as for `ExampleTopic`.
      topic: as for `ExampleTopic`.
      segment_messages: blocks of one partition in a segment, each of up to 8192 records.
      **settings: as for `ExampleTopic`.
    """

    def __init__(
        self, servers: str, topic: str, *, segment_messages: int = 256, **settings: Any
    ) -> None:
        super().__init__(servers, topic, segment_messages=segment_messages, **settings)
        nothing = {constants.EXAMPLE_ID: np.empty(0, np.int64)}
        self._nothing = Columns(Schema.of((), 0), nothing, np.empty(0, np.int64))

    def decode(self, messages: Sequence[Message]) -> Columns:
        """The blocks' records, in the order of the messages."""
        found = []
        for message in messages:
            try:
                block = blocks.decode(message.value() or b"")
                if isinstance(block, blocks.Footer):
                    raise blocks.FormatError("the footer of a file")
            except blocks.FormatError as error:
                where = f"partition {message.partition()}, offset {message.offset()}: {error}"
                self.reject([message.value() or b""], where)
            else:
                found.append(block)
        if not found:
            return self._nothing
        columns = join_blocks(f"topic {self.topic}", found)
        self._nothing = columns.rows(slice(0))
        return columns


class TopicFollower:
    """See `Follower`. A segment's name is the JSON of partition → [from, to), as offsets.

    Args:
      topic: what is followed.
      position: the next offset of each partition, by its number as text; None for the oldest.
    """

    def __init__(self, topic: Topic, position: Mapping[str, int] | None) -> None:
        self._topic = topic
        self._restored = position is not None
        settings = _QUIET | topic.settings
        self._admin = AdminClient(settings)
        self._settings = (
            _PROMPT
            | settings
            | {
                "error_cb": topic.note,
                "group.id": topic.group or "ofb-tf",  # which librdkafka wants in any case
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
            }
        )
        self._consumer = Consumer(self._settings)
        # Apart: the last checkpoint may be complete when the reader is closed.
        self._committer: Consumer | None = None
        self._lock = threading.Lock()  # of the positions
        self._consuming = threading.Lock()
        self._closed = threading.Event()
        # Polling: the next offset of each partition, where the interval of that number begins.
        self._next = {int(p): offset for p, offset in (position or {}).items()}
        self._interval = 0
        self._num_partitions = 0
        self._number = 0  # of segments taken
        self._positions = {0: dict(self._next)}  # by number of segments
        # Reading, by partition:
        self._begin: dict[int, int] = {}  # of the segment that follows what was read
        self._fetched: dict[int, int] = {}  # the next offset that librdkafka gives
        self._held: dict[int, collections.deque[Any]] = collections.defaultdict(
            collections.deque
        )  # what it gave too early
        self._held_bytes = 0
        self._paused: set[int] = set()

    def poll(self) -> list[Segment]:
        """The segments of the next intervals that are complete; not all of them at once.

        Waits while the broker does not answer: nothing new is something else.
        """
        segments: list[Segment] = []
        while not self._closed.is_set():
            try:
                self._look_for_partitions()
                # In this order: what has a timestamp of an interval that is over is below the ends.
                over = math.floor((time.time() - self._topic.grace) / self._topic.interval)
                ends = self._offsets(OffsetSpec.latest(), self._next)
                while len(segments) < _MAX_SEGMENTS and self._advance(over, ends):
                    segments += self._cut()
                break
            except KafkaException as error:
                self._topic.pass_over(error.args[0])
                self._closed.wait(_RETRY_SECONDS)
        return segments

    def position(self, number: int) -> dict[str, int]:
        """The next offset of each partition, before the segment of that number."""
        with self._lock:
            for earlier in range(min(self._positions), number):
                del self._positions[earlier]
            return {str(p): offset for p, offset in self._positions[number].items()}

    def read(self, segment: Segment) -> Any:
        """What a segment holds.

        Raises:
          RuntimeError: retention deleted it, or the reader was closed.
          ValueError: the topic's timestamps are not the broker's.
        """
        ranges = {int(p): tuple(ends) for p, ends in json.loads(segment.name).items()}
        with self._consuming:
            messages = self._consume(ranges)
        self._topic.counts.num_messages += len(messages)
        return self._topic.decode(messages)

    def commit(self, place: Mapping[str, Any]) -> None:
        """Tells the broker, for those who watch the lag, what a checkpoint has done with.

        Args:
          place: the log's part of a state of `SampledStream`.
        """
        if self._topic.group is None:
            return
        done = dict(place["position"])
        if place.get("segment"):  # which is not read to its end
            done |= {p: begin for p, (begin, _) in json.loads(place["segment"][0]).items()}
        offsets = [TopicPartition(self._topic.topic, int(p), offset) for p, offset in done.items()]
        try:
            if self._committer is None:
                self._committer = Consumer(self._settings)
            self._committer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._topic.pass_over(error.args[0])

    def close(self) -> None:
        """Ends the reader, also one that waits for the broker."""
        self._closed.set()
        with self._consuming:
            self._consumer.close()  # any number of times

    def _look_for_partitions(self) -> None:
        topic = self._topic
        metadata = self._admin.list_topics(topic.topic, timeout=_TIMEOUT).topics[topic.topic]
        if metadata.error is not None:
            if self._num_partitions:  # it was there
                raise KafkaException(metadata.error)
            raise ValueError(
                f"Topic {topic.topic!r} cannot be read: {metadata.error.str()}. Create it with "
                "message.timestamp.type=LogAppendTime."
            )
        found = sorted(metadata.partitions)
        wanted = found if topic.partitions is None else topic.partitions
        if not set(wanted) <= set(found):
            raise ValueError(
                f"partitions must be some of those of topic {topic.topic!r}, {found}. Received: "
                f"{wanted}"
            )
        if topic.partitions is not None and 0 < self._num_partitions < len(found):
            raise ValueError(
                f"Topic {topic.topic!r} had {self._num_partitions} partitions and has {len(found)} "
                f"now; this reader has partitions={wanted}. Give each of the new ones to a reader "
                "and start again."
            )
        self._num_partitions = len(found)
        new = [p for p in wanted if p not in self._next]
        if new:
            begins = self._begins_of(new)
            kept = {p: offset for p, offset in self._next.items() if p in wanted}
            self._next = kept | begins
            self._interval = 0
            with self._lock:
                self._positions[self._number] = dict(self._next)

    def _begins_of(self, partitions: list[int]) -> dict[int, int]:
        """Where partitions begin that the position does not know."""
        begins = self._offsets(OffsetSpec.earliest(), partitions)
        if self._restored and self._topic.group is not None:
            of_topic = [TopicPartition(self._topic.topic, p) for p in partitions]
            for each in self._consumer.committed(of_topic, timeout=_TIMEOUT):
                if each.offset >= 0:
                    begins[each.partition] = each.offset
        return begins

    def _advance(self, over: int, ends: dict[int, int]) -> bool:
        """Goes on to the first interval with messages, of those before that number."""
        self._upto = self._next
        if self._interval >= over or all(ends[p] <= offset for p, offset in self._next.items()):
            return False
        # Mostly the next one; after a start or a pause, any one.
        empty, full = self._interval, self._interval + 1
        upto = self._ends(full, ends) if empty else self._next
        if upto == self._next:
            empty, full = full if empty else 0, over
            upto = self._ends(full, ends)
            if upto == self._next:
                self._interval = over
                return False
        while full - empty > 1:
            middle = (empty + full) // 2
            found = self._ends(middle, ends)
            if found == self._next:
                empty = middle
            else:
                full, upto = middle, found
        self._interval, self._upto = full, upto
        return True

    def _ends(self, interval: int, ends: dict[int, int]) -> dict[int, int]:
        """Per partition, the first offset that the broker received after so many intervals."""
        milliseconds = round(interval * self._topic.interval * 1000)
        found = self._offsets(OffsetSpec.for_timestamp(milliseconds), self._next)
        return {
            p: max(offset, found[p] if found[p] >= 0 else ends[p])
            for p, offset in self._next.items()
        }

    def _cut(self) -> list[Segment]:
        """The interval's segments: the next so many messages of each partition."""
        arrived = self._interval * self._topic.interval + self._topic.grace
        segments = []
        while self._next != self._upto:
            ranges = {
                p: [offset, min(offset + self._topic.segment_messages, self._upto[p])]
                for p, offset in self._next.items()
                if offset < self._upto[p]
            }
            self._next = self._next | {p: end for p, (_, end) in ranges.items()}
            self._number += 1
            with self._lock:
                self._positions[self._number] = dict(self._next)
            segments.append(Segment(json.dumps(ranges), arrived))
        return segments

    def _offsets(self, spec: OffsetSpec, partitions: Collection[int]) -> dict[int, int]:
        query = {TopicPartition(self._topic.topic, p): spec for p in partitions}
        found = self._admin.list_offsets(
            query, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=_TIMEOUT
        )
        return {each.partition: future.result().offset for each, future in found.items()}

    def _consume(self, ranges: dict[int, tuple[int, int]]) -> list[Message]:
        """The messages between these offsets, partition by partition."""
        self._seek(ranges)
        found: dict[int, list[Message]] = {}
        missing = {}
        for p, (_, end) in ranges.items():
            found[p], held = [], self._held[p]
            while held and held[0].offset() < end:
                found[p].append(held.popleft())
                self._held_bytes -= len(found[p][-1]) + _MESSAGE_OVERHEAD
            if not held and self._fetched[p] < end:
                missing[p] = end
            self._begin[p] = end
        while missing:
            if self._closed.is_set():
                raise RuntimeError(f"The reader of topic {self._topic.topic!r} was closed.")
            number = sum(end - self._fetched[p] for p, end in missing.items())
            batch = self._consumer.consume(min(number, _MAX_CONSUMED), _CONSUME_SECONDS)
            for message in batch:
                # Both are None only in errors.
                place: tuple[Any, Any] = message.partition(), message.offset()
                p, offset = place
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    self._check(error, p)
                    continue
                if offset < self._fetched[p]:
                    continue
                self._topic.counts.num_skipped += offset - self._fetched[p]
                self._fetched[p] = offset  # at the end of the partition, where the next will be
                if error is None:
                    self._fetched[p] += 1
                    if p in missing and offset < missing[p]:
                        found[p].append(message)
                    else:
                        self._hold(p, message)
            missing = {p: end for p, end in missing.items() if self._fetched[p] < end}
        for messages in found.values():
            if messages and messages[0].timestamp()[0] != TIMESTAMP_LOG_APPEND_TIME:
                raise ValueError(
                    f"Topic {self._topic.topic!r} must have message.timestamp.type=LogAppendTime: "
                    "other timestamps do not say when a message arrived. Set it by "
                    "`kafka-configs.sh --alter --add-config`, and write new messages."
                )
        return [message for p in sorted(found) for message in found[p]]

    def _seek(self, ranges: dict[int, tuple[int, int]]) -> None:
        """Makes librdkafka go on where the segment begins, if it does not by itself."""
        moved = {p: begin for p, (begin, _) in ranges.items() if self._begin.get(p) != begin}
        resumed = self._paused if moved else self._paused & set(ranges)
        if resumed:
            self._consumer.resume([TopicPartition(self._topic.topic, p) for p in resumed])
            self._paused = self._paused - resumed
        if moved:
            self._fetched |= moved
            for p in moved:
                self._held_bytes -= sum(len(each) + _MESSAGE_OVERHEAD for each in self._held[p])
                self._held[p].clear()
            self._consumer.assign(
                [TopicPartition(self._topic.topic, p, at) for p, at in self._fetched.items()]
            )

    def _hold(self, partition: int, message: Message) -> None:
        """Keeps what belongs to a later segment, and does not let it become too much."""
        self._held[partition].append(message)
        self._held_bytes += len(message) + _MESSAGE_OVERHEAD
        if self._held_bytes > _HELD_BYTES and partition not in self._paused:
            self._consumer.pause([TopicPartition(self._topic.topic, partition)])
            self._paused.add(partition)

    def _check(self, error: KafkaError, partition: int) -> None:
        if error.code() not in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._topic.pass_over(error)
            return
        oldest = self._offsets(OffsetSpec.earliest(), [partition])[partition]
        raise RuntimeError(
            f"Topic {self._topic.topic!r}, partition {partition}: messages from offset "
            f"{self._fetched[partition]} on were deleted before they were read, or while a "
            f"checkpoint still needs them; the oldest that is left has offset {oldest}. Keep "
            "messages for longer (retention.ms, retention.bytes), or start without the checkpoint."
        )

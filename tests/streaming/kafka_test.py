"""Topics as logs of a stream, against a real broker, which is also killed. `make test-kafka`."""

import functools
import json
import random
import shutil
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import streaming
from tests.processes import python
from tests.streaming.files import Stream, parse
from tests.streaming.trainer import EXAMPLES, check_killed

pytest.importorskip("confluent_kafka", reason="confluent-kafka is in the extra `kafka`")

from ofb_tf.serving import KafkaRecordWriter, PredictionRecorder, kafka
from tests.streaming.broker import JARS, Broker, wait_for

N = 1000
INTERVAL = 0.2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kafka,
    pytest.mark.skipif(shutil.which("java") is None, reason="Kafka needs Java"),
    pytest.mark.skipif(not JARS.exists(), reason="`make test-kafka` gets Kafka's jars"),
]


@pytest.fixture(scope="module")
def broker():
    broker = Broker()
    try:
        broker.run("up")
        yield broker
    finally:
        broker.run("down")


@functools.cache  # and so is what is traced for it
def sampler(**settings):
    defaults = {"window_size": 200, "batch_size": 16, "seed": 17, "max_age": 3600.0}
    return ofb_tf.ofb_sample(**defaults | {"task": "binary", "parse_fn": parse} | settings)


def everything(**settings):
    """A sampler that selects each example."""
    return sampler(**{"rate": 1.0, "window_size": 50, "batch_size": None} | settings)


def log(kind, broker, topic, **settings):
    return kind(broker.servers, topic, **{"interval": INTERVAL, "grace": INTERVAL} | settings)


def follow(broker, examples, records, *, sample=None, topic=None, **settings):
    return streaming.SampledStream(
        sampler() if sample is None else sample,
        examples=log(streaming.ExampleTopic, broker, examples, **topic or {}),
        records=log(streaming.RecordTopic, broker, records),
        **{"follow": False, "poll_interval": 0.05} | settings,
    )


def over():
    """Waits until the intervals of what was sent are complete."""
    time.sleep(3 * INTERVAL)


def read(stream, elements=None):
    dataset = stream.dataset()
    return list((dataset if elements is None else dataset.take(elements)).as_numpy_iterator())


def pairs(batches):
    """(id, weight) of everything selected, in order."""
    return [
        pair
        for batch in batches
        for pair in zip(
            np.ravel(batch["example_id"]).tolist(),
            np.ravel(batch["importance_weight"]).tolist(),
            strict=True,
        )
    ]


def readers():
    return [thread for thread in threading.enumerate() if "SampledStream" in thread.name]


def ids(elements):
    return [int(element["example_id"]) for element in elements]


@pytest.fixture(scope="module")
def stream():
    return Stream(N)


@pytest.fixture(scope="module")
def full(broker, stream):
    """A topic of examples in three partitions and one of records, without every 50th."""
    records, examples = broker.topic(), broker.topic(3)
    broker.send_records(records, stream, [row for row in range(N) if row % 50])
    over()
    for begin in range(0, N, 100):
        for partition in range(3):
            rows = range(begin + partition, begin + 100, 3)
            broker.send_examples(examples, stream, rows, partition)
    over()
    return examples, records


@pytest.mark.parametrize("budget", ["window", "stream"])
def test_selects_what_directories_select(broker, stream, tmp_path, budget):
    """From one partition each, where windows see the same records."""
    recorded = [row for row in range(N) if row % 50]
    examples, records = broker.topic(), broker.topic()
    broker.send_records(records, stream, recorded)
    over()
    broker.send_examples(examples, stream, range(N))
    over()
    now = time.time()
    stream.write_records(tmp_path / "records", "0", recorded, now)
    stream.write_examples(tmp_path / "examples", "0", range(N), now)
    expected = streaming.SampledStream(
        sampler(budget=budget),
        examples=streaming.ExampleDirectory(tmp_path / "examples"),
        records=streaming.RecordDirectory(tmp_path / "records"),
        follow=False,
    )
    found = follow(broker, examples, records, sample=sampler(budget=budget))
    assert pairs(read(found)) == pairs(read(expected))
    assert found.status()["examples"] == N
    assert found.status()["without_record"] == N - len(recorded)


def test_goes_on_from_any_state_in_another_process(broker, full):
    small = {"segment_messages": 30}
    whole = read(follow(broker, *full, topic=small))
    assert len(whole) > 4
    for elements in range(len(whole)):
        first = follow(broker, *full, topic=small)
        batches = first.dataset().as_numpy_iterator()
        for _ in range(elements):
            next(batches)
        again = follow(broker, *full, topic=small)
        again.restore(json.loads(json.dumps(first.state(elements))))
        first.close()
        assert pairs(read(again)) == pairs(whole[elements:]), elements
        again.close()


def test_segments_do_not_depend_on_when_they_are_read(broker, stream):
    topic = broker.topic(2)
    examples = log(streaming.ExampleTopic, broker, topic, segment_messages=40)

    def produce():
        for begin in range(0, N, 100):
            broker.send_examples(topic, stream, range(begin, begin + 70), 0)
            broker.send_examples(topic, stream, range(begin + 70, begin + 100), 1)
            time.sleep(random.Random(begin).uniform(0.0, 0.3))

    thread = threading.Thread(target=produce)
    thread.start()
    live, found = examples.follow(), []
    while thread.is_alive():
        found += live.poll()
    thread.join()
    over()
    found += live.poll()
    later = examples.follow()
    whole = later.poll()
    assert whole == found
    assert len(whole) > 5
    # From any place, also after that many of an interval's segments.
    for number in range(len(whole)):
        position = json.loads(json.dumps(later.position(number)))
        follower = examples.follow(position)
        assert follower.poll() == whole[number:]
        follower.close()
    # In any order, as after a restart.
    values = [live.read(segment).numpy().tolist() for segment in whole]
    order = list(range(len(whole)))
    random.Random(0).shuffle(order)
    for number in order:
        assert later.read(whole[number]).numpy().tolist() == values[number]
    sent = [stream.example(row).SerializeToString() for row in range(N)]
    assert sorted(value for part in values for value in part) == sorted(sent)
    assert examples.counts.num_skipped == 0
    live.close()
    later.close()


def test_duplicates(broker, stream):
    """The newest of an id's records counts; an example that was sent twice is two."""
    examples, records = broker.topic(), broker.topic()
    for value in (1.0, 2.0):
        broker.send_records(records, stream, range(100), np.full([100, 1], value, np.float32))
    broker.send_examples(examples, stream, [*range(100), 7])
    over()
    found = read(follow(broker, examples, records, sample=everything(keep_record=True)))
    assert sorted(ids(found)) == sorted(stream.ids[[*range(100), 7]].tolist())
    assert {element["logits"].item() for element in found} == {2.0}


def test_poison_messages_are_counted_and_kept_aside(broker, stream, tmp_path):
    examples, records = broker.topic(), broker.topic()
    unlabelled = stream.example(5)
    del unlabelled.features.feature["label"]
    poison = [b"{}", b"\xff" * 100, unlabelled.SerializeToString()]
    broker.send(records, [b"no block"])
    over()
    broker.send_records(records, stream, range(200))
    broker.send(records, [b"", stream.example(0).SerializeToString()])
    good = [stream.example(row).SerializeToString() for row in range(200)]
    # Some among others, and more than a window.
    broker.send(examples, [*good[:70], *poison, None, *good[70:130], *poison * 50, *good[130:]])
    over()
    followed = streaming.SampledStream(
        everything(),
        examples=log(streaming.ExampleTopic, broker, examples, rejected_directory=tmp_path / "e"),
        records=log(streaming.RecordTopic, broker, records, rejected_directory=tmp_path / "r"),
        follow=False,
    )
    assert sorted(ids(read(followed))) == sorted(stream.ids[:200].tolist())
    assert followed.status()["coverage"] == 1.0
    assert followed.status()["rejected_examples"] == 3 * 51 + 1
    assert followed.examples.counts.num_rejected == 3 * 51 + 1
    kept = tf.data.TFRecordDataset(sorted(map(str, (tmp_path / "e").iterdir())))
    assert sorted(kept.as_numpy_iterator()) == sorted([b"", *poison * 51])
    # The first message is read twice: for the records' form, and for the records.
    kept = tf.data.TFRecordDataset(sorted(map(str, (tmp_path / "r").iterdir())))
    assert set(kept.as_numpy_iterator()) == {
        b"no block",
        b"",
        stream.example(0).SerializeToString(),
    }
    assert followed.records.counts.num_rejected == 4


def test_retention_that_overtakes_the_reader_is_an_error(broker, stream):
    examples, records = broker.topic(), broker.topic()
    broker.send_records(records, stream, range(N))
    broker.send_examples(examples, stream, range(500))
    over()
    first = follow(broker, examples, records, topic={"segment_messages": 100})
    read(first, 1)
    state = first.state(1)
    first.close()
    broker.configure(examples, "retention.ms", "1")
    wait_for("retention", lambda: broker.oldest(examples) == 500)
    broker.send_examples(examples, stream, range(500, 600))
    again = follow(broker, examples, records)
    again.restore(state)
    with pytest.raises(Exception, match=r"from offset \d+ on were deleted .*retention\.ms"):
        read(again)
    again.close()


def test_other_partitions_after_a_restart(broker, stream):
    """Two trainers with a partition each; then one has both. No example is lost."""
    group = f"group-{time.time_ns()}"
    examples, records = broker.topic(2), broker.topic()
    broker.send_records(records, stream, range(N))
    for begin in range(0, N, 100):
        broker.send_examples(examples, stream, range(begin, begin + 50), 0)
        broker.send_examples(examples, stream, range(begin + 50, begin + 100), 1)
        time.sleep(INTERVAL)
    over()
    found, states = [], []
    sample = everything(window_size=30)  # so that windows begin inside segments
    for partition, elements in ((0, 120), (1, 215)):
        topic = {"partitions": [partition], "group": group}
        trainer = follow(broker, examples, records, sample=sample, topic=topic)
        found.append(ids(read(trainer, elements)))
        states.append(trainer.state(elements))
        assert broker.committed(examples, group, partition) < 0  # no checkpoint yet
        trainer.commit(states[-1])
        wait_for("commit", lambda p=partition: broker.committed(examples, group, p) >= 0)
        trainer.close()
    topic = {"partitions": [0, 1], "group": group}
    both = follow(broker, examples, records, sample=sample, topic=topic)
    both.restore(states[0])
    rest = ids(read(both))
    seen = [*found[0], *found[1], *rest]
    assert set(seen) == set(stream.ids.tolist())
    # Of the segment that the second trainer was in, what it had trained on comes again.
    committed = broker.committed(examples, group, 1)
    assert committed > 0
    assert len(seen) == N + len(found[1]) - committed
    assert not set(found[0]) & set(rest)
    both.close()


def test_new_partitions(broker, stream):
    topic = broker.topic(1)
    every = log(streaming.ExampleTopic, broker, topic).follow()
    one = log(streaming.ExampleTopic, broker, topic, partitions=[0]).follow()
    broker.send_examples(topic, stream, range(10))
    over()
    assert [segment.name for segment in every.poll()] == ['{"0": [0, 10]}']
    assert len(one.poll()) == 1
    broker.add_partitions(topic, 2)
    wait_for("metadata", lambda: len(broker.admin.list_topics(topic).topics[topic].partitions) == 2)
    broker.send_examples(topic, stream, range(10, 15), 1)
    over()
    assert [segment.name for segment in every.poll()] == ['{"1": [0, 5]}']
    with pytest.raises(ValueError, match="had 1 partitions and has 2 now"):
        one.poll()
    with pytest.raises(ValueError, match=r"partitions must be some of .*\[0, 1\]. Received: \[5\]"):
        log(streaming.ExampleTopic, broker, topic, partitions=[5]).follow().poll()
    every.close()
    one.close()


def test_errors_name_what_is_wrong(broker, stream):
    with pytest.raises(ValueError, match="LogAppendTime"):
        log(streaming.ExampleTopic, broker, "no-such-topic").follow().poll()
    topic = broker.topic(message_timestamp_type="CreateTime")
    broker.send_examples(topic, stream, range(3))
    over()
    follower = log(streaming.ExampleTopic, broker, topic).follow()
    (segment,) = follower.poll()
    with pytest.raises(ValueError, match="LogAppendTime"):
        follower.read(segment)
    follower.close()
    with pytest.raises(ValueError, match="interval must be at least 0.1"):
        streaming.ExampleTopic(broker.servers, topic, interval=0.0)
    with pytest.raises(ValueError, match="at least one partition"):
        streaming.RecordTopic(broker.servers, topic, partitions=[])


def test_offsets_are_committed_by_checkpoints_alone(broker, full, tmp_path):
    group = f"group-{time.time_ns()}"
    topic = {"group": group, "segment_messages": 20}
    followed = follow(broker, *full, topic=topic)
    x = keras.Input([2], name="x")
    model = keras.Model({"x": x}, keras.layers.Dense(1)(x))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))

    class Seen(keras.callbacks.Callback):
        committed = []

        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                wait_for("commit", lambda: broker.committed(full[0], group) >= 0)
            elif batch < 2:
                self.committed.append(broker.committed(full[0], group))

    def split(batch):
        return {"x": batch["x"]}, batch["label"], batch["importance_weight"]

    checkpoint = ofb_tf.StreamCheckpoint(followed, tmp_path, every=3)
    model.fit(
        followed.dataset().map(split),
        steps_per_epoch=5,
        callbacks=[checkpoint, Seen()],
        verbose=0,
    )
    assert all(offset < 0 for offset in Seen.committed)
    (path,) = tmp_path.glob("batch-*5")
    place = json.loads((path / "stream.json").read_text())["stream"]["examples"]
    assert 0 < broker.committed(full[0], group) <= place["position"]["0"]
    followed.close()


def test_broker_that_is_killed_while_a_stream_follows(broker, stream):
    examples, records = broker.topic(2), broker.topic()
    broker.send_records(records, stream, range(N))

    def produce():
        for begin in range(0, N, 100):
            broker.send_examples(examples, stream, range(begin, begin + 50), 0)
            broker.send_examples(examples, stream, range(begin + 50, begin + 100), 1)

    followed = follow(broker, examples, records, sample=everything(), follow=True)
    elements = followed.dataset().as_numpy_iterator()
    thread = threading.Thread(target=produce)
    thread.start()
    found = [next(elements) for _ in range(100)]
    dropped = follow(broker, examples, records, sample=everything(), follow=True)
    waits = iter(dropped.dataset())
    next(waits)
    broker.run("kill")
    # An iterator can be dropped while it waits for the broker, without `close`.
    del waits
    wait_for("the end of one of two readers", lambda: len(readers()) == 1)
    broker.run("start")
    thread.join()
    found += [next(elements) for _ in range(N - 100)]
    assert sorted(ids(found)) == sorted(stream.ids.tolist())
    assert followed.status()["coverage"] == 1.0
    followed.close()
    # Afterwards the same, in the same order.
    assert pairs(read(follow(broker, examples, records, sample=everything()))) == pairs(found)


def test_killed_trainer_and_broker(broker, tmp_path):
    """As kill_test; and the broker is killed as often."""
    stream = Stream(EXAMPLES)
    examples, records = broker.topic(2), broker.topic()

    def produce():
        for begin in range(0, EXAMPLES, 400):
            part = range(begin, min(begin + 400, EXAMPLES))
            broker.send_records(records, stream, part)
            broker.send_examples(examples, stream, part[: len(part) // 2], 0)
            broker.send_examples(examples, stream, part[len(part) // 2 :], 1)

    logs = f"kafka:{broker.servers}:{examples}:{records}"
    check_killed(logs, tmp_path, produce, disturb=broker.restart)


def test_recorder_writes_to_a_topic(broker):
    pytest.importorskip("tensorflow_serving.apis")
    from tests.serving.recorder_test import REQUEST, answer

    topic = broker.topic()
    writer = KafkaRecordWriter(broker.servers, topic)
    with PredictionRecorder(writer) as recorder:
        for number in range(100):
            recorder.offer(REQUEST, answer(number, 1000 + number))
    assert recorder.counts.num_recorded == 200
    assert writer.counts.num_written == 200
    over()
    follower = log(streaming.RecordTopic, broker, topic).follow()
    (segment,) = follower.poll()
    columns = follower.read(segment)
    assert sorted(columns.arrays["example_id"]) == [*range(100), *range(1000, 1100)]
    assert columns.arrays["logits"].shape == (200, 2)
    follower.close()


def test_writer_does_not_wait_for_a_broker_that_is_not_there(monkeypatch):
    monkeypatch.setattr(kafka, "_CLOSE_SECONDS", 0.2)
    writer = KafkaRecordWriter("127.0.0.1:1", "topic", max_queue_bytes=100_000, block_records=1000)
    begin = time.monotonic()
    for number in range(100):
        writer.write(np.arange(number * 1000, number * 1000 + 1000), np.zeros([1000, 1]))
    assert time.monotonic() - begin < 5.0
    assert 50_000 < writer.counts.num_dropped < 100_000
    assert "Queue full" in str(writer.last_error)
    writer.close()  # what waited is lost, too
    assert writer.counts.num_dropped == writer.counts.num_records == 100_000
    assert writer.counts.num_written == 0
    raising = KafkaRecordWriter("127.0.0.1:1", "topic", max_queue_bytes=10_000, on_error="raise")
    with pytest.raises(OSError, match="Queue full"):
        for _ in range(100):
            raising.write(np.arange(8192), np.zeros([8192, 1]))
    raising.close()


def test_wide_records_fit_into_messages(broker):
    topic = broker.topic()
    with KafkaRecordWriter(broker.servers, topic) as writer:
        writer.write(np.arange(2000), np.zeros([2000, 1000]))
    assert writer.counts.num_written == 2000, writer.last_error
    assert writer.counts.num_blocks > 8


FORK = """
import os, sys
import numpy as np
from ofb_tf.serving import KafkaRecordWriter
writer = KafkaRecordWriter(sys.argv[1], sys.argv[2])
writer.write(np.arange(10), np.zeros([10, 1]))
child = os.fork()
if child == 0:
    writer.write(np.arange(100, 105), np.zeros([5, 1]))
    writer.close()
    assert writer.counts.num_written == 5, writer.last_error
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
writer.write(np.arange(10, 20), np.zeros([10, 1]))
writer.close()
assert writer.counts.num_written == 20
"""


def test_writer_in_a_forked_process(broker):
    topic = broker.topic()
    python("-c", FORK, broker.servers, topic)
    over()
    follower = log(streaming.RecordTopic, broker, topic).follow()
    found = [n for s in follower.poll() for n in follower.read(s).arrays["example_id"].tolist()]
    assert sorted(found) == [*range(20), *range(100, 105)]
    follower.close()

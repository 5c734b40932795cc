"""Four processes and a Kafka broker: serve, record, label late, join, sample, train, refresh.

- The server answers the requests of the click stream with the newest SavedModel. It sends its
  answers to `forward-records`, by `KafkaRecordWriter`, and the examples to `served`.
- The labeller sends every example to `examples` with its label: at its click, some seconds after it
  was served, or as a negative when the attribution window is over.
- The trainer follows `examples` and `forward-records`: it joins them, selects a tenth, trains on
  that with the importance weights, saves checkpoints with its place in the topics, and exports the
  model that serves next.
- A second trainer reads the same and selects a tenth at random, for comparison. It serves nothing.

    make kafka-up
    python docs/examples/stream_demo.py --output_dir=out/stream-demo

Serving goes on until the trainers have had `--examples` labelled ones: what would come after the
last requests are negatives alone, since clicks are known sooner.

Prints quality on the examples that follow, and how long it took from serving to training; writes
both to results.json. Needs the extra `kafka`. The topics are made for the run, and deleted.
"""

import argparse
import heapq
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
import tqdm
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

import ofb_tf
from ofb_tf import streaming
from ofb_tf.datasets import VOCABULARY_SIZES, ClickStream
from ofb_tf.serving import KafkaRecordWriter, export_recording_model
from ofb_tf.tables import format_table

POSITIVES, DELAY, ATTRIBUTION = 0.03, 2.0, 6.0  # share of clicks; seconds: mean, and at most
REQUEST, WINDOW, RATE, HELD_OUT = 250, 1000, 0.1, 50_000
BATCH = round(RATE * WINDOW)
INPUTS = {
    "dense": tf.io.FixedLenFeature([13], tf.float32),
    "categorical": tf.io.FixedLenFeature([26], tf.int64),
}
SCALARS = dict.fromkeys(
    ("example_id", "label", "served_at", "labelled_at"), tf.io.FixedLenFeature([], tf.int64)
)
SERVED, EXAMPLES, RECORDS = "served", "examples", "forward-records"
IMPORTANCE, UNIFORM = "importance", "uniform"


def serve(run: argparse.Namespace, reports, go) -> None:
    """Answers requests at a steady rate."""
    click_stream = ClickStream(run.served, POSITIVES, seed=run.seed)
    generate = tf.function(click_stream.generate, [tf.TensorSpec([None], tf.int64)])
    producer = Producer({"bootstrap.servers": run.servers, "enable.idempotence": True})
    models, version, model = pathlib.Path(run.directory) / "models", 0, None
    with KafkaRecordWriter(run.servers, run.topics[RECORDS]) as writer:
        for start in range(-REQUEST, run.served, REQUEST):  # the first one warms up
            if start >= 0:
                begin = go.value + start / run.per_second
                time.sleep(max(begin - time.time(), 0.0))
            newest = max(int(path.name) for path in models.iterdir() if path.name.isdigit())
            if newest > version:
                version, model = newest, tf.saved_model.load(str(models / str(newest)))
            ids = np.arange(max(start, 0), max(start, 0) + REQUEST)
            fields = {name: value.numpy() for name, value in generate(ids).items()}
            examples = [example(fields, row) for row in range(REQUEST)]
            answer = model.signatures["serving_default"](examples=tf.constant(examples))
            if start < 0:
                ready(reports, go)
                continue
            writer.write(answer["example_id"], answer["logits"], model_version=version)
            for id_, each in zip(ids.tolist(), examples, strict=True):
                producer.produce(run.topics[SERVED], each, key=str(id_))
            producer.poll(0)
            reports.put(("progress", REQUEST))
        producer.flush()
    late = time.time() - go.value - run.served / run.per_second
    dropped = writer.counts.num_dropped
    reports.put(("server", {"models": version, "dropped_records": dropped, "seconds_late": late}))


def example(fields: dict[str, np.ndarray], row: int) -> bytes:
    """A request: what is known when it is served."""
    message = tf.train.Example()
    feature = message.features.feature
    feature["dense"].float_list.value.extend(fields["dense"][row].tolist())
    feature["categorical"].int64_list.value.extend(fields["categorical"][row].tolist())
    feature["example_id"].int64_list.value.append(int(fields["example_id"][row]))
    feature["served_at"].int64_list.value.append(micros())
    return message.SerializeToString()


def micros() -> int:
    return time.time_ns() // 1000


def label(run: argparse.Namespace, reports, go) -> None:
    """Sends examples on with their labels, when these are known."""
    click_stream = ClickStream(run.served, POSITIVES, seed=run.seed)
    # What users will do: the labels, and after how many seconds.
    clicks = [
        click_stream.generate(np.arange(start, min(start + 10_000, run.served)))["label"].numpy()
        for start in range(0, run.served, 10_000)
    ]
    clicks = np.concatenate(clicks)
    delays = np.random.default_rng(run.seed).exponential(DELAY, run.served).clip(max=ATTRIBUTION)
    delays = np.where(clicks == 1, delays, ATTRIBUTION)
    producer = Producer({"bootstrap.servers": run.servers, "enable.idempotence": True})
    consumer = Consumer(
        {"bootstrap.servers": run.servers, "group.id": "labeller", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([run.topics[SERVED]])
    ready(reports, go)
    pending, sent = [], 0
    while sent < run.examples:
        for message in consumer.consume(5000, timeout=0.1):
            if message.error() is None:
                id_, served = int(message.key()), message.timestamp()[1] / 1000
                heapq.heappush(pending, (served + delays[id_], id_, message.value()))
        while sent < run.examples and pending and pending[0][0] <= time.time():
            _, id_, served = heapq.heappop(pending)
            # tf.Examples that follow each other are one.
            features = {"label": clicks[id_], "labelled_at": micros()}
            feature = {
                name: tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))
                for name, value in features.items()
            }
            suffix = tf.train.Example(features=tf.train.Features(feature=feature))
            producer.produce(run.topics[EXAMPLES], served + suffix.SerializeToString())
            sent += 1
            if not sent % 1000:
                producer.poll(0)
    producer.flush()
    consumer.close()


class Refresh(keras.callbacks.Callback):
    """Exports the model for the server, every so many batches."""

    def __init__(self, directory: pathlib.Path, every: int) -> None:
        super().__init__()
        self.directory, self.every, self.version = directory, every, 0

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        if (batch + 1) % self.every == 0:
            self.export(self.model)

    def export(self, model: keras.Model) -> None:
        """Under its number once it is complete."""
        self.version += 1
        unfinished = self.directory / "unfinished"
        spec = INPUTS | {"example_id": SCALARS["example_id"]}
        export_recording_model(model, unfinished, spec, task="binary", from_logits=True)
        unfinished.rename(self.directory / str(self.version))


def train(policy: str, run: argparse.Namespace, reports, go) -> None:
    """Follows the topics until so many examples were selected from."""
    keras.utils.set_random_seed(run.seed)
    model, refresh = build(), Refresh(pathlib.Path(run.directory) / "models", run.refresh_batches)
    held_out = ClickStream(run.served, POSITIVES, seed=run.seed).generate(
        np.arange(run.served, run.served + HELD_OUT)
    )
    if policy == IMPORTANCE:
        refresh.directory.mkdir()
        refresh.export(model)
        reports.put(("untrained", evaluate(model, held_out)))
    topics = {"interval": 0.5, "grace": 0.5, "group": policy}
    stream = streaming.SampledStream(
        ofb_tf.ofb_sample(
            rate=RATE,
            policy=policy,
            task="binary",
            window_size=WINDOW,
            batch_size=BATCH,
            seed=run.seed,
            max_age=600,
            parse_fn=lambda serialized: tf.io.parse_example(serialized, INPUTS | SCALARS),
        ),
        examples=streaming.ExampleTopic(run.servers, run.topics[EXAMPLES], **topics),
        records=streaming.RecordTopic(run.servers, run.topics[RECORDS], **topics),
        max_wait=5,
        poll_interval=0.1,
    )
    lags = []

    def look(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Notes when the batch comes to training."""

        def note(served: np.ndarray, labelled: np.ndarray) -> None:
            lags.append(micros() - np.stack([served, labelled], axis=1))

        times = [batch.pop("served_at"), batch.pop("labelled_at")]
        with tf.control_dependencies([tf.numpy_function(note, times, [])]):
            return {name: tf.identity(value) for name, value in batch.items()}

    checkpoint = ofb_tf.StreamCheckpoint(
        stream, pathlib.Path(run.directory) / policy, every=run.refresh_batches
    )
    one = {name: value[:BATCH] for name, value in held_out.items()}
    model.train_step(one | {"importance_weight": tf.zeros([BATCH])})  # makes the variables
    ready(reports, go)
    model.fit(
        stream.dataset().map(look),
        steps_per_epoch=run.examples // WINDOW,
        callbacks=[checkpoint] + [refresh] * (policy == IMPORTANCE),
        shuffle=False,
        verbose=0,
    )
    status = stream.status()
    stream.close()
    of_serving, of_label = np.percentile(np.concatenate(lags) / 1e6, [50, 99], axis=0).T
    figures = {
        "examples": status["examples"],
        "trained": status["selected"],
        "coverage": status["coverage"],
        "realized_rate": status["realized_rate"],
        "effective_sample_size": status["effective_sample_size"],
        "served_to_trained_seconds": of_serving.tolist(),
        "labelled_to_trained_seconds": of_label.tolist(),
    }
    reports.put((policy, evaluate(model, held_out) | figures))


def build() -> ofb_tf.OFBModel:
    dense = keras.Input([13], name="dense")
    categorical = keras.Input([26], name="categorical", dtype="int64")
    offsets = np.cumsum([0, *VOCABULARY_SIZES])
    rows = keras.layers.Embedding(int(offsets[-1]), 8)(categorical + offsets[:-1])
    hidden = keras.layers.Concatenate()([keras.layers.Flatten()(rows), keras.ops.log(dense)])
    hidden = keras.layers.Dense(64, activation="relu", name="hidden")(hidden)
    bias = keras.initializers.Constant(np.log(POSITIVES / (1 - POSITIVES)))
    output = keras.layers.Dense(1, bias_initializer=bias, name="click")(hidden)
    model = ofb_tf.OFBModel({"dense": dense, "categorical": categorical}, output)
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def evaluate(model: keras.Model, examples: dict[str, tf.Tensor]) -> dict[str, float]:
    """Mean KL divergence from the hidden click probability, in nats, and calibration."""
    logits = model.predict({name: examples[name] for name in INPUTS}, 5000, verbose=0)
    p = examples["click_probability"].numpy().astype(np.float64)
    q = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return {"excess_kl": float(kl.mean()), "calibration": float(q.mean() / p.mean())}


def ready(reports, go) -> None:
    """Waits until all processes are."""
    reports.put(("ready", None))
    while not go.value:
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", default="127.0.0.1:9092", help="the Kafka brokers")
    parser.add_argument("--output_dir", default="out/stream-demo", help="of results.json")
    parser.add_argument("--examples", type=int, default=200_000, help="to select from")
    parser.add_argument("--per_second", type=float, default=2000.0, help="examples served")
    parser.add_argument("--refresh_batches", type=int, default=25, help="from model to model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noprogress", action="store_true", help="show no progress bar")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    run = parser.parse_args()
    if run.examples < WINDOW or run.examples % WINDOW:
        parser.error(f"--examples must be a multiple of {WINDOW}. Received: {run.examples}")
    admin = AdminClient({"bootstrap.servers": run.servers, "socket.timeout.ms": 10_000})
    names = {name: f"{name}-{micros()}" for name in (SERVED, EXAMPLES, RECORDS)}
    settings = {"message.timestamp.type": "LogAppendTime"}
    made = admin.create_topics([NewTopic(n, 1, 1, config=settings) for n in names.values()])
    for future in made.values():
        future.result(20)
    run.served = run.examples + math.ceil(ATTRIBUTION * run.per_second / REQUEST) * REQUEST
    run.topics, run.directory = names, tempfile.mkdtemp(prefix="ofb_stream_demo_")
    try:
        results = run_all(run)
    finally:
        admin.delete_topics([*names.values()])
        shutil.rmtree(run.directory, ignore_errors=True)
    results = {"command": "stream_demo.py " + " ".join(sys.argv[1:]), **results}
    output = pathlib.Path(run.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if run.json:
        print(json.dumps(results))
    else:
        show(results)
        print("\nWrote", output / "results.json")
    return 0


def run_all(run: argparse.Namespace) -> dict:
    """Starts the processes, and ends them if one fails."""
    context = multiprocessing.get_context("forkserver")  # TensorFlow is imported once
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with the processes
    reports, go = context.Queue(), context.Value("d", 0.0)
    began = time.time()
    workers = {
        UNIFORM: context.Process(target=train, args=(UNIFORM, run, reports, go)),
        IMPORTANCE: context.Process(target=train, args=(IMPORTANCE, run, reports, go)),
        "labeller": context.Process(target=label, args=(run, reports, go)),
        "server": context.Process(target=serve, args=(run, reports, go)),
    }
    results, num_ready = {}, 0
    try:
        for name, worker in workers.items():
            if name != "server":
                worker.start()
        progress = tqdm.tqdm(
            total=run.served, unit="example", mininterval=1, disable=run.noprogress
        )
        with progress as bar:
            bar.set_description("starting")
            while not {"server", IMPORTANCE, UNIFORM} <= results.keys():
                while reports.empty():
                    time.sleep(0.1)
                    for name, worker in workers.items():
                        if worker.exitcode:
                            raise RuntimeError(f"the {name} process failed; see above")
                kind, content = reports.get()
                if kind == "untrained":
                    workers["server"].start()  # there is a model now
                num_ready += kind == "ready"
                if kind == "ready" and num_ready == len(workers):
                    go.value = time.time()
                    bar.set_description("serving")
                elif kind == "progress":
                    bar.update(content)
                elif kind != "ready":
                    results[kind] = content
                    if kind == "server":
                        bar.set_description("training on the rest")
    finally:
        for worker in workers.values():
            if worker.is_alive() and len(results) < 4:
                worker.terminate()
        for worker in workers.values():
            if worker.pid:
                worker.join()
    now = time.time()
    seconds = {"set_up_seconds": go.value - began, "seconds": now - go.value}
    return seconds | results


def show(results: dict) -> None:
    rows = [
        [
            "policy", "excess_kl", "calibration", "trained", "rate", "coverage", "ESS",
            "served to trained s", "labelled to trained s",
        ]
    ]  # fmt: skip
    untrained = results["untrained"]
    quality = ["{excess_kl:.5f}", "{calibration:.3f}"]
    rows.append(["untrained", *(cell.format(**untrained) for cell in quality), *["–"] * 6])
    for policy in (UNIFORM, IMPORTANCE):
        found = results[policy]
        cells = [*quality, "{trained:,}", "{realized_rate:.4f}", "{coverage:.4f}"]
        cells.append("{effective_sample_size:.2f}")
        lags = [
            "{:.1f}, {:.1f}".format(*found[f"{name}_to_trained_seconds"])
            for name in ("served", "labelled")
        ]
        rows.append([policy, *(cell.format(**found) for cell in cells), *lags])
    print("\n" + format_table(rows) + "\n")
    print(
        "excess_kl: mean KL divergence in nats from the hidden click probability, on the examples\n"
        "that follow. Coverage: share of examples with a record. Seconds: median and 99th\n"
        f"percentile; labels come up to {ATTRIBUTION:g} seconds after serving."
    )
    server = results["server"]
    print(
        f"{results[IMPORTANCE]['examples']:,} examples in {results['seconds']:.0f} s after "
        f"{results['set_up_seconds']:.0f} s of starting processes; {server['models']} models "
        f"served, {server['dropped_records']} records dropped."
    )


if __name__ == "__main__":
    sys.exit(main())

"""Clicks that come late: wait for them, take early negatives as they are, or correct them.

A stream with one click in five examples is served at 150 examples per second of simulated time.
Clicks come after an exponential delay of 45 seconds on average, at most three minutes, which is the
attribution window. The same model trains on a tenth of what has left after 20 minutes:

- waiting: an example leaves with its click, or at the end of its window as a negative;
- early negatives: every example leaves as a negative at once, and again with its click;
- early negatives, weighted: the same, with `FakeNegativeWeighted` as the loss;
- all labels at once, which production cannot have, for comparison.

Printed are, on the examples that follow, the calibration (mean prediction over mean probability; 1
is right) and the mean KL divergence from the hidden click probability to the prediction, as means
over seeds with their standard errors.

    python docs/examples/late_labels.py --minutes=20 --seeds=3
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from ofb_tf import streaming
from ofb_tf.datasets import VOCABULARY_SIZES, ClickStream

PER_SECOND, SLICE, WINDOW, MEAN_DELAY = 150, 10, 180, 45.0
FEATURES = {
    "dense": tf.io.FixedLenFeature([13], tf.float32),
    "categorical": tf.io.FixedLenFeature([26], tf.int64),
    "label": tf.io.FixedLenFeature([], tf.int64),
}
START = 1_700_000_000  # seconds since 1970
POSITIVES, HELD_OUT = 0.2, 50_000
WAYS = ("waiting", "early negatives", "early negatives, weighted", "all labels at once")


def write_logs(directory: pathlib.Path, click_stream: ClickStream, seed: int) -> None:
    """A file of each log for every 10 seconds, with the time of its arrival."""
    number, count = click_stream.num_examples // (PER_SECOND * SLICE), PER_SECOND * SLICE
    generate = tf.function(click_stream.generate, [tf.TensorSpec([None], tf.int64)])
    rng = np.random.default_rng(seed)
    clicks = []
    for k in range(number):
        fields = {n: v.numpy() for n, v in generate(np.arange(k * count, (k + 1) * count)).items()}
        ids = fields["example_id"]
        served = ids / PER_SECOND
        probability = fields["click_probability"].astype(np.float64)
        # As a served model with an error would have recorded them.
        logits = np.log(probability / (1 - probability)) + rng.normal(0.0, 0.5, len(ids))
        with ofb_tf.ForwardRecordWriter(directory / "part") as writer:
            writer.write(ids, logits.astype(np.float32), timestamp=micros(served))
        (records,) = (directory / "part").iterdir()
        arrive(records, directory / "records" / f"{k:06d}.ofbr", k)
        examples = serialize(fields, micros(served))
        write(directory, "served", k, examples)
        labels = [feature("label", label) for label in fields["label"]]
        write(
            directory, "labelled", k, [e + each for e, each in zip(examples, labels, strict=True)]
        )
        rows = np.flatnonzero(fields["label"])
        delays = np.minimum(rng.exponential(MEAN_DELAY, len(rows)), WINDOW)
        clicks += zip(served[rows] + delays, ids[rows], strict=True)
    for k in range(number):
        now = [(time, id_) for time, id_ in clicks if k * SLICE <= time < (k + 1) * SLICE]
        events = [
            feature("example_id", id_) + feature("timestamp", micros(time)) + feature("label", 1)
            for time, id_ in now
        ]
        write(directory, "labels", k, events)


def serialize(fields: dict[str, np.ndarray], timestamps: np.ndarray) -> list[bytes]:
    """tf.Examples without a label; one message is filled again for each."""
    message, examples = tf.train.Example(), []
    feature = message.features.feature
    columns = [
        feature["dense"].float_list.value,
        *(feature[n].int64_list.value for n in ("categorical", "example_id", "timestamp")),
    ]
    scalars = [fields["example_id"][:, None], timestamps[:, None]]
    arrays = [fields["dense"], fields["categorical"], *scalars]
    for row in zip(*(array.tolist() for array in arrays), strict=True):
        for column, values in zip(columns, row, strict=True):
            column[:] = values
        examples.append(message.SerializeToString())
    return examples


def micros(seconds: np.ndarray) -> np.ndarray:
    return (1e6 * (START + seconds)).astype(np.int64)


def feature(name: str, value: int) -> bytes:
    """A tf.Example with one feature; one after the other they are a whole."""
    value = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))
    return tf.train.Example(features=tf.train.Features(feature={name: value})).SerializeToString()


def write(directory: pathlib.Path, name: str, k: int, serialized: list[bytes]) -> None:
    with tf.io.TFRecordWriter(str(directory / "unfinished")) as writer:
        for example in serialized:
            writer.write(example)
    arrive(directory / "unfinished", directory / name / f"{k:06d}.tfrecord", k)


def arrive(unfinished: pathlib.Path, path: pathlib.Path, k: int) -> None:
    path.parent.mkdir(exist_ok=True)
    nanoseconds = 1_000_000_000 * (START + (k + 1) * SLICE)
    os.utime(unfinished, ns=(nanoseconds, nanoseconds))
    unfinished.rename(path)


class Until:
    """A log, up to what arrived at a time."""

    def __init__(self, log, end: float) -> None:
        self.log, self.end, self.element_spec = log, end, log.element_spec

    def follow(self, position=None):
        follower = self.log.follow(position)
        poll = follower.poll
        follower.poll = lambda: [each for each in poll() if each.arrived <= self.end]
        return follower


def train(way: str, directory: pathlib.Path, seconds: int, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    dense = keras.Input([13], name="dense")
    categorical = keras.Input([26], name="categorical", dtype="int64")
    offsets = np.cumsum([0, *VOCABULARY_SIZES])
    rows = keras.layers.Embedding(int(offsets[-1]), 8)(categorical + offsets[:-1])
    hidden = keras.layers.Concatenate()([keras.layers.Flatten()(rows), keras.ops.log(dense)])
    hidden = keras.layers.Dense(64, activation="relu", name="hidden")(hidden)
    bias = keras.initializers.Constant(np.log(POSITIVES / (1 - POSITIVES)))
    output = keras.layers.Dense(1, bias_initializer=bias, name="click")(hidden)
    model = ofb_tf.OFBModel({"dense": dense, "categorical": categorical}, output)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("adam", ofb_tf.FakeNegativeWeighted() if way.endswith("weighted") else loss)

    examples = streaming.ExampleDirectory(directory / "labelled")
    if way != "all labels at once":
        examples = streaming.DelayedLabels(
            streaming.Directory(directory / "served"),
            streaming.Directory(directory / "labels"),
            attribution_window=WINDOW,
            lateness=SLICE,
            interval=SLICE,
            early_negatives=way.startswith("early"),
        )
    sampler = ofb_tf.ofb_sample(
        window_size=2560,
        batch_size=128,
        seed=seed,
        max_age=2 * WINDOW,
        task="binary",
        parse_fn=lambda serialized: tf.io.parse_example(serialized, FEATURES),
    )
    records = streaming.RecordDirectory(directory / "records")
    stream = streaming.SampledStream(
        sampler, examples=Until(examples, START + seconds), records=records, follow=False
    )
    model.fit(stream.dataset(), verbose=0)
    assert stream.status()["coverage"] == 1.0
    return model


def evaluate(model: keras.Model, test: dict[str, np.ndarray]) -> tuple[float, float]:
    """Calibration and mean KL divergence in nats."""
    p = test["click_probability"].astype(np.float64)
    logits = model.predict({n: test[n] for n in ("dense", "categorical")}, 4096, verbose=0)
    q = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return float(q.mean() / p.mean()), float(kl.mean())


def compare(minutes: int, seed: int) -> dict[str, tuple[float, float]]:
    """Every way with one seed."""
    seconds, figures = 60 * minutes, {}
    click_stream = ClickStream(seconds * PER_SECOND, POSITIVES, seed=seed)
    after = np.arange(click_stream.num_examples, click_stream.num_examples + HELD_OUT)
    test = {name: value.numpy() for name, value in click_stream.generate(after).items()}
    with tempfile.TemporaryDirectory() as directory:
        write_logs(pathlib.Path(directory), click_stream, seed)
        for way in WAYS:
            figures[way] = evaluate(train(way, pathlib.Path(directory), seconds, seed), test)
            calibration, kl = figures[way]
            print(f"seed {seed}, {way}: calibration {calibration:.3f}, KL {kl:.5f}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=int, default=20, help="of the stream")
    parser.add_argument("--seeds", type=int, default=3, help="number of repetitions")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    with concurrent.futures.ProcessPoolExecutor(
        arguments.workers, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        minutes = [arguments.minutes] * arguments.seeds
        results = list(pool.map(compare, minutes, range(arguments.seeds)))
    print(f"\n{'':28}{'calibration':>18}{'KL x 1e-3':>18}")
    for way in WAYS:
        figures = np.array([result[way] for result in results])
        mean, error = figures.mean(0), np.zeros(2)
        if len(figures) > 1:
            error = figures.std(0, ddof=1) / len(figures) ** 0.5
        print(
            f"{way:28}{mean[0]:10.3f} ± {error[0]:.3f}{1e3 * mean[1]:11.2f} ± {1e3 * error[1]:.2f}"
        )


if __name__ == "__main__":
    main()

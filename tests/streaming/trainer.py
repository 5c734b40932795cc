"""Trains on a stream with checkpoints; writes what each batch held. For tests that kill it."""

import json
import multiprocessing
import os
import random
import threading
import time

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from ofb_tf import streaming
from tests.streaming.files import parse

KILLS = int(os.environ.get("OFB_KILLS", "3"))
BATCHES = 40 * (KILLS + 1)  # so that a run has work for all its lives
EXAMPLES = BATCHES * 16 * 10 + 2000


class Log(keras.callbacks.Callback):
    """Ids, weights and the model's loss after each batch, one line each."""

    def __init__(self, path, checkpoint, progress):
        super().__init__()
        self.path, self.checkpoint, self.progress = path, checkpoint, progress

    def on_train_batch_end(self, batch, logs=None):
        ids, weights = LAST["ids"], LAST["weights"]
        line = {
            "batch": self.checkpoint.batches + 1,
            "ids": ids.numpy().tolist(),
            "weights": weights.numpy().tolist(),
            "kernel": self.model.trainable_variables[0].numpy().tolist(),
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self.progress is not None:
            self.progress.send("trained")
            self.progress = None


LAST = {}


class Model(keras.Model):
    """Keeps the ids and weights of its last batch."""

    def train_step(self, data):
        features, labels, weights = data
        LAST["ids"].assign(features["example_id"])
        LAST["weights"].assign(weights)
        return super().train_step(({"x": features["x"]}, labels, weights))


class Trainer:
    """A process that trains, forked from one that has imported TensorFlow.

    Args:
      logs: a directory with examples and records, or "kafka:HOST:PORT:EXAMPLES:RECORDS".
      checkpoints: a directory.
      log: a file that gets a line per batch.
      batches: how many to train on.
    """

    def __init__(self, logs, checkpoints, log, batches):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._progress, progress = context.Pipe(duplex=False)
        arguments = (str(logs), str(checkpoints), str(log), batches, progress)
        self._process = context.Process(target=main, args=arguments, daemon=True)
        self._process.start()
        progress.close()

    def wait_for_a_batch(self):
        """Returns when it has begun to train, or has ended as there is nothing left to do."""
        try:
            assert self._progress.poll(timeout=300), "the trainer got no batch in 300 seconds"
            self._progress.recv()
        except EOFError:
            self.finish()

    def kill(self):
        self._process.kill()
        self._process.join()

    def finish(self):
        self._process.join(timeout=600)
        assert self._process.exitcode == 0


def check_killed(logs, directory, produce, disturb=lambda: None):
    """A trainer that is killed `KILLS` times trains as one that never was.

    Args:
      logs: as of `Trainer`.
      directory: for checkpoints and what each batch held.
      produce: adds `EXAMPLES` to the logs. It runs in a thread, whatever the trainer does: after a
        kill there may be nothing left to train on until more arrives.
      disturb: called in each life once it trains, before it is killed.
    """

    def trainer(name):
        return Trainer(logs, directory / name, directory / f"{name}.jsonl", BATCHES)

    rng = random.Random(0)
    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    running = trainer("killed")
    for _ in range(KILLS):
        # Somewhere after it began to train: while it trains, saves, reads or waits.
        running.wait_for_a_batch()
        disturb()
        time.sleep(rng.uniform(0.0, 0.5))
        running.kill()
        running = trainer("killed")
    producer.join()
    running.finish()
    trainer("whole").finish()
    killed, undisturbed = (
        {line["batch"]: line for line in map(json.loads, (directory / name).open())}
        for name in ("killed.jsonl", "whole.jsonl")
    )
    assert sorted(undisturbed) == list(range(1, BATCHES + 1))
    assert killed == undisturbed  # ids, weights and loss of every batch
    ids = np.concatenate([line["ids"] for line in killed.values()])
    assert len(np.unique(ids)) == len(ids)


def main(logs, checkpoints, log, batches, progress):
    keras.utils.set_random_seed(0)
    LAST.update(ids=tf.Variable(tf.zeros([16], tf.int64)), weights=tf.Variable(tf.zeros([16])))
    x = keras.Input([2], name="x")
    model = Model({"x": x}, keras.layers.Dense(1)(x))
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    if logs.startswith("kafka:"):
        _, *servers, examples, records = logs.split(":")
        # On a busy machine a broker may take seconds to show what it has stamped.
        settings = {"interval": 0.2, "grace": 3.0}
        examples = streaming.ExampleTopic(":".join(servers), examples, **settings)
        records = streaming.RecordTopic(":".join(servers), records, **settings)
    else:
        examples = streaming.ExampleDirectory(logs + "/examples")
        records = streaming.RecordDirectory(logs + "/records")
    stream = streaming.SampledStream(
        ofb_tf.ofb_sample(
            window_size=320,
            batch_size=16,
            seed=17,
            max_age=100.0,
            task="binary",
            budget="stream",
            parse_fn=parse,
        ),
        examples=examples,
        records=records,
        poll_interval=0.05,
        max_wait=2.0,
    )

    def split(batch):
        features = {name: batch[name] for name in ("x", "example_id")}
        return features, batch["label"], batch["importance_weight"]

    checkpoint = ofb_tf.StreamCheckpoint(stream, checkpoints, every=7)
    left = int(batches) - checkpoint.restore(model)
    if not left:  # it was killed after its last checkpoint; Keras takes 0 steps for no limit
        return
    model.fit(
        stream.dataset().map(split),
        steps_per_epoch=left,
        # In this order: a batch that a checkpoint holds must be in the log.
        callbacks=[Log(log, checkpoint, progress), checkpoint],
        verbose=0,
    )

"""A job that predicts for many examples and records the outputs, with `model.predict`.

A job has time to wait for its disk and must not drop anything, so the callback gets the writer
itself and not a recorder. SIGTERM ends `predict` after the batch at hand: what it has predicted
until then is recorded in complete files, and the next job goes on behind it.

    python docs/examples/predict_job.py records --examples=100000
"""

import argparse
import os
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from ofb_tf.records import ForwardRecords, ForwardRecordWriter
from ofb_tf.serving import RecordPredictions


class StopAtSigterm(keras.callbacks.Callback):
    """Ends `predict` after a batch. An exception in the handler could break off a file's write."""

    def __init__(self) -> None:
        super().__init__()
        self.received = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *unused: object) -> None:
        self.received = True

    def on_predict_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.model.stop_predicting = self.received


def build_model() -> keras.Model:
    """Eight features to one logit; a real job loads the model."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input([8]), keras.layers.Dense(1)])


def features(example_ids: np.ndarray) -> np.ndarray:
    """float32 `[n, 8]` in [0, 1), from the ids alone; a real job reads them."""
    return (example_ids[:, None] * np.arange(1, 9) % 101 / 101).astype(np.float32)


def main() -> None:
    """Predicts for the ids that have no record yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", help="directory of the records")
    parser.add_argument("--examples", type=int, default=100_000)
    arguments = parser.parse_args()
    stop = StopAtSigterm()
    example_ids = np.arange(arguments.examples)
    if os.path.isdir(arguments.records) and os.listdir(arguments.records):
        recorded = ForwardRecords.load(arguments.records).example_ids
        example_ids = np.setdiff1d(example_ids, recorded)
    print(f"{len(example_ids)} examples to predict", flush=True)
    with ForwardRecordWriter(arguments.records) as writer:
        callback = RecordPredictions(writer, example_ids, model_version=3)
        build_model().predict(features(example_ids), 256, callbacks=[callback, stop], verbose=0)
    print(f"recorded {writer.counts.num_written} examples")
    if stop.received:
        sys.exit(143)


if __name__ == "__main__":
    main()

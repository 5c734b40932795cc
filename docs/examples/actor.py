"""An actor: a thread that answers what comes into its mailbox, and records it.

Any framework of actors, Ray Serve among them, calls a method of an object that it has made in a
process of its choice. The object makes the recorder, since a recorder has a thread and does not
pickle, and closes it when it is told to stop.

    python docs/examples/actor.py records --requests=10000
"""

import argparse
import os
import queue
import threading
from concurrent import futures

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from ofb_tf.records import ForwardRecordWriter
from ofb_tf.serving import PredictionRecorder


class Model:
    """What the actor holds: the model and its recorder."""

    def __init__(self, records: str):
        self.weights = np.linspace(-1.0, 1.0, 8, dtype=np.float32)
        self.recorder = PredictionRecorder(ForwardRecordWriter(records, on_error="drop"))

    def predict(self, example_ids: list[int], x: np.ndarray) -> np.ndarray:
        """The probability of each example."""
        logits = x @ self.weights
        self.recorder.write(example_ids, logits[:, None], model_version=3)
        return 1 / (1 + np.exp(-logits))

    def stop(self) -> None:
        """Completes the files."""
        self.recorder.close()


class Actor(threading.Thread):
    """Answers one message after the other."""

    def __init__(self, records: str):
        super().__init__()
        self._mailbox: queue.SimpleQueue = queue.SimpleQueue()
        self._records = records

    def ask(self, example_ids: list[int], x: np.ndarray) -> futures.Future:
        """Puts a request into the mailbox; the future gets the answer."""
        answer: futures.Future = futures.Future()
        self._mailbox.put((example_ids, x, answer))
        return answer

    def stop(self) -> None:
        """Answers what is in the mailbox, and ends."""
        self._mailbox.put(None)
        self.join()

    def run(self) -> None:
        model = Model(self._records)
        while (message := self._mailbox.get()) is not None:
            example_ids, x, answer = message
            try:
                answer.set_result(model.predict(example_ids, x))
            except Exception as error:
                answer.set_exception(error)
        model.stop()
        counts = model.recorder.counts
        print(f"recorded {counts.num_recorded}, lost {counts.num_responses - counts.num_recorded}")


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The directory and the number of requests."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", help="directory of the records")
    parser.add_argument("--requests", type=int, default=1000)
    return parser.parse_args()


def main() -> None:
    """Asks two actors in turn."""
    arguments = parse_arguments(__doc__)
    actors = [Actor(arguments.records) for _ in range(2)]
    for actor in actors:
        actor.start()
    for number in range(arguments.requests):
        x = np.zeros((1, 8), np.float32)
        x[0, number % 8] = 1.0
        actors[number % 2].ask([number], x).result()
    for actor in actors:
        actor.stop()


if __name__ == "__main__":
    main()

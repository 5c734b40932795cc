"""Joins and samples in the tf.data service: worker processes select, the trainer trains.

Starts a dispatcher in this process and two worker processes on the loopback interface. The stream
is stored in TFRecord shards of whole windows, next to its serving records. Dynamic sharding gives
each shard to whichever worker is free, so every example is seen once; since selection is keyed by
the examples' ids, the workers select what a plain run selects, with the same weights.

    python docs/examples/data_service.py
    python docs/examples/data_service.py --num_workers=4 --num_windows=64

In production, dispatcher and workers run on separate machines, with the same two calls.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

import ofb_tf
from ofb_tf.datasets import ClickStream

service = tf.data.experimental.service
WINDOW = 1024


def run_worker(dispatcher_address: str) -> None:
    """Runs a worker until the process is killed; prints a line once it is registered."""
    worker = service.WorkerServer(service.WorkerConfig(dispatcher_address=dispatcher_address))
    print("worker ready", flush=True)
    worker.join()


@contextlib.contextmanager
def local_service(num_workers: int) -> Iterator[str]:
    """A dispatcher and its worker processes; yields the address for `service.distribute`."""
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=0))
    address = dispatcher.target.split("://")[1]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, f"--worker_of={address}"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        for _ in range(num_workers)
    ]
    try:
        for worker in workers:
            if "ready" not in worker.stdout.readline():
                raise RuntimeError(f"a worker ended with code {worker.wait()} before it was ready")
        yield dispatcher.target
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def write_inputs(directory: str, num_windows: int) -> tuple[list[str], str]:
    """Writes shards of the click stream, each of whole windows, and its serving records."""
    stream = ClickStream(num_examples=num_windows * WINDOW, positive_rate=0.05)
    shards = stream.write_tfrecords(os.path.join(directory, "examples"), num_shards=num_windows)
    records = os.path.join(directory, "records")
    with ofb_tf.ForwardRecordWriter(records, num_outputs=1) as writer:
        for window in stream.dataset(batched=True, window_size=WINDOW).as_numpy_iterator():
            # Stands in for a model: close to the true probability, but not exact.
            probability = window["click_probability"]
            logits = np.log(probability / (1 - probability)) + 0.3 * np.log(window["dense"][:, 0])
            writer.write(window["example_id"], logits, model_version=1)
    return shards, records


def selected(shards: list[str], records: str, batch_size: int = 128) -> tf.data.Dataset:
    """One in ten examples of the shards, with weights; the same with or without the service."""
    return (
        tf.data.Dataset.from_tensor_slices(shards)
        .flat_map(tf.data.TFRecordDataset)  # sequential: a window never straddles two shards
        .apply(
            ofb_tf.ofb_sample(
                records=records,
                policy=ofb_tf.Importance(design="poisson"),
                task="binary",
                window_size=WINDOW,
                batch_size=batch_size,
                parse_fn=ClickStream.parse_fn,
                seed=17,
            )
        )
    )


def _weights_by_id(dataset: tf.data.Dataset) -> tuple[dict[int, float], int]:
    """The weight of every selected example by id, and the number of examples."""
    weights, count = {}, 0
    for batch in dataset.as_numpy_iterator():
        ids, batch_weights = batch["example_id"].tolist(), batch["importance_weight"].tolist()
        weights.update(zip(ids, batch_weights, strict=True))
        count += len(ids)
    return weights, count


def main() -> int:
    """Compares a distributed run with a plain one; returns 0 if they select the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--num_windows", type=int, default=32)
    parser.add_argument("--worker_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker_of:
        run_worker(arguments.worker_of)
        return 0

    with tempfile.TemporaryDirectory() as directory:
        shards, records = write_inputs(directory, arguments.num_windows)
        plain, _ = _weights_by_id(selected(shards, records))
        with local_service(arguments.num_workers) as address:
            distributed = selected(shards, records).apply(
                service.distribute(processing_mode=service.ShardingPolicy.DYNAMIC, service=address)
            )
            start = time.perf_counter()
            weights, count = _weights_by_id(distributed)
            seconds = time.perf_counter() - start
    total, same = arguments.num_windows * WINDOW, weights == plain
    print(f"{arguments.num_workers} workers selected {count} of {total} examples")
    print(f"seconds: {seconds:.1f}")
    print(f"every example seen at most once: {count == len(weights)}")
    print(f"selected as in a plain run, id for id and weight for weight: {same}")
    return 0 if count == len(weights) and same else 1


if __name__ == "__main__":
    sys.exit(main())

"""Child processes that the fault tests kill or starve; `python faulty_processes.py NAME DIR`.

One interpreter imports the library once and forks, since an import takes seconds.
"""

import json
import os
import random
import resource
import signal
import sys
import time

import numpy as np

from ofb_tf.records import ForwardRecordWriter

BATCH = 37


def logits_of(ids):
    """What a record's logits must be, from its id alone."""
    return np.stack([ids % 1009, -(ids % 7)], axis=1).astype(np.float32)


def write_until_killed(directory, report, compression):
    """Writes for ever; reports the number of records after every flush."""
    writer = ForwardRecordWriter(
        directory,
        block_records=256,
        max_file_records=2000,
        flush_seconds=None,
        compression=compression,
    )
    count = 0
    while True:
        for _ in range(random.randrange(1, 12)):
            ids = np.arange(count, count + BATCH)
            writer.write(ids, logits_of(ids), model_version=count, timestamp=count)
            count += BATCH
        writer.flush()
        os.write(report, count.to_bytes(8, "little"))


def kill_writers(directory, num_kills=50):
    """Kills a writer at a random moment, again and again; prints what each had flushed."""
    random.seed(0)
    flushed = {}
    for trial in range(num_kills):
        trial_directory = os.path.join(directory, f"{trial:02d}")
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            random.seed(trial)
            write_until_killed(trial_directory, writes, "GZIP" if trial % 5 == 4 else None)
        os.close(writes)
        last = int.from_bytes(os.read(reads, 8), "little")  # its first flush
        time.sleep(random.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while reported := os.read(reads, 8 * 1024):
            last = int.from_bytes(reported[-8:], "little")
        os.close(reads)
        flushed[trial_directory] = last
    print(json.dumps(flushed))


def write_against_a_file_size_limit(directory, limit=100_000):
    """Every file stops growing at `limit` bytes, as under a quota."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    fill(directory, 40_000)


def write_to_a_small_disk(directory):
    """The disk is full before all is written, and stays full."""
    fill(directory, 40_000)


def forget_to_close(directory):
    """Ends while records wait in the buffer."""
    writer = ForwardRecordWriter(directory)
    ids = np.arange(10)
    writer.write(ids, logits_of(ids))
    globals()["kept"] = writer
    print("{}")


def fill(directory, count):
    writer = ForwardRecordWriter(directory, on_error="drop", block_records=1000)
    for start in range(0, count, 100):
        ids = np.arange(start, start + 100)
        writer.write(ids, logits_of(ids))
    writer.close()
    counts = vars(writer.counts)
    print(json.dumps(counts | {"error": str(writer.last_error)}))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])

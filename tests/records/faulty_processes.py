"""Child processes that the fault tests kill or starve; `python faulty_processes.py NAME DIR`.

One interpreter imports the library once and forks, since an import takes seconds.
"""

import gzip
import itertools
import json
import os
import pathlib
import random
import resource
import signal
import struct
import sys
import time
import zlib

import numpy as np
import record_files

from ofb_tf.records import (
    CorruptRecordsError,
    ForwardRecords,
    ForwardRecordWriter,
    PartitionedRecords,
    verify,
)

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
    fill(directory)


def forget_to_close(directory):
    """Ends while records wait in the buffer."""
    writer = ForwardRecordWriter(directory)
    ids = np.arange(10)
    writer.write(ids, logits_of(ids))
    globals()["kept"] = writer
    print("{}")


def fork_writers(directory):
    """A child of a writer's process exits in every way, and writes or not; prints its status."""
    status = {}
    for compression in (None, "GZIP", "ZLIB"):
        for ending in ("_exit", "exit", "collect", "write"):
            name = os.path.join(directory, f"{compression}-{ending}")
            with ForwardRecordWriter(name, compression=compression, block_records=100) as writer:
                ids = np.arange(150)  # a block in the file, and half of one in the buffer
                writer.write(ids, logits_of(ids))
                child = os.fork()
                if not child:
                    if ending == "exit":
                        sys.exit(0)
                    if ending == "collect":
                        file = writer._file
                        del file, writer
                    if ending == "write":
                        writer.write(ids[:120] + 1000, logits_of(ids[:120] + 1000))
                        writer.close()
                        del writer
                        sys.exit(0)
                    os._exit(0)
                status[name] = os.waitpid(child, 0)[1]
                writer.write(ids + 150, logits_of(ids + 150))
    print(json.dumps(status))


def checksum(data):
    """TFRecord's masked CRC-32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def read_hostile_files(directory):
    """Reads files whose headers claim too much; prints what was raised, and the memory it took."""
    good = record_files.write(os.path.join(directory, "good"), [1])
    starts = {"first": b"", "second": pathlib.Path(good).read_bytes()}
    kinds = {"plain": bytes, "gzip": gzip.compress, "zlib": zlib.compress}
    raised = {}
    for power, where, kind in itertools.product((33, 36, 40, 47, 62), starts, kinds):
        length = struct.pack("<Q", 2**power)
        content = kinds[kind](starts[where] + length + checksum(length) + bytes(1000))
        write_hostile(os.path.join(directory, f"{power}-{where}-{kind}"), content, raised)
    # Two GiB of zeros in two megabytes: a deflated megabyte, over and over.
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    length = struct.pack("<Q", 2**31)
    start = deflate.compress(length + checksum(length)) + deflate.flush(zlib.Z_FULL_FLUSH)
    megabyte = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    bomb = b"\x1f\x8b\x08\0\0\0\0\0\0\3" + start + megabyte * 2048
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_hostile(os.path.join(directory, "bomb"), bomb, raised)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"raised": raised, "size": len(bomb), "before": before, "after": after}))


def write_hostile(directory, content, raised):
    os.makedirs(directory)
    pathlib.Path(directory, "partition-00000-of-00001.ofbr").write_bytes(content)
    for name, read in (("load", ForwardRecords.load), ("partitioned", PartitionedRecords)):
        try:
            read(directory)
            raised[f"{directory}: {name}"] = None
        except CorruptRecordsError as error:
            raised[f"{directory}: {name}"] = str(error)
    raised[f"{directory}: verify"] = verify(directory)[0].damages[0].reason


def fill(directory, count=40_000):
    """Goes on writing when the disk is full, and prints the counts."""
    writer = ForwardRecordWriter(directory, on_error="drop", block_records=1000)
    for start in range(0, count, 100):
        ids = np.arange(start, start + 100)
        writer.write(ids, logits_of(ids))
    writer.close()
    counts = vars(writer.counts)
    print(json.dumps(counts | {"error": str(writer.last_error)}))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])

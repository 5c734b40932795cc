"""A trainer that is killed at random moments trains as one that never was.

`OFB_KILLS=50 python -m pytest tests/streaming/kill_test.py` kills it so often; 3 times by default.
"""

import json
import os
import random
import time

import numpy as np
import pytest

from tests.streaming.files import Stream
from tests.streaming.trainer import Trainer

KILLS = int(os.environ.get("OFB_KILLS", "3"))
BATCHES_PER_LIFE = 40  # at least, so that a run has work for all its lives
PER_FILE = 400


@pytest.mark.slow
def test_killed_trainer(tmp_path):
    batches = BATCHES_PER_LIFE * (KILLS + 1)
    logs = tmp_path / "logs"
    examples = batches * 16 * 10 + 5 * PER_FILE
    stream = Stream(examples)
    begin = time.time() - examples / PER_FILE
    parts = [range(k, k + PER_FILE) for k in range(0, examples, PER_FILE)]

    def arrive(k):
        stream.write_records(logs / "records", f"{k:05d}", parts[k], begin + k)
        stream.write_examples(logs / "examples", f"{k:05d}", parts[k], begin + k + 0.5)

    arrive(0)
    arrived, rng = 1, random.Random(0)
    running = Trainer(logs, tmp_path / "killed", tmp_path / "killed.jsonl", batches)
    for _ in range(KILLS):
        # Somewhere after it began to train: while it trains, saves, reads or waits for files.
        running.wait_for_a_batch()
        more = min(len(parts), arrived + 1 + len(parts) // (KILLS + 1))
        for k in range(arrived, more):
            arrive(k)
        arrived = more
        time.sleep(rng.uniform(0.0, 0.5))
        running.kill()
        running = Trainer(logs, tmp_path / "killed", tmp_path / "killed.jsonl", batches)
    for k in range(arrived, len(parts)):
        arrive(k)
    running.finish()
    Trainer(logs, tmp_path / "whole", tmp_path / "whole.jsonl", batches).finish()
    killed, undisturbed = (
        {line["batch"]: line for line in map(json.loads, (tmp_path / name).open())}
        for name in ("killed.jsonl", "whole.jsonl")
    )
    assert sorted(undisturbed) == list(range(1, batches + 1))
    assert killed == undisturbed  # ids, weights and loss of every batch
    ids = np.concatenate([line["ids"] for line in killed.values()])
    assert len(np.unique(ids)) == len(ids)

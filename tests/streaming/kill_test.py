"""A trainer that is killed at random moments trains as one that never was.

`OFB_KILLS=50 python -m pytest tests/streaming/kill_test.py` kills it so often; 3 times by default.
"""

import itertools
import time

import pytest

from tests.streaming.files import Stream
from tests.streaming.trainer import EXAMPLES, KILLS, check_killed

PER_FILE = 400


@pytest.mark.slow
def test_killed_trainer(tmp_path):
    logs = tmp_path / "logs"
    stream = Stream(EXAMPLES)
    begin = time.time() - EXAMPLES / PER_FILE
    parts = [range(k, k + PER_FILE) for k in range(0, EXAMPLES, PER_FILE)]
    waiting = iter(range(len(parts)))

    def arrive(number):
        for k in itertools.islice(waiting, number):
            stream.write_records(logs / "records", f"{k:05d}", parts[k], begin + k)
            stream.write_examples(logs / "examples", f"{k:05d}", parts[k], begin + k + 0.5)

    arrive(1)
    check_killed(
        logs,
        tmp_path,
        disturb=lambda life: arrive(1 + len(parts) // (KILLS + 1)),
        produce_rest=lambda: arrive(len(parts)),
    )

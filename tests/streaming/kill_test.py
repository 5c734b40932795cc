"""A trainer that is killed at random moments trains as one that never was.

`OFB_KILLS=50 python -m pytest tests/streaming/kill_test.py` kills it so often; 3 times by default.
"""

import time

import pytest

from tests.streaming.files import Stream
from tests.streaming.trainer import EXAMPLES, check_killed

PER_FILE = 400


@pytest.mark.slow
def test_killed_trainer(tmp_path):
    logs = tmp_path / "logs"
    stream = Stream(EXAMPLES)
    begin = time.time() - EXAMPLES / PER_FILE

    def produce():
        for k, first in enumerate(range(0, EXAMPLES, PER_FILE)):
            part = range(first, first + PER_FILE)
            stream.write_records(logs / "records", f"{k:05d}", part, begin + k)
            stream.write_examples(logs / "examples", f"{k:05d}", part, begin + k + 0.5)
            time.sleep(0.1)  # slower than the trainer, so that it waits now and then

    check_killed(logs, tmp_path, produce)

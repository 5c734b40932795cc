"""The join on a real Flink cluster, of which one task manager is killed while it runs."""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.selection import FixedScale
from tests.streaming import logs
from tests.streaming.logs import Logs

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RUNNER = _ROOT / "tests" / "runners" / "pyflink.sh"
_SLOPE, _OFFSET, _SEED = 0.25, 0.02, 5
_SLICES = 60
_TIMEOUT = 600.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.flink,
    pytest.mark.skipif(shutil.which("java") is None, reason="Flink needs Java"),
]
pytest.importorskip("pyflink", reason="PyFlink is in .venv-flink (make test-flink)")


def _run(*arguments) -> None:
    environment = {**os.environ, "FLINK_PYTHON": sys.executable}
    command = [str(_RUNNER), *(str(argument) for argument in arguments)]
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def _free_port() -> int:
    """The first of two free ports in a row."""
    for port in range(20_000, 30_000, 2):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for each in (port, port + 1):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
            return port
    raise OSError("no free ports")


@pytest.fixture
def cluster():
    port = _free_port()
    try:
        _run("up", port)
        yield port
    finally:
        _run("down", port)


def _ask(port: int, path: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=30) as answer:
        return json.load(answer)


def _wait(what: str, condition) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {_TIMEOUT:.0f} s"
        time.sleep(0.5)


def _output(directory: pathlib.Path) -> dict[int, list[tuple[int, float]]]:
    """id → what the finished files of the sink hold of it."""
    files = [str(path) for path in sorted(directory.glob("*/part-*"))]
    found = collections.defaultdict(list)
    for serialized in tf.data.TextLineDataset(files).map(tf.io.decode_base64).as_numpy_iterator():
        feature = tf.train.Example.FromString(serialized).features.feature
        (id_,) = feature["example_id"].int64_list.value
        (label,) = feature["label"].int64_list.value
        (weight,) = feature["importance_weight"].float_list.value
        found[id_].append((label, weight))
    return found


def test_nothing_is_lost_or_doubled_when_a_task_manager_is_killed(cluster, tmp_path):
    stream = Logs(30_000)
    expected = stream.expected(FixedScale(_SLOPE, _OFFSET), _SEED)
    assert len(expected) > 2000
    for kind in ("records", "examples", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / f"index-{kind}").mkdir()
        (tmp_path / f"index-{kind}" / "directories.txt").write_text(f"{tmp_path / kind}\n")
    config = {
        "rate": logs.RATE,
        "seed": _SEED,
        "attribution_window": logs.WINDOW,
        "max_wait": logs.MAX_WAIT,
        "interval": 0.5,
    }
    output = tmp_path / "output"
    _run(
        *("run", cluster, _ROOT / "ofb_tf" / "streaming" / "flink.py"),
        *(f"--{kind}={tmp_path}/index-{kind}" for kind in ("records", "examples", "labels")),
        *(f"--output={output}", f"--slope={_SLOPE}", f"--offset={_OFFSET}"),
        *(f"--config={json.dumps(config)}", "--max_disorder=1", "--num_buckets=16"),
        *("--checkpoint_interval=2", "--parallelism=2"),
    )
    (job,) = (job["jid"] for job in _ask(cluster, "jobs/overview")["jobs"])
    seconds = stream.n / logs.PER_SECOND + 2 * logs.WINDOW

    def feed(begin: int, end: int) -> None:
        for k in range(begin, end):
            stream.write(tmp_path, seconds * k / _SLICES, seconds * (k + 1) / _SLICES, f"{k:04d}")

    feed(0, _SLICES // 2)
    _wait("the first output", lambda: len(_output(output)) > 200)
    _run("kill", cluster, 2)
    before = _output(output)
    feed(_SLICES // 2, _SLICES)
    stream.write_heartbeat(tmp_path, "9999", int(stream.times[-1]) + 60_000_000)
    _run("start", cluster, 2)
    heartbeat = 10 * stream.n  # ids of the stream are below it

    def selected() -> set[int]:
        return {id_ for id_ in _output(output) if id_ < heartbeat}

    _wait("recovery", lambda: len(selected()) >= len(expected))
    checkpoints = _ask(cluster, f"jobs/{job}/checkpoints")
    assert checkpoints["counts"]["restored"] >= 1
    # Two more checkpoints, in which whatever is doubled would come out.
    done = checkpoints["counts"]["completed"] + 2
    _wait(
        "two checkpoints",
        lambda: _ask(cluster, f"jobs/{job}/checkpoints")["counts"]["completed"] >= done,
    )
    found = _output(output)
    assert all(found[id_] == rows for id_, rows in before.items())
    assert selected() == set(expected)
    assert all(len(rows) == 1 for rows in found.values())
    ids = sorted(expected)
    assert [found[id_][0][0] for id_ in ids] == [expected[id_][0] for id_ in ids]
    weights = [
        [rows[id_][1] for id_ in ids] for rows in ({i: r[0] for i, r in found.items()}, expected)
    ]
    # A vectorised sigmoid rounds the last bit by the place of an example in its vector.
    np.testing.assert_allclose(*weights, rtol=4e-7)

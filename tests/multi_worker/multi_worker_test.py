"""Two workers on the loopback interface against one process on the same global batches."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.multi_worker import worker
from tests.training import models

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.multi_worker.worker"]


def run_workers(directory, how):
    """What the two workers wrote."""
    with socket.create_server(("", 0)) as first, socket.create_server(("", 0)) as second:
        hosts = [f"127.0.0.1:{server.getsockname()[1]}" for server in (first, second)]
    local = {"TF_CPP_MIN_LOG_LEVEL": "2", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        command = [*COMMAND, str(directory / f"{index}.json"), how]
        with open(directory / f"log_{index}", "w") as log:
            run = {"env": os.environ | local | {"TF_CONFIG": json.dumps(config)}, "cwd": ROOT}
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, **run))
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = "\n".join((directory / f"log_{index}").read_text()[-3000:] for index in range(2))
    assert codes == [0, 0], logs
    return [json.loads((directory / f"{index}.json").read_text()) for index in range(2)]


@pytest.mark.slow
def test_two_workers_train_as_one_process(tmp_path):
    first, second = run_workers(tmp_path, "loop")
    assert first["replicas"] == 2 and {first["task"], second["task"]} == {0, 1}
    model = worker.build()
    history = models.fit(model, models.as_tuple(models.make_data()))
    for result in (first, second):
        for mine, theirs in zip(model.get_weights(), result["weights"], strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-5)
        for name, values in history.items():
            assert result["history"][name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.slow
def test_fit_fails_for_stock_keras_alike(tmp_path):
    """Keras's limit, not ours. If this fails, Keras learnt it: use `fit` in the worker."""
    for result in run_workers(tmp_path, "fit"):
        assert result["ours"] == result["stock"]
        assert "works" not in result["stock"]

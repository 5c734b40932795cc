"""Ends gunicorn in the middle of requests to `fastapi_server.py`, and looks for what was lost.

gunicorn runs with two workers and --preload. Clients on 16 connections send one example in each
request. When half of the requests are answered, gunicorn gets SIGTERM, while the clients go on;
what it does not answer any more is sent to a second gunicorn, which gets SIGTERM at the end. Every
request that was answered with 200 must then have its record, in files that are complete.

    pip install ofb-tf fastapi gunicorn uvicorn-worker
    python docs/examples/gunicorn_load.py --requests=100000
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

EXAMPLES = pathlib.Path(__file__).parent
CONNECTIONS = 16
REQUESTS_PER_CONNECTION = 100
BOOT_SECONDS = 180


def features(example_ids: np.ndarray) -> np.ndarray:
    """float32 `[n, 8]` in [0, 1), from the ids alone."""
    return (example_ids[:, None] * np.arange(1, 9) % 101 / 101).astype(np.float32)


def request(example_id: int) -> bytes:
    """The HTTP request for one example."""
    x = features(np.array([example_id])).tolist()
    body = json.dumps({"example_id": [example_id], "x": x})
    return (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


class Load:
    """Clients that send what is waiting, until all is answered or nobody listens any more.

    Attributes:
      waiting: ids that have no answer yet.
      answered: ids of the requests that were answered with 200.
      num_broken_off: requests whose connection ended before the answer.
    """

    def __init__(self, num_requests: int) -> None:
        self.waiting = collections.deque(range(num_requests))
        self.answered: list[int] = []
        self.num_broken_off = 0

    async def run(self, socket: str, stop_after: int, process: subprocess.Popen) -> None:
        """Sends SIGTERM to the process after so many answers."""
        clients = [
            asyncio.create_task(self._client(socket, stop_after, process))
            for _ in range(CONNECTIONS)
        ]
        await asyncio.gather(*clients)

    async def _client(self, socket: str, stop_after: int, process: subprocess.Popen) -> None:
        while self.waiting:
            try:
                reader, writer = await asyncio.open_unix_connection(socket)
            except OSError:
                return
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                for _ in range(REQUESTS_PER_CONNECTION):  # the next one may be another worker's
                    if not self.waiting or not await self._send(reader, writer):
                        break
                    if len(self.answered) == stop_after:
                        process.send_signal(signal.SIGTERM)
            writer.close()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays open."""
        example_id = self.waiting.popleft()
        try:
            writer.write(request(example_id))
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            self.num_broken_off += 1
            self.waiting.append(example_id)
            raise
        if head.split()[1] == b"200":
            self.answered.append(example_id)
        else:
            self.waiting.append(example_id)
        return b"connection: close" not in head


@contextlib.contextmanager
def gunicorn(socket: str, records: str) -> Iterator[subprocess.Popen]:
    """Two workers that listen on the socket; waits for their end."""
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(EXAMPLES), "--preload"]
    command += ["--workers=2", "--worker-class=uvicorn_worker.UvicornWorker", "--timeout=300"]
    command += [f"--bind=unix:{socket}", "--log-level=warning", "fastapi_server:app"]
    process = subprocess.Popen(command, env=os.environ | {"RECORDS_DIR": records})
    try:
        asyncio.run(answers(socket, process))
        yield process
        process.wait(120)
    finally:
        process.kill()


async def answers(socket: str, process: subprocess.Popen) -> None:
    """Waits until somebody listens."""
    due = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < due and process.poll() is None:
        with contextlib.suppress(OSError):
            (await asyncio.open_unix_connection(socket))[1].close()
            return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"gunicorn does not listen on {socket}; its exit code: {process.poll()}")


def main() -> int:
    """Returns 1 if an answered request has no record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=4000)
    num_requests = parser.parse_args().requests
    load = Load(num_requests)
    with tempfile.TemporaryDirectory() as directory:
        records = os.path.join(directory, "records")
        seconds = 0.0
        for stop_after in (num_requests // 2, num_requests):
            socket = os.path.join(directory, f"socket-{stop_after}")
            with gunicorn(socket, records) as process:
                start = time.perf_counter()
                asyncio.run(load.run(socket, stop_after, process))
                seconds += time.perf_counter() - start
            print(
                f"SIGTERM after {stop_after} answers: {len(load.answered)} requests answered, "
                f"{load.num_broken_off} broken off, {len(load.waiting)} wait; "
                f"exit code {process.returncode}"
            )
        return report(load, records, seconds)


def report(load: Load, records: str, seconds: float) -> int:
    """Compares the records with what was answered."""
    from fastapi_server import MODEL_VERSION, WEIGHTS

    from ofb_tf.records import ForwardRecords

    recorded = ForwardRecords.load(records)
    ids = recorded.example_ids.numpy()
    lost = np.setdiff1d(load.answered, ids)
    np.testing.assert_allclose(recorded.logits[:, 0], features(ids) @ WEIGHTS, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(recorded.model_versions, np.full(len(ids), MODEL_VERSION))
    counts = recorded.counts
    print(
        f"{len(load.answered)} requests answered with 200 in {seconds:.1f} s, "
        f"{len(load.answered) / seconds:.0f} per second; {len(ids)} recorded in "
        f"{counts.num_files} files, {counts.num_open_files} of them open; {len(lost)} lost"
    )
    return int(bool(len(lost)) or bool(counts.num_open_files))


if __name__ == "__main__":
    sys.exit(main())

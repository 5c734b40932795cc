"""A peer in a separate process, and the peers of a part in turn."""

import contextlib
import json
import os
import pathlib
import selectors
import subprocess
import sys
import tempfile

from benchmarks.child import PREPARE
from benchmarks.parts import Medians, Part, Settings

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TIMEOUT_SECONDS = 300


class PeerProcess:
    """Set up once, run on demand; a context manager.

    Raises:
      RuntimeError: the process ended or was silent for too long; the message has its stderr.
    """

    def __init__(self, module: str, part: Part, peer: str, settings: Settings) -> None:
        self._name = f"{part.name}, {peer!r}"
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed in __exit__
        command = [sys.executable, "-m", "benchmarks.child", module, part.name, peer]
        command += [str(settings.inputs), "quick" if settings.quick else "full"]
        self._process = subprocess.Popen(
            command,
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
            text=True,
        )

    def __enter__(self) -> "PeerProcess":
        try:
            self._read()
        except RuntimeError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def run(self) -> dict[str, float]:
        """Runs once more; returns the figures."""
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        """The next line that is JSON; libraries may print others."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while selector.select(_TIMEOUT_SECONDS):
                line = self._process.stdout.readline()
                if line.startswith("{"):
                    return json.loads(line)
                if not line:
                    break
        self._errors.seek(0)
        raise RuntimeError(f"{self._name} failed:\n{self._errors.read()[-4000:]}")


def run_part(module: str, part: Part, settings: Settings) -> dict[str, Medians]:
    """All repeats of a part, each peer in a separate process; in a repeat they take turns."""
    if part.prepare is not None:
        with PeerProcess(module, part, PREPARE, settings):
            pass
    repeats = 1 if settings.quick else part.repeats
    samples = {peer: [] for peer in part.peers}
    with contextlib.ExitStack() as stack:
        processes = {
            peer: stack.enter_context(PeerProcess(module, part, peer, settings))
            for peer in part.peers
        }
        for repeat in range(repeats):
            for peer, process in processes.items():
                samples[peer].append(process.run())
                cpu = samples[peer][-1]["cpu_us"]
                progress = f"{part.name} {repeat + 1}/{repeats}: {peer}: {cpu:.3g} CPU µs"
                print(f"{progress} per {part.item}", file=sys.stderr, flush=True)
    return {peer: Medians(values) for peer, values in samples.items()}

"""One peer in this process: sets up, then runs once for every line on standard input.

Prints a line of JSON when it is set up and after every run; `benchmarks.process` talks to it.
"""

import importlib
import json
import pathlib
import resource
import sys
import time
from collections.abc import Mapping

from benchmarks.parts import Part, Run, Settings

PREPARE = "prepare"


def find_part(module: str, name: str) -> Part:
    """The part of that name in a module of this package."""
    parts = importlib.import_module(f"benchmarks.{module}").PARTS
    return next(part for part in parts if part.name == name)


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(run: Run) -> dict[str, float]:
    """Runs once under the clocks, unless the peer keeps time itself, and adds time an item."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = run()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    figures = {"wall_seconds": wall, "cpu_seconds": cpu}
    figures |= result if isinstance(result, Mapping) else {"items": result}
    for clock in ("wall", "cpu"):
        figures[f"{clock}_us"] = figures[f"{clock}_seconds"] / figures["items"] * 1e6
    return figures


def main() -> None:
    """Serves `benchmarks.process.PeerProcess`."""
    module, name, peer, inputs, quick = sys.argv[1:]
    settings = Settings(pathlib.Path(inputs), quick == "quick")
    part = find_part(module, name)
    if peer == PREPARE:
        part.prepare(settings)
        run = None
    else:
        run = part.peers[peer](settings)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure(run)), flush=True)


if __name__ == "__main__":
    main()

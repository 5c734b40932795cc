"""Runs one peer once, in this process, and prints its figures as JSON on the last line."""

import importlib
import json
import pathlib
import resource
import sys
import time

from benchmarks.parts import Part, Settings


def find_part(module: str, name: str) -> Part:
    """The part of that name in a module of this package."""
    parts = importlib.import_module(f"benchmarks.{module}").PARTS
    return next(part for part in parts if part.name == name)


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(part: Part, peer: str, settings: Settings) -> dict[str, float]:
    """Sets the peer up, runs it once under the clocks, and adds time an item."""
    run = part.peers[peer](settings)
    wall, cpu = time.perf_counter(), cpu_seconds()
    figures = run()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    figures = dict(figures) if not isinstance(figures, int) else {"items": figures}
    figures |= {"wall_seconds": wall, "cpu_seconds": cpu}
    items = figures["items"]
    return figures | {"wall_us": wall / items * 1e6, "cpu_us": cpu / items * 1e6}


def main() -> None:
    module, name, peer, inputs, quick = sys.argv[1:]
    settings = Settings(pathlib.Path(inputs), quick == "quick")
    part = find_part(module, name)
    if peer == "prepare":
        part.prepare(settings)
        print("{}")
    else:
        print(json.dumps(measure(part, peer, settings)))


if __name__ == "__main__":
    main()

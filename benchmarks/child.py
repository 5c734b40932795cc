"""One peer in this process: sets up, then runs once for every line on standard input.

Prints a line of JSON when it is set up and after every run; `benchmarks.process` talks to it.
"""

import importlib
import json
import pathlib
import sys
from collections.abc import Mapping

from benchmarks.clock import timed
from benchmarks.parts import Part, Run, Settings

PREPARE = "prepare"


def parts_of(module: str) -> dict[str, Part]:
    """The parts of a module of this package, by name."""
    return {part.name: part for part in importlib.import_module(f"benchmarks.{module}").PARTS}


def measure(run: Run) -> dict[str, float]:
    """Runs once, timed here unless the peer keeps time itself, and adds the time per item."""
    figures, result = timed(run)
    figures |= result if isinstance(result, Mapping) else {"items": result}
    for clock in ("wall", "cpu"):
        figures[f"{clock}_us"] = figures[f"{clock}_seconds"] / figures["items"] * 1e6
    return figures


def main() -> None:
    """Serves `benchmarks.process.PeerProcess`."""
    module, name, peer, inputs, quick = sys.argv[1:]
    settings = Settings(pathlib.Path(inputs), quick == "quick")
    part = parts_of(module)[name]
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

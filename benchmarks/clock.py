"""The clocks that every measurement uses."""

import resource
import time
from collections.abc import Callable
from typing import Any


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """ "wall_seconds" and "cpu_seconds" of a call, and what it returned."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = function()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return {"wall_seconds": wall, "cpu_seconds": cpu}, result

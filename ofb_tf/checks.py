"""Checks of arguments: each returns the value, or raises a ValueError that names it."""

import math
import operator
from collections.abc import Mapping
from typing import Any


def check_choice(name: str, value: Any, choices: tuple) -> Any:
    """One of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}. Received: {value!r}")
    return value


def check_count(name: str, value: int, largest: int | None = None) -> int:
    """An integer of at least 1; a TypeError if it is not an integer."""
    value = operator.index(value)
    if value < 1 or (largest is not None and value > largest):
        wanted = "at least 1" if largest is None else f"in [1, {largest}]"
        raise ValueError(f"{name} must be {wanted}. Received: {value}")
    return value


def check_positive(name: str, value: float, *, finite: bool = False) -> float:
    """A number above 0."""
    if not value > 0 or (finite and not math.isfinite(value)):
        wanted = "positive and finite" if finite else "positive"
        raise ValueError(f"{name} must be {wanted}. Received: {value}")
    return value


def check_compression(compression: str | None) -> str:
    """TensorFlow's name of a compression."""
    return check_choice("compression", compression, (None, "", "GZIP", "ZLIB")) or ""


def check_ranges(ranges: Mapping[str, tuple[float, float]], values: Mapping[str, Any]) -> None:
    """Raises ValueError for the first of the values that is outside its closed range, or NaN."""
    for name, (low, high) in ranges.items():
        if name in values and not low <= values[name] <= high:
            expected = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            raise ValueError(f"{name} must be {expected}. Received: {values[name]!r}")

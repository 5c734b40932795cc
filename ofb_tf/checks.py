"""Checks of arguments: each returns the value, or raises a ValueError that names it."""

import math
import operator
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

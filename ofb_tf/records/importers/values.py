"""One value of a row: numbers, ids, and times in any unit."""

import calendar
import datetime
import decimal
import re
from typing import Any

import numpy as np

from ofb_tf.constants import MICROSECONDS
from ofb_tf.records.importers.batches import UnusableError

AUTO = "auto"
PER_SECOND = {"us": 10**6, "ms": 10**3, "s": 1, "ns": 10**9}
# The years 2000 to 2099, in seconds: in no two units is one number such a time.
_FIRST, _LAST = 946_684_800, 4_102_444_800
_ISO_8601 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?\s*(?:Z|z|UTC|([+-])(\d\d):?(\d\d)?)?)?",
    re.ASCII,
)


def floats(value: Any, name: str, count: int | None = None) -> list[float]:
    """A number or a list of them; text is split at white space, commas and semicolons."""
    if isinstance(value, str):
        value = value.strip().strip("[]").replace(";", " ").replace(",", " ").split()
    values = value if isinstance(value, list) else [value]
    try:
        numbers = [float(v) for v in values if not isinstance(v, bool | list | dict)]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != len(values) or not numbers or count not in (None, len(numbers)):
        wanted = "numbers" if count is None else "one number"
        raise UnusableError(f"field {name!r} must hold {wanted}. Received: {str(value)[:60]}")
    return numbers


def int64(value: Any, name: str) -> int:
    """An integer, or a float or text that is one."""
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not -(2**63) <= number < 2**63:
        raise UnusableError(f"field {name!r} must be an int64. Received: {str(value)[:60]}")
    return number


def microseconds(value: Any, name: str, unit: str = AUTO) -> int:
    """Microseconds since 1970 of a number, or of ISO 8601 text, in UTC if it has no offset.

    Args:
      value: what the log holds.
      name: of its field, for the error.
      unit: of a number, "s", "ms", "us" or "ns"; "auto" takes the one in which it is a time
        between 2000 and 2099.

    Raises:
      UnusableError: it is no time between 2000 and 2099, which is how a wrong unit shows.
    """
    number = value
    if isinstance(value, str):
        if match := _ISO_8601.fullmatch(value.strip()):
            return _of_iso_8601(match, name)
        number = _number(value)
    if isinstance(number, bool) or not isinstance(number, int | float | decimal.Decimal):
        raise UnusableError(f"field {name!r} must be a time. Received: {str(value)[:60]}")
    for each in PER_SECOND if unit == AUTO else (unit,):
        per_second = PER_SECOND[each]
        if _FIRST * per_second <= number < _LAST * per_second:
            if isinstance(number, float):
                return round(number * (MICROSECONDS / per_second))
            return int(number * MICROSECONDS // per_second)
    raise UnusableError(not_a_time(name, unit, value))


def microseconds_of_numbers(numbers: np.ndarray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of int64 or float64 `[n]` at once: int64 `[n]`, and where they are such times."""
    times = np.zeros(len(numbers), np.int64)
    valid = np.zeros(len(numbers), bool)
    for each in PER_SECOND if unit == AUTO else (unit,):
        per_second = PER_SECOND[each]
        fits = (numbers >= _FIRST * per_second) & (numbers < _LAST * per_second)
        if fits.any():
            found = numbers[fits]
            if found.dtype.kind == "f":
                times[fits] = np.rint(found * (MICROSECONDS / per_second))
            elif per_second <= MICROSECONDS:
                times[fits] = found * (MICROSECONDS // per_second)
            else:
                times[fits] = found // (per_second // MICROSECONDS)
            valid |= fits
    return times, valid


def not_a_time(name: str, unit: str, value: Any) -> str:
    """The error for what is no time of this unit."""
    hint = "" if unit == AUTO else f" in {unit!r}; set timestamp_unit to another one, or to 'auto'"
    return f"field {name!r} is no time in 2000 to 2099{hint}. Received: {str(value)[:60]}"


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None


def _of_iso_8601(match: re.Match, name: str) -> int:
    *date, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    try:
        year, month, day = map(int, date)
        clock = datetime.time(int(hour or 0), int(minute or 0), int(second or 0))
        moment = datetime.datetime.combine(datetime.date(year, month, day), clock)
    except ValueError as error:
        raise UnusableError(
            f"field {name!r} must be a time: {error}. Received: {match[0]}"
        ) from error
    offset = (int(offset_hours or 0) * 60 + int(offset_minutes or 0)) * 60
    seconds = calendar.timegm(moment.timetuple()) - (-offset if sign == "-" else offset)
    if not _FIRST <= seconds < _LAST:
        raise UnusableError(not_a_time(name, AUTO, match[0]))
    return seconds * MICROSECONDS + int((fraction or "").ljust(6, "0")[:6])

"""Times of logs against Python's datetime."""

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofb_tf.records.importers import UnusableError, values

UTC = datetime.timezone.utc
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(datetime.datetime(2000, 1, 2), datetime.datetime(2099, 12, 30))
# An offset of seconds has no place in RFC 3339.
ZONES = st.integers(-23 * 60, 23 * 60).map(
    lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))
)


def microseconds(moment):
    return (moment - EPOCH) // datetime.timedelta(microseconds=1)


@given(MOMENTS, ZONES)
def test_iso_8601(moment, zone):
    aware = moment.replace(tzinfo=zone)
    expected = microseconds(aware)
    for text in (aware.isoformat(), str(aware), aware.isoformat().replace(".", ",")):
        assert values.microseconds(text, "t") == expected
    utc = moment.replace(tzinfo=UTC)
    for suffix in ("", "Z", "z", " UTC", "+00"):
        text = moment.isoformat() + suffix
        assert values.microseconds(text, "t", "ms") == microseconds(utc), text


@given(MOMENTS, st.sampled_from(["s", "ms", "us", "ns"]))
def test_units_are_found_and_declared(moment, unit):
    expected = microseconds(moment.replace(tzinfo=UTC))
    if unit == "ns":
        number = expected * 1000 + 999  # cut off, not rounded up
    else:
        step = {"s": 10**6, "ms": 10**3, "us": 1}[unit]
        number, expected = expected // step, expected // step * step
    for given_unit in (unit, "auto"):
        assert values.microseconds(number, "t", given_unit) == expected
        assert values.microseconds(str(number), "t", given_unit) == expected
        found, valid = values.microseconds_of_numbers(np.array([number]), given_unit)
        assert (found[0], valid[0]) == (expected, True)
    for other in {"s", "ms", "us", "ns"} - {unit}:  # no record in 1970 or 2255
        with pytest.raises(UnusableError, match="no time in 2000 to 2099"):
            values.microseconds(number, "t", other)
        assert not values.microseconds_of_numbers(np.array([number]), other)[1][0]


@given(MOMENTS)
def test_fractions_of_seconds(moment):
    expected = microseconds(moment.replace(tzinfo=UTC))
    assert values.microseconds(expected / 1e6, "t") == expected
    found, valid = values.microseconds_of_numbers(np.array([expected / 1e6]), "auto")
    assert (found[0], valid[0]) == (expected, True)


@pytest.mark.parametrize(
    "value",
    [
        *(0, 77, -1, 2**62, 10**300, float("nan"), float("inf"), True, None, [], {}, "", "soon"),
        *("1970-01-01T00:00:00Z", "2255-01-01", "2024-02-30", "2024-05-01T25:00:00Z", "nan"),
        "2024-05-01T12:00:00Z and more",
    ],
)
def test_what_is_no_time(value):
    for unit in ("auto", "s", "ms", "us", "ns"):
        with pytest.raises(UnusableError, match="field 't'"):
            values.microseconds(value, "t", unit)

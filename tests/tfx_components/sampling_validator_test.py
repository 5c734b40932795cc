"""SamplingValidator by its own function: what it blesses, what it does not, what it writes."""

import dataclasses
import pathlib
import re

import pytest
from tfx.types import channel_utils

from ofb_tf.beam import SplitStatistics, WeightStats, read_statistics, reports, write_statistics
from tfx_components import artifacts
from tfx_components.sampling_validator import SamplingValidator

_CONFIG = {"rate": 0.1, "policy": "importance", "uniform_mix": 0.2}
_GOOD = WeightStats(
    num_examples=10_000,
    num_scored=9_800,
    num_no_record=200,
    num_selected=1_010,
    expected_selected=1_000.0,
    variance_selected=700.0,
    variance_inverse=200_000.0,
    sum_weights=1_005.0,
    sum_squared_weights=2_000.0,
    min_weight=0.1,
    max_weight=4.9,
    sum_age=9_800 * 30.0,
    max_age=60.0,
)


_NONE = dataclasses.replace(_GOOD, num_selected=0, min_weight=float("inf"))


def _validate(tmp_path, tally=_GOOD, config=None, **thresholds):
    source, blessing = artifacts.SamplingStatistics(), artifacts.SamplingBlessing()
    source.uri, blessing.uri = str(tmp_path / "statistics"), str(tmp_path / "blessing")
    split = SplitStatistics(tally, {"city=<north>": tally}, {"7": 9_800})
    write_statistics(source.uri, _CONFIG | (config or {}), {"train": split})
    SamplingValidator.test_call(sampling_statistics=source, blessing=blessing, **thresholds)
    return blessing


def _anomalies(blessing):
    return (pathlib.Path(blessing.uri) / "anomalies.txt").read_text()


@pytest.mark.parametrize(
    ("change", "thresholds", "message"),
    [
        ({"num_scored": 4_000}, {}, "40.0% of 10000 examples have a usable record.*max_age"),
        ({"num_selected": 1_133}, {}, "1133 are selected, .* sum to 1000.0 ± 132.3"),
        (
            {"num_selected": 1_400, "expected_selected": 1_400.0, "sum_weights": 1_005.0},
            {},
            "realised rate is 0.1400, the configured one 0.1.*missing='uniform'",
        ),
        ({"sum_weights": 1_224.0}, {}, "weights sum to 1224.0, expected 1000.0 ± 223.6"),
        ({"sum_squared_weights": 20_000.0}, {}, "effective sample size is 0.050.*uniform_mix"),
        ({"max_weight": 5.1}, {}, "largest weight is 5.100; the most is 5.000"),
        ({}, {"max_weight": 4.0}, "largest weight is 4.900; the most is 4.000"),
        ({"num_repeated_ids": 200}, {}, "200 of 10000 examples have an id that another has"),
        ({}, {"max_record_age": 59.0}, "oldest record is 60 s old; the most is 59 s"),
        ({}, {"min_coverage": 0.99}, "the least is 99.0%"),
    ],
)
def test_a_bad_sample_is_not_and_the_anomaly_says_why(tmp_path, change, thresholds, message):
    blessing = _validate(tmp_path, dataclasses.replace(_GOOD, **change), **thresholds)
    assert blessing.get_int_custom_property("blessed") == 0
    assert (pathlib.Path(blessing.uri) / "NOT_BLESSED").exists()
    (line,) = _anomalies(blessing).splitlines()
    assert re.search(f"^train: .*{message}", line)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_selected": 1_132},
        {"sum_weights": 1_223.0},
        {"max_weight": 5.0},
        {"num_scored": 5_000},
        {"unreachable": 4_000, "sum_weights": 605.0},
    ],
)
def test_within_the_bounds_is_blessed(tmp_path, change):
    blessing = _validate(tmp_path, dataclasses.replace(_GOOD, **change))
    assert blessing.get_int_custom_property("blessed") == 1
    assert _anomalies(blessing) == ""
    names = {path.name for path in pathlib.Path(blessing.uri).iterdir()}
    assert names == {"BLESSED", "anomalies.txt"}


def test_uniform_weights_above_one_are_an_anomaly(tmp_path):
    assert "the most is 1.000" in _anomalies(_validate(tmp_path, config={"policy": "uniform"}))


def test_no_statistics(tmp_path):
    source, blessing = artifacts.SamplingStatistics(), artifacts.SamplingBlessing()
    source.uri, blessing.uri = str(tmp_path / "nothing"), str(tmp_path / "blessing")
    with pytest.raises(ValueError, match="^SamplingValidator: .*in TFX: OFBSampler"):
        SamplingValidator.test_call(sampling_statistics=source, blessing=blessing)
    assert not (tmp_path / "blessing").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"min_coverage": 1.1}, r"min_coverage must be in \[0, 1\]. Received: 1.1"),
        ({"min_effective_sample_size": -0.1}, "min_effective_sample_size must be in"),
        ({"max_weight": -1.0}, "max_weight must be at least 0. Received: -1.0"),
        ({"max_rate_deviation": float("nan")}, "max_rate_deviation must be at least 0"),
        ({"max_record_age": -5.0}, "max_record_age must be at least 0"),
    ],
)
def test_construction_errors(parameters, message):
    channel = channel_utils.as_channel([artifacts.SamplingStatistics()])
    with pytest.raises(ValueError, match=f"^SamplingValidator: {message}"):
        SamplingValidator(sampling_statistics=channel, **parameters)


def test_statistics_come_back_as_written(tmp_path):
    split = SplitStatistics(_GOOD, {"a=b": _NONE}, {"1": 2})
    write_statistics(str(tmp_path), _CONFIG, {"train": split})
    config, splits = read_statistics(str(tmp_path))
    assert config == _CONFIG
    assert splits == {"train": split}


def test_too_many_slices_are_refused(monkeypatch):
    monkeypatch.setattr(reports, "MAX_SLICES", 3)
    parts = [SplitStatistics(slices={f"city={k}": WeightStats()}) for k in range(4)]
    assert len(SplitStatistics.merge(parts[:3]).slices) == 3
    with pytest.raises(ValueError, match="more than 3 values.*bucketise"):
        SplitStatistics.merge(parts)

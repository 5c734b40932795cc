"""`ofb break-even` from its flags to its tables and JSON."""

import json
import re

import pytest

from ofb_tf import cli
from ofb_tf.experiments import break_even

FLAGS = (
    "break-even", "--step_us=100", "--input_us=20", "--key_us=5", "--select_us=2",
    "--refresh_seconds=0.4", "--refresh_examples=50000",
)  # fmt: skip


def test_tables(capsys):
    arguments = ["--variance_ratio=0.2", "--effective_sample_size=0.5"]
    assert cli.main([*FLAGS, *arguments]) == 0
    printed = capsys.readouterr().out
    lines = {tuple(re.split("  +", line)) for line in printed.splitlines()}
    assert lines >= {
        ("input", "20.00", "6.50"),
        ("refresh", "0.00", "8.00"),
        ("sum", "120.00", "26.50"),
        ("one pass", "0.22", "0.00 µs per example", "3,941 examples"),
        ("same quality", "0.44", "16.25 µs per example", "9,639 examples"),
        ("same quality if records say nothing", "4.42", "never", "never"),
    }
    assert "Measured here: nothing" in printed


def test_json_holds_what_the_tables_hold(capsys):
    assert cli.main([*FLAGS, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["costs"]["step_us"] == 100.0 and content["measured"] == []
    assert content["one_pass"]["time"] == pytest.approx(26.5 / 120)
    assert content["same_quality"] is None


def test_what_is_not_given_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(break_even, "measure_step", lambda model, batch_size: 50.0)
    here = {"select_us": 1.0, "refresh_seconds": 0.2}
    monkeypatch.setattr(break_even, "measure_selection", lambda rate, examples: here)
    assert cli.main(["break-even", "--refresh_seconds=0.1", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["measured"] == ["step_us", "select_us"]
    given = content["costs"]
    assert (given["step_us"], given["select_us"], given["refresh_seconds"]) == (50.0, 1.0, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate=2"], "rate must be at most 1.0. Received: 2.0"),
        (["--records=/nowhere"], "/nowhere"),
        (["--key_us=30"], "key_us must be at most 20.0. Received: 30.0"),
        (["surplus"], "no arguments expected"),
    ],
)
def test_bad_input_is_named(arguments, message, capsys):
    assert cli.main([*FLAGS, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    assert cli.main(["break-even", "--help"]) == 0
    printed = capsys.readouterr().out
    assert (
        "ofb break-even --model=deep --records=records/" in printed
        and "--variance_ratio" in printed
    )

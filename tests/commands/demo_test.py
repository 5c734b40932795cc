"""`ofb demo` from its arguments to its files, and the help of every command."""

import json

import pytest

from ofb_tf import cli
from ofb_tf.experiments import report, run


def test_demo_end_to_end(tmp_path, capsys):
    flags = "--num_examples=600 --window_size=100 --refresh_interval=3 --positive_rate=0.1"
    flags += f" --seeds=1 --workers=1 --output_dir={tmp_path} --picture={tmp_path}/docs/picture.png"
    assert cli.main(["demo", *flags.split()]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["policies"]) == ["uniform", "importance", "everything"]
    assert results["command"].startswith("ofb demo --num_examples=600 --window_size=100")
    assert results["policies"]["importance"]["backward_examples"] == 60
    assert "excess_kl" in printed and "gap closure" in printed
    assert "importance against everything: " in printed
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "docs" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_values_may_follow_a_space_and_booleans_have_two_names(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(run, "run_experiment", lambda config, **more: ran.append((config, more)))
    monkeypatch.setattr(report, "table_rows", lambda content: [["table"]])
    for name in ("as_html", "headline"):
        monkeypatch.setattr(report, name, str)
    monkeypatch.chdir(tmp_path)
    flags = ["--rate", "0.2", "--policies", "top_loss,uniform", "--refresh_interval", "0"]
    for progress, shown in (
        (["--progress"], True),
        (["--noprogress"], False),
        (["--progress=false"], False),
        ([], True),
    ):
        assert cli.main(["demo", *progress, *flags]) == 0
        config, more = ran.pop()
        assert (config.rate, config.refresh_interval) == (0.2, 0)
        assert config.policies == ("uniform", "top_loss", "everything")
        assert more["show_progress"] is shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate=2"], "rate must be in (0, 1]. Received: 2.0"),
        (["--rate=much"], "rate"),
        (["--policies=importance,best"], "policies must be among"),
        (["--outliers=0.1"], "outliers must be 0 for classification"),
        (["--no_such_flag"], "no_such_flag"),
        (["surplus"], "no arguments expected. Received: ['surplus']"),
        (["--dataset=no_such_dataset", "--data_dir=/nowhere"], "no_such_dataset"),
    ],
)
def test_bad_input_is_named(arguments, message, capsys):
    assert cli.main(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], ["ofb demo --dataset=click_stream", "compare", "records"]),
        (["demo", "--help"], ["ofb demo --dataset=mnist", "--rate", "--noprogress"]),
        (["compare", "--help"], ["ofb compare --suite=standard --seeds=5", "--missing_records"]),
        (
            ["records", "--help"],
            ["ofb records inspect records/", "inspect", "verify", "compact", "partition", "expire"],
        ),
    ],
)
def test_help_shows_an_example(arguments, shown, capsys):
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for text in shown:
        assert text in printed

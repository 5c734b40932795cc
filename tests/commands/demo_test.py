"""`ofb demo` from its arguments to its files."""

import json

import pytest

from ofb_tf import cli
from ofb_tf.experiments import report, run


def test_demo_end_to_end(tmp_path, capsys):
    code = cli.main(
        [
            "demo",
            "--num_examples=600",
            "--window_size=100",
            "--refresh_interval=3",
            "--positive_rate=0.1",
            "--seeds=1",
            "--workers=1",
            f"--output_dir={tmp_path}",
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["policies"]) == ["uniform", "importance", "everything"]
    assert results["command"].startswith("ofb demo --num_examples=600 --window_size=100")
    assert results["policies"]["importance"]["backward_examples"] == 60
    assert "excess_kl" in printed and "gap closure" in printed
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_values_may_follow_a_space_and_booleans_have_two_names(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(run, "run_experiment", lambda config, **more: ran.append((config, more)))
    monkeypatch.setattr(report, "table_rows", lambda content: [["table"]])
    for module, name in ((run, "write_results"), (report, "write_report")):
        monkeypatch.setattr(module, name, lambda content, directory: directory)
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
        (["--window_size=0"], "window_size must be at least 2. Received: 0"),
        (["--passes=0"], "passes must be at least 1. Received: 0"),
        (["--outliers=0.1"], "outliers must be 0 for classification"),
        (["--missing_records=1"], "missing_records must be in [0, 1). Received: 1.0"),
        (["--no_such_flag"], "no_such_flag"),
        (["surplus"], "no arguments expected. Received: ['surplus']"),
        (["--dataset=no_such_dataset", "--data_dir=/nowhere"], "no_such_dataset"),
    ],
)
def test_bad_input_is_named(arguments, message, capsys):
    assert cli.main(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    assert cli.main(["demo", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "ofb demo --dataset=mnist" in printed
    assert "--rate" in printed

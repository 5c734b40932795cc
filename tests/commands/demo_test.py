"""`ofb demo` from its arguments to its files, and the help of every command."""

import json

import pytest

from ofb_tf import cli
from ofb_tf.experiments import report, run


@pytest.mark.slow
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
    ("command", "message"),
    [
        ("demo --rate=2", "rate must be in (0, 1]. Received: 2.0"),
        ("demo --rate=much", "rate"),
        ("demo --policies=importance,best", "policies must be among"),
        ("demo --outliers=0.1", "outliers must be 0 for classification"),
        ("demo --no_such_flag", "no_such_flag"),
        ("demo surplus", "no arguments expected. Received: ['surplus']"),
        ("demo --dataset=no_such_dataset --data_dir=/nowhere", "no_such_dataset"),
        ("compare --datasets=click_stream --rates=much", "--rates"),
        ("compare --datasets=click_stream --label_noise=1", "label_noise must be in [0, 1)"),
        ("compare --datasets=click_stream --refresh_intervals=-1", "0 for once a pass. Received"),
        ("compare --datasets=no_such_dataset --data_dir=/nowhere", "no_such_dataset"),
        ("compare --datasets=click_stream --outliers=0.1", "outliers must be 0 for class"),
        ("compare --suite=own", "datasets must be given for suite=own"),
        ("compare --suite=quick --rates=0.1", "rates must not be given with suite=quick"),
        ("compare --suite=quick --seeds=0", "seeds must be at least 1. Received: 0"),
        ("compare --suite=quick --workers=0", "workers must be at least 1. Received: 0"),
        ("compare --suite=all", "suite"),
        ("compare surplus", "no arguments expected. Received: ['surplus']"),
        ("records", "ACTION and PATTERN expected"),
        ("records inspect", "ACTION and PATTERN expected"),
        ("records mend x", "ACTION and PATTERN expected"),
        ("records compact x", "--output_dir is required"),
        ("records partition x --output_dir=y", "--num_partitions is required"),
        ("records expire x", "--max_age_hours is required"),
        ("records import x", "--format is required"),
        ("records inspect x --nonsense", "nonsense"),
        ("records partition x --num_partitions=0", "num_partitions"),
        ("records expire x --max_age_hours=inf", "must be finite and above 0. Received: inf"),
        ("records expire x --max_age_hours=nan", "must be finite and above 0. Received: nan"),
        ("records expire x --max_age_hours=0", "must be finite and above 0. Received: 0"),
        ("records expire x --max_age_hours=-2", "must be finite and above 0. Received: -2"),
        ("records import x --id_type=float", "--id_type"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("", "compare demo records --dataset=click_stream"),
        ("demo", "--dataset=mnist --rate --noprogress"),
        ("compare", "--suite=standard --seeds=5 --missing_records"),
        ("records", "records/ inspect verify compact partition expire import"),
    ],
)
def test_help_shows_an_example(command, shown, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"  ofb {command}" in printed
    assert not [text for text in shown.split() if text not in printed]

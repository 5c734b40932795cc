"""`ofb tail` and `StreamReport`: what a stream is doing, for people and programs."""

import importlib.util
import json

import pytest

from ofb_tf import cli
from ofb_tf.streaming import StreamReport
from tests.streaming.files import START, Stream


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tail")
    stream = Stream(500)
    for k in range(5):
        rows = range(100 * k, 100 * k + 100)
        stream.write_records(directory / "records", f"{k}", rows[:90], START + k)
        stream.write_examples(directory / "examples", f"{k}", rows, START + k)
    return directory


def tail(logs, *flags):
    return cli.main(
        [
            "tail",
            f"--examples={logs / 'examples'}",
            f"--records={logs / 'records'}",
            "--nofollow",
            "--window_size=100",
            *flags,
        ]
    )


def test_prints_a_table_and_prometheus_text(logs, tmp_path, capsys):
    path = tmp_path / "ofb.prom"
    assert tail(logs, f"--prometheus_file={path}") == 0
    header, *_, last = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["examples", "examples/s"]
    assert header.split()[-1] == "rejected"
    assert StreamReport.line({"rejected_examples": 3}).split()[-1] == "3"
    assert last.split()[0] == "500"
    assert last.split()[2] == "0.9000"
    lines = path.read_text().splitlines()
    assert "ofb_stream_coverage 0.9" in lines
    assert "ofb_stream_examples 500.0" in lines
    assert lines.count("# TYPE ofb_stream_lag_seconds gauge") == 1


def test_writes_tensorboard_scalars_or_says_what_is_missing(logs, tmp_path, capsys):
    status = tail(logs, f"--log_dir={tmp_path / 'board'}")
    if importlib.util.find_spec("tensorboard"):
        assert status == 0
        assert list((tmp_path / "board").iterdir())
    else:
        assert status == 2
        assert "pip install tensorboard" in capsys.readouterr().err


def test_prints_json(logs, capsys):
    assert tail(logs, "--json", "--rate=0.2") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["examples"] == 500
    assert figures["selected"] == 100
    assert figures["without_record"] == 50
    assert figures["resident_records"] == 450


def test_says_what_is_wrong(logs, capsys, tmp_path):
    assert cli.main(["tail", "--records=r"]) == 2
    assert "--examples is required" in capsys.readouterr().err
    assert cli.main(["tail", f"--examples={logs}", f"--records={tmp_path}", "--nofollow"]) == 1
    assert "at least one finished file" in capsys.readouterr().err

"""The table that closes `tfx_components.pipelines.demo`."""

import pytest

from tfx_components.pipelines import demo


def _row(*losses):
    return {"losses": list(losses), "calibration": 1.0, "examples": 10.0, "bytes": 100.0}


def test_gap_closure_of_the_mean_losses():
    rows = {
        "base": _row(0.9),
        "uniform": _row(0.5, 0.7),
        "importance": _row(0.45, 0.55),
        "everything": _row(0.4, 0.4),
    }
    title, _, base, *others = demo.table(rows, 0.1).splitlines()
    assert title.split("  ")[0] == "trained on"
    assert base.split() == ["base", "0.9000", "–", "1.00", "10", "100.0%"]
    assert [line.split()[-4] for line in others] == ["0.00", "0.50", "1.00"]
    assert others[1].startswith("importance 10%") and "0.5000 ± 0.0500" in others[1]


def test_no_gap_closure_where_there_is_no_gap():
    rows = {name: _row(0.5, 0.5) for name in ("uniform", "importance", "everything")}
    assert all(line.split()[-4] == "–" for line in demo.table(rows, 0.1).splitlines()[2:])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=1", "--seeds must be at least 2. Received: 1"),
        ("--rate=0", "--rate must be in (0, 1]. Received: 0.0"),
    ],
)
def test_flags_out_of_range(flag, message, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--csv=trips.csv", flag])
    assert message in capsys.readouterr().err

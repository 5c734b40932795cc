"""The benchmarks' command, arithmetic and report; `make bench` does the measuring."""

import json

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import __main__ as command
from benchmarks import inputs, parts, process, report

_SAMPLES = {
    "ours": [{"items": 10, "cpu_us": x, "wall_us": 2 * x, "curve_n_8": 3.0} for x in (1, 4, 2)],
    "theirs": [{"items": 10, "cpu_us": 8.0, "wall_us": 9.0, "curve_n_8": 5.0}],
}


def _measured():
    part = parts.Part(
        name="made_up",
        title="A part",
        item="thing",
        peers={},
        rows=(
            parts.Row("ratio", parts.ratio("cpu_us", "ours", "theirs"), at_most=0.3),
            parts.Row("own", parts.of("ours", "wall_us"), at_least=4.5),
            parts.Row("plain", parts.of("theirs", "cpu_us")),
            parts.Row("added", parts.added("cpu_us", "theirs", "ours")),
            parts.Row("speed", parts.millions_per_second("theirs")),
        ),
        curves=(parts.Curve("curve_n_", "n", "µs"),),
    )
    return {"made_up": (part, {name: parts.Medians(rows) for name, rows in _SAMPLES.items()})}


def test_rows_are_computed_from_medians():
    results = report.summarize(_measured(), [], quick=False, seconds=1.0)
    figures = [(row["figure"], row["goal"], row["met"]) for row in results["rows"]]
    assert figures == [
        (0.25, "≤ 0.3", True),
        (4.0, "≥ 4.5", False),
        *((figure, "", None) for figure in (8.0, 6.0, 0.125)),
    ]
    assert results["curves"][0]["points"] == [[8.0, 3.0]]
    json.dumps(results)


def test_readme_is_updated_between_its_marks(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    text = report.README.read_text()
    readme.write_text(text)
    monkeypatch.setattr(report, "README", readme)
    results = report.summarize(_measured(), ["broken"], quick=False, seconds=1.0)
    report.plot(results, tmp_path / "plot.png")
    report.update_readme(results, tmp_path / "plot.png")
    report.update_readme(results, tmp_path / "plot.png")
    updated = readme.read_text()
    assert updated.startswith(text.split("<!-- results")[0])
    assert updated.count("| ratio | ≤ 0.3 | 0.25 | yes |") == 1
    assert updated.count("| own | ≥ 4.5 | 4 | **no** |") == 1
    assert updated.count("| made_up (per thing) | ours | 2 | 4 |  |") == 1
    assert "Failed: broken." in updated
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_help_names_every_part(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "python -m benchmarks --only=selection,join" in printed
    for name in command.all_parts():
        assert name in printed


def test_an_unknown_part_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--only=selection,nothing"])
    assert stopped.value.code == 2
    assert "Received: ['nothing']" in capsys.readouterr().err


def test_readme_has_whole_runs_alone(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--only=selection", "--markdown"])
    assert stopped.value.code == 2
    assert "--markdown needs all parts" in capsys.readouterr().err


def test_steady_leaves_the_start_out_and_counts_the_passes(monkeypatch):
    def timed(function):
        # 7 seconds to start, and a hundredth of a second per example.
        count = function()
        return {"wall_seconds": 7 + count / 100, "cpu_seconds": 7 + count / 50}, count

    monkeypatch.setattr(inputs, "timed", timed)

    def build(passes):
        ids = tf.data.Dataset.range(1000).repeat(passes).batch(10)
        return ids.map(lambda ids: {"example_id": ids})

    figures = inputs.steady(build, items=1000, passes=4)
    assert figures["items"] == 4000
    assert figures["out_share"] == 1.0
    assert figures["wall_seconds"] == pytest.approx(40)
    assert figures["cpu_seconds"] == pytest.approx(80)


def test_scattered_ids_are_distinct():
    ids = inputs.scattered_ids(10_000)
    assert len(np.unique(ids)) == 10_000
    assert (ids < 0).any() and (ids > 2**62).any()


@pytest.mark.slow
def test_a_part_runs_in_processes(tmp_path):
    module, part = command.all_parts()["join_small"]
    settings = parts.Settings(tmp_path, quick=True)
    medians = process.run_part(module, part, settings)
    assert set(medians) == set(part.peers)
    assert medians["ofb_tf"]["items"] == settings.count(400 * inputs.WINDOW)
    assert all(row.value(medians) > 0 for row in part.rows)


def test_a_peer_that_fails_says_why(tmp_path):
    part = parts.Part(name="not_there", title="", item="", peers={"x": None})
    with pytest.raises(RuntimeError, match="not_there, 'x' failed:[^$]*KeyError"):
        process.run_part("growth", part, parts.Settings(tmp_path))

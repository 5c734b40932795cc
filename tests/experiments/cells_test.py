"""Keys of cells and their files."""

import dataclasses

import pytest

from ofb_tf.experiments import SimulationConfig, cells
from ofb_tf.experiments.cells import CellKey


def key(policy="importance", seed=0, **settings):
    return CellKey(SimulationConfig(**{"dataset": "click_stream", **settings}), policy, seed)


def make_cell(value=0.25):
    from tests.experiments.conftest import cell

    return cells.Cell(cell("importance", 0, value), "test_loss", "mean cross-entropy")


def test_all_that_a_cell_feels_is_in_its_name():
    names = {
        key(**settings).file_name
        for settings in (
            {},
            {"policy": "top_loss"},
            {"seed": 1},
            {"rate": 0.2},
            {"window_size": 640},
            {"refresh_interval": 94},
            {"passes": 2},
            {"num_examples": 1000},
            {"test_examples": 1000},
            {"learning_rate": 1e-2},
            {"positive_rate": 0.03},
            {"label_noise": 0.1},
            {"missing_records": 0.2},
            {"steps_per_window": 4},
            {"uniform_mix": 0.5},
            {"policy": "selective_backprop"},
            {"policy": "selective_backprop", "selective_beta": 1.0},
            {"dataset": "mnist"},
        )
    }
    assert len(names) == 18


def test_what_a_cell_does_not_feel_is_shared():
    assert key().file_name == key(seeds=7, policies=("top_loss",)).file_name
    assert key(dataset="mnist").file_name == key(dataset="mnist", data_dir="/elsewhere").file_name
    assert key(dataset="mnist") == key(dataset="mnist", positive_rate=0.3)
    stale = {"refresh_interval": 94, "missing_records": 0.2}
    assert key("uniform", **stale) == key("uniform")
    assert key("uniform", rate=0.2) != key("uniform")
    assert key("everything", rate=0.2, **stale) == key("everything")
    assert key("uniform", uniform_mix=0.5) == key("uniform")
    assert key("importance", selective_beta=1.0) == key("importance")
    large = {"window_size": 5120, "steps_per_window": 4}
    assert key("everything", **large) == key("everything", window_size=1280)
    assert key("uniform", **large) != key("uniform", window_size=1280)
    assert key("everything", label_noise=0.2) != key("everything")


def test_a_new_version_of_selection_runs_every_cell_again(monkeypatch):
    before = key().file_name
    monkeypatch.setattr(cells, "CELL_VERSION", cells.CELL_VERSION + 1)
    assert key().file_name != before


def test_round_trip(tmp_path):
    assert cells.load(tmp_path, key()) is None
    cells.save(tmp_path / "new", key(), make_cell())
    loaded = cells.load(tmp_path / "new", key())
    assert dataclasses.asdict(loaded) == dataclasses.asdict(make_cell())
    assert [path.name for path in (tmp_path / "new").iterdir()] == [key().file_name]


@pytest.mark.parametrize("content", ["", '{"result": {"policy": "x"}}', "[1, 2]", '{"result": 1'])
def test_a_damaged_file_counts_as_not_finished(content, tmp_path):
    (tmp_path / key().file_name).write_text(content)
    assert cells.load(tmp_path, key()) is None

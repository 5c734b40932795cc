"""The taxi task: the label, and that the tips do not give it away."""

import csv

import pytest

from tfx_components.pipelines import taxi


def test_label_takes_the_place_of_the_tips(tmp_path):
    source = tmp_path / "trips.csv"
    source.write_text("fare,tips,company\n10,2.5,A\n10,2.0,B\n0,0,C\n,1,D\n")
    directory = taxi.prepare_csv(str(source), str(tmp_path / "out"))
    with open(f"{directory}/data.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["tipped"] for row in rows] == ["1", "0", "0", "1"]
    assert set(rows[0]) == {"fare", "company", "tipped"}


def test_other_columns_are_an_error(tmp_path):
    (tmp_path / "trips.csv").write_text("fare,gratuity\n1,2\n")
    with pytest.raises(ValueError, match=r"must have the columns \['tips'\]. It has: "):
        taxi.prepare_csv(str(tmp_path / "trips.csv"), str(tmp_path / "out"))


def test_a_wrong_setting_fails_before_the_trainer():
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        taxi.training_settings(epochs=0)

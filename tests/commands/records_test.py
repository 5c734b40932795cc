"""`ofb records` from its arguments to its tables, JSON and exit codes."""

import json
import os
import re

import numpy as np
import pytest

from ofb_tf import cli
from ofb_tf.records import ForwardRecords, importers
from tests.records.record_files import flip, write


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "records"
    for version in (3, 4):
        ids = np.arange(500) + 100 * version
        arguments = {"model_version": version, "timestamp": version}
        write(path, ids, np.zeros((500, 2)), block_records=100, **arguments)
    return str(path)


@pytest.fixture
def run(capsys):
    """Runs `ofb records`, checks its exit code, and returns its output and errors."""

    def run(*arguments, code=0):
        assert cli.main(["records", *map(str, arguments)]) == code
        return "".join(capsys.readouterr())

    return run


def test_inspect(directory, run):
    shown = {tuple(re.split("  +", line)) for line in run("inspect", directory).splitlines()}
    assert shown >= {
        ("records", "1,000"),
        ("distinct ids", "600"),
        ("duplicates", "400"),
        ("outputs", "2"),
        ("first", "1970-01-01T00:00:00.000Z"),
        ("model version 4", "500"),
    }
    summary = json.loads(run("inspect", directory, "--json"))
    assert summary["num_records"] == 1000
    assert summary["model_versions"] == {"3": 500, "4": 500}
    assert summary["bytes_per_instance"] == summary["num_bytes"] / 1000


def test_verify_says_by_its_code_whether_there_is_damage(directory, run):
    run("verify", directory)
    path = os.path.join(directory, sorted(os.listdir(directory))[0])
    flip(path, 1000)
    out = run("verify", directory, code=1)
    assert "1 damaged" in out
    assert f"{path} at byte" in out
    reports = json.loads(run("verify", directory, "--json", code=1))
    assert [len(report["damages"]) for report in reports] == [1, 0]
    err = run("compact", directory, f"--output_dir={directory}", code=1)
    assert "Corrupt record file" in err


def test_compact_partition_and_expire(directory, tmp_path, run):
    expected = ForwardRecords.load(directory)
    flags = (f"--output_dir={tmp_path}/parts", "--num_partitions=3", "--json")
    assert json.loads(run("partition", directory, *flags))["num_written"] == 600
    out = run("compact", directory, f"--output_dir={directory}", "--delete_inputs")
    assert "files removed" in out
    (name,) = os.listdir(directory)
    for pattern in (directory, f"{tmp_path}/parts"):
        records = ForwardRecords.load(pattern)
        np.testing.assert_array_equal(records.example_ids, expected.example_ids)
        np.testing.assert_array_equal(records.model_versions, expected.model_versions)
    for flags, left in ((["--dry_run"], [name]), ([], [])):
        run("expire", directory, "--max_age_hours=1", *flags)
        assert os.listdir(directory) == left


def test_import(tmp_path, run):
    source = tmp_path / "rows.jsonl"
    source.write_text(
        '{"id": 5, "p": [0.5, 1], "v": 9}\nnonsense\n{"id": 6, "p": [1, 2], "v": 9}\n'
    )
    flags = ["--format=jsonl", f"--output_dir={tmp_path}/out", "--id_field=id", "--logits_fields=p"]
    out = run("import", source, *flags, "--version_field=v", "--bad_rows=list")
    assert f"{source} at byte 33: not JSON" in out
    records = ForwardRecords.load(tmp_path / "out")
    np.testing.assert_array_equal(records.example_ids, [5, 6])
    np.testing.assert_array_equal(records.model_versions, [9, 9])
    assert "at byte 33" in run("import", source, *flags, "--bad_rows=error", code=1)


def test_a_pattern_that_matches_nothing_is_code_1(tmp_path, run):
    for action in ("inspect", "verify"):
        assert "matches nothing" in run(action, tmp_path / "none", code=1)


def test_flags_may_stand_anywhere_and_values_after_a_space(directory, tmp_path, run):
    flags = ["--output_dir", tmp_path / "out", "--nojson", "--num_partitions", 2, "--json=true"]
    out = run("partition", *flags[:3], directory, *flags[3:], directory + "/*")
    assert json.loads(out)["num_written"] == 600


def test_the_type_of_ids_is_passed_on(tmp_path, run, monkeypatch):
    given = []

    def import_records(patterns, output_dir, **settings):
        given.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr(importers, "import_records", import_records)
    for flags in (["--id_type=string"], []):
        arguments = ["--format=csv", f"--output_dir={tmp_path}", *flags]
        run("import", "x.csv", *arguments, code=1)
    assert [settings.pop("id_type") for settings in given] == ["string", "int"]
    assert given[0] == given[1]
    assert given[0]["fields"].logits == ("logits",)


@pytest.fixture
def rows(tmp_path):
    """A file of 20 rows, of which 5 are bad."""
    path = tmp_path / "rows.jsonl"
    good = [f'{{"example_id": {i}, "logits": [{i}, 0.5], "timestamp": 1e9}}' for i in range(15)]
    path.write_text("\n".join(["{}", *good, *['{"example_id": 1}'] * 4]))
    return path


def test_an_import_says_how_much_was_bad_and_why(rows, tmp_path, run):
    flags = ["--format=jsonl", f"--output_dir={tmp_path}/out"]
    out = run("import", rows, *flags, "--max_bad_fraction=0.25")
    shown = {tuple(re.split("  +", line)) for line in out.splitlines()}
    assert shown >= {
        ("rows read", "20"),
        ("bad rows", "5 (25.00%)"),
        ("records written", "15"),
        ("bad: field 'logits' is missing", "4 (20.00%)"),
        ("bad: field 'example_id' is missing", "1 (5.00%)"),
        (f"first bad row: {rows} at byte 0: field 'example_id' is missing",),
    }
    out = run("import", rows, *flags, "--max_bad_fraction=0.2", code=1)
    assert "25.00% of the rows are bad, more than --max_bad_fraction=0.2" in out
    assert "must be in [0, 1]" in run("import", rows, *flags, "--max_bad_fraction=20", code=2)
    content = json.loads(run("import", rows, *flags, "--json").splitlines()[0])
    assert content["bad_fraction"] == 0.25


def test_an_import_that_writes_nothing_is_code_1(rows, tmp_path, run):
    flags = ["--format=jsonl", f"--output_dir={tmp_path}/out"]
    out = run("import", rows, *flags, "--logits_fields=scores", code=1)
    assert "no record was written" in out
    assert "first bad row" in out
    assert "bad: field 'scores' is missing" in out
    out = run("import", rows, *flags, "--timestamp_unit=ns", code=1)
    assert "no time in 2000 to 2099 in 'ns'" in out


def test_a_dry_run_shows_the_first_records_and_writes_none(rows, tmp_path, run):
    out = run("import", rows, "--format=jsonl", "--dry_run")
    assert re.search(r"\n3 +\[3.0, 0.5\] +0 +2001-09-09T01:46:40.000Z\n", out), out
    assert ("records written", "0") in {tuple(re.split("  +", line)) for line in out.splitlines()}
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl"]
    content = json.loads(
        run("import", rows, "--format=jsonl", "--dry_run", "--json").split("\n")[0]
    )
    assert [row["example_id"] for row in content["records"]] == list(range(10))
    assert "--output_dir is required" in run("import", rows, "--format=jsonl", code=2)


def test_formats_of_the_command_are_those_of_the_library():
    assert set(cli._IMPORT_FORMATS) == set(importers.FORMATS)


def test_export(directory, tmp_path, run):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = run("export", directory, f"--output_dir={tmp_path}/tables")
    assert ("records written", "1,000") in {
        tuple(re.split("  +", line)) for line in out.splitlines()
    }
    tables = [parquet.read_table(path) for path in (tmp_path / "tables").iterdir()]
    assert sorted(id for table in tables for id in table["example_id"].to_pylist()) == sorted(
        [*range(300, 800), *range(400, 900)]
    )

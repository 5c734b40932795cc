"""`ofb records` from its arguments to its tables, JSON and exit codes."""

import json
import os
import pathlib
import re

import numpy as np
import pytest

from ofb_tf import cli
from ofb_tf.records import ForwardRecords, ForwardRecordWriter, importers


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "records"
    for version in (3, 4):
        with ForwardRecordWriter(path, block_records=100) as writer:
            ids = np.arange(500) + 100 * version
            writer.write(ids, np.zeros((500, 2)), model_version=version, timestamp=version)
    return str(path)


def run(capsys, *arguments):
    """Exit code, output and errors of `ofb records`."""
    return cli.main(["records", *map(str, arguments)]), *capsys.readouterr()


def test_inspect(directory, capsys):
    code, out, _ = run(capsys, "inspect", directory)
    assert code == 0
    shown = {tuple(re.split("  +", line)) for line in out.splitlines()}
    assert shown >= {
        ("records", "1,000"),
        ("distinct ids", "600"),
        ("duplicates", "400"),
        ("outputs", "2"),
        ("first", "1970-01-01T00:00:00.000Z"),
        ("model version 4", "500"),
    }
    code, out, _ = run(capsys, "inspect", directory, "--json")
    summary = json.loads(out)
    assert summary["num_records"] == 1000
    assert summary["model_versions"] == {"3": 500, "4": 500}
    assert summary["bytes_per_instance"] == summary["num_bytes"] / 1000


def test_verify_says_by_its_code_whether_there_is_damage(directory, capsys):
    assert run(capsys, "verify", directory)[0] == 0
    path = os.path.join(directory, sorted(os.listdir(directory))[0])
    content = bytearray(pathlib.Path(path).read_bytes())
    content[1000] ^= 1
    pathlib.Path(path).write_bytes(content)
    code, out, _ = run(capsys, "verify", directory)
    assert code == 1
    assert "1 damaged" in out
    assert f"{path} at byte" in out
    code, out, _ = run(capsys, "verify", directory, "--json")
    assert code == 1
    reports = json.loads(out)
    assert [len(report["damages"]) for report in reports] == [1, 0]
    code, _, err = run(capsys, "compact", directory, f"--output_dir={directory}")
    assert code == 1
    assert "Corrupt record file" in err


def test_compact_partition_and_expire(directory, tmp_path, capsys):
    expected = ForwardRecords.load(directory)
    code, out, _ = run(capsys, "partition", directory, f"--output_dir={tmp_path}/parts", "--json",
                       "--num_partitions=3")  # fmt: skip
    assert code == 0
    assert json.loads(out)["num_written"] == 600
    code, out, _ = run(capsys, "compact", directory, f"--output_dir={directory}", "--delete_inputs")
    assert code == 0
    assert "files removed" in out
    (name,) = os.listdir(directory)
    for pattern in (directory, f"{tmp_path}/parts"):
        records = ForwardRecords.load(pattern)
        np.testing.assert_array_equal(records.example_ids, expected.example_ids)
        np.testing.assert_array_equal(records.model_versions, expected.model_versions)
    for flags, left in ((["--dry_run"], [name]), ([], [])):
        assert run(capsys, "expire", directory, "--max_age_hours=1", *flags)[0] == 0
        assert os.listdir(directory) == left


def test_import(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text(
        '{"id": 5, "p": [0.5, 1], "v": 9}\nnonsense\n{"id": 6, "p": [1, 2], "v": 9}\n'
    )
    flags = ["--format=jsonl", f"--output_dir={tmp_path}/out", "--id_field=id", "--logits_fields=p"]
    code, out, _ = run(capsys, "import", source, *flags, "--version_field=v", "--bad_rows=list")
    assert code == 0
    assert f"{source} at byte 33: not JSON" in out
    records = ForwardRecords.load(tmp_path / "out")
    np.testing.assert_array_equal(records.example_ids, [5, 6])
    np.testing.assert_array_equal(records.model_versions, [9, 9])
    code, _, err = run(capsys, "import", source, *flags, "--bad_rows=error")
    assert code == 1
    assert "at byte 33" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ACTION and PATTERN expected"),
        (["inspect"], "ACTION and PATTERN expected"),
        (["mend", "x"], "ACTION and PATTERN expected"),
        (["compact", "x"], "--output_dir is required"),
        (["partition", "x", "--output_dir=y"], "--num_partitions is required"),
        (["expire", "x"], "--max_age_hours is required"),
        (["import", "x"], "--format is required"),
        (["inspect", "x", "--nonsense"], "nonsense"),
        (["partition", "x", "--num_partitions=0"], "num_partitions"),
        (["expire", "x", "--max_age_hours=inf"], "must be finite and above 0. Received: inf"),
        (["expire", "x", "--max_age_hours=nan"], "must be finite and above 0. Received: nan"),
        (["expire", "x", "--max_age_hours=0"], "must be finite and above 0. Received: 0"),
        (["expire", "x", "--max_age_hours=-2"], "must be finite and above 0. Received: -2"),
        (["import", "x", "--id_type=float"], "--id_type"),
    ],
)
def test_wrong_usage_is_code_2(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err


def test_a_pattern_that_matches_nothing_is_code_1(tmp_path, capsys):
    for action in ("inspect", "verify"):
        code, _, err = run(capsys, action, tmp_path / "none")
        assert code == 1
        assert "matches nothing" in err


def test_flags_may_stand_anywhere_and_values_after_a_space(directory, tmp_path, capsys):
    flags = ["--output_dir", tmp_path / "out", "--nojson", "--num_partitions", 2, "--json=true"]
    code, out, _ = run(capsys, "partition", *flags[:3], directory, *flags[3:], directory + "/*")
    assert code == 0
    assert json.loads(out)["num_written"] == 600


def test_the_type_of_ids_is_passed_on(tmp_path, capsys, monkeypatch):
    given = []

    def import_records(patterns, output_dir, **settings):
        given.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr(importers, "import_records", import_records)
    for flags in (["--id_type=string"], []):
        arguments = ["--format=csv", f"--output_dir={tmp_path}", *flags]
        assert run(capsys, "import", "x.csv", *arguments)[0] == 1
    assert [settings.pop("id_type") for settings in given] == ["string", "int"]
    assert given[0] == given[1]
    assert given[0]["fields"].logits == ("logits",)

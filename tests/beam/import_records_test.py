"""Importing on Beam writes what `import_records` writes, whatever the files and the attempts."""

import json
import pathlib

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from ofb_tf.beam import ImportRecords, importing
from ofb_tf.records import import_records, importers, reader

LOGS = pathlib.Path(__file__).parents[1] / "records" / "logs"
NOON = 1_714_564_800_000_000
FEW_SHARDS = {"num_shards": 2}


def written(directory):
    """Every record, also those that a newer one of the same id replaces, in an order."""
    columns = reader.read_columns(directory)
    versions = columns.version_table[columns.arrays["model_version"]]
    columns.arrays["model_version"] = versions
    names = sorted(columns.arrays)
    rows = zip(*(columns.arrays[name].tolist() for name in names), strict=True)
    return names, sorted(rows, key=repr)


def comparable(report):
    """A report as a dict, without which bad row came first: calls in halves are joined later."""
    assert (report.first_bad_row is None) == (not report.num_bad_rows)
    return vars(report) | {"first_bad_row": None, "bad_rows": sorted(report.bad_rows)}


def on_beam(patterns, directory, expected=None, **settings):
    with beam.Pipeline(argv=["--direct_running_mode=in_memory"]) as pipeline:
        reports = pipeline | ImportRecords(patterns, directory, **settings)
        if expected is not None:
            assert_that(reports | beam.Map(comparable), equal_to([comparable(expected)]))
    return written(directory)


def both(tmp_path, patterns, *, beam_settings=None, **settings):
    """Imports twice, compares the records and the reports, and returns the report."""
    report = import_records(patterns, tmp_path / "alone", **settings)
    found = on_beam(patterns, tmp_path / "beam", report, **settings, **beam_settings or {})
    assert found == written(tmp_path / "alone")
    names = [path.name for path in (tmp_path / "beam").iterdir()]
    assert names and all(name.startswith("records-") for name in names)
    assert len(found[1]) == report.num_records
    return report


def write_rows(tmp_path, format):
    """Three files of 100 rows: ids that repeat, bad rows, rows of another width."""
    paths = []
    for number in range(3):
        rows = [
            {"example_id": 70 * number + i, "logits": [i / 8, -i], "timestamp": NOON + i}
            for i in range(100)
        ]
        if format == "parquet":
            pa = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            rows[3]["logits"] = None
            rows[4]["logits"] = [1.0, 2.0, 3.0]
            path = tmp_path / f"rows-{number}.parquet"
            parquet.write_table(pa.Table.from_pylist(rows), path)
        elif format == "csv":
            lines = [f"{r['example_id']},{r['logits'][0]} {r['logits'][1]},{NOON}" for r in rows]
            lines[3] = f"x,1 2,{NOON}"
            path = tmp_path / f"rows-{number}.csv"
            path.write_text("\n".join(["example_id,logits,timestamp", *lines]))
        else:
            rows[3], rows[4]["logits"] = {"id": 5}, [1.0, 2.0, 3.0]
            path = tmp_path / f"rows-{number}.jsonl"
            path.write_text("\n".join(map(json.dumps, rows)))
        paths.append(path)
    return paths


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_rows_of_many_files(tmp_path, format):
    paths = write_rows(tmp_path, format)
    report = both(tmp_path, paths, format=format, num_outputs=2, bad_rows="list")
    assert (report.num_files, report.num_rows) == (3, 300)
    assert report.num_bad_rows == len(report.bad_rows) == (3 if format == "csv" else 6)


def test_losses_secrets_and_compression(tmp_path):
    (tmp_path / "secret").write_text("a secret of more than sixteen bytes")
    for number in range(2):
        lines = [
            json.dumps({"example_id": f"u{number}-{i}", "loss": i / 2, "timestamp": NOON})
            for i in range(50)
        ]
        (tmp_path / f"losses-{number}.jsonl").write_text("\n".join(lines))
    report = both(
        tmp_path,
        str(tmp_path / "losses-*.jsonl"),
        format="jsonl",
        fields=importers.RowFields(logits=(), loss="loss"),
        num_outputs=None,
        secret_file=str(tmp_path / "secret"),
        compression="GZIP",
    )
    assert report.num_records == 100


@pytest.mark.parametrize("name", ["kserve", "seldon"])
@pytest.mark.parametrize("num_files", [1, 3, 8])
def test_calls_in_halves_join_across_files(tmp_path, name, num_files):
    """Lines are dealt round robin, so that requests and responses lie in different files."""
    lines = (LOGS / f"{name}.jsonl").read_text().splitlines()
    for number in range(num_files):
        text = "\n".join(lines[number::num_files])
        (tmp_path / f"log-{number}.jsonl").write_text(text)
    width = 1 if name == "seldon" else 2
    settings = {"format": "cloudevents", "num_outputs": width, "beam_settings": FEW_SHARDS}
    report = both(tmp_path, str(tmp_path / "log-*.jsonl"), **settings)
    assert report.num_records == (3 if name == "seldon" else 5)


def event(kind, call_id, body, second):
    return json.dumps(
        {
            "type": f"org.kubeflow.serving.inference.{kind}",
            "id": call_id,
            "time": f"2024-05-01T12:00:{second:02d}Z",
            "data": body,
        }
    )


def test_a_call_id_that_comes_again_joins_in_the_order_of_the_files(tmp_path):
    """Two calls of one id, the second inside a file between halves of the first's reuse."""

    def request(example_id, second):
        return event("request", "again", {"instances": [{"example_id": example_id}]}, second)

    def response(logit, second):
        return event("response", "again", {"predictions": [{"logits": [logit]}]}, second)

    (tmp_path / "0.jsonl").write_text(request(1, 0))
    (tmp_path / "1.jsonl").write_text("\n".join([response(0.5, 1), request(2, 2)]))
    (tmp_path / "2.jsonl").write_text("\n".join([response(1.5, 3), request(3, 4)]))
    settings = {"format": "cloudevents", "num_outputs": 1}
    report = both(tmp_path, str(tmp_path / "?.jsonl"), **settings)
    assert report.reasons == {"a request without its response": 1}
    records = reader.ForwardRecords.load(tmp_path / "beam")
    np.testing.assert_array_equal(records.example_ids, [1, 2])
    np.testing.assert_array_equal(records.logits, [[0.5], [1.5]])


def test_another_attempt_replaces_the_files_of_the_first(tmp_path):
    path = write_rows(tmp_path, "jsonl")[0]
    settings = importers.ImportSettings("jsonl", num_outputs=2)
    contents = []
    for _ in range(2):
        stem = str(tmp_path / "out" / "records-run")
        ((number, report),) = importing._import_file((7, str(path)), settings, stem, 1)
        assert (number, report.num_records) == (7, 98)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]
    assert list(contents[0]) == ["records-run-00007-00000.ofbr"]


def test_a_failed_attempt_leaves_nothing(tmp_path):
    path = write_rows(tmp_path, "jsonl")[0]
    settings = importers.ImportSettings("jsonl", num_outputs=2, bad_rows="error")
    with pytest.raises(importers.ImportRowError, match="'example_id' is missing"):
        list(importing._import_file((0, str(path)), settings, str(tmp_path / "out" / "r"), 1))
    assert not list((tmp_path / "out").iterdir())


def test_two_runs_into_one_directory_keep_both(tmp_path):
    for path in write_rows(tmp_path, "jsonl")[:2]:
        found = on_beam(path, tmp_path / "out", format="jsonl", num_outputs=2)
    assert len(found[1]) == 2 * 98


def test_too_many_bad_rows_fail_and_leave_the_good_ones(tmp_path):
    paths = write_rows(tmp_path, "jsonl")
    settings = {"format": "jsonl", "num_outputs": 2}
    on_beam(paths, tmp_path / "enough", max_bad_fraction=0.02, **settings)
    with pytest.raises(Exception, match="(?s)2.00% of the rows are bad, more than .*=0.019"):
        on_beam(paths, tmp_path / "bad", max_bad_fraction=0.019, **settings)
    assert written(tmp_path / "bad") == written(tmp_path / "enough")
    with pytest.raises(Exception, match="(?s)no record was written.*'logits must have shape': 297"):
        on_beam(paths, tmp_path / "none", format="jsonl", num_outputs=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_outputs": None}, "num_outputs must be given for records with logits"),
        ({"max_bad_fraction": 1.5}, r"max_bad_fraction must be in \[0, 1\]. Received: 1.5"),
        ({"num_shards": 0}, "num_shards must be at least 1. Received: 0"),
        ({"format": "xml"}, "format must be one of"),
        ({"fields": importers.PredictFields()}, "fields must be RowFields"),
        ({"patterns": "/nowhere/*.jsonl"}, "No file matches"),
    ],
)
def test_construction_errors(tmp_path, arguments, message):
    patterns = [str(path) for path in write_rows(tmp_path, "jsonl")]
    given = {"patterns": patterns, "format": "jsonl", "num_outputs": 2} | arguments
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ImportRecords(output_directory=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()

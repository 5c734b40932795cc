"""Logs of calls, each from a fixture in the format's public schema; the expected is by hand."""

import base64
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import hashing
from ofb_tf.records import ForwardRecords, import_records, importers
from ofb_tf.records.importers import calls

LOGS = pathlib.Path(__file__).parent / "logs"
NOON = 1_714_564_800_000_000  # 2024-05-01T12:00:00Z
IDS = {101: [0.5, -0.5], 102: [1.5, -1.5], 103: [2.5, -2.5], 104: [3.5, -3.5], 105: [4.5, -4.5]}
# Format: ids, versions, microseconds after noon, reasons of what is bad.
EXPECTED = {
    "kserve": (
        "cloudevents",
        [101, 102, 103, 104, 105],
        [0, 0, 7, 7, 0],
        [125_000, 125_000, 1_000_000, 1_000_000, 2_500_000],
        {
            "a CloudEvent of a type that is no call": 1,
            "the server answered with an error": 1,
            "a request without its response": 1,
            "a response without its request, and without ids": 1,
        },
    ),
    "triton": (
        "triton",
        [101, 102, 103, 104],
        [3, 3, 4, 4],
        [None, None, 123_000, None],
        {
            "the server answered with an error": 1,
            "tensor 'logits' holds no data as JSON (binary data is not logged)": 1,
        },
    ),
    "vertex": (
        "vertex",
        [101, 102, 103],
        [1294784534664872960] * 3,
        [123_456, 123_456, 1_000_000],
        {"the response is missing": 1},
    ),
    "mlflow": (
        "mlflow",
        [101, 102, 103],
        [5, 5, 0],
        [123_000, 123_000, 1_000_000],
        {"the server answered with an error": 1},
    ),
}


def assert_expected(name, report, directory):
    _, ids, versions, times, reasons = EXPECTED[name]
    records = ForwardRecords.load(directory)
    np.testing.assert_array_equal(records.example_ids, ids)
    np.testing.assert_array_equal(records.logits, [IDS[i] for i in ids])
    np.testing.assert_array_equal(records.model_versions, versions)
    for found, expected in zip(records.timestamps.numpy() - NOON, times, strict=True):
        assert expected is None or found == expected
    assert report.reasons == reasons
    assert report.num_bad_rows == sum(reasons.values())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_log_and_training_from_it(tmp_path, name):
    report = import_records(LOGS / f"{name}.jsonl", tmp_path, format=EXPECTED[name][0])
    assert_expected(name, report, tmp_path)
    if name == "mlflow":
        assert report.sampling_rate == 0.25
    ids = np.array(EXPECTED[name][1])
    examples = tf.data.Dataset.from_tensor_slices({"example_id": ids, "label": ids % 2})
    sampler = ofb_tf.ofb_sample(records=str(tmp_path), rate=1.0, missing="error", batch_size=8)
    (batch,) = examples.apply(sampler).as_numpy_iterator()
    np.testing.assert_array_equal(np.sort(batch["example_id"]), ids)


def test_seldons_calls_join_by_requestid(tmp_path):
    report = import_records(LOGS / "seldon.jsonl", tmp_path, format="cloudevents")
    assert (report.num_records, report.num_bad_rows) == (3, 0)
    records = ForwardRecords.load(tmp_path)
    logits = dict(zip(records.example_ids.numpy(), records.logits[:, 0].numpy(), strict=True))
    versions = dict(zip(records.example_ids.numpy(), records.model_versions.numpy(), strict=True))
    for text, logit, version in (("ann", 0.25, 0), ("bob", 0.75, 0), ("eve", 1.25, 2)):
        example_id = int(hashing.fingerprint(tf.constant(text)))
        assert (logits[example_id], versions[example_id]) == (logit, version)


def rows_of(name):
    lines = (LOGS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", ["vertex", "mlflow"])
def test_tables_as_parquet(tmp_path, name):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = rows_of(name)
    for row in rows:  # as BigQuery and Databricks type them
        if name == "vertex":
            row["logging_time"] = np.datetime64(row["logging_time"][:-4], "us")
        elif "request_metadata" in row:
            row["request_metadata"] = list(row["request_metadata"].items())
    fields = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in fields}
    types = {"request_metadata": pa.map_(pa.string(), pa.string())}
    table = pa.table({key: pa.array(data, types.get(key)) for key, data in columns.items()})
    parquet.write_table(table, tmp_path / "log.parquet")
    report = import_records(tmp_path / "log.parquet", tmp_path / "out", format=name)
    assert_expected(name, report, tmp_path / "out")


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_events_as_kserve_stores_them(tmp_path, kind):
    bodies = {
        "request": b'{"instances": [{"example_id": 101}]}',
        "response": b'{"predictions": [[0.5, -0.5]]}',
    }
    type_of = "org.kubeflow.serving.inference.{}".format
    if kind == "json":
        path = tmp_path / "log.json"
        path.write_text(
            json.dumps(
                [
                    {"Id": "a", "ReqType": type_of(k), "Bytes": base64.b64encode(b).decode()}
                    for k, b in bodies.items()
                ]
            )
        )
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = tmp_path / "log.parquet"
        columns = {"id": ["a", "a"], "req_type": [type_of(k) for k in bodies]}
        parquet.write_table(pa.table({**columns, "bytes": list(bodies.values())}), path)
    import_records(path, tmp_path / "out", format="cloudevents")
    records = ForwardRecords.load(tmp_path / "out")
    np.testing.assert_array_equal(records.example_ids, [101])
    np.testing.assert_array_equal(records.logits, [[0.5, -0.5]])


def event(call_id, kind, body):
    return json.dumps({"id": call_id, "type": f"x.{kind}", "data": body})


def imported(tmp_path, *files, **arguments):
    paths = []
    for number, lines in enumerate(files):
        paths.append(str(tmp_path / f"{number}.jsonl"))
        pathlib.Path(paths[-1]).write_text("\n".join(lines))
    directory = tmp_path / "out"
    arguments = {"format": "cloudevents", "bad_rows": "list"} | arguments
    report = import_records(paths, directory, **arguments)
    return report, ForwardRecords.load(directory) if report.num_records else None


def test_halves_join_across_files(tmp_path):
    requests = [event(f"c{i}", "request", {"instances": [{"example_id": i}]}) for i in range(50)]
    responses = [event(f"c{i}", "response", {"predictions": [i / 2]}) for i in range(49, 0, -1)]
    report, records = imported(tmp_path, requests, responses)
    np.testing.assert_array_equal(records.example_ids, np.arange(1, 50))
    np.testing.assert_array_equal(records.logits[:, 0], np.arange(1, 50) / 2)
    assert report.bad_rows == [(str(tmp_path / "0.jsonl"), 0, "a request without its response")]


def test_waiting_is_bounded_and_the_oldest_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "_MAX_WAITING_BYTES", 20_000)
    requests = [event(f"c{i}", "request", {"instances": [{"example_id": i}]}) for i in range(50)]
    responses = [event(f"c{i}", "response", {"predictions": [0]}) for i in reversed(range(50))]
    report, records = imported(tmp_path, requests, responses)
    kept = records.example_ids.numpy()
    assert 10 < len(kept) < 20
    np.testing.assert_array_equal(kept, np.arange(50 - len(kept), 50))
    assert report.reasons["a request without its response"] == 50 - len(kept)
    assert report.num_bad_rows == 2 * (50 - len(kept))  # their responses, too


def test_responses_with_ids_need_no_request(tmp_path):
    lines = [
        event(f"c{i}", "response", {"predictions": [{"example_id": i, "logits": [i, 0]}]})
        for i in range(5)
    ]
    report, records = imported(tmp_path, lines)
    assert (report.num_records, report.num_bad_rows) == (5, 0)
    np.testing.assert_array_equal(records.logits[:, 0], np.arange(5))


def test_a_repeated_id_never_joins_what_does_not_belong_together(tmp_path):
    lines = [
        event("c", "request", {"instances": [{"example_id": 1}]}),
        event("c", "request", {"instances": [{"example_id": 2}]}),
        event("c", "response", {"predictions": [0.5]}),
    ]
    report, records = imported(tmp_path, lines)
    np.testing.assert_array_equal(records.example_ids, [2])
    assert report.reasons == {"a request without its response": 1}


def test_ids_as_fingerprints_of_serialized_examples(tmp_path):
    examples = [b"first", b"second\xff"]
    instances = [{"b64": base64.b64encode(each).decode()} for each in examples]
    lines = [
        event("c", "request", {"instances": instances}),
        event("c", "response", {"predictions": [0.5, 1.5]}),
    ]
    _, records = imported(tmp_path, lines, fields=importers.PredictFields(id_output=None))
    ids = hashing.fingerprint(tf.constant(examples)).numpy()
    np.testing.assert_array_equal(records.example_ids, np.sort(ids))
    np.testing.assert_array_equal(records.logits[:, 0], np.array([0.5, 1.5])[np.argsort(ids)])


@pytest.mark.parametrize(
    ("request_body", "response_body", "message"),
    [
        ({"instances": [{"example_id": 1}]}, {"predictions": [0.1, 0.2]}, "of one batch"),
        ({"instances": [{"example_id": 1.5}]}, {"predictions": [0.1]}, "int64 or text"),
        ({"instances": [{"example_id": 2**63}]}, {"predictions": [0.1]}, "int64 or text"),
        ({"instances": [{"example_id": True}]}, {"predictions": [0.1]}, "int64 or text"),
        ({"instances": [{"x": 1}]}, {"predictions": [0.1]}, "ids are missing"),
        ({"instances": [{"example_id": 1}]}, {"predictions": ["0.1"]}, "must hold numbers"),
        ({"instances": [{"example_id": 1}]}, {"predictions": [[None]]}, "must hold numbers"),
        ({"instances": [{"example_id": 1}]}, {"predictions": []}, "must hold numbers"),
        ({"instances": [{"example_id": 1}]}, {"predictions": [[1], [1, 2]]}, "must hold numbers"),
        ({"instances": [{"example_id": 1}]}, {"predictions": [{"score": 1}]}, "is missing"),
        ({"instances": [{"example_id": 1}]}, {"nothing": 1}, "must hold one of"),
        ({"instances": [{"example_id": 1}]}, "!", "must be JSON"),
        ({"instances": [{"example_id": 1}]}, None, "the response is missing"),
        (
            {"instances": [{"example_id": 1}]},
            {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [10**12, 0], "data": []}]},
            "holds 0 values",
        ),
    ],
)
def test_bad_calls_say_what_is_wrong(tmp_path, request_body, response_body, message):
    lines = [event("c", "request", request_body), event("c", "response", response_body)]
    report, _ = imported(tmp_path, lines)
    assert report.num_records == 0
    ((_, _, reason),) = report.bad_rows
    assert message in reason


def test_a_format_wants_its_own_fields(tmp_path):
    with pytest.raises(ValueError, match="fields must be PredictFields for format='triton'"):
        imported(tmp_path, [], format="triton", fields=importers.RowFields())

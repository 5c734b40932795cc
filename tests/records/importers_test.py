import gzip
import json
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ofb_tf import hashing
from ofb_tf.records import ForwardRecords, importers
from ofb_tf.records.importers import text as text_files
from tests.records.record_files import cut, flip, write_tfrecords

prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
predict_fields = importers.PredictFields


def log_entry(ids, logits, *, version=3, rate=0.0, seconds=0, examples=None):
    log = prediction_log_pb2.PredictionLog()
    log.log_metadata.sampling_config.sampling_rate = rate
    log.log_metadata.timestamp_secs = seconds
    response = log.predict_log.response
    response.model_spec.version.value = version
    if ids is not None:
        response.outputs["example_id"].CopyFrom(tf.make_tensor_proto(ids))
    if logits is not None:
        response.outputs["logits"].CopyFrom(tf.make_tensor_proto(np.asarray(logits, np.float32)))
    if examples is not None:
        log.predict_log.request.inputs["examples"].CopyFrom(tf.make_tensor_proto(examples))
    return log.SerializeToString()


def write_lines(path, lines):
    text = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def fingerprint(text):
    return int(hashing.fingerprint(tf.constant(text)))


@pytest.fixture
def run(tmp_path):
    """Imports a file; returns the report, and the records if there are any."""

    def run(path, format="jsonl", **arguments):
        directory = tempfile.mkdtemp(dir=tmp_path)
        arguments = {"format": format, "bad_rows": "list"} | arguments
        report = importers.import_records(path, directory, **arguments)
        return report, ForwardRecords.load(directory) if report.num_records else None

    return run


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_a_servers_log_of_batches(tmp_path, run, compression):
    entries = [
        log_entry(np.arange(4), np.arange(8).reshape(4, 2), seconds=100, rate=0.25),
        log_entry(np.arange(4, 6), np.arange(4).reshape(2, 2), version=4, rate=0.25),
    ]
    path = write_tfrecords(tmp_path / "log", entries, compression)
    report, records = run(path, "prediction_log")
    assert (report.num_rows, report.num_records, report.num_bad_rows) == (2, 6, 0)
    assert report.sampling_rate == 0.25
    np.testing.assert_array_equal(records.example_ids, np.arange(6))
    np.testing.assert_array_equal(records.logits[:4], np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(records.model_versions, [3, 3, 3, 3, 4, 4])
    np.testing.assert_array_equal(records.timestamps[:4], [100_000_000] * 4)


def test_bulk_inferrers_log_of_one_example_an_entry(tmp_path, run):
    examples = [b"first", b"second", b"third"]
    entries = [log_entry(None, [[0.5 * i]], examples=[e]) for i, e in enumerate(examples)]
    path = write_tfrecords(tmp_path / "log", entries, "GZIP")
    _, records = run(path, "prediction_log", fields=predict_fields(id_output=None))
    ids = hashing.fingerprint(tf.constant(examples)).numpy()
    np.testing.assert_array_equal(records.example_ids, np.sort(ids))
    np.testing.assert_array_equal(records.logits[:, 0], 0.5 * np.argsort(ids))


BAD_ENTRIES = {
    "output 'logits' is missing": log_entry([1], None),
    "output or input 'example_id' is missing": log_entry(None, [[1.0]]),
    "2 ids": log_entry([1, 2], [[1.0]]),
    "a scalar": log_entry([1], 1.0),
    "ids must be integers": log_entry([1.5], [[1.0]]),
    "not a PredictionLog": b"\xff\xff\xff",
    "a classify_log": prediction_log_pb2.PredictionLog(
        classify_log=prediction_log_pb2.ClassifyLog()
    ).SerializeToString(),
    "without content": b"",
}


@pytest.mark.parametrize("message", BAD_ENTRIES)
def test_bad_entries_are_counted_listed_or_fatal(tmp_path, run, message):
    good = log_entry([7], [[1.0]])
    path = write_tfrecords(tmp_path / "log", [good, BAD_ENTRIES[message], good])
    report, _ = run(path, "prediction_log", bad_rows="count")
    assert (report.num_bad_rows, report.num_records, report.bad_rows) == (1, 2, [])
    ((file, offset, reason),) = run(path, "prediction_log")[0].bad_rows
    assert (file, offset) == (path, len(good) + 16)
    assert message in reason
    with pytest.raises(importers.ImportRowError, match=f"at byte {offset}"):
        run(path, "prediction_log", bad_rows="error")


def test_a_tensor_that_claims_to_be_huge_is_refused(tmp_path, run):
    log = prediction_log_pb2.PredictionLog()
    outputs = log.predict_log.response.outputs
    outputs["example_id"].CopyFrom(tf.make_tensor_proto([1]))
    outputs["logits"].dtype = tf.float32.as_datatype_enum
    outputs["logits"].float_val.append(1.0)
    for _ in range(3):
        outputs["logits"].tensor_shape.dim.add().size = 2**20
    path = write_tfrecords(tmp_path / "log", [log.SerializeToString()])
    assert "claims" in run(path, "prediction_log")[0].bad_rows[0][2]


@settings(max_examples=300)
@given(st.data())
def test_mutated_logs_never_crash_and_never_yield_other_ids(tmp_path_factory, data):
    entry = bytearray(log_entry([5, 6], [[1.0, 2.0], [3.0, 4.0]]))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(entry) - 1))
        entry[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(entry)))
    path = str(tmp_path_factory.getbasetemp() / "fuzz.log")
    write_tfrecords(path, [bytes(entry[:cut])])
    for item in importers.read_prediction_log(path, predict_fields()):
        assert bool(item.columns) != bool(item.error)
        if item.columns:
            assert item.columns["logits"].dtype == np.float32
            assert len(item.columns["example_id"]) == len(item.columns["logits"])


def test_a_damaged_log_is_read_up_to_the_damage(tmp_path, run):
    entry = log_entry([7], [[1.0]])
    path = write_tfrecords(tmp_path / "log", [entry] * 4)
    flip(path, 2 * (len(entry) + 16) + 20)
    report, _ = run(path, "prediction_log")
    assert (report.num_rows, report.num_records, report.num_bad_rows) == (3, 2, 1)
    ((_, offset, reason),) = report.bad_rows
    assert offset == 2 * (len(entry) + 16)
    assert "checksum" in reason


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_json_lines(tmp_path, run, name):
    lines = [
        json.dumps({"example_id": 3, "logits": [1, 2.5], "model_version": 9, "timestamp": 10**15}),
        "",
        json.dumps({"example_id": "abc", "logits": [0.5, -1], "extra": {"a": 1}}),
    ]
    report, records = run(write_lines(tmp_path / name, lines))
    assert (report.num_records, report.num_bad_rows) == (2, 0)
    np.testing.assert_array_equal(records.example_ids, [3, fingerprint("abc")])
    np.testing.assert_array_equal(records.logits, [[1, 2.5], [0.5, -1]])
    np.testing.assert_array_equal(records.model_versions, [9, 0])
    assert records.timestamps[0] == 10**15


def test_csv_with_mapped_fields(tmp_path, run):
    lines = ["id,p,when,cost", "1,0.5,1000000001.5,0.25", '"2","-1e3",1000000002,4']
    path = write_lines(tmp_path / "rows.csv", lines)
    fields = importers.RowFields("id", ("p",), "cost", None, "when", "s")
    _, records = run(path, "csv", fields=fields)
    np.testing.assert_array_equal(records.example_ids, [1, 2])
    np.testing.assert_array_equal(records.logits, [[0.5], [-1000]])
    np.testing.assert_array_equal(records.losses, [0.25, 4])
    np.testing.assert_array_equal(records.timestamps, [10**15 + 1_500_000, 10**15 + 2_000_000])


@pytest.mark.parametrize("cell", ["1;2;3", "[1, 2, 3]", "1 2 3"])
def test_csv_lists(tmp_path, run, cell):
    path = write_lines(tmp_path / "rows.csv", ["example_id,logits", f'5,"{cell}"'])
    np.testing.assert_array_equal(run(path, "csv")[1].logits, [[1, 2, 3]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ("[" * 100_000, "not JSON"),
        ('{"logits": [1, 2]}', "'example_id' is missing"),
        ('{"example_id": 1}', "'logits' is missing"),
        ('{"example_id": 1.5, "logits": [1, 2]}', "integer or text"),
        ('{"example_id": true, "logits": [1, 2]}', "int64"),
        ('{"example_id": 9223372036854775808, "logits": [1, 2]}', "int64"),
        ('{"example_id": 1, "logits": ["a", "b"]}', "numbers"),
        ('{"example_id": 1, "logits": [[1], [2]]}', "numbers"),
        ('{"example_id": 1, "logits": []}', "numbers"),
        ('{"example_id": 1, "logits": [1, 2, 3]}', "shape"),
        ('{"example_id": 1, "logits": [1, 2], "model_version": "x"}', "int64"),
        ('{"example_id": 1, "logits": [1, 2], "timestamp": {}}', "must be a time"),
        ('{"example_id": 1, "logits": [1, 2], "timestamp": 77}', "no time in 2000 to 2099"),
    ],
)
def test_bad_lines_say_what_and_where(tmp_path, run, line, message):
    good = '{"example_id": 1, "logits": [1, 2]}'
    report, _ = run(write_lines(tmp_path / "rows.jsonl", [good, line, good]))
    ((_, offset, reason),) = report.bad_rows
    assert offset == len(good) + 1
    assert message in reason
    assert (report.num_rows, report.num_records) == (3, 2)


def test_not_finite_numbers_are_written_and_counted(tmp_path, run):
    path = write_lines(tmp_path / "rows.jsonl", ['{"example_id": 1, "logits": [NaN, 1e300]}'])
    report, _ = run(path)
    assert (report.num_records, report.num_nonfinite) == (1, 1)


def test_a_header_without_the_fields(tmp_path, run):
    path = write_lines(tmp_path / "rows.csv", ["a,b", "1,2"])
    with pytest.raises(ValueError, match="header must name.*--id_field"):
        run(path, "csv")


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_damaged_gzip_is_one_bad_row(tmp_path, run, monkeypatch, format):
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 64)
    lines = [f'{{"example_id": {i}, "logits": 1}}' for i in range(500)]
    if format == "csv":
        lines = ["example_id,logits", *(f"{i},1" for i in range(500))]
    path = write_lines(tmp_path / "rows.gz", lines)
    cut(path, 100)
    report, records = run(path, format)
    np.testing.assert_array_equal(records.example_ids, np.arange(report.num_rows - 1))
    ((_, _, reason),) = report.bad_rows
    assert "damaged from here on" in reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(["example_id", "logits", "model_version", "timestamp"]), JSON)
)
def test_any_json_parses_to_a_record_or_a_row_error(row):
    try:
        record = importers.RowFields().parse(row)
    except importers.UnusableError:
        return
    text = isinstance(row["example_id"], str)
    assert isinstance(record["example_id"], bytes if text else int)
    assert text or record["example_id"] == row["example_id"]
    assert all(isinstance(value, float) for value in record["logits"])


@settings(max_examples=100)
@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_read_as_csv_or_json(tmp_path_factory, data, chunk):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(b"example_id,logits\n" + data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_CHUNK_BYTES", chunk)
        lines = list(text_files.lines(str(path)))
        assert b"".join(line for _, line in lines) == path.read_bytes()
        assert [o for o, _ in lines] == [
            sum(len(line) for _, line in lines[:i]) for i in range(len(lines))
        ]
        for kind in ("jsonl", "csv"):
            for item in importers.read_rows(str(path), kind, importers.RowFields()):
                assert bool(item.columns) != bool(item.error)
                assert all(0 <= offset <= len(data) + 18 for offset in item.offsets)


def test_text_ids_that_look_like_integers_stay_text_in_json(tmp_path, run):
    ids = ["007", "7", "1_0", " 10 ", "١٢", 7, "a\0", "a"]
    lines = [json.dumps({"example_id": each, "logits": i}) for i, each in enumerate(ids)]
    _, records = run(write_lines(tmp_path / "rows.jsonl", lines))
    by_id = dict(zip(records.example_ids.numpy(), records.logits[:, 0].numpy(), strict=True))
    expected = [each if isinstance(each, int) else fingerprint(each) for each in ids]
    assert [by_id[each] for each in expected] == list(range(len(ids)))


def test_csv_declares_what_its_ids_are(tmp_path, run):
    path = write_lines(tmp_path / "rows.csv", ["example_id,logits", "007,1", "7,2", "x,3"])
    report, records = run(path, "csv")
    assert (report.num_bad_rows, report.num_records) == (1, 2)
    assert "'example_id' must be an int64. Received: x" in report.bad_rows[0][2]
    np.testing.assert_array_equal(records.example_ids, [7])
    _, records = run(path, "csv", id_type="string")
    np.testing.assert_array_equal(records.example_ids, sorted(map(fingerprint, ("007", "7", "x"))))
    (tmp_path / "rows.csv").write_bytes(b"example_id,logits\n\xff,1\n\xfe,2\n")
    _, records = run(path, "csv", id_type="string")
    np.testing.assert_array_equal(records.example_ids, sorted(map(fingerprint, (b"\xff", b"\xfe"))))


def test_ids_under_a_secret(tmp_path, run):
    secret_file = tmp_path / "secret"
    secret_file.write_text("a secret of more than sixteen bytes")
    arguments = {"secret_file": str(secret_file)}
    path = write_lines(tmp_path / "rows.jsonl", ['{"example_id": 12, "logits": 1}'])
    (example_id,) = run(path, **arguments)[1].example_ids.numpy()
    secret = hashing.read_secret(secret_file)
    assert example_id == tf.function(hashing.keyed_ids)(tf.constant(12, tf.int64), secret).numpy()
    assert example_id not in (12, fingerprint("12"))
    texts = [b"007", b"7", b"a\0"]
    lines = [json.dumps({"example_id": each.decode(), "logits": 1}) for each in texts]
    training = np.sort(tf.function(hashing.keyed_ids)(tf.constant(texts), secret))
    for path, format in (
        (write_lines(tmp_path / "text.jsonl", lines), "jsonl"),
        (write_tfrecords(tmp_path / "log", [log_entry(texts, [[1.0]] * 3)]), "prediction_log"),
    ):  # the text itself, never its fingerprint
        _, records = run(path, format, **arguments)
        np.testing.assert_array_equal(records.example_ids, training)
    secret_file.write_text("another secret of that length")
    assert hashing.keyed_ids(12, hashing.read_secret(secret_file)) != example_id
    secret_file.write_text("short")
    with pytest.raises(ValueError, match="at least 16 bytes"):
        hashing.read_secret(secret_file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "xml"}, "format must be one of"),
        ({"format": "csv", "bad_rows": "ignore"}, "bad_rows must be one of"),
        ({"format": "csv", "id_type": "float"}, "id_type must be one of"),
    ],
)
def test_arguments_out_of_range(tmp_path, run, arguments, message):
    with pytest.raises(ValueError, match=message):
        run("x", **arguments)
    with pytest.raises(FileNotFoundError, match="No file matches"):
        run(str(tmp_path / "none*"), "csv")


def test_nested_and_batched_paths(tmp_path, run):
    calls = [
        {
            "model": {"version": version},
            "request": {"rows": [{"id": 10 * version + i} for i in range(3)]},
            "outputs": [{"name": "other"}, {"data": [[i, version] for i in range(3)]}],
            "time": f"2024-05-01T12:00:0{version}Z",
        }
        for version in (1, 2)
    ]
    fields = importers.RowFields(
        "request.rows[].id", ("outputs[1].data[]",), None, "model.version", "time"
    )
    lines = [json.dumps(call) for call in calls]
    report, records = run(write_lines(tmp_path / "calls.jsonl", lines), fields=fields)
    assert (report.num_rows, report.num_records) == (6, 6)
    np.testing.assert_array_equal(records.example_ids, [10, 11, 12, 20, 21, 22])
    np.testing.assert_array_equal(
        records.logits, [[i, version] for version in (1, 2) for i in range(3)]
    )
    np.testing.assert_array_equal(records.model_versions, [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(
        records.timestamps, np.repeat([1_714_564_801_000_000, 1_714_564_802_000_000], 3)
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": [{"id": 1}], "b": []}, "equally long"),
        ({"a": [], "b": []}, "not empty"),
        ({"a": {"id": 1}, "b": 3}, "not empty"),
        ({"a": [{"id": 1}, {}], "b": [[1], [2]]}, "'a[].id' is missing"),
        ([1], "not empty"),
    ],
)
def test_batches_that_do_not_fit(tmp_path, run, row, message):
    fields = importers.RowFields("a[].id", ("b[]",))
    path = write_lines(tmp_path / "rows.jsonl", [json.dumps(row)])
    report, _ = run(path, fields=fields)
    ((_, offset, reason),) = report.bad_rows
    assert (offset, message in reason) == (0, True), reason


def test_a_name_with_dots_is_a_name_first(tmp_path, run):
    line = json.dumps({"a.id": 5, "a": {"id": 6}, "b[": 1.5})
    path = write_lines(tmp_path / "rows.jsonl", [line])
    _, records = run(path, fields=importers.RowFields("a.id", ("b[",)))
    np.testing.assert_array_equal(records.example_ids, [5])
    np.testing.assert_array_equal(records.logits, [[1.5]])


def test_reasons_are_counted_by_kind_and_without_control_characters(tmp_path, run):
    lines = ['{"example_id": 1, "logits": 1}', "{}", "{}", '{"example_id": "\\u001b[31m"}']
    lines += [f'{{"example_id": 1, "logits": "\\u001b[31m{i}"}}' for i in range(5)]
    lines += ['{"example_id": 1, "logits": 1, "model_version": "\\u001b[31m"}']
    report, _ = run(write_lines(tmp_path / "rows.jsonl", lines), bad_rows="list")
    assert report.reasons == {
        "field 'logits' must hold numbers": 5,
        "field 'example_id' is missing": 2,
        "field 'logits' is missing": 1,
        "field 'model_version' must be an int64": 1,
    }
    assert report.bad_fraction == 9 / 10
    assert report.first_bad_row[1:] == (len(lines[0]) + 1, "field 'example_id' is missing")
    assert all(reason.isprintable() for _, _, reason in report.bad_rows)


def test_an_import_of_the_first_rows(tmp_path, run):
    lines = [f'{{"example_id": {i}, "logits": {i}}}' for i in range(10_000)]
    report, records = run(write_lines(tmp_path / "rows.jsonl", lines), max_rows=1)
    assert report.num_rows == report.num_records == len(records) < 10_000

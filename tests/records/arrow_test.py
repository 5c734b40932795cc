"""Parquet and Arrow, in and out, against pyarrow's own reading and numpy."""

import datetime
import decimal
import pathlib
import sys

import numpy as np
import pytest

from ofb_tf import hashing
from ofb_tf.records import (
    ForwardRecords,
    ForwardRecordWriter,
    export_parquet,
    import_records,
    importers,
)
from ofb_tf.records.importers import tables
from tests.records.record_files import flip, write

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone.utc)
MICROSECONDS = 1_714_564_800_000_000


def store(path, table, format):
    if format == "parquet":
        parquet.write_table(table, path, row_group_size=37, version="2.6")
    else:
        new = pa.ipc.new_file if format == "arrow" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=37)


@pytest.fixture
def run(tmp_path):
    """Imports a table; returns the report and the records."""

    def run(columns, fields=None, format="parquet", **arguments):
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        store(tmp_path / "table", table, format)
        arguments = {"format": format.removesuffix("_stream"), "bad_rows": "list"} | arguments
        directory = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        report = import_records(tmp_path / "table", directory, fields=fields, **arguments)
        return report, ForwardRecords.load(directory) if report.num_records else None

    return run


def lists(rows):
    return {
        "lists": pa.array(rows, pa.list_(pa.float32())),
        "large lists": pa.array(rows, pa.large_list(pa.float64())),
        "fixed lists": pa.array(rows, pa.list_(pa.float32(), len(rows[0]))),
        "integers": pa.array(rows, pa.list_(pa.int64())),
    }


@pytest.mark.parametrize("format", ["parquet", "arrow", "arrow_stream"])
@pytest.mark.parametrize("kind", lists([[1]]))
def test_logits_as_lists(run, format, kind):
    ids = np.arange(200)[::-1]
    logits = np.stack([ids, ids % 7, ids // 3], axis=1)
    columns = {
        "example_id": ids,
        "logits": lists(logits.tolist())[kind],
        "model_version": ids // 100,
        "timestamp": pa.array(MICROSECONDS + ids, pa.timestamp("us", "UTC")),
        "unused": ["text"] * 200,
    }
    report, records = run(columns, format=format)
    assert (report.num_rows, report.num_records, report.num_bad_rows) == (200, 200, 0)
    order = np.arange(200)
    np.testing.assert_array_equal(records.example_ids, order)
    np.testing.assert_array_equal(records.logits, logits[::-1])
    np.testing.assert_array_equal(records.model_versions, order // 100)
    np.testing.assert_array_equal(records.timestamps, MICROSECONDS + order)


def test_logits_as_columns_of_a_struct_and_probabilities(run):
    rows = [{"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}, None, {"a": None, "b": 1.0}]
    columns = {"example_id": [1, 2, 3, 4], "p": pa.array(rows), "loss": [1.0, 2.0, 3.0, 4.0]}
    fields = importers.RowFields(logits=("p.a", "p.b"), loss="loss")
    report, records = run(columns, fields, from_logits=False)
    np.testing.assert_allclose(records.logits, np.log([[0.25, 0.75], [0.5, 0.5]]), rtol=1e-6)
    np.testing.assert_array_equal(records.losses, [1, 2])
    assert [(row, reason) for _, row, reason in report.bad_rows] == [
        (2, "field 'p.a' is missing"),
        (3, "field 'p.a' is missing"),
    ]


IDS = {
    "int32": (pa.array([3, 1, 2], pa.int32()), [3, 1, 2]),
    "uint64": (pa.array([3, 2**63 - 1, 2], pa.uint64()), [3, 2**63 - 1, 2]),
    "text": (pa.array(["a", "7", "ä"]), ["a", "7", "ä"]),
    "large text": (pa.array(["a", "7", "ä"], pa.large_string()), ["a", "7", "ä"]),
    "binary": (pa.array([b"a\0", b"a", b"\xff"]), [b"a\0", b"a", b"\xff"]),
    "dictionary": (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_type(run, kind):
    column, values = IDS[kind]
    _, records = run({"example_id": column, "logits": [0.0, 1.0, 2.0]})
    expected = {int(hashing.to_int64(v)): float(i) for i, v in enumerate(values)}  # the last wins
    found = dict(zip(records.example_ids.numpy(), records.logits[:, 0].numpy(), strict=True))
    assert found == expected


TIMES = {
    **{f"timestamp[{unit}]": pa.array([NOON, None], pa.timestamp(unit)) for unit in ("s", "ms")},
    "timestamp[us, zone]": pa.array([NOON, None], pa.timestamp("us", "UTC")),
    "timestamp[ns]": pa.array([MICROSECONDS * 1000 + 999, None], pa.timestamp("ns")),
    "seconds": pa.array([MICROSECONDS // 10**6, None]),
    "float seconds": pa.array([MICROSECONDS / 10**6, None]),
    "milliseconds": pa.array([MICROSECONDS // 1000, None]),
    "nanoseconds": pa.array([MICROSECONDS * 1000, None]),
    "int32 seconds": pa.array([MICROSECONDS // 10**6, None], pa.int32()),
    "text": pa.array(["2024-05-01T14:00:00.000000999+02:00", None]),
    "decimal": pa.array([decimal.Decimal("1714564800.000"), None], pa.decimal128(20, 3)),
}


@pytest.mark.parametrize("kind", TIMES)
def test_times_of_every_type(run, kind):
    _, records = run({"example_id": [1, 2], "logits": [0.0, 0.0], "timestamp": TIMES[kind]})
    first, second = records.timestamps.numpy()
    assert first == MICROSECONDS
    assert abs(second / 1e6 - datetime.datetime.now().timestamp()) < 600  # of the import


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        (pa.array([datetime.date(2024, 5, 1)], pa.date32()), "auto"),
        (pa.array([datetime.date(2024, 5, 1)], pa.date64()), "auto"),
        (pa.array(["2024-05-01"]), "ms"),
    ],
)
def test_dates_are_midnight(run, column, unit):
    fields = importers.RowFields(timestamp_unit=unit)
    _, records = run({"example_id": [1], "logits": [0.0], "timestamp": column}, fields)
    assert records.timestamps.numpy() == MICROSECONDS - 12 * 3600 * 10**6


def test_bad_rows_are_set_aside_with_their_reason(run):
    columns = {
        "example_id": pa.array([1, None, 3, 4, 5, 6, 7, 2**63, 9], pa.uint64()),
        "logits": [[1.0, 2.0], [1, 2], None, [], [1, None], [1, 2, 3], [1, 2], [1, 2], [5, 6]],
        "timestamp": pa.array([MICROSECONDS] * 6 + [77, 0, MICROSECONDS], pa.int64()),
    }
    report, records = run(columns)
    np.testing.assert_array_equal(records.example_ids, [1, 9])
    np.testing.assert_array_equal(records.logits, [[1, 2], [5, 6]])
    reasons = {row: reason for _, row, reason in report.bad_rows}
    assert set(reasons) == {1, 2, 3, 4, 5, 6, 7}
    assert "'example_id' is missing" in reasons[1]
    assert "'logits' is missing" in reasons[2]
    assert "must hold numbers" in reasons[3]
    assert "must hold numbers" in reasons[4]
    assert "shape" in reasons[5]
    assert "no time in 2000 to 2099" in reasons[6]
    assert "int64" in reasons[7]
    assert (report.num_rows, report.num_bad_rows, report.num_records) == (9, 7, 2)
    assert report.bad_fraction == 7 / 9
    assert report.first_bad_row[1] == 1
    assert sum(report.reasons.values()) == 7


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_places_are_rows_of_the_file(run, monkeypatch, format):
    monkeypatch.setattr(tables, "_BATCH_ROWS", 16)
    ids = [None if i == 90 else i for i in range(100)]
    report, _ = run({"example_id": ids, "logits": [0.5] * 100}, format=format)
    assert [row for _, row, _ in report.bad_rows] == [90]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1], "logits": [1.0]}, "Missing: .'example_id'.*--id_field"),
        ({"example_id": [1.5], "logits": [1.0]}, "'example_id' must hold integers or text"),
        ({"example_id": [1], "logits": ["a"]}, "'logits' must hold numbers. Received: string"),
        ({"example_id": [1], "logits": [["a"]]}, "must hold numbers"),
        ({"example_id": [1], "logits": [1.0], "logsumexp": [1.0]}, "top-k form"),
    ],
)
def test_columns_that_do_not_fit(run, columns, message):
    with pytest.raises(ValueError, match=message):
        run(columns)


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_damaged_file_is_one_bad_row(tmp_path, format):
    path = tmp_path / "table"
    ids = np.random.default_rng(0).integers(0, 2**60, 5000)
    store(path, pa.table({"example_id": ids, "logits": ids * 0.5}), format)
    whole = path.read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"PAR1 no")):
        path.write_bytes(data)
        report = import_records(path, tmp_path / name, format=format, bad_rows="list")
        assert (report.num_rows, report.num_bad_rows) == (report.num_records + 1, 1)
        assert "damaged from here on" in report.bad_rows[0][2]


def test_an_arrow_file_whose_offsets_point_elsewhere_is_damaged(tmp_path):
    """Arrow uses its buffers as they are: unchecked, this reads memory that is not the file's."""
    table = pa.table({"example_id": [1, 2], "logits": [[1.0] * 3, [1.0] * 4]})
    store(tmp_path / "table", table, "arrow")
    before, after = (np.array([0, 3, end], np.int32).tobytes() for end in (7, 1_000_000))
    data = (tmp_path / "table").read_bytes()
    assert data.count(before) == 1
    (tmp_path / "table").write_bytes(data.replace(before, after))
    report = import_records(tmp_path / "table", tmp_path / "out", format="arrow", bad_rows="list")
    assert (report.num_records, report.num_bad_rows) == (0, 1)
    assert "damaged from here on" in report.bad_rows[0][2]


def test_many_files_and_batches_larger_than_a_block(tmp_path):
    count = 100_000
    for part in range(3):
        ids = np.arange(part, 3 * count, 3)
        table = pa.table({"example_id": ids, "logits": ids.astype(np.float32)})
        parquet.write_table(table, tmp_path / f"{part}.parquet")
    report = import_records(f"{tmp_path}/*.parquet", tmp_path / "out", format="parquet")
    assert (report.num_files, report.num_records) == (3, 3 * count)
    records = ForwardRecords.load(tmp_path / "out")
    np.testing.assert_array_equal(records.example_ids, np.arange(3 * count))
    np.testing.assert_array_equal(records.logits[:, 0], np.arange(3 * count))


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_export_and_import_again(tmp_path, num_outputs, dtype):
    ids = np.arange(500)
    logits = np.random.default_rng(1).normal(size=(500, num_outputs)).astype(dtype)
    with ForwardRecordWriter(tmp_path / "in", logits_dtype=dtype, block_records=64) as writer:
        writer.write(ids, logits, model_version=ids // 100, timestamp=MICROSECONDS + ids)
    counts = export_parquet(tmp_path / "in", tmp_path / "tables")
    assert (counts.num_read, counts.num_files) == (500, 1)
    (path,) = (tmp_path / "tables").iterdir()
    table = parquet.read_table(path)
    assert table.schema.field("timestamp").type == pa.timestamp("us", "UTC")
    shape = (500,) if num_outputs == 1 else (500, num_outputs)
    np.testing.assert_array_equal(
        np.array(table["logits"].to_pylist(), np.float32), logits.reshape(shape)
    )
    np.testing.assert_array_equal(table["timestamp"].cast("int64"), MICROSECONDS + ids)
    import_records(path, tmp_path / "out", format="parquet")
    before, after = (ForwardRecords.load(tmp_path / name) for name in ("in", "out"))
    for name in ("example_ids", "logits", "model_versions", "timestamps"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_export_of_the_top_k_form_and_of_damage(tmp_path):
    path = write(
        tmp_path / "in",
        np.arange(50),
        np.random.default_rng(2).normal(size=(50, 6)),
        writer={"top_k": 2},
        timestamp=MICROSECONDS,
    )
    export_parquet(path, tmp_path / "out")
    (output,) = (tmp_path / "out").iterdir()
    table = parquet.read_table(output)
    records = ForwardRecords.load(path)
    for name, column in records.columns.items():
        if name not in ("model_version", "timestamp"):
            np.testing.assert_array_equal(
                np.array(table[name].to_pylist(), column.dtype.name), column
            )
    flip(path)
    with pytest.raises(ValueError, match="Corrupt record file"):
        export_parquet(path, tmp_path / "bad")
    assert not list((tmp_path / "bad").iterdir())
    counts = export_parquet(path, tmp_path / "part", on_corrupt="skip")
    (output,) = (tmp_path / "part").iterdir()
    assert 0 < parquet.read_metadata(output).num_rows == counts.num_read < 50


def test_files_of_one_name_need_separate_directories(tmp_path):
    for name in ("a", "b"):
        path = write(tmp_path / name, [1])
        (tmp_path / name / "same.ofbr").write_bytes(pathlib.Path(path).read_bytes())
    with pytest.raises(ValueError, match="separate output directories"):
        export_parquet(f"{tmp_path}/*/same.ofbr", tmp_path / "out")


def test_to_pandas(monkeypatch):
    pandas = pytest.importorskip("pandas")
    records = ForwardRecords.from_columns(
        [3, 1], [[1, 2], [3, 4]], [0.5, 0.25], [7, 8], [MICROSECONDS, MICROSECONDS + 1]
    )
    table = records.to_pandas()
    assert list(table.example_id) == [1, 3]
    np.testing.assert_array_equal(np.stack(table.logits), [[3, 4], [1, 2]])
    assert list(table.loss) == [0.25, 0.5]
    assert list(table.model_version) == [8, 7]
    assert table.timestamp[1] == pandas.Timestamp(NOON)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        records.to_pandas()


def test_without_pyarrow_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write(tmp_path / "in", [1])
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"ofb-tf\[arrow\]"):
        export_parquet(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ImportError, match=r"ofb-tf\[arrow\]"):
        import_records(tmp_path / "x.parquet", tmp_path / "out", format="parquet")

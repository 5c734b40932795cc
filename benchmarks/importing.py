"""Importing logs and tables of each format: records per second, and memory."""

import csv
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from benchmarks import inputs
from benchmarks.parts import Part, Row, Run, Settings, millions_per_second, of
from ofb_tf import constants
from ofb_tf.records import import_records

_MILLION = 1_000_000
_PER_CALL = 4  # examples, in logs of calls
_FEATURES = [0.5] * 8
_BEGIN = 1_700_000_000  # seconds since 1970
_ROWS_PER_GROUP = 1 << 20


def make_records(first: int, count: int) -> dict[str, np.ndarray]:
    """The columns of the records that each format holds."""
    ids = np.arange(first, first + count)
    return {
        constants.EXAMPLE_ID: ids,
        constants.LOGITS: np.random.default_rng(first).normal(size=count).astype(np.float32),
        constants.TIMESTAMP: _BEGIN * constants.MICROSECONDS + ids,
    }


def _table(first: int, count: int) -> pa.Table:
    columns = make_records(first, count)
    times = pa.array(columns[constants.TIMESTAMP], pa.timestamp("us", "UTC"))
    return pa.table(columns | {constants.TIMESTAMP: times})


def _write_parquet(path: pathlib.Path, count: int) -> None:
    first = _table(0, 0)
    with pq.ParquetWriter(path, first.schema) as writer:
        for begin in range(0, count, _ROWS_PER_GROUP):
            writer.write_table(_table(begin, min(_ROWS_PER_GROUP, count - begin)))


def _write_arrow(path: pathlib.Path, count: int) -> None:
    with pa.ipc.new_file(path, _table(0, 0).schema) as writer:
        for begin in range(0, count, _ROWS_PER_GROUP):
            writer.write_table(_table(begin, min(_ROWS_PER_GROUP, count - begin)))


def _write_csv(path: pathlib.Path, count: int) -> None:
    columns = make_records(0, count)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))


def _write_json_rows(path: pathlib.Path, count: int) -> None:
    columns = make_records(0, count)
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    _write_json(path, (dict(zip(columns, row, strict=True)) for row in rows))


def _calls(count: int) -> Iterator[tuple[int, list[int], list[float]]]:
    """The number, ids and logits of each call."""
    columns = make_records(0, count)
    ids, logits = columns[constants.EXAMPLE_ID].tolist(), columns[constants.LOGITS].tolist()
    for begin in range(0, count, _PER_CALL):
        yield begin // _PER_CALL, ids[begin : begin + _PER_CALL], logits[begin : begin + _PER_CALL]


def _instances(ids: list[int]) -> list[dict]:
    return [{"example_id": id_, "x": _FEATURES} for id_ in ids]


def _write_cloudevents(path: pathlib.Path, count: int) -> None:
    def events() -> Iterator[dict]:
        for number, ids, logits in _calls(count):
            halves = {"request": {"instances": _instances(ids)}}
            halves["response"] = {"predictions": [[logit] for logit in logits]}
            for half, data in halves.items():
                yield {
                    "specversion": "1.0",
                    "id": str(number),
                    "type": f"org.kubeflow.serving.inference.{half}",
                    "time": "2026-05-01T12:00:00.123456789Z",
                    "data": data,
                }

    _write_json(path, events())


def _write_triton(path: pathlib.Path, count: int) -> None:
    def tensor(name: str, datatype: str, data: list) -> dict:
        return {"name": name, "datatype": datatype, "shape": [_PER_CALL, -1], "data": data}

    def bodies() -> Iterator[dict]:
        for number, ids, logits in _calls(count):
            ids_, x = tensor("example_id", "INT64", ids), tensor("x", "FP32", _FEATURES * len(ids))
            outputs = [tensor("logits", "FP32", logits)]
            ids_["shape"], x["shape"] = [len(ids)], [len(ids), len(_FEATURES)]
            outputs[0]["shape"] = [len(ids), 1]
            yield {
                "timestamp": _BEGIN * 1000 + number,
                "request": {"id": str(number), "inputs": [ids_, x]},
                "response": {"id": str(number), "model_version": "3", "outputs": outputs},
            }

    _write_json(path, bodies())


def _write_vertex(path: pathlib.Path, count: int) -> None:
    _write_json(
        path,
        (
            {
                "endpoint": "6401",
                "deployed_model_id": "12",
                "logging_time": "2026-05-01 12:00:00.123456 UTC",
                "request_id": str(number),
                "request_payload": [json.dumps(each) for each in _instances(ids)],
                "response_payload": [json.dumps([logit]) for logit in logits],
            }
            for number, ids, logits in _calls(count)
        ),
    )


def _write_mlflow(path: pathlib.Path, count: int) -> None:
    _write_json(
        path,
        (
            {
                "databricks_request_id": str(number),
                "timestamp_ms": _BEGIN * 1000 + number,
                "status_code": 200,
                "request": json.dumps({"dataframe_records": _instances(ids)}),
                "response": json.dumps({"predictions": [[logit] for logit in logits]}),
                "request_metadata": {"model_version": "5"},
            }
            for number, ids, logits in _calls(count)
        ),
    )


def _write_prediction_log(path: pathlib.Path, count: int) -> None:
    with tf.io.TFRecordWriter(str(path)) as file:
        for _, ids, logits in _calls(count):
            log = prediction_log_pb2.PredictionLog()
            call = log.predict_log
            x = tf.make_tensor_proto([_FEATURES] * len(ids), tf.float32)
            call.request.inputs["x"].CopyFrom(x)
            outputs = call.response.outputs
            outputs["example_id"].CopyFrom(tf.make_tensor_proto(ids, tf.int64))
            outputs["logits"].CopyFrom(tf.make_tensor_proto([[each] for each in logits]))
            file.write(log.SerializeToString())


def _write_json(path: pathlib.Path, rows: Iterator[dict]) -> None:
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


# By name: what writes so many records to a path, and how many are measured.
FORMATS: dict[str, tuple[Callable[[pathlib.Path, int], None], int]] = {
    "parquet": (_write_parquet, 20 * _MILLION),
    "arrow": (_write_arrow, 20 * _MILLION),
    "csv": (_write_csv, 400_000),
    "jsonl": (_write_json_rows, 400_000),
    "cloudevents": (_write_cloudevents, 200_000),
    "triton": (_write_triton, 200_000),
    "vertex": (_write_vertex, 200_000),
    "mlflow": (_write_mlflow, 200_000),
    "prediction_log": (_write_prediction_log, 200_000),
}
_FAST = ("parquet", "arrow")


def _path(settings: Settings, format: str) -> pathlib.Path:
    return settings.inputs / "logs" / format


def _prepare(settings: Settings) -> None:
    for name, (write, count) in FORMATS.items():
        path = _path(settings, name)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            unfinished = path.with_name(f"{name}.open")
            write(unfinished, settings.count(count))
            unfinished.rename(path)


def _peer(format: str) -> Callable[[Settings], Run]:
    def prepared(settings: Settings) -> Run:
        path, count = _path(settings, format), settings.count(FORMATS[format][1])

        def run() -> dict[str, float]:
            directory = tempfile.mkdtemp()
            before = inputs.resident_bytes()
            report = import_records(path, directory, format=format)
            added = inputs.peak_bytes() - before
            assert report.num_records == count, report
            shutil.rmtree(directory)
            return {"items": count, "added_mebibytes": added / 2**20}

        return run

    return prepared


PARTS = (
    Part(
        name="import",
        title="Importing records of one output with their times; calls have four examples of eight "
        "features",
        item="record",
        peers={name: _peer(name) for name in FORMATS},
        prepare=_prepare,
        repeats=1,
        rows=[
            row
            for name in FORMATS
            for row in (
                Row(
                    f"million records imported per second from {name} (wall-clock)",
                    millions_per_second(name, "wall"),
                    at_least=2 if name in _FAST else None,
                ),
                Row(f"memory added by importing {name} (MiB)", of(name, "added_mebibytes")),
            )
        ],
    ),
)

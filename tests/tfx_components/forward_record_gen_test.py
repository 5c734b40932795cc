"""ForwardRecordGen by its own function, on record files and PredictionLogs."""

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from tfx.types import standard_artifacts
from tfx_testing import generate, write_tfrecords

import ofb_tf
from ofb_tf import hashing
from ofb_tf.beam import Manifest, example_fingerprints
from ofb_tf.records import partition_of
from ofb_tf.records.partitioned import partition_path
from tests.streams import serialized_example
from tfx_components.forward_record_gen import ForwardRecordGen


def _generate(tmp_path, **arguments):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "out").mkdir()
    return generate(tmp_path / "out", **{"num_partitions": 3} | arguments)


def _load(tmp_path, **arguments):
    return ofb_tf.ForwardRecords.load(_generate(tmp_path, **arguments).uri)


def _write(directory, ids, logits, **columns):
    with ofb_tf.ForwardRecordWriter(directory) as writer:
        writer.write(np.array(ids, np.int64), np.array(logits, np.float32), **columns)


def _log(examples, logits, version=0, echo=None, name="logits"):
    log = prediction_log_pb2.PredictionLog()
    predict = log.predict_log
    predict.request.inputs["examples"].CopyFrom(tf.make_tensor_proto(examples, tf.string))
    predict.response.outputs[name].CopyFrom(tf.make_tensor_proto(np.float32(logits)))
    if echo is not None:
        predict.response.outputs["example_id"].CopyFrom(tf.make_tensor_proto(echo))
    predict.response.model_spec.version.value = version
    return log.SerializeToString()


def test_newest_record_of_each_id_in_its_partition(tmp_path):
    _write(tmp_path / "in", range(100), np.zeros((100, 1)), timestamp=10, model_version=1)
    _write(tmp_path / "in", range(50, 150), np.ones((100, 1)), timestamp=30, model_version=2)
    _write(tmp_path / "in", range(40), np.full((40, 1), 2.0), timestamp=5, model_version=3)
    artifact = _generate(tmp_path, records_pattern=str(tmp_path / "in" / "*"))

    manifest = Manifest.read(artifact.uri)
    assert (manifest.num_read, manifest.num_duplicates, manifest.num_records) == (240, 90, 150)
    assert manifest.records_by_version == {"1": 50, "2": 100}
    assert (manifest.oldest_timestamp, manifest.newest_timestamp) == (10, 30)
    assert sum(manifest.records_by_partition) == 150
    for partition, count in enumerate(manifest.records_by_partition):
        records = ofb_tf.ForwardRecords.load(partition_path(artifact.uri, partition, 3))
        ids = records.example_ids.numpy()
        assert len(ids) == count
        np.testing.assert_array_equal(partition_of(ids, 3), partition)
        np.testing.assert_array_equal(records.logits.numpy()[:, 0], ids >= 50)
        np.testing.assert_array_equal(records.model_versions.numpy(), 1 + (ids >= 50))
    assert len(ofb_tf.ForwardRecords.load(artifact.uri)) == 150  # a records directory itself
    names = sorted(path.name for path in pathlib.Path(artifact.uri).iterdir())
    assert names == ["manifest.json", *(f"partition-{k:05d}-of-00003.ofbr" for k in range(3))]
    assert artifact.get_int_custom_property("records_of_version_2") == 100
    assert artifact.get_int_custom_property("num_duplicates") == 90


def test_what_a_failed_attempt_left_is_replaced(tmp_path):
    _write(tmp_path / "in", range(100), np.zeros((100, 1)))
    pattern = str(tmp_path / "in" / "*")
    generate(tmp_path / "out", records_pattern=pattern, num_partitions=5)
    artifact = generate(tmp_path / "out", records_pattern=pattern, num_partitions=3)
    assert Manifest.read(artifact.uri).num_records == 100
    assert len(list((tmp_path / "out").glob("*.ofbr"))) == 3


def test_records_with_losses_only(tmp_path):
    with ofb_tf.ForwardRecordWriter(tmp_path / "in") as writer:
        writer.write(np.arange(10), loss=np.arange(10.0))
    artifact = _generate(tmp_path, records_pattern=str(tmp_path / "in"))
    assert Manifest.read(artifact.uri).num_outputs == 0
    records = ofb_tf.ForwardRecords.load(artifact.uri)
    np.testing.assert_array_equal(records.losses, np.arange(10.0))


@pytest.mark.parametrize(("span", "expected"), [(-1, 12), (3, 3)])
def test_span_in_a_pattern(tmp_path, span, expected):
    for number in (3, 12):
        _write(tmp_path / f"day-{number}", [number], [[0.5]])
    pattern = str(tmp_path / "day-{SPAN}" / "*.ofbr")
    artifact = _generate(tmp_path, records_pattern=pattern, span=span)
    assert ofb_tf.ForwardRecords.load(artifact.uri).example_ids.numpy().tolist() == [expected]
    assert artifact.get_int_custom_property("span") == expected


def test_prediction_logs_of_bulk_inferrer(tmp_path):
    examples = [serialized_example(id=7 + k, x=float(k)) for k in range(20)]
    logs = [_log([e], [[0.1 * k]]) for k, e in enumerate(examples)]
    write_tfrecords(tmp_path / "logs" / "prediction_logs-00000-of-00001.gz", logs)
    inference = standard_artifacts.InferenceResult()
    inference.uri = str(tmp_path / "logs")
    given = {"inference_result": inference, "model_version": 9, "timestamp": 77}
    for id_feature, ids in (("id", np.arange(7, 27)), ("", example_fingerprints(examples))):
        records = _load(tmp_path, id_feature=id_feature, **given)
        order = np.argsort(ids)
        np.testing.assert_array_equal(records.example_ids, ids[order])
        np.testing.assert_allclose(
            records.logits[:, 0], np.float32(0.1) * np.arange(20, dtype=np.float32)[order]
        )
        assert set(records.model_versions.numpy()) == {9}
        assert set(records.timestamps.numpy()) == {77}


def test_fingerprint_does_not_depend_on_who_serialized():
    """With so many features protobuf's own order depends on how the example was put together."""
    parts = [serialized_example(**{f"feature-{k}": k}) for k in range(60)]
    orders = [np.arange(60), np.random.default_rng(0).permutation(60)]
    # A concatenation of messages is their merge: the same example in other bytes.
    first, second = example_fingerprints([b"".join(parts[k] for k in order) for order in orders])
    assert first == second


def test_prediction_logs_of_tf_serving_hold_batches_and_echo_ids(tmp_path):
    logs = [
        _log([b"a", b"b"], [[1.0, 2.0], [3.0, 4.0]], version=5, echo=[30, 10]),
        _log([b"c"], [[5.0, 6.0]], version=6, echo=[20]),
    ]
    records = _load(tmp_path, **_logs(tmp_path, *logs), id_feature="id")
    assert records.example_ids.numpy().tolist() == [10, 20, 30]
    assert records.logits.numpy().tolist() == [[3.0, 4.0], [5.0, 6.0], [1.0, 2.0]]
    assert records.model_versions.numpy().tolist() == [5, 6, 5]


def test_text_ids_that_a_model_echoes_are_fingerprinted(tmp_path):
    logs = [_log([b"a", b"b"], [[1.0], [2.0]], echo=[b"007", b"7"])]
    ids = _load(tmp_path, **_logs(tmp_path, *logs), id_feature="id").example_ids.numpy()
    np.testing.assert_array_equal(ids, np.sort(hashing.to_int64(["007", "7"])))


def test_the_order_of_equal_timestamps_is_not_the_runners(tmp_path):
    """Two records of one id and time: whichever comes first, the same one stays."""
    kept = set()
    for order in ((0.0, 1.0), (1.0, 0.0)):
        directory = tmp_path / f"in{order[0]}"
        for value in order:
            _write(directory, [1], [[value]], timestamp=5)
        kept.add(float(_load(tmp_path, records_pattern=str(directory)).logits[0, 0]))
    assert len(kept) == 1


def test_fingerprints_that_a_model_says_are_of_the_bytes_and_do_not_win(tmp_path):
    """`export_recording_model(id_key=None)` hashes the bytes it gets, in whatever order."""
    parts = [serialized_example(id=k + 7) + serialized_example(x=float(k)) for k in range(20)]
    examples = [tf.train.Example.FromString(part).SerializeToString() for part in parts]
    echo = hashing.fingerprint(tf.constant(parts)).numpy()
    canonical = example_fingerprints(examples)
    assert (echo != canonical).any()
    logs = [_log([part], [[k]], echo=[echo[k]]) for k, part in enumerate(parts)]
    write_tfrecords(tmp_path / "logs" / "log", logs)
    without_request = [_log([], [[k]], echo=[echo[k]]) for k in range(20)]
    write_tfrecords(tmp_path / "bare" / "log", without_request)
    for id_feature, source, ids in (
        ("", "logs", canonical),
        ("id", "logs", np.arange(7, 27)),
        ("", "bare", echo),
        ("id", "bare", echo),
    ):
        pattern = str(tmp_path / source / "*")
        records = _load(tmp_path, prediction_log_pattern=pattern, id_feature=id_feature)
        np.testing.assert_array_equal(records.example_ids, np.sort(ids))
        np.testing.assert_array_equal(records.logits[:, 0], np.argsort(ids))


def test_the_time_of_a_log_is_the_servers(tmp_path):
    logs = [_log([b""], [[0.0]], echo=[k]) for k in (1, 2)]
    log = prediction_log_pb2.PredictionLog.FromString(logs[0])
    if "timestamp_secs" not in log.log_metadata.DESCRIPTOR.fields_by_name:
        pytest.skip("this release of the protocol has no time")
    log.log_metadata.timestamp_secs = 1_700_000_000
    source = _logs(tmp_path, log.SerializeToString(), logs[1])
    records = _load(tmp_path, **source, id_feature="id", timestamp=77)
    assert records.timestamps.numpy().tolist() == [1_700_000_000 * 10**6, 77]


def _records(tmp_path, *widths):
    for width in widths:
        _write(tmp_path / "in", range(20), np.zeros((20, width)))
    return {"records_pattern": str(tmp_path / "in")}


def _logs(tmp_path, *records):
    write_tfrecords(tmp_path / "logs" / "log", records)
    return {"prediction_log_pattern": str(tmp_path / "logs" / "*")}


def _top_k(tmp_path):
    with ofb_tf.ForwardRecordWriter(tmp_path / "in", top_k=2) as writer:
        writer.write(np.arange(20), np.zeros((20, 5), np.float32))
    return {"records_pattern": str(tmp_path / "in")}


def _cut_short(source, tmp_path):
    (pattern,) = source.values()
    (path,) = (tmp_path / pathlib.Path(pattern).relative_to(tmp_path).parts[0]).iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    return source


def _log_of(log, **more):
    return lambda path: _logs(path, log) | more


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: {}, "exactly one of .* Received: 0"),
        (
            lambda _: {"records_pattern": "a", "prediction_log_pattern": "b"},
            "one of .* Received: 2",
        ),
        (lambda _: {"records_pattern": "absent/*.ofbr"}, "matches nothing.*Check the directory"),
        (_logs, "no forward record.*Check that serving records"),
        (lambda path: _records(path, 1, 3), "num_outputs=1, .*num_outputs=3, .*different models"),
        (_top_k, r"\.ofbr holds records in the top-k form.*Write every logit"),
        (lambda path: _cut_short(_records(path, 1), path), r"\.ofbr"),
        (
            lambda path: _cut_short(_logs(path, *[_log([b"a"], [[1.0]], echo=[1])] * 3), path),
            r"logs/log at byte \d+: the file ends inside.*write the file again",
        ),
        (
            _log_of(_log([b"a"], [[1.0]], name="scores", echo=[1])),
            "output 'logits' is missing.*'scores'.*set logits_output",
        ),
        (
            _log_of(_log([b"a"], [[1.0], [2.0]])),
            r"\[1\].*serialized examples for \[2\].*recording signature",
        ),
        (
            _log_of(_log([serialized_example(x=1.0)], [[1.0]]), id_feature="id"),
            "'id' must be one .*'x'.*Set id_feature",
        ),
        (_log_of(b"\xff\xff\xff"), "at byte 0: not a PredictionLog.*write the file again"),
    ],
)
def test_bad_input_names_component_and_remedy_and_leaves_nothing(tmp_path, make, message):
    with pytest.raises(ValueError, match=f"(?s)^ForwardRecordGen: .*{message}"):
        _generate(tmp_path, **make(tmp_path))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_partitions": 0}, "num_partitions must be at least 1. Received: 0"),
        ({"span": -2}, "span must be at least -1. Received: -2"),
    ],
)
def test_construction_errors(parameters, message):
    with pytest.raises(ValueError, match=f"^ForwardRecordGen: {message}"):
        ForwardRecordGen(records_pattern="x", **parameters)

import keras
import numpy as np
import pytest

from ofb_tf import hashing
from ofb_tf.records import ForwardRecords, ForwardRecordWriter
from ofb_tf.serving import PredictionRecorder, RecordPredictions


def test_predict_records_every_example(model, examples, tmp_path):
    ids, inputs, _ = examples
    with ForwardRecordWriter(tmp_path) as writer:
        callback = RecordPredictions(writer, ids, model_version=5)
        for _ in range(2):  # a second prediction starts at the first id again
            logits = model.predict(inputs, batch_size=10, callbacks=[callback], verbose=0)
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.example_ids, ids)
    np.testing.assert_array_equal(records.logits, logits)
    np.testing.assert_array_equal(records.model_versions, [5] * 64)
    assert records.counts.num_read == 128


def test_a_recorder_takes_the_place_of_the_writer(model, examples, tmp_path):
    ids, inputs, _ = examples
    with PredictionRecorder(ForwardRecordWriter(tmp_path)) as recorder:
        callback = RecordPredictions(recorder, ids, model_version=5)
        logits = model.predict(inputs, batch_size=10, callbacks=[callback], verbose=0)
    records = ForwardRecords.load(tmp_path)
    np.testing.assert_array_equal(records.example_ids, ids)
    np.testing.assert_array_equal(records.logits, logits)
    assert recorder.counts.num_responses == 7


def test_ids_from_the_models_own_output(tmp_path):
    ids = keras.Input([], name="id", dtype="int64")
    x = keras.Input([2], name="x")
    outputs = {"example_id": keras.layers.Identity()(ids), "logits": keras.layers.Dense(3)(x)}
    model = keras.Model({"id": ids, "x": x}, outputs)
    inputs = {"id": np.arange(20) + 2**40, "x": np.ones([20, 2], np.float32)}
    with ForwardRecordWriter(tmp_path) as writer:
        model.predict(inputs, batch_size=8, callbacks=[RecordPredictions(writer)], verbose=0)
        writer.flush()
        np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, inputs["id"])
        # With older releases of numpy, Keras turns a batch of one into a float.
        callback = RecordPredictions(writer)
        with pytest.raises(ValueError, match="cannot represent it"):
            callback.on_predict_batch_end(
                0, {"example_id": float(2**53 + 1), "logits": np.ones([1, 3])}
            )
        callback.on_predict_batch_end(0, {"example_id": 7.0, "logits": np.ones([1, 3])})
    assert 7 in ForwardRecords.load(tmp_path).example_ids


@pytest.mark.parametrize("ids", [[2**60 + 1], [b"a\0"], [b"a", b"a\0", b"a\0\0"]])
def test_ids_of_a_single_output_are_exact(tmp_path, ids):
    x = keras.Input([2])
    model = keras.Model(x, keras.layers.Dense(1)(x))
    with ForwardRecordWriter(tmp_path) as writer:
        callback = RecordPredictions(writer, ids)
        logits = model.predict(np.ones([len(ids), 2]), callbacks=[callback], verbose=0)
    records = ForwardRecords.load(tmp_path)
    expected = [i if isinstance(i, int) else int(hashing.fingerprint(i)) for i in ids]
    np.testing.assert_array_equal(records.example_ids, np.sort(expected))
    np.testing.assert_array_equal(records.logits, logits)


def test_a_prediction_that_is_stopped_is_recorded_so_far(model, examples, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            self.model.stop_predicting = batch == 2

    ids, inputs, _ = examples
    with ForwardRecordWriter(tmp_path) as writer:
        callback = RecordPredictions(writer, ids)
        model.predict(inputs, batch_size=10, callbacks=[callback, Stop()], verbose=0)
    np.testing.assert_array_equal(ForwardRecords.load(tmp_path).example_ids, ids[:30])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(63), "63 ids for at least 64"),
        (np.arange(65), "65 ids for 64 examples"),
        (None, "Received: neither"),
    ],
)
def test_ids_that_do_not_fit(model, examples, tmp_path, ids, message):
    with ForwardRecordWriter(tmp_path) as writer:
        callback = RecordPredictions(writer, ids)
        with pytest.raises(ValueError, match=message):
            model.predict(examples[1], batch_size=16, callbacks=[callback], verbose=0)
        with pytest.raises(ValueError, match=r"example_ids must have shape \[n\]"):
            RecordPredictions(writer, [[1]])
        with pytest.raises(ValueError, match="must be integers"):
            RecordPredictions(writer, [1.5])

"""Probabilities and logits: what is recorded of a model that ends in a sigmoid or softmax."""

import warnings

import numpy as np
import pytest

import ofb_tf
from ofb_tf.records import importers
from ofb_tf.records.outputs import activation_of, logits_of, look_like_probabilities

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(100, 4)).astype(np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
SIGMOID = 1 / (1 + np.exp(-LOGITS[:, 0]))


def test_logits_of_probabilities_give_them_back():
    again = np.exp(logits_of(SOFTMAX))
    np.testing.assert_allclose(again / again.sum(1, keepdims=True), SOFTMAX, rtol=1e-5)
    np.testing.assert_allclose(logits_of(SIGMOID), LOGITS[:, 0], atol=1e-4)
    np.testing.assert_allclose(logits_of(SIGMOID[:, None])[:, 0], LOGITS[:, 0], atol=1e-4)
    saturated = logits_of([0.0, 1.0, 1.5, -0.1, np.nan])
    np.testing.assert_allclose(saturated[:2], [-16.118, 16.118], atol=1e-2)
    assert np.isnan(saturated[2:]).all()


def test_the_writer_takes_probabilities_and_warns_of_them_as_logits(tmp_path):
    ids = np.arange(100)
    with warnings.catch_warnings(), ofb_tf.ForwardRecordWriter(tmp_path / "a") as writer:
        warnings.simplefilter("error")
        writer.write(ids, probabilities=SOFTMAX)
        with pytest.raises(ValueError, match="logits or probabilities"):
            writer.write(ids, SOFTMAX, probabilities=SOFTMAX)
    recorded = ofb_tf.ForwardRecords.load(tmp_path / "a").logits.numpy()
    np.testing.assert_allclose(recorded, np.log(SOFTMAX), rtol=1e-5)
    warns = pytest.warns(UserWarning, match="pass them as probabilities=")
    with ofb_tf.ForwardRecordWriter(tmp_path / "b") as writer, warns:
        writer.write(ids, SOFTMAX)


def test_importers_take_probabilities(tmp_path):
    rows = [f"{i},{p:.9f}" for i, p in enumerate(SIGMOID)]
    (tmp_path / "p.csv").write_text("\n".join(["example_id,logits", *rows]))
    importers.import_records(
        str(tmp_path / "p.csv"), tmp_path / "out", format="csv", from_logits=False
    )
    recorded = ofb_tf.ForwardRecords.load(tmp_path / "out").logits.numpy()[:, 0]
    np.testing.assert_allclose(recorded, LOGITS[:, 0], atol=1e-4)


def test_what_looks_like_probabilities():
    assert look_like_probabilities(SOFTMAX)
    assert look_like_probabilities(SIGMOID[:, None])
    assert not look_like_probabilities(SIGMOID[:10, None])  # too few to tell
    assert not look_like_probabilities(LOGITS)
    assert not look_like_probabilities(LOGITS[:, :1])
    assert not look_like_probabilities(np.full([3, 2], np.nan))


def test_the_compiled_loss_says_what_the_outputs_are():
    import keras

    losses = keras.losses
    assert activation_of("binary_crossentropy") == "sigmoid"
    assert activation_of(losses.SparseCategoricalCrossentropy()) == "softmax"
    assert activation_of(losses.BinaryFocalCrossentropy()) == "sigmoid"
    assert activation_of(losses.categorical_crossentropy) == "softmax"
    assert activation_of(losses.BinaryCrossentropy(from_logits=True)) is None
    assert activation_of("mse") is None
    assert activation_of(losses.Huber()) is None
    assert activation_of(None, keras.layers.Dense(1, activation="sigmoid")) == "sigmoid"
    assert activation_of(None, keras.layers.Softmax()) == "softmax"
    assert activation_of(None, keras.layers.Dense(1)) is None


@pytest.mark.parametrize("compiled", [True, False])
def test_predictions_and_exports_of_a_sigmoid_are_recorded_as_logits(tmp_path, compiled):
    import keras
    import tensorflow as tf

    from ofb_tf.serving import RecordPredictions, export_recording_model
    from tests.streams import serialized_example

    x = keras.Input((2,), name="x")
    logits = keras.layers.Dense(1)(x)
    model = keras.Model(x, keras.layers.Dense(1, activation="sigmoid")(logits))
    if compiled:
        model.compile("sgd", "binary_crossentropy")
    inputs = RNG.normal(size=(20, 2)).astype(np.float32)
    with ofb_tf.ForwardRecordWriter(tmp_path / "records") as writer:
        p = model.predict(inputs, callbacks=[RecordPredictions(writer, np.arange(20))], verbose=0)
    recorded = ofb_tf.ForwardRecords.load(tmp_path / "records").logits.numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-recorded)), p, rtol=1e-5)
    spec = {
        "x": tf.io.FixedLenFeature([2], tf.float32),
        "example_id": tf.io.FixedLenFeature([], tf.int64),
    }
    export_recording_model(model, tmp_path / "1", spec, task="binary")
    serve = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    examples = [serialized_example(x=row, example_id=i) for i, row in enumerate(inputs)]
    got = serve(examples=tf.constant(examples))
    np.testing.assert_allclose(got["predictions"], p, rtol=1e-5)
    np.testing.assert_allclose(got["logits"], recorded, atol=1e-4)


def test_probabilities_of_several_labels_are_no_softmax(tmp_path):
    """Their logarithms would be recorded in silence, and select nearly uniformly."""
    sigmoids = 1 / (1 + np.exp(-LOGITS))
    np.testing.assert_allclose(logits_of(sigmoids, sigmoids=True), LOGITS, atol=1e-4)
    with ofb_tf.ForwardRecordWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="sum to 1. Received: rows with a median sum of"):
            writer.write(np.arange(100), probabilities=sigmoids)
        heads = {"b": SOFTMAX, "a": SIGMOID}
        writer.write(np.arange(100), probabilities=heads)
        writer.write(np.arange(100, 200), {"b": LOGITS, "a": LOGITS[:, 0]})
    recorded = ofb_tf.ForwardRecords.load(tmp_path).logits.numpy()
    expected = np.concatenate([LOGITS[:, :1], np.log(SOFTMAX)], axis=1)
    np.testing.assert_allclose(recorded[:100], expected, atol=1e-4)
    np.testing.assert_array_equal(recorded[100:], np.concatenate([LOGITS[:, :1], LOGITS], axis=1))


def test_predictions_of_several_labels_are_recorded_as_logits(tmp_path):
    import keras

    from ofb_tf.serving import RecordPredictions

    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Activation("sigmoid")(x))
    model.compile("sgd", "binary_crossentropy")
    with ofb_tf.ForwardRecordWriter(tmp_path) as writer:
        recorder = RecordPredictions(writer, np.arange(100))
        model.predict(LOGITS, callbacks=[recorder], verbose=0)
    recorded = ofb_tf.ForwardRecords.load(tmp_path).logits.numpy()
    np.testing.assert_allclose(recorded, LOGITS, atol=1e-4)

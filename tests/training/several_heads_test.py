"""Models with several heads, labels that are vectors, and losses of tokens: record, sample, fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.serving import RecordPredictions
from tests import reference
from tests.training.models import assert_same_weights

N = 96
RNG = np.random.default_rng(7)
IDS = np.arange(N) * 31 + 5
X = RNG.normal(size=(N, 3)).astype(np.float32)
CLICK = (X[:, 0] > 0).astype(np.int64)
CONVERSION = np.where(CLICK == 1, RNG.integers(0, 2, N), -1)  # known only after a click
TASKS = {"conversion": "binary", "click": "binary"}
LOSSES = {name: keras.losses.BinaryCrossentropy(from_logits=True) for name in TASKS}
FACTORS = {"click": 1.0, "conversion": 3.0}


def two_heads(cls=keras.Model, **settings):
    keras.utils.set_random_seed(1)
    x = keras.Input((3,), name="x")
    hidden = keras.layers.Dense(4, activation="tanh")(x)
    outputs = {name: keras.layers.Dense(1, name=name)(hidden) for name in FACTORS}
    model = cls(x, outputs, **settings)
    model.compile(keras.optimizers.SGD(0.5), LOSSES, loss_weights=FACTORS)
    return model


@pytest.fixture(name="records", scope="module")
def _records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    with ofb_tf.ForwardRecordWriter(directory) as writer:
        recorder = RecordPredictions(writer, IDS, logits_output=["conversion", "click"])
        outputs = two_heads().predict(X, callbacks=[recorder], verbose=0)
    records = ofb_tf.ForwardRecords.load(directory)
    side_by_side = np.concatenate([outputs["click"], outputs["conversion"]], axis=1)
    np.testing.assert_array_equal(records.logits, side_by_side)  # in the order of names
    return records


def sampled(elements, records, **settings):
    sampler = ofb_tf.ofb_sample(
        **{"records": records, "task": TASKS, "loss_weights": FACTORS, "rate": 0.25, "seed": 3}
        | {"window_size": N, "batch_size": 8, "redraw_each_iteration": False}
        | settings
    )
    return tf.data.Dataset.from_tensor_slices(elements).apply(sampler)


TUPLES = ({"example_id": IDS, "x": X}, {"click": CLICK, "conversion": CONVERSION})
DICTS = {"example_id": IDS, "x": X, "click": CLICK, "conversion": CONVERSION}


def test_one_selection_and_a_weight_for_each_head(records):
    seen = 0
    for x, y, weights in sampled(TUPLES, records):
        rows = [np.flatnonzero(i == IDS)[0] for i in x["example_id"].numpy()]
        known = CONVERSION[rows] >= 0
        np.testing.assert_array_equal(y["conversion"], np.where(known, CONVERSION[rows], 0))
        np.testing.assert_array_equal(weights["conversion"], weights["click"] * known)
        seen += len(rows)
    assert seen == N // 4


def test_the_score_is_the_joint_one(records):
    logits = records.logits.numpy().astype(np.float64)
    p = 1 / (1 + np.exp(-logits))
    g = np.stack([p[:, 0] - CLICK, np.where(CONVERSION < 0, 0, 3 * (p[:, 1] - CONVERSION))])
    scores = np.sqrt((g**2).sum(0))
    inclusion = reference.capped_pps(0.8 * scores / scores.sum() + 0.2 / N, N / 4)
    expected = dict(zip(IDS.tolist(), 0.25 / inclusion, strict=True))
    for x, _, weights in sampled(TUPLES, records):
        by_id = [expected[i] for i in x["example_id"].numpy().tolist()]
        np.testing.assert_allclose(weights["click"], by_id, rtol=1e-4)


def test_stock_keras_and_ofb_model_train_alike_by_the_losses_of_known_labels(records):
    tuples = sampled(TUPLES, records)
    dicts = sampled(DICTS, records, keep_record=True)
    stock = two_heads()
    before = two_heads()
    ours = two_heads(ofb_tf.OFBModel, label_key={"click": "click", "conversion": "conversion"})
    stock.fit(tuples.map(lambda x, y, w: (x["x"], y, w)), verbose=0)
    history = ours.fit(dicts, verbose=0).history
    assert_same_weights(stock, ours, atol=1e-6)
    # The same from its parts: one step after another by hand.
    by_hand = before
    optimizer = keras.optimizers.SGD(0.5)
    for e in dicts:
        known = tf.cast(e["conversion"] >= 0, tf.float32)
        with tf.GradientTape() as tape:
            outputs = by_hand(e["x"])
            click, conversion = (
                tf.nn.sigmoid_cross_entropy_with_logits(
                    tf.cast(tf.maximum(e[name], 0), tf.float32), outputs[name][:, 0]
                )
                for name in ("click", "conversion")
            )
            losses = click + 3.0 * known * conversion
            loss = tf.reduce_mean(e["importance_weight"] * losses)
        gradients = tape.gradient(loss, by_hand.trainable_weights)
        optimizer.apply_gradients(zip(gradients, by_hand.trainable_weights, strict=True))
    assert_same_weights(by_hand, ours, atol=1e-5)
    weights = np.concatenate([e["importance_weight"] for e in dicts])
    assert history["mean_weight"][0] == pytest.approx(weights.mean(), rel=1e-5)
    assert history["record_coverage"] == [pytest.approx(1.0)]
    assert history["score_correlation"][0] > 0.5  # recorded by the same weights


def test_labels_that_are_missing_are_never_nan(records):
    unknown = np.where(CONVERSION < 0, np.nan, CONVERSION).astype(np.float32)
    dataset = sampled((TUPLES[0], {"click": CLICK, "conversion": unknown}), records)
    model = two_heads()
    history = model.fit(dataset.map(lambda x, y, w: (x["x"], y, w)), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for (_, y, w), (_, y_int, w_int) in zip(dataset, sampled(TUPLES, records), strict=True):
        np.testing.assert_array_equal(y["conversion"], y_int["conversion"])
        np.testing.assert_array_equal(w["conversion"], w_int["conversion"])


def test_serialized_examples_may_lack_the_label_of_a_head(records):
    from tests.streams import serialized_example

    serialized = [
        serialized_example(example_id=IDS[i], x=X[i], click=CLICK[i])
        if CONVERSION[i] < 0
        else serialized_example(example_id=IDS[i], x=X[i], click=CLICK[i], conversion=CONVERSION[i])
        for i in range(N)
    ]
    spec = {
        "x": tf.io.FixedLenFeature([3], tf.float32),
        "click": tf.io.FixedLenFeature([], tf.int64),
        "conversion": tf.io.FixedLenFeature([], tf.int64, -1),
    }

    def parse(examples):
        parsed = tf.io.parse_example(examples, spec)
        return parsed["x"], {name: parsed[name] for name in TASKS}

    got = list(sampled(serialized, records, parse_fn=parse))
    expected = list(sampled(TUPLES, records))
    for (x, _, weights), (fields, _, same) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(x, fields["x"])
        for name in TASKS:
            np.testing.assert_array_equal(weights[name], same[name])


def test_records_that_do_not_fit_the_heads(records):
    with pytest.raises(ValueError, match=r"must be \[3\] for the heads .*order of their names"):
        sampled(TUPLES, records, task=TASKS | {"third": "binary"}, label_key={
            "click": "click", "conversion": "conversion", "third": "click"})  # fmt: skip
    with pytest.raises(ValueError, match="label_key must name a field for each of the heads"):
        sampled(TUPLES, records, label_key={"click": "click"})
    with pytest.raises(ValueError, match="field 'conversion' is missing"):
        sampled((TUPLES[0], {"click": CLICK}), records)
    with pytest.raises(ValueError, match="loss_weights is for several heads"):
        sampled(TUPLES, records, task="binary")


def test_several_binary_labels_are_heads():
    labels = (X[:, :2] > 0).astype(np.int64)
    logits = RNG.normal(size=(N, 2)).astype(np.float32)
    records = ofb_tf.ForwardRecords.from_columns(IDS, logits)
    settings = {"task": "binary", "loss_weights": None}
    elements = {"example_id": IDS, "x": X, "label": labels}
    dataset = sampled(elements, records, keep_record=True, **settings)
    scores = np.linalg.norm(1 / (1 + np.exp(-logits)) - labels, axis=1)
    inclusion = reference.capped_pps(0.8 * scores / scores.sum() + 0.2 / N, N / 4)
    expected = dict(zip(IDS.tolist(), 0.25 / inclusion, strict=True))
    for e in dataset:
        by_id = [expected[i] for i in e["example_id"].numpy().tolist()]
        np.testing.assert_allclose(e["importance_weight"], by_id, rtol=1e-4)
    x = keras.Input((3,), name="x")
    model = ofb_tf.OFBModel(x, keras.layers.Dense(2)(x))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    assert model.fit(dataset, verbose=0).history["record_coverage"] == [pytest.approx(1.0)]


@pytest.mark.parametrize("cls", [keras.Model, ofb_tf.OFBModel])
def test_a_language_model_records_samples_and_fits(cls, tmp_path):
    """Sequences of a random walk over eight tokens; the last tokens of some are padding."""
    keras.utils.set_random_seed(2)
    steps = RNG.integers(0, 2, (N, 12))
    text = np.cumsum(np.concatenate([RNG.integers(0, 8, (N, 1)), steps], axis=1), axis=1) % 8
    x, y = text[:, :-1], text[:, 1:]
    mask = np.arange(12) < RNG.integers(6, 13, (N, 1))
    tokens = keras.Input((12,), name="x", dtype="int64")
    hidden = keras.layers.GRU(16, return_sequences=True)(keras.layers.Embedding(8, 8)(tokens))
    model = cls(tokens, keras.layers.Dense(8)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    losses = []
    for version in range(2):
        directory = tmp_path / str(version)
        token_losses = loss.call(y, model.predict(x, verbose=0))
        per_sequence = ofb_tf.sequence_loss(token_losses, mask)
        losses.append(float(tf.reduce_mean(per_sequence)))
        with ofb_tf.ForwardRecordWriter(directory) as writer:
            writer.write(IDS, loss=per_sequence.numpy())
        # Keras's mean runs over all tokens, so what counts of a token is its share.
        share = (mask / mask.mean(1, keepdims=True)).astype(np.float32)
        elements = ({"example_id": IDS, "x": x}, y, share)
        dataset = tf.data.Dataset.from_tensor_slices(elements).apply(
            ofb_tf.ofb_sample(
                records=str(directory), label_key=None, rate=0.5, window_size=N, batch_size=16,
                seed=4, keep_record=cls is ofb_tf.OFBModel,
            )
        )  # fmt: skip
        if cls is keras.Model:
            dataset = dataset.map(lambda x, y, w: (x["x"], y, w))
        history = model.fit(dataset, epochs=5, verbose=0).history
    assert losses[1] < losses[0]
    if cls is ofb_tf.OFBModel:
        assert history["record_coverage"][-1] == pytest.approx(1.0)


def test_the_loss_of_a_sequence():
    losses = np.array([[1.0, 3.0, np.nan], [2.0, 5.0, 6.0]])
    mask = [[1, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(ofb_tf.sequence_loss(losses, mask), [2.0, 0.0])
    np.testing.assert_array_equal(ofb_tf.sequence_loss(losses[1:], reduction="sum"), [13.0])
    with pytest.raises(ValueError, match="reduction must be"):
        ofb_tf.sequence_loss(losses, reduction="max")

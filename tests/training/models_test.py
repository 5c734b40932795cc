"""`OFBModel` against `keras.Model` and against gradients by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.training.model import Functional, FunctionalOFBModel

NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES = 48, 3, 4


@pytest.fixture(name="data")
def _data():
    random = np.random.default_rng(0)
    return {
        "example_id": np.arange(NUM_EXAMPLES),
        "x": random.normal(size=(NUM_EXAMPLES, NUM_FEATURES)).astype(np.float32),
        "label": random.integers(0, NUM_CLASSES, NUM_EXAMPLES),
        "importance_weight": random.uniform(0.2, 5.0, NUM_EXAMPLES).astype(np.float32),
    }


def _build(cls, metrics=(), weighted_metrics=(), optimizer="adam", **kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((NUM_FEATURES,), name="x")
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    model = cls(inputs, keras.layers.Dense(NUM_CLASSES)(hidden), **kwargs)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=list(metrics),
        weighted_metrics=list(weighted_metrics),
    )
    return model


def _dataset(data, batch_size=16):
    return tf.data.Dataset.from_tensor_slices(data).batch(batch_size)


def _assert_same_weights(first, second):
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Subclassed(ofb_tf.OFBModel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layer = keras.layers.Dense(NUM_CLASSES)

    def call(self, fields, training=None):
        assert set(fields) == {"x"}
        return self.layer(fields["x"])


class FunctionalSubclass(ofb_tf.OFBModel):
    def __init__(self, units=NUM_CLASSES, **kwargs):
        inputs = keras.Input((NUM_FEATURES,), name="x")
        super().__init__(inputs, keras.layers.Dense(units)(inputs), **kwargs)


def test_weights_of_one_train_bit_for_bit_as_keras(data):
    data["importance_weight"] = np.ones(NUM_EXAMPLES, np.float32)
    stock, ours = _build(keras.Model), _build(ofb_tf.OFBModel)
    stock_history = stock.fit(
        data["x"], data["label"], batch_size=16, epochs=3, shuffle=False, verbose=0
    ).history
    our_history = ours.fit(_dataset(data), epochs=3, shuffle=False, verbose=0).history
    _assert_same_weights(stock, ours)
    assert our_history["loss"] == stock_history["loss"]
    assert our_history["effective_sample_size"] == [1.0] * 3


@pytest.mark.parametrize("backward_rate", [None, 0.5])
def test_every_step_counts_once_where_the_length_is_unknown(data, backward_rate):
    """Stock Keras counts one more at the end of each pass, which Adam and schedules read."""
    known, unknown = (_build(ofb_tf.OFBModel, backward_rate=backward_rate) for _ in range(2))
    known.fit(_dataset(data), epochs=3, shuffle=False, verbose=0)
    stream = _dataset(data).filter(lambda fields: True)
    assert stream.cardinality() == tf.data.UNKNOWN_CARDINALITY
    unknown.fit(stream, epochs=3, shuffle=False, verbose=0)
    assert unknown.optimizer.iterations == 3 * NUM_EXAMPLES // 16
    _assert_same_weights(known, unknown)


def test_dicts_and_tuples_train_as_keras_with_sample_weight(data):
    stock, dicts, tuples = (
        _build(keras.Model),
        _build(ofb_tf.OFBModel),
        _build(ofb_tf.OFBModel),
    )
    as_tuples = _dataset((data["x"], data["label"], data["importance_weight"]))
    stock.fit(as_tuples, epochs=2, shuffle=False, verbose=0)
    dicts.fit(_dataset(data), epochs=2, shuffle=False, verbose=0)
    tuples.fit(as_tuples, epochs=2, shuffle=False, verbose=0)
    _assert_same_weights(stock, dicts)
    _assert_same_weights(stock, tuples)


def test_gradient_is_weighted_sum_over_batch_size(data):
    model = _build(ofb_tf.OFBModel, optimizer=keras.optimizers.SGD(1.0))
    before = [tf.constant(w) for w in model.get_weights()]
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(data["label"], model(data["x"]))
        loss = tf.reduce_sum(losses * data["importance_weight"]) / NUM_EXAMPLES
    expected = tape.gradient(loss, model.trainable_weights)
    model.fit(_dataset(data, NUM_EXAMPLES), shuffle=False, verbose=0)
    for start, gradient, after in zip(before, expected, model.get_weights(), strict=True):
        np.testing.assert_allclose(start - after, gradient, atol=1e-6)


def test_history_has_statistics_of_training_alone(data):
    history = (
        _build(ofb_tf.OFBModel, metrics=["accuracy"])
        .fit(_dataset(data), validation_data=_dataset(data), shuffle=False, verbose=0)
        .history
    )
    weights = data["importance_weight"].astype(np.float64)
    assert history["mean_weight"][0] == pytest.approx(weights.mean(), rel=1e-5)
    assert history["max_weight"][0] == pytest.approx(weights.max())
    assert history["effective_sample_size"][0] == pytest.approx(
        weights.sum() ** 2 / (NUM_EXAMPLES * (weights**2).sum()), rel=1e-5
    )
    assert set(history) == {
        "accuracy",
        "loss",
        "effective_sample_size",
        "mean_weight",
        "max_weight",
        "val_accuracy",
        "val_loss",
    }


def test_evaluate_and_predict_match_keras(data):
    stock, ours = _build(keras.Model), _build(ofb_tf.OFBModel)
    expected = stock.evaluate(
        data["x"], data["label"], sample_weight=data["importance_weight"], verbose=0
    )
    assert ours.evaluate(_dataset(data), verbose=0) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(
        ours.predict(_dataset(data, 32), verbose=0), stock.predict(data["x"], verbose=0)
    )
    np.testing.assert_array_equal(
        ours.predict(data, verbose=0), stock.predict(data["x"], verbose=0)
    )


def test_evaluate_unweighted_has_keras_keys(data):
    del data["importance_weight"]
    assert set(_build(ofb_tf.OFBModel).evaluate(_dataset(data), verbose=0, return_dict=True)) == {
        "loss"
    }


def test_on_batch_methods_take_dicts(data):
    fit, on_batch = _build(ofb_tf.OFBModel), _build(ofb_tf.OFBModel)
    fit.fit(_dataset(data, NUM_EXAMPLES), shuffle=False, verbose=0)
    logs = on_batch.train_on_batch({k: tf.constant(v) for k, v in data.items()}, return_dict=True)
    _assert_same_weights(fit, on_batch)
    assert logs["max_weight"] == pytest.approx(data["importance_weight"].max())


def test_class_weight_multiplies_importance_weight(data):
    stock, ours = _build(keras.Model), _build(ofb_tf.OFBModel)
    class_weight = {0: 1.0, 2: 3.0}
    product = data["importance_weight"] * np.where(data["label"] == 2, 3.0, 1.0)
    stock.fit(
        _dataset((data["x"], data["label"], product.astype(np.float32))), shuffle=False, verbose=0
    )
    ours.fit(_dataset(data), class_weight=class_weight, shuffle=False, verbose=0)
    _assert_same_weights(stock, ours)


def test_class_weight_alone_matches_keras(data):
    stock, ours = _build(keras.Model), _build(ofb_tf.OFBModel)
    for model in (stock, ours):
        model.fit(
            _dataset((data["x"], data["label"])),
            class_weight={0: 0.5, 3: 2.0},
            shuffle=False,
            verbose=0,
        )
    _assert_same_weights(stock, ours)


def test_subclass_sees_features_without_ids_and_record_fields(data):
    data |= {"logits": np.zeros((NUM_EXAMPLES, NUM_CLASSES), np.float32)}
    data |= {"timestamp": np.zeros(NUM_EXAMPLES, np.int64)}
    model = Subclassed()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(_dataset(data), shuffle=False, verbose=0)


def test_functional_subclass_leaves_other_subclasses_alone(data):
    functional = FunctionalSubclass()
    assert isinstance(functional, FunctionalOFBModel)
    assert not issubclass(ofb_tf.OFBModel, Functional)
    functional.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    functional.fit(_dataset(data), shuffle=False, verbose=0)
    subclassed = Subclassed()
    subclassed.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    subclassed.fit(_dataset(data), shuffle=False, verbose=0)
    assert [layer.name for layer in subclassed.layers] == [subclassed.layer.name]


def test_saves_and_loads_as_keras_file(data, tmp_path):
    data["target"] = data.pop("label")
    model = _build(ofb_tf.OFBModel, label_key="target")
    model.fit(_dataset(data), shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert isinstance(loaded, ofb_tf.OFBModel)
    _assert_same_weights(model, loaded)
    for each in (model, loaded):
        each.fit(_dataset(data), shuffle=False, verbose=0)
    _assert_same_weights(model, loaded)


def test_dict_inputs_take_their_fields():
    inputs = {"a": keras.Input((1,), name="a"), "b": keras.Input((1,), name="b")}
    model = ofb_tf.OFBModel(inputs, inputs["a"] - inputs["b"])
    fields = {"b": tf.constant([[1.0]]), "a": tf.constant([[3.0]]), "example_id": tf.constant([5])}
    np.testing.assert_array_equal(model.predict(fields, verbose=0), [[2.0]])


def test_missing_input_field_is_named(data):
    data["features"] = data.pop("x")
    with pytest.raises(ValueError, match=r"inputs \['x'\] are not among.*'features'.*keras.Input"):
        _build(ofb_tf.OFBModel).fit(_dataset(data), shuffle=False, verbose=0)


@pytest.mark.parametrize("label_key", ["", None, 3])
def test_label_key_is_checked(label_key):
    with pytest.raises(ValueError, match="label_key must be a non-empty string. Received"):
        Subclassed(label_key=label_key)


def test_biased_reduction_is_warned_of(data):
    model = _build(ofb_tf.OFBModel)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    with pytest.warns(UserWarning, match="biased. Use the default, 'sum_over_batch_size'"):
        model.fit(_dataset(data), shuffle=False, verbose=0)


def test_weighted_and_unweighted_metrics(data):
    model = _build(
        ofb_tf.OFBModel,
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
        optimizer=keras.optimizers.SGD(0.0),
    )
    history = model.fit(_dataset(data), shuffle=False, verbose=0).history
    correct = model.predict(data, verbose=0).argmax(1) == data["label"]
    assert history["accuracy"][0] == pytest.approx(correct.mean())
    assert history["weighted"][0] == pytest.approx(
        np.average(correct, weights=data["importance_weight"]), rel=1e-5
    )


def _stock(kind):
    keras.utils.set_random_seed(0)
    if kind == "sequential":
        return keras.Sequential([keras.Input((NUM_FEATURES,), name="x"), keras.layers.Dense(4)])
    inputs = keras.Input((NUM_FEATURES,), name="x")
    if kind == "functional":
        return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(inputs))
    model = StockSubclass()
    model(np.zeros((1, NUM_FEATURES), np.float32))
    return model


@keras.saving.register_keras_serializable(package="models_test")
class StockSubclass(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layer = keras.layers.Dense(NUM_CLASSES)

    def call(self, x):
        return self.layer(x["x"] if isinstance(x, dict) else x)


@pytest.mark.parametrize("kind", ["functional", "sequential", "subclass"])
def test_wrapped_model_shares_weights_and_trains_as_the_model(data, kind, tmp_path):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    alone, inner = _stock(kind), _stock(kind)
    wrapped = ofb_tf.OFBModel.wrap(inner)
    assert isinstance(wrapped, ofb_tf.OFBModel)
    for model in (alone, wrapped):
        model.compile("sgd", loss)
    alone.fit(
        _dataset((data["x"], data["label"], data["importance_weight"])), shuffle=False, verbose=0
    )
    wrapped.fit(_dataset(data), shuffle=False, verbose=0)
    _assert_same_weights(alone, inner)
    wrapped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(wrapped)
    np.testing.assert_allclose(
        loaded.predict(data, verbose=0), wrapped.predict(data, verbose=0), atol=1e-6
    )


def test_wrap_refuses_what_is_no_model():
    with pytest.raises(ValueError, match="model must be a keras.Model. Received: str"):
        ofb_tf.OFBModel.wrap("model")


def test_kept_records_are_compared_and_not_fed(data):
    model = _build(ofb_tf.OFBModel, optimizer=keras.optimizers.SGD(0.0))
    data["logits"] = model.predict(data["x"], verbose=0)
    data["has_record"] = np.arange(NUM_EXAMPLES) % 4 > 0
    data["uniform_probe"] = np.arange(NUM_EXAMPLES) % 2 == 0
    history = model.fit(_dataset(data), shuffle=False, verbose=0).history
    weights = data["importance_weight"]
    covered = weights[data["has_record"]].sum() / weights.sum()
    assert history["record_coverage"][0] == pytest.approx(covered, rel=1e-5)
    assert history["score_correlation"][0] == pytest.approx(1.0, abs=1e-4)
    probability = tf.nn.softmax(data["logits"]).numpy() - np.eye(NUM_CLASSES)[data["label"]]
    squares = (probability**2).sum(1)[::2]
    assert history["variance_ratio"][0] == pytest.approx(
        (squares * weights[::2]).sum() / squares.sum(), rel=1e-4
    )

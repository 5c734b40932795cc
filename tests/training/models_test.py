"""`OFBModel` against `keras.Model` and against gradients by hand."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.training.model import Functional, FunctionalOFBModel
from tests import reference
from tests.training.models import (
    NUM_CLASSES,
    NUM_FEATURES,
    N,
    as_tuple,
    assert_same_weights,
    batches,
    build,
    fit,
    make_data,
)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(name="data")
def _data():
    return make_data()


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
    data["importance_weight"] = np.ones(N, np.float32)
    stock, ours = build(keras.Model), build()
    expected = fit(stock, as_tuple(data)[:2], epochs=3)
    history = fit(ours, data, epochs=3)
    assert_same_weights(stock, ours)
    assert history["loss"] == expected["loss"]
    assert history["effective_sample_size"] == [1.0] * 3


@pytest.mark.parametrize("backward_rate", [None, 0.5])
def test_every_step_counts_once_where_the_length_is_unknown(data, backward_rate):
    """Stock Keras counts one more at the end of each pass, which Adam and schedules read."""
    known, unknown = (build(backward_rate=backward_rate) for _ in range(2))
    fit(known, data, epochs=3)
    stream = batches(data).filter(lambda fields: True)
    assert stream.cardinality() == tf.data.UNKNOWN_CARDINALITY
    fit(unknown, stream, epochs=3)
    assert unknown.optimizer.iterations == 3 * N // 16
    assert_same_weights(known, unknown)


def test_dicts_and_tuples_train_as_keras_with_sample_weight(data):
    stock, dicts, tuples = build(keras.Model), build(), build()
    fit(stock, as_tuple(data), epochs=2)
    fit(dicts, data, epochs=2)
    fit(tuples, as_tuple(data), epochs=2)
    assert_same_weights(stock, dicts)
    assert_same_weights(stock, tuples)


def test_gradient_is_weighted_sum_over_batch_size(data):
    model = build(optimizer=keras.optimizers.SGD(1.0))
    before = [tf.constant(w) for w in model.get_weights()]
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(data["label"], model(data["x"]))
        loss = tf.reduce_sum(losses * data["importance_weight"]) / N
    expected = tape.gradient(loss, model.trainable_weights)
    fit(model, data, N)
    for start, gradient, after in zip(before, expected, model.get_weights(), strict=True):
        np.testing.assert_allclose(start - after, gradient, atol=1e-6)


def test_history_has_statistics_of_training_alone(data):
    history = fit(build(metrics=["accuracy"]), data, validation_data=batches(data))
    weights = data["importance_weight"].astype(np.float64)
    assert history["mean_weight"][0] == pytest.approx(weights.mean(), rel=1e-5)
    assert history["max_weight"][0] == pytest.approx(weights.max())
    expected = reference.effective_sample_size(weights)
    assert history["effective_sample_size"][0] == pytest.approx(expected, rel=1e-5)
    statistics = {"effective_sample_size", "mean_weight", "max_weight"}
    assert set(history) == {"accuracy", "loss", "val_accuracy", "val_loss"} | statistics


def test_evaluate_and_predict_match_keras(data):
    stock, ours = build(keras.Model), build()
    expected = stock.evaluate(
        data["x"], data["label"], sample_weight=data["importance_weight"], verbose=0
    )
    assert ours.evaluate(batches(data), verbose=0) == pytest.approx(expected, rel=1e-6)
    expected = stock.predict(data["x"], verbose=0)
    for elements in (batches(data, 32), data):
        np.testing.assert_array_equal(ours.predict(elements, verbose=0), expected)
    del data["importance_weight"]
    assert set(ours.evaluate(batches(data), verbose=0, return_dict=True)) == {"loss"}


def test_on_batch_methods_take_dicts(data):
    fitted, on_batch = build(), build()
    fit(fitted, data, N)
    logs = on_batch.train_on_batch({k: tf.constant(v) for k, v in data.items()}, return_dict=True)
    assert_same_weights(fitted, on_batch)
    assert logs["max_weight"] == pytest.approx(data["importance_weight"].max())


def test_class_weight_multiplies_importance_weight(data):
    stock, ours = build(keras.Model), build()
    product = data["importance_weight"] * np.where(data["label"] == 2, np.float32(3), 1)
    fit(stock, (data["x"], data["label"], product))
    fit(ours, data, class_weight={0: 1.0, 2: 3.0})
    assert_same_weights(stock, ours)
    for model in (stock, ours):  # alone
        fit(model, as_tuple(data)[:2], class_weight={0: 0.5, 3: 2.0})
    assert_same_weights(stock, ours)


def test_subclass_sees_features_without_ids_and_record_fields(data):
    data |= {"logits": np.zeros((N, NUM_CLASSES), np.float32), "timestamp": np.zeros(N, np.int64)}
    data["has_record"] = np.ones(N, bool)
    model = Subclassed()
    model.compile("sgd", LOSS)
    fit(model, data)


def test_functional_subclass_leaves_other_subclasses_alone(data):
    functional = FunctionalSubclass()
    assert isinstance(functional, FunctionalOFBModel)
    assert not issubclass(ofb_tf.OFBModel, Functional)
    functional.compile("sgd", LOSS)
    fit(functional, data)
    subclassed = Subclassed()
    subclassed.compile("sgd", LOSS)
    fit(subclassed, data)
    assert [layer.name for layer in subclassed.layers] == [subclassed.layer.name]


def test_saves_and_loads_as_keras_file(data, tmp_path):
    data["target"] = data.pop("label")
    model = build(label_key="target")
    fit(model, data)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert isinstance(loaded, ofb_tf.OFBModel)
    assert_same_weights(model, loaded)
    for each in (model, loaded):
        fit(each, data)
    assert_same_weights(model, loaded)


def test_dict_inputs_take_their_fields():
    inputs = {"a": keras.Input((1,), name="a"), "b": keras.Input((1,), name="b")}
    model = ofb_tf.OFBModel(inputs, inputs["a"] - inputs["b"])
    fields = {"b": tf.constant([[1.0]]), "a": tf.constant([[3.0]]), "example_id": tf.constant([5])}
    np.testing.assert_array_equal(model.predict(fields, verbose=0), [[2.0]])


def test_missing_input_field_is_named(data):
    data["features"] = data.pop("x")
    with pytest.raises(ValueError, match=r"inputs \['x'\] are not among.*'features'.*keras.Input"):
        fit(build(), data)


@pytest.mark.parametrize("label_key", ["", None, 3])
def test_label_key_is_checked(label_key):
    with pytest.raises(ValueError, match="label_key must be a non-empty string. Received"):
        Subclassed(label_key=label_key)


def test_biased_reduction_is_warned_of(data):
    model, reduction = build(), "mean_with_sample_weight"
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction))
    with pytest.warns(UserWarning, match="biased. Use the default, 'sum_over_batch_size'"):
        fit(model, data)


def test_weighted_and_unweighted_metrics(data):
    model = build(
        ofb_tf.OFBModel,
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
        optimizer=keras.optimizers.SGD(0.0),
    )
    history = fit(model, data)
    correct = model.predict(data, verbose=0).argmax(1) == data["label"]
    assert history["accuracy"][0] == pytest.approx(correct.mean())
    assert history["weighted"][0] == pytest.approx(
        np.average(correct, weights=data["importance_weight"]), rel=1e-5
    )


def _stock(kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((NUM_FEATURES,), name="x")
    if kind == "sequential":
        return keras.Sequential([inputs, keras.layers.Dense(NUM_CLASSES)])
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
    alone, inner = _stock(kind), _stock(kind)
    wrapped = ofb_tf.OFBModel.wrap(inner)
    assert isinstance(wrapped, ofb_tf.OFBModel)
    for model in (alone, wrapped):
        model.compile("sgd", LOSS)
    fit(alone, as_tuple(data))
    fit(wrapped, data)
    assert_same_weights(alone, inner)
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
    model = build(optimizer=keras.optimizers.SGD(0.0))
    data["logits"] = model.predict(data["x"], verbose=0)
    data["has_record"] = np.arange(N) % 4 > 0
    data["uniform_probe"] = np.arange(N) % 2 == 0
    history = fit(model, data)
    weights = data["importance_weight"]
    covered = weights[data["has_record"]].sum() / weights.sum()
    assert history["record_coverage"][0] == pytest.approx(covered, rel=1e-5)
    assert history["score_correlation"][0] == pytest.approx(1.0, abs=1e-4)
    squares = (reference.gradients(data["logits"], data["label"]) ** 2).sum(1)
    assert history["variance_ratio"][0] == pytest.approx(
        np.average(weights[::2], weights=squares[::2]), rel=1e-4
    )
    assert history["selected_variance_ratio"][0] == pytest.approx(
        np.average(weights, weights=weights * squares), rel=1e-4
    )


def test_positional_arguments_are_those_of_keras(data):
    ours, stock = build(), build(keras.Model)
    x, y = data["x"], data["label"]
    for model in (ours, stock):
        model.fit(x, y, 16, 2, 0, None, 0.0, (x, y), False)
    assert_same_weights(ours, stock)
    assert ours.evaluate(x, y, 16, 0) == stock.evaluate(x, y, 16, 0)
    np.testing.assert_array_equal(ours.predict(x, 16, 0), stock.predict(x, 16, 0))


def test_weights_of_one_column_train_as_weights_without_it(data):
    x, y, weights = as_tuple(data)
    logits = np.random.default_rng(1).normal(size=(N, NUM_CLASSES)).astype(np.float32)
    features = {"x": x, "importance_weight": np.full(N, 2, np.float32), "logits": logits}
    models, histories = [], []
    for shaped in (weights, weights[:, None]):
        models.append(build())
        histories.append(fit(models[-1], (features, y, shaped)))
    assert_same_weights(*models, atol=1e-6)
    assert histories[0]["max_weight"] == [pytest.approx(2 * weights.max())]
    for name, values in histories[0].items():
        assert histories[1][name] == pytest.approx(values, rel=1e-6), name


def test_a_saved_model_loads_where_only_the_package_is_imported(tmp_path):
    """Names are imported lazily, but Keras must know the classes of a program that uses it."""
    path = str(tmp_path / "model.keras")
    build().save(path)
    program = (
        "import sys, keras, ofb_tf; print(type(keras.models.load_model(sys.argv[1])).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.stdout.strip() == "FunctionalOFBModel", done.stderr[-2000:]


def test_the_old_tensorboard_callback_is_that_of_keras(monkeypatch):
    monkeypatch.setattr(keras.callbacks.TensorBoard, "__init__", lambda self, log_dir: None)
    with pytest.warns(DeprecationWarning, match=r"use keras\.callbacks\.TensorBoard"):
        callback = ofb_tf.OFBTensorBoard("logs")
    assert isinstance(callback, keras.callbacks.TensorBoard)

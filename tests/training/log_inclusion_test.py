"""Training on log-odds offsets: in the loss of `OFBModel`, in its step, in stock Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import get_policy, window
from ofb_tf.training.step import step_key
from tests import reference
from tests.training.models import N, assert_same_weights, batches, build, fit, make_data


@pytest.fixture(name="data")
def _data():
    data = make_data()
    del data["importance_weight"]
    offsets = np.random.default_rng(1).normal(size=(N, 4))
    return data | {"log_inclusion": offsets.astype(np.float32)}


def head(task, form, **settings):
    """A model with the given head, its initial weights always the same."""
    from_logits, rank_1, one_hot = form == "logits", form == "vector", form == "one_hot"
    keras.utils.set_random_seed(3)
    width = 4 if task == "multiclass" else 1
    x = keras.Input((3,), name="x")
    activation = None if from_logits else {"multiclass": "softmax", "binary": "sigmoid"}[task]
    y = keras.layers.Dense(width, activation=activation)(x)
    y = keras.layers.Reshape(())(y) if rank_1 else y
    losses = {"multiclass": keras.losses.SparseCategoricalCrossentropy}
    losses |= {"binary": keras.losses.BinaryCrossentropy}
    loss = keras.losses.CategoricalCrossentropy if one_hot else losses[task]
    model = ofb_tf.OFBModel(x, y, **settings)
    model.compile(keras.optimizers.SGD(1.0), loss(from_logits=from_logits))
    return model


def gradient(model, x, labels, offsets):
    """Of the corrected mean loss by kernel and bias: numpy, in float64."""
    kernel, bias = (w.astype(np.float64) for w in model.get_weights())
    corrected = x @ kernel + bias + offsets
    if kernel.shape[1] == 1:
        error = 1 / (1 + np.exp(-corrected)) - labels[:, None]
    else:
        error = reference.gradients(corrected, labels)
    return x.T @ error / len(x), error.mean(0)


FORMS = [
    ("multiclass", "logits"),
    ("multiclass", "probabilities"),
    ("multiclass", "one_hot"),
    ("binary", "logits"),
    ("binary", "probabilities"),
    ("binary", "vector"),
]


@pytest.mark.parametrize(("task", "form"), FORMS)
def test_step_is_that_of_the_corrected_loss(data, task, form):
    model = head(task, form)
    if task == "binary":
        data["label"] = data["label"] % 2
        data["log_inclusion"] = data["log_inclusion"][:, :1]
    expected = gradient(model, data["x"], data["label"], data["log_inclusion"])
    wrong = gradient(model, data["x"], data["label"], -data["log_inclusion"])
    before = model.get_weights()
    if form == "one_hot":
        data["label"] = np.eye(4, dtype=np.float32)[data["label"]]
    fit(model, data, N)
    for start, end, of_loss in zip(before, model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(start - end, of_loss, atol=2e-6)
    assert np.abs(expected[0] - wrong[0]).max() > 0.01, "a sign error would go unseen"


def test_probabilities_stay_finite_where_they_are_certain():
    outputs = tf.constant([[0.0, 1.0], [1.0, 0.0]])
    offsets = tf.constant([[-3.0, -20.0], [-3.0, 0.0]])
    got = ofb_tf.AddLogInclusion(from_logits=False)(outputs, offsets, training=True)
    np.testing.assert_array_equal(got, outputs)
    got = ofb_tf.AddLogInclusion(from_logits=False)(outputs[:, :1], offsets[:, :1], training=True)
    np.testing.assert_array_equal(got, outputs[:, :1])


def test_nothing_leaks_out_of_training(data, tmp_path):
    """Predict, evaluate, validation, metrics and export are those of the model without offsets."""
    model = build(optimizer=keras.optimizers.SGD(0.0), metrics=["accuracy"])
    plain = {name: value for name, value in data.items() if name != "log_inclusion"}
    for elements in (data, batches(data)):
        np.testing.assert_array_equal(
            model.predict(elements, verbose=0), model.predict(plain["x"], verbose=0)
        )
    expected = model.evaluate(batches(plain), verbose=0)
    assert model.evaluate(batches(data), verbose=0) == expected
    history = fit(model, data, validation_data=batches(data))
    without = fit(model, plain)
    assert history["val_loss"] == [pytest.approx(expected[0], rel=1e-6)]
    assert history["accuracy"] == without["accuracy"]
    assert abs(history["loss"][0] - without["loss"][0]) > 0.01
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    assert len(served.serve.input_signature) == 1
    np.testing.assert_allclose(
        served.serve(data["x"]), model.predict(plain["x"], verbose=0), atol=1e-6
    )


def test_tuples_and_class_weights(data):
    """Offsets stay with their examples where x is a dict, and where Keras needs tuples."""
    dicts, tuples, weighted = (build() for _ in range(3))
    fit(dicts, data)
    x = {name: data[name] for name in ("x", "log_inclusion")}
    fit(tuples, tf.data.Dataset.from_tensor_slices((x, data["label"])).batch(16))
    assert_same_weights(dicts, tuples)
    fit(weighted, data, class_weight={0: 1.0})
    assert_same_weights(dicts, weighted, atol=1e-6)


def test_weights_and_offsets_multiply_and_add(data):
    """An importance weight of an earlier selection is applied too."""
    one, three = (build(optimizer=keras.optimizers.SGD(0.3)) for _ in range(2))
    ones = np.full(N, 3, np.float32)
    fit(one, data | {"importance_weight": ones})
    three.optimizer.learning_rate = 0.9
    fit(three, data)
    assert_same_weights(one, three, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_selection_in_the_step(data, jit_compile):
    """The step on what `select_count` selects, with its offsets."""
    del data["log_inclusion"]
    settings = {"backward_rate": 0.25, "estimator": "log_odds", "jit_compile": jit_compile}
    stepping, given = build(**settings), build()
    record = {"logits": tf.constant(given.predict(data["x"], verbose=0))}
    key = step_key(0, tf.constant(0))
    indices, offsets = window.select_count(
        get_policy("importance"),
        16,
        "multiclass",
        tf.constant(data["label"]),
        record,
        key,
        "log_odds",
    )
    chosen = {name: values[indices.numpy()] for name, values in data.items()}
    fit(given, chosen | {"log_inclusion": offsets.numpy()})
    history = fit(stepping, data, N)
    assert_same_weights(stepping, given, atol=1e-6)
    assert history["realized_rate"] == [0.25]
    assert history["max_weight"] == [1.0]


def test_uniform_selection_in_the_step_has_no_offset(data):
    del data["log_inclusion"]
    models = [
        build(backward_rate=0.25, selection_policy="uniform", estimator=estimator)
        for estimator in ("weights", "log_odds")
    ]
    for model in models:
        fit(model, data, N)
    assert_same_weights(*models)


def test_stock_keras_trains_as_ofb_model(data):
    ours, served = build(), build(keras.Model)
    offset = keras.Input((4,), name="log_inclusion")
    corrected = ofb_tf.AddLogInclusion()(served.output, offset)
    trained = keras.Model({"x": served.input, "log_inclusion": offset}, corrected)
    trained.compile(keras.optimizers.Adam(0.01), served.loss)
    x = {name: data[name] for name in ("x", "log_inclusion")}
    fit(trained, tf.data.Dataset.from_tensor_slices((x, data["label"])).batch(16), epochs=3)
    fit(ours, data, epochs=3)
    assert_same_weights(ours, served, atol=1e-6)
    np.testing.assert_array_equal(  # the layer adds nothing outside of training
        trained.predict(x, verbose=0), served.predict(data["x"], verbose=0)
    )


def test_saved_with_its_configuration(tmp_path):
    model = build(backward_rate=0.25, estimator="log_odds")
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").estimator == "log_odds"


def test_from_recorded_stream_to_model():
    """Through `ofb_sample`: what comes out trains, and closer to the truth than without offsets."""
    rng = np.random.default_rng(7)
    n, truth = 20_000, np.array([2.0, -1.0])
    x = rng.normal(size=(n, 2)).astype(np.float32)
    y = (rng.random(n) < 1 / (1 + np.exp(-(x @ truth - 2.0)))).astype(np.int64)
    logits = (x @ np.array([1.5, 0.0]) - 1.0).astype(np.float32)[:, None]
    stream = tf.data.Dataset.from_tensor_slices(
        {"example_id": np.arange(n), "x": x, "label": y, "logits": logits}
    )
    errors = []
    for drop in (False, True):
        train = stream.apply(
            ofb_tf.ofb_sample(estimator="log_odds", rate=0.2, seed=1, batch_size=400)
        )
        if drop:
            train = train.map(lambda e: {k: v for k, v in e.items() if k != "log_inclusion"})
        inputs = keras.Input((2,), name="x")
        model = ofb_tf.OFBModel(inputs, keras.layers.Dense(1, kernel_initializer="zeros")(inputs))
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.1), loss, jit_compile=False)
        model.fit(train.cache(), epochs=30, verbose=0)
        kernel, bias = model.get_weights()
        errors.append(np.linalg.norm(np.r_[kernel[:, 0] - truth, bias + 2.0]))
    assert errors[0] < 0.25  # 4000 examples know each coefficient to 0.06
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        ("mse", "mse"),
        (keras.losses.CategoricalFocalCrossentropy(), "focal"),
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), "smoothing"),
        (lambda y, z: tf.reduce_sum(z), "lambda"),
    ],
    ids=["mse", "focal", "smoothed", "own"],
)
def test_other_losses_are_refused(data, loss, received):
    model = build()
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match=f"log_odds.*needs the loss.*{received}.*weights"):
        model.train_on_batch({name: tf.constant(values) for name, values in data.items()})


def test_offsets_that_do_not_fit_are_refused(data):
    data["log_inclusion"] = data["log_inclusion"][:, :1]
    with pytest.raises(ValueError, match=r"'log_inclusion' must be \[n, 4\]"):
        fit(build(), data)
    inputs = keras.Input((1,), name="log_inclusion")
    model = ofb_tf.OFBModel(inputs, keras.layers.Dense(4)(inputs))
    with pytest.raises(ValueError, match="leave this input out"):
        model.unpack(data)
    with pytest.raises(ValueError, match="estimator must be one of"):
        build(estimator="odds")
    with pytest.raises(ValueError, match="Policy.affine.*TopLoss"):
        build(backward_rate=0.5, selection_policy="top_loss", estimator="log_odds")

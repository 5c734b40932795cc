"""`OFBModel` of models and elements of other forms: token losses, own steps, colliding fields."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from tests.training.models import NUM_CLASSES, NUM_FEATURES, N, batches, build, fit, make_data

T, V = 16, 5  # as many tokens as examples in a batch: a wrong alignment goes unseen there
RNG = np.random.default_rng(3)
WEIGHTS = RNG.uniform(0.2, 5.0, 16).astype(np.float32)


def model_of_tokens(cls, loss, tokens=T, width=V):
    keras.utils.set_random_seed(0)
    x = keras.Input((tokens, 3), name="x")
    logits = keras.layers.Dense(width)(x)
    model = cls(x, logits)
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model


def mean_per_example(loss, tokens):
    per_token = np.reshape(np.asarray(loss), [16, -1])
    return (per_token.mean(1) * WEIGHTS).mean()


class Pairwise(keras.losses.Loss):
    """A loss for each item of a list, as keras-rs has them: outputs `[n, t]`, losses `[n, t]`."""

    def call(self, y_true, y_pred):
        return keras.ops.square(y_pred - keras.ops.cast(y_true, y_pred.dtype))


class ForEachExample(keras.losses.Loss):
    """One loss for an example whose outputs have four dimensions."""

    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_pred), axis=(1, 2, 3))


@pytest.mark.parametrize("tokens", [T, 7])
def test_the_weight_of_an_example_multiplies_its_own_tokens(tokens):
    x = RNG.normal(size=(16, tokens, 3)).astype(np.float32)
    y = RNG.integers(0, V, (16, tokens))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = model_of_tokens(ofb_tf.OFBModel, loss, tokens)
    expected = mean_per_example(loss.call(y, model(x)), tokens)
    elements = {"x": x, "label": y, "importance_weight": WEIGHTS}
    for data in (elements, (x, y, WEIGHTS)):
        assert fit(model, data)["loss"][0] == pytest.approx(expected, rel=1e-5)
        evaluated = model.evaluate(batches(data), verbose=0)
        assert evaluated == pytest.approx(expected, rel=1e-5)


def test_stock_keras_aligns_the_weights_that_ofb_sample_gives_to_tokens():
    ids, loss = np.arange(64), RNG.exponential(size=64).astype(np.float32)
    x, y = RNG.normal(size=(64, T, 3)).astype(np.float32), RNG.integers(0, V, (64, T))
    dataset = tf.data.Dataset.from_tensor_slices(({"x": x, "loss": loss, "example_id": ids}, y))
    sampler = ofb_tf.ofb_sample(
        label_key=None,
        rate=0.25,
        window_size=64,
        batch_size=16,
        seed=1,
        redraw_each_iteration=False,
    )
    dataset = dataset.apply(sampler).map(lambda x, y, w: (x["x"], y, w))
    token_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = model_of_tokens(keras.Model, token_loss)
    ((x, y, weight),) = list(dataset)
    assert weight.shape == (16, 1)
    per_token = token_loss.call(y, model(x)).numpy()
    got = model.fit(dataset, verbose=0).history["loss"][0]
    assert got == pytest.approx((per_token.mean(1) * weight.numpy()[:, 0]).mean(), rel=1e-5)


def test_losses_of_other_shapes_are_weighted_by_example():
    x = RNG.normal(size=(16, 4, 3)).astype(np.float32)
    images = keras.Input((4, 3), name="x")
    flat = keras.layers.Dense(T)(keras.layers.Flatten()(images))
    y = RNG.normal(size=(16, T)).astype(np.float32)
    for output, loss in (
        (flat, Pairwise()),
        (flat, "mse"),
        (keras.layers.Reshape((4, 2, 2))(flat), ForEachExample()),
    ):
        model = ofb_tf.OFBModel(images, output)
        model.compile(keras.optimizers.SGD(0.0), loss)
        losses = keras.losses.get(loss)
        losses = (losses.call if isinstance(losses, keras.losses.Loss) else losses)(y, model(x))
        expected = mean_per_example(losses, None)
        assert fit(model, (x, y, WEIGHTS))["loss"][0] == pytest.approx(expected, rel=1e-5)


class OwnLoss(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(NUM_CLASSES)

    def call(self, x):
        return self.layer(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(y_pred)


class OwnStep(OwnLoss):
    compute_loss = keras.Model.compute_loss

    def train_step(self, data):
        raise AssertionError("is called")


@pytest.mark.parametrize(("model", "step"), [(OwnLoss, "compute_loss"), (OwnStep, "train_step")])
def test_wrap_refuses_steps_that_it_would_not_call(model, step):
    with pytest.raises(ValueError, match=rf"{step}.*{model.__name__}.*Derive it from ofb_tf.OFB"):
        ofb_tf.OFBModel.wrap(model())


class DerivedWithOwnLoss(ofb_tf.OFBModel):
    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(NUM_CLASSES)

    def call(self, fields):
        return self.layer(fields["x"])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 100.0 + 0.0 * keras.ops.mean(y_pred) + 0.0 * keras.ops.mean(sample_weight)


def test_an_ofb_model_calls_its_own_loss():
    model = DerivedWithOwnLoss()
    model.compile("sgd")
    assert fit(model, make_data())["loss"] == [100.0]


class AllFields(ofb_tf.OFBModel):
    def __init__(self, expected):
        super().__init__()
        self.expected, self.layer = expected, keras.layers.Dense(NUM_CLASSES)

    def call(self, fields):
        assert set(fields) == set(self.expected)
        return self.layer(fields["x"])


def test_fields_with_names_of_records_are_features_unless_they_are_joined():
    data = make_data() | {"timestamp": np.ones(N), "loss": np.ones(N), "num_outputs": np.ones(N)}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for joined, expected in (
        ({}, ["x", "timestamp", "loss", "num_outputs"]),
        ({"has_record": np.ones(N, bool)}, ["x"]),
    ):
        model = AllFields(expected)
        model.compile("sgd", loss)
        history = fit(model, data | joined)
        assert ("record_coverage" in history) == bool(joined)


FIGURES = {
    "record_coverage", "score_correlation", "variance_ratio", "selected_variance_ratio",
}  # fmt: skip


def data_with_record():
    data = make_data()
    data["logits"] = RNG.normal(size=(N, NUM_CLASSES)).astype(np.float32)
    data["has_record"], data["uniform_probe"] = np.arange(N) % 4 > 0, np.arange(N) % 2 == 0
    return data


def test_class_weights_keep_the_figures_of_records():
    data = data_with_record()
    plain, weighted = fit(build(), data), fit(build(), data, class_weight={0: 1.0})
    assert set(weighted) >= FIGURES
    for figure in ("record_coverage", "mean_weight"):
        assert weighted[figure] == pytest.approx(plain[figure], rel=1e-5)
    names = ("x", "logits", "has_record", "uniform_probe")
    features = {name: data[name] for name in names}
    tuples = (features, data["label"], data["importance_weight"])
    assert fit(build(), tuples, class_weight={0: 1.0}) == weighted


MIRRORED = """
import keras, numpy as np, tensorflow as tf
import ofb_tf
from tests.training.any_model_test import FIGURES, data_with_record
from tests.training.models import build, fit
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
data = data_with_record()
plain = fit(build(), data)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    mirrored = build()
history = fit(mirrored, data)
assert set(history) >= FIGURES, history
for name in (*FIGURES, "mean_weight"):
    np.testing.assert_allclose(history[name], plain[name], rtol=1e-3, err_msg=name)
"""


def test_mirrored_training_keeps_the_figures_of_records():
    subprocess.run([sys.executable, "-c", MIRRORED], check=True, timeout=500)


def test_an_unnamed_input_takes_the_one_field_there_is():
    data = make_data()
    sequential = keras.Sequential([keras.Input((NUM_FEATURES,)), keras.layers.Dense(NUM_CLASSES)])
    model = ofb_tf.OFBModel.wrap(sequential)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fit(model, data)
    np.testing.assert_array_equal(
        model.predict(data, verbose=0), sequential.predict(data["x"], verbose=0)
    )
    with pytest.raises(ValueError, match="are not among the element's fields"):
        fit(model, data | {"other": data["x"]})


class OfTensor(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(NUM_CLASSES)

    def call(self, x):
        return self.layer(x[:, :2])


def test_a_model_of_a_tensor_says_how_to_map_fields():
    model = ofb_tf.OFBModel.wrap(OfTensor())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"OfTensor fails on a dict of the fields \['x'\].*\.map"):
        fit(model, make_data())


def test_to_keras_loads_without_ofb_tf(tmp_path):
    data = make_data()
    model = build()
    fit(model, data)
    expected = model.predict(data["x"], verbose=0)
    model.to_keras().save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", data["x"])
    code = (
        "import keras, numpy as np, sys; m = keras.saving.load_model('m.keras');"
        "np.save('p.npy', m.predict(np.load('x.npy'), verbose=0));"
        "assert 'ofb_tf' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), expected, atol=1e-6)
    wrapped = OfTensor()
    assert ofb_tf.OFBModel.wrap(wrapped).to_keras() is wrapped
    with pytest.raises(ValueError, match="to_keras.. needs a functional or wrapped model"):
        AllFields([]).to_keras()

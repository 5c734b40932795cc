"""Ten forward, one backward in `OFBModel.train_step`, and the records that it leaves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.records import ForwardRecords
from ofb_tf.selection import get_policy, window
from ofb_tf.training import callbacks

N, NUM_FEATURES, NUM_CLASSES = 80, 5, 3


@pytest.fixture(name="data")
def _data():
    random = np.random.default_rng(0)
    x = random.normal(size=(N, NUM_FEATURES)).astype(np.float32)
    return {
        "example_id": np.arange(N) + 1000,
        "x": x,
        "label": np.argmax(x[:, :NUM_CLASSES] + random.normal(size=(N, NUM_CLASSES)), 1),
    }


def build(cls=ofb_tf.OFBModel, optimizer=None, jit_compile="auto", dropout=0.0, **kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((NUM_FEATURES,), name="x")
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    hidden = keras.layers.Dropout(dropout)(hidden)
    model = cls(inputs, keras.layers.Dense(NUM_CLASSES)(hidden), **kwargs)
    model.compile(
        optimizer or keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    return model


def batches(data, size=40):
    return tf.data.Dataset.from_tensor_slices(data).batch(size)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_step_is_the_weighted_step_on_the_selected(data, jit_compile):
    model = build(backward_rate=0.2, jit_compile=jit_compile)
    logits = model.predict(data["x"], verbose=0)
    key = ofb_tf.hashing.fold_in(tf.constant(0, tf.int64), tf.constant(0, tf.int64))
    indices, weights = window.select_count(
        get_policy("importance"),
        16,
        "multiclass",
        tf.constant(data["label"]),
        {"logits": logits},
        key,
    )
    indices = indices.numpy()
    stock = build(keras.Model)
    stock.train_on_batch(data["x"][indices], data["label"][indices], sample_weight=weights.numpy())
    history = model.fit(batches(data, N), shuffle=False, verbose=0).history
    for a, b in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert history["realized_rate"] == [pytest.approx(0.2)]
    assert history["max_weight"] == [pytest.approx(weights.numpy().max())]


def test_steps_draw_anew_and_a_seed_repeats_them(data):
    def train(seed):
        model = build(backward_rate=0.2, selection_seed=seed)
        model.fit(batches(data), epochs=2, shuffle=False, verbose=0)
        return model.get_weights()[0]

    np.testing.assert_array_equal(train(1), train(1))
    assert not np.array_equal(train(1), train(2))


def test_forward_pass_is_in_inference_mode(data):
    """Dropout drops nothing in the forward pass, or the recorded logits would differ."""
    model = build(backward_rate=0.2, dropout=0.9, optimizer=keras.optimizers.SGD(0.0))
    seen = []

    class Observer:
        def update(self, fields):
            seen.append(fields["forward_logits"])

    model.run_eagerly = True
    model.observe(Observer())
    model.fit(batches(data, N), shuffle=False, verbose=0)
    np.testing.assert_allclose(seen[0], model.predict(data["x"], verbose=0), atol=1e-6)


def test_user_weights_multiply(data):
    zero, one = build(backward_rate=0.2), build(backward_rate=0.2)
    before = zero.get_weights()[0]
    zero.fit(batches((data["x"], data["label"], np.zeros(N, np.float32))), shuffle=False, verbose=0)
    np.testing.assert_array_equal(zero.get_weights()[0], before)
    one.fit(batches((data["x"], data["label"], np.ones(N, np.float32))), shuffle=False, verbose=0)
    assert not np.array_equal(one.get_weights()[0], before)


def test_it_learns(data):
    model = build(backward_rate=0.2)
    start = model.evaluate(batches(data), verbose=0)
    model.fit(batches(data), epochs=20, shuffle=False, verbose=0)
    assert model.evaluate(batches(data), verbose=0) < 0.8 * start


@pytest.mark.parametrize("backward_rate", [0.0, 1.0, -0.1, float("nan")])
def test_rate_is_checked(backward_rate):
    with pytest.raises(ValueError, match=r"backward_rate must be in \(0, 1\) or None. Received"):
        build(backward_rate=backward_rate)


def test_poisson_design_is_refused():
    with pytest.raises(ValueError, match="selection_policy must have design='systematic'"):
        build(backward_rate=0.1, selection_policy=ofb_tf.Importance(design="poisson"))


def test_saves_with_its_settings(data, tmp_path):
    model = build(backward_rate=0.2, selection_seed=5, task="multiclass")
    model.fit(batches(data), shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.backward_rate, loaded.selection_seed, loaded.task) == (0.2, 5, "multiclass")
    for each in (model, loaded):
        each.fit(batches(data), shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])


def test_policy_object_cannot_be_saved_in_a_configuration():
    with pytest.raises(ValueError, match="selection_policy must be a name"):
        build(backward_rate=0.2, selection_policy=ofb_tf.Importance()).get_config()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_records_are_what_the_model_said(data, tmp_path, jit_compile):
    model = build(backward_rate=0.2, jit_compile=jit_compile, optimizer=keras.optimizers.SGD(0.0))
    record = callbacks.RecordForwardPasses(tmp_path, batch_size=32, model_version=7)
    model.fit(batches(data, 32), shuffle=False, verbose=0, callbacks=[record])  # 32, 32, 16
    records = ForwardRecords.load(str(tmp_path))
    np.testing.assert_array_equal(records.example_ids, data["example_id"])
    np.testing.assert_allclose(records.logits, model.predict(data["x"], verbose=0), atol=1e-5)
    assert set(records.model_versions.numpy()) == {7}
    # The next job joins them.
    train = tf.data.Dataset.from_tensor_slices(data).apply(
        ofb_tf.ofb_sample(
            records=str(tmp_path), rate=0.25, window_size=N, batch_size=20, missing="error", seed=0
        )
    )
    history = build().fit(train, shuffle=False, verbose=0).history
    assert history["mean_weight"][0] == pytest.approx(1.0, abs=0.5)


def test_recording_versions_count_steps(data, tmp_path):
    model = build(backward_rate=0.2)
    model.fit(
        batches(data),
        shuffle=False,
        verbose=0,
        callbacks=[callbacks.RecordForwardPasses(tmp_path, batch_size=40)],
    )
    versions = ForwardRecords.load(str(tmp_path)).model_versions.numpy()
    np.testing.assert_array_equal(versions, np.repeat([0, 1], 40))


def test_recording_needs_what_it_needs(data, tmp_path):
    record = callbacks.RecordForwardPasses(tmp_path, batch_size=40)
    with pytest.raises(ValueError, match=r"needs OFBModel\(backward_rate=...\)"):
        build().fit(batches(data), verbose=0, shuffle=False, callbacks=[record])
    without_ids = {name: value for name, value in data.items() if name != "example_id"}
    with pytest.raises(ValueError, match="dicts with 'example_id'"):
        build(backward_rate=0.2).fit(
            batches(without_ids), verbose=0, shuffle=False, callbacks=[record]
        )
    with pytest.raises(ValueError, match="batch_size=8, but a batch has 40"):
        build(backward_rate=0.2).fit(
            batches(data)
            .take(1)
            .map(lambda f: {k: tf.ensure_shape(v, [40, *v.shape[1:]]) for k, v in f.items()}),
            verbose=0,
            shuffle=False,
            callbacks=[callbacks.RecordForwardPasses(tmp_path, batch_size=8)],
        )
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        callbacks.RecordForwardPasses(tmp_path, batch_size=0)

"""Ten forward, one backward in `OFBModel.train_step`, and the records that it leaves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.records import ForwardRecords
from ofb_tf.selection import get_policy, window
from ofb_tf.training import callbacks
from tests.training.models import N, assert_same_weights, batches, build, fit, make_data


@pytest.fixture(name="data")
def _data():
    data = make_data()
    del data["importance_weight"]
    return data


@pytest.mark.parametrize("jit_compile", [False, True])
def test_step_is_the_weighted_step_on_the_selected(data, jit_compile):
    stock, model = (
        build(cls, keras.optimizers.SGD(0.5), jit_compile=jit_compile, **settings)
        for cls, settings in ((keras.Model, {}), (ofb_tf.OFBModel, {"backward_rate": 0.25}))
    )
    record = {"logits": model.predict(data["x"], verbose=0)}
    key = ofb_tf.hashing.fold_in(tf.constant(0, tf.int64), tf.constant(0, tf.int64))
    labels = tf.constant(data["label"])
    selected = window.select_count(get_policy("importance"), 16, "multiclass", labels, record, key)
    indices, weights = (part.numpy() for part in selected)
    stock.train_on_batch(data["x"][indices], data["label"][indices], sample_weight=weights)
    history = fit(model, data, N)
    assert_same_weights(model, stock, atol=1e-6)
    assert history["realized_rate"] == [0.25]
    assert history["max_weight"] == [pytest.approx(weights.max())]


def test_steps_draw_anew_and_a_seed_repeats_them(data):
    def train(seed):
        model = build(backward_rate=0.25, selection_seed=seed)
        fit(model, data, epochs=2)
        return model.get_weights()[0]

    np.testing.assert_array_equal(train(1), train(1))
    assert not np.array_equal(train(1), train(2))


def test_forward_pass_is_in_inference_mode(data):
    """Dropout drops nothing in the forward pass, or the recorded logits would differ."""
    model = build(backward_rate=0.25, dropout=0.9, optimizer=keras.optimizers.SGD(0.0))
    seen = []

    class Observer:
        def update(self, fields):
            seen.append(fields["forward_logits"])

    model.run_eagerly = True
    model.observe(Observer())
    fit(model, data, N)
    np.testing.assert_allclose(seen[0], model.predict(data["x"], verbose=0), atol=1e-6)


def test_user_weights_multiply(data):
    zero, one = build(backward_rate=0.25), build(backward_rate=0.25)
    before = zero.get_weights()[0]
    fit(zero, (data["x"], data["label"], np.zeros(N, np.float32)))
    np.testing.assert_array_equal(zero.get_weights()[0], before)
    fit(one, (data["x"], data["label"], np.ones(N, np.float32)))
    assert not np.array_equal(one.get_weights()[0], before)


def test_it_learns(data):
    model = build(optimizer=keras.optimizers.SGD(0.5), backward_rate=0.25)
    start = model.evaluate(batches(data), verbose=0)
    fit(model, data, epochs=20)
    assert model.evaluate(batches(data), verbose=0) < 0.8 * start


@pytest.mark.parametrize("backward_rate", [0.0, 1.0, -0.1, float("nan")])
def test_rate_is_checked(backward_rate):
    with pytest.raises(ValueError, match=r"backward_rate must be in \(0, 1\) or None. Received"):
        build(backward_rate=backward_rate)


def test_poisson_design_is_refused():
    with pytest.raises(ValueError, match="selection_policy must have design='systematic'"):
        build(backward_rate=0.1, selection_policy=ofb_tf.Importance(design="poisson"))


def test_saves_with_its_settings(data, tmp_path):
    model = build(backward_rate=0.25, selection_seed=5, task="multiclass")
    fit(model, data)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.backward_rate, loaded.selection_seed, loaded.task) == (0.25, 5, "multiclass")
    for each in (model, loaded):
        fit(each, data)
    assert_same_weights(model, loaded)


def test_policy_object_cannot_be_saved_in_a_configuration():
    with pytest.raises(ValueError, match="selection_policy must be a name"):
        build(backward_rate=0.25, selection_policy=ofb_tf.Importance()).get_config()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_records_are_what_the_model_said(data, tmp_path, jit_compile):
    model = build(backward_rate=0.25, jit_compile=jit_compile, optimizer=keras.optimizers.SGD(0.0))
    record = callbacks.RecordForwardPasses(tmp_path, batch_size=24, model_version=7)
    fit(model, data, 24, callbacks=[record])  # 24, 24, 16
    records = ForwardRecords.load(str(tmp_path))
    np.testing.assert_array_equal(records.example_ids, data["example_id"])
    np.testing.assert_allclose(records.logits, model.predict(data["x"], verbose=0), atol=1e-5)
    assert set(records.model_versions.numpy()) == {7}
    # The next job joins them.
    train = tf.data.Dataset.from_tensor_slices(data).apply(
        ofb_tf.ofb_sample(
            records=str(tmp_path), rate=0.25, window_size=N, batch_size=16, missing="error", seed=0
        )
    )
    history = fit(build(), train)
    assert history["mean_weight"][0] == pytest.approx(1.0, abs=0.5)


def test_recording_versions_count_steps(data, tmp_path):
    record = callbacks.RecordForwardPasses(tmp_path, batch_size=32)
    fit(build(backward_rate=0.25), data, 32, callbacks=[record])
    versions = ForwardRecords.load(str(tmp_path)).model_versions.numpy()
    np.testing.assert_array_equal(versions, np.repeat([0, 1], 32))


def test_forward_passes_of_string_ids_are_recorded(data, tmp_path):
    data["example_id"] = np.array([f"user-{i}" for i in range(N)])
    record = callbacks.RecordForwardPasses(tmp_path, batch_size=16)
    fit(build(backward_rate=0.25), data, callbacks=[record])
    recorded = ForwardRecords.load(str(tmp_path)).example_ids.numpy()
    np.testing.assert_array_equal(recorded, np.sort(ofb_tf.hashing.to_int64(data["example_id"])))


def test_recording_needs_what_it_needs(data, tmp_path):
    record, small = (callbacks.RecordForwardPasses(tmp_path, batch_size=n) for n in (16, 8))
    with pytest.raises(ValueError, match=r"needs OFBModel\(backward_rate=...\)"):
        fit(build(), data, callbacks=[record])
    with pytest.raises(ValueError, match="batch_size=8, but a batch has 16"):
        static = tf.data.Dataset.from_tensor_slices(data).batch(16, drop_remainder=True)
        fit(build(backward_rate=0.25), static, callbacks=[small])
    del data["example_id"]
    with pytest.raises(ValueError, match="dicts with 'example_id'"):
        fit(build(backward_rate=0.25), data, callbacks=[record])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        callbacks.RecordForwardPasses(tmp_path, batch_size=0)

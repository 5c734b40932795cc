"""`SelectionGuard` with good records and with records made useless on purpose."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.records import ForwardRecords
from ofb_tf.training import callbacks

N, NUM_FEATURES = 6000, 8


@pytest.fixture(name="task", scope="module")
def _task():
    """A rare-positive task, logits of a fair model of it, and random logits."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2 * N, NUM_FEATURES)).astype(np.float32)
    logit = 2.0 * x[:, 0] + x[:, 1] - 4.0
    label = (random.uniform(size=2 * N) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    useless = random.normal(size=2 * N) * 4
    fields = {"example_id": np.arange(2 * N), "x": x, "label": label}
    train, test = ({k: v[part] for k, v in fields.items()} for part in (slice(N), slice(N, None)))
    return train, test, logit.astype(np.float32), useless.astype(np.float32)


def build(trained=False):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((NUM_FEATURES,), name="x")
    model = ofb_tf.OFBModel(inputs, keras.layers.Dense(1)(inputs))
    model.compile(keras.optimizers.SGD(0.5), keras.losses.BinaryCrossentropy(from_logits=True))
    if trained:
        model.set_weights([np.float32([[2], [1], *[[0]] * 6]), np.float32([-4])])
    return model


def sampled(train, logits, policy="importance", probe=0.02, seed=0):
    sampler = ofb_tf.ofb_sample(
        records=ForwardRecords.from_columns(train["example_id"], logits[:N, None]),
        policy=policy,
        task="binary",
        rate=0.1,
        window_size=600,
        batch_size=20,
        uniform_probe=probe,
        seed=seed,
    )
    return tf.data.Dataset.from_tensor_slices(train).apply(sampler)


def fit(train, logits, *, callbacks=(), epochs=1, trained=False, **sampling):
    model, dataset = build(trained), sampled(train, logits, **sampling)
    history = model.fit(dataset, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model, history.history


@pytest.mark.filterwarnings("error:SelectionGuard")
def test_good_records_pass(task):
    train, _, fair, _ = task
    guard = callbacks.SelectionGuard(min_examples=50)
    _, history = fit(train, fair, callbacks=[guard], trained=True)
    assert not guard.tripped
    assert 0.0 < history["variance_ratio"][0] < 0.9


def test_useless_records_trip_it_with_figures(task):
    train, _, _, useless = task
    guard = callbacks.SelectionGuard(min_examples=50)
    with pytest.warns(UserWarning, match=r"has \d\.\d\d times the variance .* fall_back=False"):
        _, history = fit(train, useless, callbacks=[guard], trained=True)
    assert guard.tripped
    assert history["variance_ratio"][0] > 1.0


@pytest.mark.slow
def test_fallen_back_training_is_no_worse_than_uniform(task):
    """Means over seeds; the tolerance is four standard errors of the paired difference."""
    train, test, _, useless = task
    held_out = tf.data.Dataset.from_tensor_slices(test).batch(1000)
    losses = {"uniform": [], "guarded": []}
    for seed in range(4):
        model, _ = fit(train, useless, policy="uniform", probe=0.0, epochs=3, seed=seed)
        losses["uniform"].append(model.evaluate(held_out, verbose=0))
        guard = callbacks.SelectionGuard(min_examples=50, every_batches=5, fall_back=True)
        with pytest.warns(UserWarning, match="sampling is uniform from here on"):
            policy = guard.policy("importance")
            model, history = fit(
                train, useless, policy=policy, callbacks=[guard], epochs=3, seed=seed
            )
        assert history["max_weight"][0] > 1.0
        assert history["max_weight"][-1] == 1.0
        losses["guarded"].append(model.evaluate(held_out, verbose=0))
    difference = np.subtract(losses["guarded"], losses["uniform"])
    assert difference.mean() < 4 * difference.std(ddof=1) / 2


def test_fallen_back_policy_is_uniform(task):
    train, _, fair, _ = task
    guard = callbacks.SelectionGuard(fall_back=True)
    policy = guard.policy("importance")
    guard._is_uniform.assign(True)
    _, history = fit(train, fair, policy=policy)
    assert history["max_weight"] == [1.0]
    assert history["effective_sample_size"] == [1.0]


def test_guarding_a_policy_without_a_mix_changes_no_budget():
    """Under "keep" a policy's own `uniform_mix` raises the budget; this one has none."""

    class Even(ofb_tf.Policy):
        def inclusion(self, window, budget):
            n = tf.cast(tf.size(window.losses), tf.float64)
            return ofb_tf.Inclusion(tf.fill([tf.size(window.losses)], budget / n))

    stream = {"label": np.zeros(200, np.int64), "loss": np.ones(200, np.float32)}
    stream["example_id"], stream["has_record"] = np.arange(200), np.arange(200) % 10 > 0
    taken = [
        len(list(tf.data.Dataset.from_tensor_slices(stream).apply(sampler)))
        for sampler in (
            ofb_tf.ofb_sample(policy=policy, missing="keep", window_size=200, seed=1, rate=0.11)
            for policy in (Even(), callbacks.SelectionGuard().policy(Even()))
        )
    ]
    # 20 kept and a fifth of 0.11 * 180 of the others, rounded by the design.
    assert taken[0] in (23, 24) and taken[1] == taken[0]


def test_guarded_iterator_refuses_a_checkpoint_by_name(task, tmp_path):
    """The guard's switch is state outside the stream: a restored iterator could not know it."""
    train, _, fair, _ = task
    policy = callbacks.SelectionGuard(fall_back=True).policy("importance")
    iterator = iter(sampled(train, fair, policy, probe=0.0))
    next(iterator)
    with pytest.raises(tf.errors.FailedPreconditionError, match="stateful"):
        tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "checkpoint"))


def test_no_probe_is_said(task):
    train, _, fair, _ = task
    with pytest.warns(UserWarning, match="saw no example with uniform_probe"):
        fit(train, fair, callbacks=[callbacks.SelectionGuard()], probe=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_variance_ratio": 0.0}, "max_variance_ratio must be above 0. Received: 0.0"),
        ({"min_examples": 0}, "min_examples must be at least 1. Received: 0"),
        ({"every_batches": 0}, "every_batches must be at least 1. Received: 0"),
    ],
)
def test_validation(settings, message):
    with pytest.raises(ValueError, match=message):
        callbacks.SelectionGuard(**settings)

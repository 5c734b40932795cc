"""The test helpers accept what is right and notice what is wrong."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import testing


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_tiny_dataset_losses_match_tensorflow(task):
    batch = next(iter(testing.tiny_dataset(50, task=task).batch(50)))
    if task == "multiclass":
        expected = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], batch["logits"])
        assert set(batch["label"].numpy()) == {0, 1, 2}
    elif task == "binary":
        labels = tf.cast(batch["label"], tf.float32)
        expected = tf.nn.sigmoid_cross_entropy_with_logits(labels, batch["logits"][:, 0])
    else:
        expected = (batch["logits"][:, 0] - batch["label"]) ** 2
    np.testing.assert_allclose(batch["loss"], expected, rtol=1e-5, atol=1e-6)
    assert len(set(batch["example_id"].numpy())) == 50


def test_tiny_dataset_depends_on_the_seed_may_be_empty_and_rejects_a_task():
    first, again, other = (list(testing.tiny_dataset(seed=seed)) for seed in (1, 1, 2))
    testing.assert_same_elements(first, again)
    with pytest.raises(AssertionError):
        testing.assert_same_elements(first, other)
    assert not list(testing.tiny_dataset(0, task="multiclass"))
    with pytest.raises(ValueError, match="task must be one of.*Received: 'ranking'"):
        testing.tiny_dataset(task="ranking")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([1, 2], [1, 2, 3]),
        ([{"a": 1.0}], [{"a": 2.0}]),
        ([np.float32(1)], [np.float64(1)]),
        ([np.zeros(2)], [np.zeros((2, 1))]),
    ],
)
def test_different_elements_are_noticed(left, right):
    testing.assert_same_elements([*left, np.nan], [*left, np.nan])
    with pytest.raises(AssertionError):
        testing.assert_same_elements(left, right)


def test_checkpoint_roundtrip_accepts_a_stateless_pipeline():
    dataset = tf.data.Dataset.range(20).shuffle(7, seed=3).map(lambda x: x * x).batch(3)
    testing.assert_checkpoint_roundtrip(dataset)
    testing.assert_checkpoint_roundtrip(tf.data.Dataset.range(5).repeat(), max_steps=12)


def test_checkpoint_roundtrip_rejects_hidden_state():
    # The counter lives outside the iterator: a restored iterator goes on from a wrong number.
    counter = tf.Variable(0, dtype=tf.int64)
    dataset = tf.data.Dataset.range(4).map(lambda x: x + counter.assign_add(1))
    with pytest.raises((AssertionError, tf.errors.FailedPreconditionError)):
        testing.assert_checkpoint_roundtrip(dataset)


VALUES = np.array([1.0, 2.0, 3.0])


def weighted_sums(weight):
    """Horvitz-Thompson sums at rate 0.5, with a weight that may be wrong."""
    return lambda seed: VALUES * (np.random.default_rng(seed).random(3) < 0.5) * weight


@pytest.mark.parametrize(
    ("draw", "truth", "arguments", "message"),
    [
        (weighted_sums(2.5), VALUES, {"max_relative_error": 0.2}, "biased: mean"),
        (weighted_sums(2.0), VALUES, {"trials": 20}, "raise trials"),
        (lambda seed: np.nan if seed == 3 else 1.0, 1.0, {"trials": 10}, "not finite"),
        (lambda seed: np.ones(2), 1.0, {"trials": 10}, "shape"),
    ],
)
def test_biased_or_useless_estimates_fail(draw, truth, arguments, message):
    testing.assert_unbiased(weighted_sums(2.0), VALUES, max_relative_error=0.2)
    with pytest.raises(AssertionError, match=message):
        testing.assert_unbiased(draw, truth, **arguments)

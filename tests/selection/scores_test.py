"""Scores against formulas in numpy and against TensorFlow's own gradients."""

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import constants
from ofb_tf.records import ForwardRecords, ForwardRecordWriter
from ofb_tf.selection import scores
from ofb_tf.transforms import join
from tests import reference

TASKS = ["multiclass", "binary", "regression"]


def random_window(task, n=64):
    """Logits float32 `[n, k]` and labels `[n]`."""
    rng = np.random.default_rng(0)
    outputs = 7 if task == "multiclass" else 1
    logits = (rng.normal(size=(n, outputs)) * 5).astype(np.float32)
    if task == "regression":
        return logits, rng.normal(size=n).astype(np.float32)
    return logits, rng.integers(0, max(outputs, 2), n)


def example_loss(logits, labels, task):
    return scores.example_loss({constants.LOGITS: logits}, labels, task)


def gradient_norm_bound(logits, labels, task):
    return scores.gradient_norm_bound({constants.LOGITS: logits}, labels, task)


def valid_examples(logits, labels, task):
    return scores.valid_examples({constants.LOGITS: logits}, labels, task)


@pytest.mark.parametrize("task", TASKS)
def test_loss_equals_the_formula(task):
    logits, labels = random_window(task)
    if task == "multiclass":
        expected = reference.cross_entropy(logits, labels)
    elif task == "binary":
        p = 1 / (1 + np.exp(-logits[:, 0]))
        expected = -np.where(labels == 1, np.log(p), np.log1p(-p))
    else:
        expected = (logits[:, 0] - labels) ** 2
    got = example_loss(logits, labels, task)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_bound_is_the_norm_of_the_gradient_of_the_loss(task):
    """TensorFlow differentiates `example_loss`; the square's factor 2 is left out."""
    logits, labels = map(tf.constant, random_window(task))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(example_loss(logits, labels, task))
    norms = np.linalg.norm(tape.gradient(loss, logits), axis=-1)
    if task == "regression":
        norms = norms / 2
    got = gradient_norm_bound(logits, labels, task)
    np.testing.assert_allclose(got, norms, rtol=1e-4, atol=1e-6)


def test_bound_does_not_cancel_for_confident_predictions():
    logits = tf.constant([[12.0, 0.0, 0.0]])
    p_other = np.exp(-12.0) / (1 + 2 * np.exp(-12.0))
    expected = np.sqrt(2 * p_other**2 + (2 * p_other) ** 2)
    got = gradient_norm_bound(logits, tf.constant([0]), "multiclass")
    np.testing.assert_allclose(got, [expected], rtol=0.05)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_scalar_logits_equal_one_column(task):
    logits, labels = random_window(task)
    for function in (example_loss, gradient_norm_bound, scores.signed_residual):
        np.testing.assert_array_equal(
            function(logits, labels, task), function(logits[:, 0], labels, task)
        )


def test_invalid_examples_are_marked():
    nan, inf = float("nan"), float("inf")
    logits = tf.constant([[0.0, 1.0], [nan, 1.0], [inf, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = tf.constant([1, 0, 0, 2, -1])
    np.testing.assert_array_equal(
        valid_examples(logits, labels, "multiclass"), [True, False, False, False, False]
    )
    np.testing.assert_array_equal(
        valid_examples(
            tf.constant([0.0, 0.0, nan, 0.0]), tf.constant([0.0, 2.0, 1.0, nan]), "binary"
        ),
        [True, False, False, False],
    )
    np.testing.assert_array_equal(
        valid_examples(tf.constant([1.0, -inf]), tf.constant([inf, 1.0]), "regression"),
        [False, False],
    )


def test_multiclass_order_is_by_label_then_prediction_then_score():
    logits, labels = random_window("multiclass", n=200)
    values = gradient_norm_bound(logits, labels, "multiclass")
    key = scores.stratification_key(logits, labels, values, values, "multiclass").numpy()
    expected = np.lexsort((values.numpy(), logits.argmax(-1), labels))
    np.testing.assert_array_equal(np.argsort(key, kind="stable"), expected)


def test_binary_order_is_by_signed_residual():
    logits, labels = random_window("binary", n=200)
    loss = example_loss(logits, labels, "binary")
    key = scores.stratification_key(logits, labels, loss, loss, "binary").numpy()
    residual = 1 / (1 + np.exp(-logits[:, 0])) - labels
    np.testing.assert_allclose(key, residual, atol=1e-6)
    # Without logits the loss, signed by the label, gives the same order.
    by_loss = scores.stratification_key(None, labels, loss, loss, "binary").numpy()
    np.testing.assert_array_equal(np.argsort(by_loss), np.argsort(key))


# Records of the k largest logits.


def record_of(logits, k, directory):
    with ForwardRecordWriter(directory, top_k=k) as writer:
        writer.write(np.arange(len(logits)), logits)
    records = ForwardRecords.load(directory)
    assert records.num_outputs == logits.shape[1]
    return join.lookup_in_memory(records, None).fields(tf.range(len(logits), dtype=tf.int64))


@pytest.mark.parametrize("num_classes", [1000, 50_000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("k", [1, 8])
def test_scores_are_within_the_proven_bound(tmp_path, num_classes, scale, k):
    rng = np.random.default_rng(0)
    n = 60
    logits = (scale * rng.normal(size=(n, num_classes))).astype(np.float32)
    labels = rng.integers(0, num_classes, n)
    labels[::3] = logits[::3].argmax(axis=1)  # a third of the labels are among the k
    record = record_of(logits, k, tmp_path)
    p, loss = reference.softmax(logits), reference.cross_entropy(logits, labels)
    at_label = p[np.arange(n), labels]
    bound = np.sqrt((1 - at_label) ** 2 + (p**2).sum(axis=1) - at_label**2)
    got_loss = scores.example_loss(record, labels, "multiclass").numpy()
    got_bound = scores.gradient_norm_bound(record, labels, "multiclass").numpy()
    kept = (record[constants.CLASS_IDS].numpy() == labels[:, None]).any(axis=1)
    np.testing.assert_allclose(got_loss[kept], loss[kept], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got_bound[kept], bound[kept], atol=1e-3)
    largest = np.sort(p, axis=1)[:, ::-1][:, :k]
    residual = 1 - largest.sum(axis=1)
    spread = residual / (num_classes - k)
    np.testing.assert_allclose(got_loss[~kept], -np.log(spread)[~kept], rtol=1e-4)
    expected = np.sqrt((p**2).sum(axis=1) - 2 * spread + 1)
    np.testing.assert_allclose(got_bound[~kept], expected[~kept], rtol=1e-5)
    limit = np.minimum(largest[:, -1], residual) * (k + 1) / k
    error = np.abs(got_bound - bound)
    assert (error <= limit + 1e-3)[~kept].all()
    # The bound says something: it is far below the scores for flat and for peaked outputs alike.
    assert np.median(error) < 0.05 * np.median(bound)
    assert (got_bound <= np.sqrt(2) + 1e-6).all()


def test_all_mass_among_the_k_is_exact_and_finite(tmp_path):
    logits = np.full((2, 100), -200.0, np.float32)
    logits[:, 7] = 10.0
    record = record_of(logits, 2, tmp_path)
    labels = np.array([7, 50])
    np.testing.assert_allclose(
        scores.gradient_norm_bound(record, labels, "multiclass"), [0, np.sqrt(2)], 1e-5
    )
    assert np.isfinite(scores.example_loss(record, labels, "multiclass")).all()
    assert scores.example_loss(record, labels, "multiclass")[1] > 10


def test_not_finite_logits_and_labels_out_of_range_are_not_valid(tmp_path):
    logits = np.random.default_rng(0).normal(size=(6, 30)).astype(np.float32)
    logits[1, 3], logits[2, 4], logits[3, 5] = np.nan, np.inf, -np.inf
    record = record_of(logits, 4, tmp_path)
    valid = scores.valid_examples(record, tf.constant([0, 0, 0, 0, 30, -1]), "multiclass").numpy()
    # A class that the model rules out (-inf) is no fault: it is not among the k.
    np.testing.assert_array_equal(valid, [True, False, False, True, False, False])


def test_sampling_from_top_k_records_is_like_sampling_from_all_logits(tmp_path):
    rng = np.random.default_rng(0)
    n, num_classes = 512, 200
    logits = (3 * rng.normal(size=(n, num_classes))).astype(np.float32)
    labels = np.where(np.arange(n) % 2, logits.argmax(axis=1), rng.integers(0, num_classes, n))
    for name, k in {"all": None, "top": 10}.items():
        with ForwardRecordWriter(tmp_path / name, top_k=k) as writer:
            writer.write(np.arange(n), logits)
    examples = tf.data.Dataset.from_tensor_slices({"example_id": np.arange(n), "label": labels})
    poisson, taken = ofb_tf.Importance(design="poisson"), {}
    for name in ("all", "top"):
        sample = ofb_tf.ofb_sample(
            records=str(tmp_path / name), task="multiclass", window_size=n, seed=1, policy=poisson
        )
        elements = list(examples.apply(sample))
        taken[name] = {int(e["example_id"]): float(e["importance_weight"]) for e in elements}
        assert set(elements[0]) == {"example_id", "label", "importance_weight"}
    both = set(taken["all"]) & set(taken["top"])
    assert len(both) > 0.9 * len(taken["all"])
    for example_id in both:
        assert taken["all"][example_id] == pytest.approx(taken["top"][example_id], rel=0.1)

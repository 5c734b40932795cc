"""Log-odds correction: offsets, and what they make of an estimate from the selected."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import constants
from ofb_tf.selection import Importance, Policy, TopLoss, Uniform, log_odds, scores, stream_budget
from ofb_tf.selection.window import select, select_count
from tests import reference

N, CLASSES = 200, 5
_RNG = np.random.default_rng(31)
IDS = _RNG.permutation(10 * N)[:N]
LOGITS = (_RNG.normal(size=(N, CLASSES)) * 3).astype(np.float32)
LABELS = _RNG.integers(0, CLASSES, N)


def bounds(logits):
    """The gradient's norm under every label, of several classes or of one logit: `[n, k]`."""
    if logits.shape[1] == 1:
        p = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
        return np.concatenate([p, 1.0 - p], axis=1)
    n, k = logits.shape
    labels = [np.full(n, label) for label in range(k)]
    return np.stack(
        [np.linalg.norm(reference.gradients(logits, label), axis=1) for label in labels], axis=1
    )


def offsets(logits, labels, rate, mix):
    """log pi of a window, from the textbook: `[n, k]`; of label 1 over label 0 where k is 1."""
    by_label = bounds(logits)
    n = len(labels)
    own = by_label[np.arange(n), labels]
    sizes = (1 - mix) * own / own.sum() + mix / n
    p = reference.capped_pps(sizes, rate * n)
    scale = (p / sizes)[p < 1].mean()
    pi = np.minimum(1.0, scale * ((1 - mix) * by_label / own.sum() + mix / n))
    log_pi = np.log(pi)
    return log_pi[:, 1:] - log_pi[:, :1] if logits.shape[1] == 1 else log_pi


def sample(policy=None, *, logits=LOGITS, labels=LABELS, task="multiclass", rate=0.1, **arguments):
    record = {constants.LOGITS: logits} | arguments.pop("record", {})
    return select(
        policy or Importance(),
        task=task,
        example_ids=tf.constant(IDS[: len(labels)]),
        labels=tf.constant(labels),
        record={name: tf.constant(values) for name, values in record.items()},
        **{
            "rate": rate,
            "missing": "uniform",
            "key": tf.constant(3, tf.int64),
            "batch_size": None,
            "estimator": "log_odds",
        }
        | arguments,
    )


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_class_scores_are_the_scores_under_each_label(scale):
    logits = LOGITS * np.float32(scale)
    got = log_odds.class_scores({"logits": tf.constant(logits)}, "multiclass").numpy()
    for label in range(CLASSES):
        labels = tf.fill([N], label)
        expected = scores.gradient_norm_bound({"logits": tf.constant(logits)}, labels, "multiclass")
        # In float32 a sum of squares near 2 is known to 2e-7.
        np.testing.assert_allclose(got[:, label], expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(got, bounds(logits), rtol=2e-4, atol=1e-7)


def test_class_scores_of_top_k_records():
    """Among the k exact, outside them what `scores` says of any label there."""
    p = reference.softmax(LOGITS)
    order = np.argsort(-LOGITS, axis=1)[:, :2]
    record = {
        "logits": np.take_along_axis(LOGITS, order, 1),
        "class_ids": order.astype(np.int32),
        "logsumexp": np.log(np.exp(LOGITS).sum(1)),
        "sum_squared_probabilities": np.square(p).sum(1).astype(np.float32),
        "num_outputs": np.full(N, CLASSES, np.int32),
    }
    record = {name: tf.constant(values) for name, values in record.items()}
    got = log_odds.class_scores(record, "multiclass", CLASSES).numpy()
    assert got.shape == (N, CLASSES)
    for label in range(CLASSES):
        expected = scores.gradient_norm_bound(record, tf.fill([N], label), "multiclass")
        np.testing.assert_array_equal(got[:, label], expected)
    np.testing.assert_allclose(
        np.take_along_axis(got, order, 1), np.take_along_axis(bounds(LOGITS), order, 1), atol=1e-3
    )


@pytest.mark.parametrize("design", ["systematic", "poisson"])
@pytest.mark.parametrize(("rate", "mix"), [(0.1, 0.2), (0.5, 0.05), (0.9, 0.2), (0.1, 1.0)])
@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_offsets_equal_numpy(task, rate, mix, design):
    logits, labels = LOGITS, LABELS
    if task == "binary":
        logits, labels = LOGITS[:, :1], LABELS % 2
    got = sample(
        Importance(uniform_mix=mix, design=design),
        logits=logits,
        labels=labels,
        task=task,
        rate=rate,
    )
    expected = offsets(logits, labels, rate, mix)[got.indices.numpy()]
    assert got.log_inclusion.dtype == tf.float32
    np.testing.assert_allclose(got.log_inclusion, expected, atol=2e-5)
    np.testing.assert_array_equal(got.weights, 1.0)
    if rate == 0.9:
        assert (got.probabilities.numpy() == 1.0).any(), "no probability is capped"


def test_the_offset_of_the_label_is_the_probability():
    got = sample()
    own = tf.gather(got.log_inclusion, LABELS[got.indices.numpy()], axis=1, batch_dims=1)
    p = tf.gather(got.probabilities, got.indices)
    np.testing.assert_allclose(own, np.log(p), atol=1e-5)


def test_selection_is_that_of_weights():
    corrected, weighted = sample(), sample(estimator="weights")
    np.testing.assert_array_equal(corrected.indices, weighted.indices)
    assert weighted.log_inclusion is None


@pytest.mark.parametrize("missing", ["uniform", "keep"])
def test_without_a_usable_record_there_is_no_offset(missing):
    logits, labels = LOGITS.copy(), LABELS.copy()
    logits[3::9] = np.nan
    labels[4::50] = CLASSES
    has_record = np.arange(N) % 7 > 0
    got = sample(
        logits=logits, labels=labels, missing=missing, rate=0.5, record={"has_record": has_record}
    )
    usable = has_record & np.isfinite(logits[:, 0]) & (labels < CLASSES)
    chosen = usable[got.indices.numpy()]
    assert 0 < chosen.sum() < len(chosen)
    np.testing.assert_array_equal(got.log_inclusion[~chosen], 0.0)
    assert np.all(got.log_inclusion[chosen] < 0.0)
    assert np.isfinite(got.log_inclusion).all()


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_short_windows(n):
    got = sample(logits=LOGITS[:n], labels=LABELS[:n], rate=1.0)
    assert got.log_inclusion.shape == (n, CLASSES)
    np.testing.assert_array_equal(got.log_inclusion, 0.0)  # each is taken, whatever its label


def test_uniform_has_no_offset():
    got = sample(Uniform(), record={}, num_outputs=CLASSES)
    assert got.log_inclusion.shape == (20, CLASSES)
    np.testing.assert_array_equal(got.log_inclusion, 0.0)


def test_all_scores_alike_have_no_offset():
    """Logits that are certain and right: the window is sampled uniformly."""
    logits = np.where(np.arange(CLASSES) == LABELS[:, None], 200, 0).astype(np.float32)
    got = sample(logits=logits)
    np.testing.assert_allclose(got.log_inclusion, np.log(0.1), atol=1e-6)


def test_labels_of_the_selected_by_enumeration():
    """All labels and all outcomes of independent draws: log-odds are the model's plus the offset.

    The line is that of a long stream, so that the window's own labels do not move it.
    """
    n = 4
    logits = np.array([[-2.0], [0.3], [1.5], [4.0]], np.float32)
    truth = np.array([0.3, 0.9, 0.5, 0.2])  # of label 1: not what the serving model says
    past = stream_budget.remember(stream_budget.initial_state(), np.linspace(0, 1, 1000))
    past = past._replace(counts=past.counts * 1e9, sums=past.sums * 1e9)
    joint = np.zeros((n, 2))  # P(label, selected)
    seen = np.full(n, np.nan)
    for labels in itertools.product([0, 1], repeat=n):
        chance = np.prod(np.where(labels, truth, 1 - truth))
        for key in range(3):
            got = sample(
                Importance(design="poisson"),
                logits=logits,
                labels=np.array(labels),
                task="binary",
                rate=0.4,
                state=past,
                key=tf.constant(key, tf.int64),
            )
            offset = got.log_inclusion.numpy()[:, 0]
            indices = got.indices.numpy()
            known = ~np.isnan(seen[indices])
            # The offset of an example does not depend on its label.
            np.testing.assert_allclose(offset[known], seen[indices[known]], atol=1e-6)
            seen[indices] = offset
        p = got.probabilities.numpy()
        for outcome in itertools.product([False, True], repeat=n):
            probability = chance * np.prod(np.where(outcome, p, 1 - p))
            for i in np.flatnonzero(outcome):
                joint[i, labels[i]] += probability
    assert not np.isnan(seen).any()
    of_selected = np.log(joint[:, 1] / joint[:, 0])
    of_stream = np.log(truth / (1 - truth))
    np.testing.assert_allclose(of_selected, of_stream + seen, atol=1e-5)
    assert np.abs(of_selected - (of_stream - seen)).max() > 1.0, "a sign error would go unseen"


def test_offsets_are_the_probabilities_under_another_label():
    """With a budget of the window, but for the label's own part in the sum of the scores."""
    got = sample()
    total = bounds(LOGITS)[np.arange(N), LABELS].sum()
    for row, i in enumerate(got.indices.numpy()[:5]):
        for label in range(CLASSES):
            labels = LABELS.copy()
            labels[i] = label
            p = sample(labels=labels).probabilities.numpy()[i]
            assert got.log_inclusion.numpy()[row, label] == pytest.approx(
                np.log(p), abs=1.5 * np.sqrt(2) / total
            )


def fit_logistic(x, y, weights, offset):
    """Coefficients and their standard errors, robust to the weights."""
    beta = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-(x @ beta + offset)))
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x
        beta += np.linalg.solve(hessian, x.T @ (weights * (y - p)))
    inverse = np.linalg.inv(hessian)
    residuals = x * (weights * (y - p))[:, None]
    return beta, np.sqrt(np.diag(inverse @ residuals.T @ residuals @ inverse))


def test_weighted_and_corrected_estimates_meet():
    """Both are consistent, though the serving model is stale: its coefficients are wrong."""
    rng = np.random.default_rng(5)
    truth = np.array([-2.0, 1.5, -1.0])
    distances = []
    for n in (2_000, 200_000):
        x = np.c_[np.ones(n), rng.normal(size=(n, 2))]
        y = (rng.random(n) < 1 / (1 + np.exp(-x @ truth))).astype(np.int64)
        served = (x @ np.array([-1.0, 1.0, 0.5])).astype(np.float32)[:, None]
        common = {
            "rate": 0.2,
            "task": "binary",
            "missing": "uniform",
            "example_ids": tf.range(n, dtype=tf.int64),
            "labels": tf.constant(y),
            "record": {"logits": tf.constant(served)},
            "key": tf.constant(1, tf.int64),
            "batch_size": None,
        }
        weighted = select(Importance(), **common)
        corrected = select(Importance(), estimator="log_odds", **common)
        chosen = weighted.indices.numpy()
        xs, ys = x[chosen], y[chosen]
        offset = corrected.log_inclusion.numpy()[:, 0].astype(np.float64)
        ones, zeros = np.ones(len(chosen)), np.zeros(len(chosen))
        by_weight, error = fit_logistic(xs, ys, weighted.weights.numpy().astype(np.float64), zeros)
        by_offset, less_error = fit_logistic(xs, ys, ones, offset)
        assert np.all(np.abs(by_weight - truth) < 5 * error)
        assert np.all(np.abs(by_offset - truth) < 5 * less_error)
        distances.append(np.linalg.norm(by_weight - by_offset))
    assert distances[1] < distances[0] / 3  # ten times less is expected
    assert np.all(less_error < error)
    for wrong in (zeros, -offset):
        assert np.any(np.abs(fit_logistic(xs, ys, ones, wrong)[0] - truth) > 20 * less_error)


@pytest.mark.parametrize("count", [20, 200])
def test_select_count(count):
    record = {"logits": tf.constant(LOGITS)}
    arguments = (count, "multiclass", tf.constant(LABELS), record, tf.constant(7, tf.int64))
    indices, log_inclusion = select_count(Importance(), *arguments, estimator="log_odds")
    np.testing.assert_array_equal(indices, select_count(Importance(), *arguments)[0])
    expected = np.zeros((N, CLASSES)) if count == N else offsets(LOGITS, LABELS, count / N, 0.2)
    np.testing.assert_allclose(log_inclusion, expected[indices.numpy()], atol=2e-5)


class Twice(Policy):
    """A policy without a closed form."""

    def inclusion(self, window, budget):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("policy", "task", "message"),
    [
        (Importance(), "regression", "is for classification"),
        (TopLoss(), None, "Received: TopLoss"),
        (Twice(), "binary", "Received: Twice"),
        (Importance(score="loss"), None, "score='gradient_norm_bound'"),
        (Importance(uniform_mix=0.0), None, "uniform_mix above 0"),
    ],
    ids=["regression", "top_loss", "own", "loss", "mix"],
)
def test_what_cannot_be_corrected_is_refused(policy, task, message):
    with pytest.raises(ValueError, match=message) as error:
        ofb_tf.ofb_sample(policy=policy, task=task, estimator="log_odds")
    assert "estimator='weights'" in str(error.value)

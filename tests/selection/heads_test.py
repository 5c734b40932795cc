"""Several heads: the joint score against numpy, and unbiased for each head by enumeration."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.selection import Importance, designs, heads, window
from ofb_tf.selection.heads import Head, Heads
from tests import reference

N = 12
RNG = np.random.default_rng(5)
HEADS = Heads.of(
    {"click": "binary", "price": "regression", "topic": ("multiclass", 3)},
    {"click": 2.0, "topic": 0.5},
)
LOGITS = RNG.normal(size=(N, 5)).astype(np.float32)
LABELS = {
    "click": np.where(np.arange(N) % 5 == 0, -1, RNG.integers(0, 2, N)),
    "price": np.where(np.arange(N) % 4 == 0, np.nan, RNG.normal(size=N)).astype(np.float32),
    "topic": np.where(np.arange(N) % 3 == 0, -1, RNG.integers(0, 3, N)),
}


def by_hand():
    """Bounds and losses `[n]` of each head, 0 where the label is not known; and the masks."""
    known = {"click": LABELS["click"] >= 0, "topic": LABELS["topic"] >= 0}
    known["price"] = ~np.isnan(LABELS["price"])
    click = 1 / (1 + np.exp(-LOGITS[:, 0].astype(np.float64)))
    y = LABELS["click"]
    topic = np.maximum(LABELS["topic"], 0)
    bounds = {
        "click": abs(click - y),
        "price": abs(LOGITS[:, 1] - np.nan_to_num(LABELS["price"])),
        "topic": np.linalg.norm(reference.gradients(LOGITS[:, 2:], topic), axis=1),
    }
    losses = {
        "click": -np.log(np.where(y == 1, click, 1 - click)),
        "price": bounds["price"] ** 2,
        "topic": reference.cross_entropy(LOGITS[:, 2:], topic),
    }
    return *({k: np.where(known[k], v, 0) for k, v in d.items()} for d in (bounds, losses)), known


def test_joint_score_and_loss_are_those_of_the_formula():
    bounds, losses, _ = by_hand()
    weights = {"click": 2.0, "price": 1.0, "topic": 0.5}
    labels = {name: tf.constant(label) for name, label in LABELS.items()}
    record = {"logits": tf.constant(LOGITS), "has_record": tf.ones([N], tf.bool)}
    got, strata, valid = heads.combine(HEADS, record, labels)
    assert valid.numpy().all()
    expected = np.sqrt(sum((weights[k] * bounds[k]) ** 2 for k in weights))
    np.testing.assert_allclose(got["loss"], expected, rtol=1e-5)
    assert "logits" not in got
    assert "has_record" in got
    got, _, _ = heads.combine(HEADS, record, [labels[head.name] for head in HEADS], "loss")
    np.testing.assert_allclose(got["loss"], sum(weights[k] * losses[k] for k in weights), rtol=1e-5)
    pairs = {
        (int(s), a, c) for s, a, c in zip(strata, LABELS["click"], LABELS["topic"], strict=True)
    }
    classes = {(a, c) for _, a, c in pairs}
    assert len({s for s, _, _ in pairs}) >= len(classes)


def test_what_is_not_finite_or_out_of_range_is_not_usable():
    logits = LOGITS.copy()
    logits[1, 0], logits[5, 0], logits[3, 3] = np.nan, np.nan, np.inf  # 5: its click is unknown
    labels = {name: tf.constant(label) for name, label in LABELS.items()}
    labels["topic"] = tf.constant(np.where(np.arange(N) == 7, 3, LABELS["topic"]))
    got, strata, valid = heads.combine(HEADS, {"logits": tf.constant(logits)}, labels)
    np.testing.assert_array_equal(np.argwhere(~valid.numpy()), [[7, 2]])  # the third head, topic
    usable = window.score(Importance(), "multiclass", strata, got).usable
    # Example 3 has no topic, so an infinite logit of that head says nothing.
    np.testing.assert_array_equal(np.flatnonzero(~usable.numpy()), [1, 7])


def test_the_weighted_losses_of_every_head_are_unbiased_by_enumeration():
    """Exactly: over every selection that the systematic design makes of this window."""
    _, losses, known = by_hand()
    labels = {name: tf.constant(label) for name, label in LABELS.items()}
    record, strata, _ = heads.combine(HEADS, {"logits": tf.constant(LOGITS)}, labels)
    rate = 1 / 3
    selection = window.select(
        Importance(),
        rate=rate,
        task="multiclass",
        missing="uniform",
        example_ids=tf.range(N, dtype=tf.int64),
        labels=strata,
        record=record,
        key=tf.constant(1, tf.int64),
        batch_size=None,
    )
    p = selection.probabilities.numpy()
    assert p.sum() == pytest.approx(rate * N)
    assert p.std() > 0.05
    order = tf.range(N)
    ends = np.unique(np.concatenate([[0.0], (-np.cumsum(p)) % 1, [1.0]]))
    totals, counted = dict.fromkeys(losses, 0.0), 0.0
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        middle = tf.constant((start + end) / 2, tf.float64)
        chosen = designs.systematic(selection.probabilities, order, middle).numpy()
        counted += end - start
        for name, loss in losses.items():
            weight = rate / p[chosen] * known[name][chosen]
            totals[name] += (end - start) * (weight * loss[chosen]).sum() / (rate * N)
    assert counted == pytest.approx(1.0)
    for name, loss in losses.items():
        assert totals[name] == pytest.approx(loss.mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("tasks", "weights", "message"),
    [
        ({}, None, "at least one head"),
        ({"a": "ranking"}, None, r"task\['a'\] must be"),
        ({"a": "multiclass"}, None, "number of classes"),
        ({"a": ("binary", 2)}, None, "must be 'binary'"),
        ({"a": "binary"}, {"b": 1.0}, "must name heads"),
        ({"a": "binary"}, {"a": -1.0}, "finite and at least 0"),
    ],
)
def test_heads_out_of_range(tasks, weights, message):
    with pytest.raises(ValueError, match=message):
        Heads.of(tasks, weights)


def test_heads_are_in_the_order_of_their_names():
    assert Heads.of({"b": "binary", "a": ("multiclass", 3)}, None) == (
        Head("a", "multiclass", 3),
        Head("b", "binary"),
    )

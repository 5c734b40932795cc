"""Numpy oracles that several tests compare with, and windows of losses to compare on."""

import numpy as np
import tensorflow as tf

from ofb_tf.selection import Window


def softmax(logits):
    """In float64, over the last axis."""
    p = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float64)
    return p / p.sum(-1, keepdims=True)


def cross_entropy(logits, labels):
    """Of class ids `[n]`: `[n]`."""
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def gradients(logits, labels):
    """Of the cross-entropy by the logits: `[n, k]`."""
    return softmax(logits) - np.eye(logits.shape[-1])[labels]


def effective_sample_size(weights):
    """As a share of the number of weights."""
    weights = np.asarray(weights, np.float64)
    return weights.sum() ** 2 / (len(weights) * (weights**2).sum())


def capped_pps(sizes: np.ndarray, budget: float) -> np.ndarray:
    """Textbook iteration: cap whatever is above 1, share the rest, until nothing is above 1."""
    n = len(sizes)
    probabilities = np.zeros(n)
    capped = np.zeros(n, bool)
    budget = min(budget, n)
    while True:
        left, rest = budget - capped.sum(), sizes[~capped].sum()
        if rest > 0:
            probabilities[~capped] = left * sizes[~capped] / rest
        elif (~capped).any():
            probabilities[~capped] = left / (~capped).sum()
        above = ~capped & (probabilities > 1)
        if not above.any():
            return np.where(capped, 1.0, probabilities)
        capped |= above
        probabilities[capped] = 1.0


def make_window(losses, seed=0):
    losses = tf.constant(losses, tf.float32)
    ids, labels = ids_of(losses), tf.zeros(losses.shape, tf.int64)
    return Window(ids, labels, None, losses, losses, tf.constant(seed, tf.int64))


def ids_of(losses):
    return np.arange(len(losses), dtype=np.int64) * 7919 + 13


def runner(policy):
    """The policy's inclusion, traced once for windows of any size: probabilities and weights."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([], tf.float64),
            tf.TensorSpec([], tf.int64),
        ],
        autograph=False,
    )
    def run(losses, ids, budget, key):
        labels = tf.zeros(tf.shape(losses), tf.int64)
        got = policy.inclusion(Window(ids, labels, None, losses, losses, key), budget)
        return got.probabilities, got.weights

    def inclusion(losses, budget, seed=0, ids=None):
        ids = ids_of(losses) if ids is None else np.int64(ids)
        p, weights = run(np.asarray(losses, np.float32), ids, np.float64(budget), seed)
        return p.numpy(), None if weights is None else weights.numpy()

    return inclusion


def inclusion(policy, *arguments):
    """The same for a single window."""
    return runner(policy)(*arguments)


def random_losses(count=150, largest=200):
    """Losses of many kinds: smooth, heavy-tailed, with ties, all equal, few or none."""
    rng = np.random.default_rng(11)
    for i in range(count):
        n = i if i < 3 else int(rng.integers(2, largest))
        kind = i % 5
        if kind == 0:
            losses = rng.exponential(size=n)
        elif kind == 1:
            losses = rng.pareto(0.7, size=n)
        elif kind == 2:
            losses = rng.integers(0, 4, n) / 2
        elif kind == 3:
            losses = np.full(n, rng.choice([0.0, 0.1, 3.7]))
        else:
            losses = np.where(rng.random(n) < 0.05, rng.random(n) * 5, rng.random(n) * 1e-3)
        yield losses.astype(np.float32)


def auc(scores, labels):
    """Share of pairs of a positive and a negative that are in order, ties half: by ranks."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels) > 0
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # mean rank of the tied
    positives = labels.sum()
    above = ranks[labels].sum() - positives * (positives + 1) / 2
    return above / (positives * (~labels).sum())


def entropy(shares):
    """In nats, of shares that add up to 1."""
    shares = np.asarray(shares, np.float64)
    return -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))

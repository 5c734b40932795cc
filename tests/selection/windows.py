"""Windows of random losses for the policies' tests."""

import numpy as np
import tensorflow as tf

from ofb_tf.selection import Window


def make_window(losses, seed=0, ids=None):
    losses = np.asarray(losses, np.float32)
    ids = np.arange(len(losses)) * 7919 + 13 if ids is None else ids
    return Window(
        example_ids=tf.constant(ids, tf.int64),
        labels=tf.zeros([len(losses)], tf.int64),
        logits=None,
        losses=tf.constant(losses),
        scores=tf.constant(losses),
        key=tf.constant(seed, tf.int64),
    )


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
        ids = np.arange(len(losses)) * 7919 + 13 if ids is None else ids
        p, weights = run(np.asarray(losses, np.float32), np.int64(ids), np.float64(budget), seed)
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

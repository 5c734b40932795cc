"""The hidden function of the click stream: from an example's features and time to its logit.

Every parameter is a keyed hash of the seed, so the data do not depend on a library's random
generator, whose stream may change between releases.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from ofb_tf import hashing

NUM_DENSE = 13
NUM_CATEGORICAL = 26
VOCABULARY_SIZES = tuple(
    round(10 * 1000 ** (column / (NUM_CATEGORICAL - 1))) for column in range(NUM_CATEGORICAL)
)
"""Distinct values of each categorical column: from 10 to 10,000, evenly on a log scale."""

# Variance that each part contributes to the logit. Together they make clicks about as predictable
# as advertisement clicks, with enough in rare values and interactions to reward more data.
_DENSE_VARIANCE = 0.7
_CATEGORICAL_VARIANCE = 1.2
_CURVATURE_VARIANCE = 0.1
_INTERACTION_VARIANCE = 0.4

_TURN_LENGTH = 1_000_000  # examples in which drift=1 turns the hidden function once
_NUM_KEYS = 30  # of the draws: 3 for the parts, 1 for the columns' shares, 26 for the values
_VALUE_OFFSETS = np.concatenate([[0], np.cumsum(VOCABULARY_SIZES)[:-1]]).astype(np.int64)


def value_probabilities(vocabulary_size: int) -> np.ndarray:
    """Probability of each categorical value: float64 `[vocabulary_size]`, Zipf with exponent 1.

    Value v is drawn as `floor(size ** u) - 1` of `size = vocabulary_size + 1`, hence
    `log((v + 2) / (v + 1)) / log(size)`, which is close to proportional to `1 / (v + 1)`.
    """
    edges = np.log(np.arange(1, vocabulary_size + 2, dtype=np.float64))
    return np.diff(edges) / edges[-1]


def _normals(key: np.ndarray, count: int) -> np.ndarray:
    """Independent standard normals by the Box-Muller transform: float64 `[count]`."""
    uniforms = hashing.hash01(np.arange(2 * count, dtype=np.int64), key).reshape(2, count)
    return np.sqrt(-2 * np.log1p(-uniforms[0])) * np.cos(2 * math.pi * uniforms[1])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _orthonormal(vectors: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Vectors of mean 0, variance 1 and no covariance under `probabilities`: float64 `[n, k]`.

    This keeps the mean and variance of the logit, and so the click rate, constant while the
    function turns, although a few values account for most examples.
    """
    root = np.sqrt(probabilities)[:, None]
    basis, _ = np.linalg.qr(np.concatenate([root, vectors * root], axis=1))
    return basis[:, 1:] / root


@dataclasses.dataclass(frozen=True)
class ClickFunction:
    """Parameters of one hidden function, all float32."""

    dense_weights: np.ndarray  # [13, 2]: of log-dense columns, at the start and a quarter turn on
    curvature: np.ndarray  # [13]: of their squares
    dense_interactions: np.ndarray  # [13]: of dense column j times value of column j
    # [sum(VOCABULARY_SIZES), 3]: at the start, a quarter turn on, and factor in interactions.
    value_effects: np.ndarray
    pair_interactions: np.ndarray  # [13]: of the product of columns j and j + 13
    drift: float  # turns of the function in a million examples

    @classmethod
    def from_seed(cls, seed: int, drift: float) -> "ClickFunction":
        """The function that belongs to a seed."""
        keys = iter(hashing.fold_in(np.int64(seed), np.arange(1, 1 + _NUM_KEYS, dtype=np.int64)))
        dense, _ = np.linalg.qr(_normals(next(keys), 2 * NUM_DENSE).reshape(NUM_DENSE, 2))
        curvature = _unit(_normals(next(keys), NUM_DENSE)) * math.sqrt(_CURVATURE_VARIANCE / 2)
        interactions = _unit(_normals(next(keys), 2 * NUM_DENSE)) * math.sqrt(_INTERACTION_VARIANCE)
        # No column contributes less than a third of the mean, so that every vocabulary matters.
        shares = 0.5 + hashing.hash01(np.arange(NUM_CATEGORICAL), next(keys))
        scales = np.sqrt(_CATEGORICAL_VARIANCE * shares / shares.sum())
        effects = []
        for size, scale in zip(VOCABULARY_SIZES, scales, strict=True):
            values = _normals(next(keys), 3 * size).reshape(size, 3)
            values = _orthonormal(values, value_probabilities(size))
            effects.append(values * np.array([scale, scale, 1.0]))
        return cls(
            dense_weights=(dense * math.sqrt(_DENSE_VARIANCE)).astype(np.float32),
            curvature=curvature.astype(np.float32),
            dense_interactions=interactions[:NUM_DENSE].astype(np.float32),
            value_effects=np.concatenate(effects).astype(np.float32),
            pair_interactions=interactions[NUM_DENSE:].astype(np.float32),
            drift=drift,
        )

    def logits(
        self, example_ids: tf.Tensor, log_dense: tf.Tensor, categorical: tf.Tensor
    ) -> tf.Tensor:
        """Logits without the intercept, float32 `[n]`.

        Of ids `[n]`, which are also the time, normal `log_dense` `[n, 13]` and values `[n, 26]`.
        """
        turns = tf.cast(example_ids, tf.float64) * (self.drift / _TURN_LENGTH)
        angle = tf.cast((turns - tf.floor(turns)) * (2 * math.pi), tf.float32)
        effects = tf.gather(tf.constant(self.value_effects), categorical + _VALUE_OFFSETS)
        start, quarter, factors = tf.unstack(effects, axis=2)
        at_start, at_quarter = (
            tf.reduce_sum(effect, axis=1) + tf.linalg.matvec(log_dense, weights)
            for effect, weights in zip((start, quarter), self.dense_weights.T, strict=True)
        )
        first, second = factors[:, :NUM_DENSE], factors[:, NUM_DENSE:]
        bent = (tf.square(log_dense) - 1.0) * self.curvature
        paired = first * (second * self.pair_interactions + log_dense * self.dense_interactions)
        turning = tf.cos(angle) * at_start + tf.sin(angle) * at_quarter
        return turning + tf.reduce_sum(bent + paired, 1)

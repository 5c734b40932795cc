"""Keyed hashes of example ids: the only source of randomness in a selection.

A draw is a function of the seed and the example's id, so it is the same whatever the order,
the parallelism, the worker or the retry. The mixing function is splitmix64's finalizer
(Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Integer
arithmetic is modulo 2^64, so TensorFlow and numpy give the same bits.
"""

import numpy as np
import tensorflow as tf

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MAX_FINGERPRINT = 2**63 - 1


def mix64(values: tf.Tensor) -> tf.Tensor:
    """A bijection of 64-bit integers in which every input bit moves every output bit.

    Args:
      values: int64 or uint64, any shape.

    Returns:
      uint64 of the same shape. `mix64_numpy` gives the same bits.
    """
    x = tf.bitcast(values, tf.uint64) + tf.constant(_GOLDEN, tf.uint64)
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(30, tf.uint64)))
    x = x * tf.constant(_MIX_1, tf.uint64)
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(27, tf.uint64)))
    x = x * tf.constant(_MIX_2, tf.uint64)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(31, tf.uint64)))


def mix64_numpy(values: np.ndarray) -> np.ndarray:
    """`mix64` for numpy.

    Args:
      values: int64 or uint64, any shape.

    Returns:
      uint64 of the same shape, the same bits as `mix64`.
    """
    with np.errstate(over="ignore"):
        x = np.asarray(values).view(np.uint64) + np.uint64(_GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
        return x ^ (x >> np.uint64(31))


def fold_in(key: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """A new key from a key and integers.

    Args:
      key: int64.
      data: int64, broadcast against `key`.

    Returns:
      int64 of the broadcast shape.
    """
    mixed = tf.bitwise.bitwise_xor(tf.bitcast(mix64(key), tf.int64), data)
    return tf.bitcast(mix64(mixed), tf.int64)


def fold_in_numpy(key: np.ndarray | np.int64 | int, data: np.ndarray | np.int64) -> np.ndarray:
    """`fold_in` for numpy.

    Args:
      key: int64.
      data: int64, broadcast against `key`.

    Returns:
      int64 of the broadcast shape, the same bits as `fold_in`.
    """
    return mix64_numpy(mix64_numpy(np.asarray(key)).view(np.int64) ^ np.asarray(data)).view(
        np.int64
    )


def hash01(example_ids: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """A uniform draw an example, keyed by its id.

    Args:
      example_ids: int64 `[n]`.
      key: int64 scalar, made from the seed and the epoch by `fold_in`.

    Returns:
      float64 `[n]`, multiples of 2^-53 in [0, 1). `hash01_numpy` gives the same numbers.
    """
    bits = tf.bitwise.right_shift(
        tf.bitcast(fold_in(key, example_ids), tf.uint64), tf.constant(11, tf.uint64)
    )
    return tf.cast(tf.bitcast(bits, tf.int64), tf.float64) * 2.0**-53


def hash01_numpy(example_ids: np.ndarray, key: np.ndarray | np.int64 | int) -> np.ndarray:
    """`hash01` for numpy: what a Beam worker computes without a graph.

    Args:
      example_ids: int64 `[n]`.
      key: int64 scalar.

    Returns:
      float64 `[n]`, the same numbers as `hash01`.
    """
    bits = fold_in_numpy(key, example_ids).view(np.uint64) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def window_key(example_ids: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """One key for a window, from the set of its ids and not from their order.

    Args:
      example_ids: int64 `[n]`.
      key: int64 scalar.

    Returns:
      int64 scalar.
    """
    return fold_in(key, tf.reduce_sum(fold_in(key, example_ids)))


def uniform_start(key: tf.Tensor) -> tf.Tensor:
    """One draw from a key: float64 scalar, an odd multiple of 2^-25 in (0, 1).

    With 25 bits, the difference of an integer below 2^28 and a draw is exact in float64 and at
    least 2^-25 from every integer, which is what keeps the systematic design's count exact.

    Args:
      key: int64 scalar.

    Returns:
      float64 scalar in (0, 1).
    """
    bits = tf.bitwise.right_shift(mix64(key), tf.constant(40, tf.uint64))
    return (tf.cast(tf.bitcast(bits, tf.int64), tf.float64) + 0.5) * 2.0**-24


def fingerprint(values: tf.Tensor) -> tf.Tensor:
    """int64 ids from string ids or serialized examples; the same in the graph, Python and Beam.

    Args:
      values: string, any shape.

    Returns:
      int64 in [0, 2^63 - 1) of the same shape (`tf.strings.to_hash_bucket_fast`: FarmHash64,
      stable across platforms and releases).
    """
    return tf.strings.to_hash_bucket_fast(values, _MAX_FINGERPRINT)


def as_example_ids(values: tf.Tensor) -> tf.Tensor:
    """int64 ids from int64, int32 or string ids.

    Args:
      values: int64, int32 or string, any shape.

    Returns:
      int64 of the same shape; of strings the `fingerprint`.
    """
    if values.dtype == tf.string:
        return fingerprint(values)
    return tf.cast(values, tf.int64)

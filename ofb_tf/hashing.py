"""Keyed hashes of example ids: the only source of randomness in a selection.

A draw is a function of the seed and the example's id, so it is the same whatever the order,
the parallelism, the worker or the retry. The mixing function is splitmix64's finalizer
(Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Integer
arithmetic is modulo 2^64, so TensorFlow and numpy give the same bits.
"""

import enum
import functools
import os
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf.checks import check_count

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MAX_FINGERPRINT = 2**63 - 1
_MIN_SECRET_BYTES = 16


class Stream(enum.IntEnum):
    """What is folded into a window's or a step's key, so that its draws are independent.

    The numbers are part of what a seed means: changing one changes selections.
    """

    POLICY = 1
    PROBE = 2
    STEP_START = 3


def mix64(values: Any) -> Any:
    """A bijection of 64-bit integers in which every input bit affects every output bit.

    int64 or uint64 of any shape → uint64; a tensor for a tensor, otherwise a numpy array.
    """
    x = _view(values, np.uint64)
    with np.errstate(over="ignore"):
        x = x + _uint64(_GOLDEN, x)
        x = (x ^ _shift(x, 30)) * _uint64(_MIX_1, x)
        x = (x ^ _shift(x, 27)) * _uint64(_MIX_2, x)
        return x ^ _shift(x, 31)


def fold_in(key: Any, data: Any) -> Any:
    """A new int64 key from an int64 key and int64 data, broadcast; a tensor if either is one."""
    return _fold_mixed(_view(mix64(key), np.int64), data)


def _fold_mixed(mixed: Any, data: Any) -> Any:
    data = data if tf.is_tensor(data) else np.asarray(data)
    return _view(mix64(mixed ^ data), np.int64)


def hash01(example_ids: Any, key: Any) -> Any:
    """One uniform draw per int64 id `[n]`, under an int64 scalar from `fold_in`.

    float64 `[n]`, multiples of 2^-53 in [0, 1): a tensor, or for arrays an array of the same bits.
    """
    bits = _view(_shift(_view(fold_in(key, example_ids), np.uint64), 11), np.int64)
    draws = tf.cast(bits, tf.float64) if tf.is_tensor(bits) else bits.astype(np.float64)
    return draws * 2.0**-53


def _view(values: Any, dtype: type) -> Any:
    if tf.is_tensor(values):
        return tf.bitcast(values, dtype)
    return np.asarray(values).view(dtype)


def _uint64(value: int, like: Any) -> Any:
    return _constant(value) if tf.is_tensor(like) else np.uint64(value)


@functools.cache
def _constant(value: int) -> tf.Tensor:
    # A graph that captures one tensor many times has one node for it: starting a dataset's
    # iterator takes time per node.
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(value, tf.uint64)


def _shift(x: Any, bits: int) -> Any:
    right_shift = tf.bitwise.right_shift if tf.is_tensor(x) else np.right_shift
    return right_shift(x, _uint64(bits, x))


def window_key(example_ids: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """One key for a window, from the set of its ids and not from their order."""
    mixed = _view(mix64(key), np.int64)
    return _fold_mixed(mixed, tf.reduce_sum(_fold_mixed(mixed, example_ids)))


def uniform_start(key: tf.Tensor) -> tf.Tensor:
    """One draw from an int64 key: float64 scalar, an odd multiple of 2^-25 in (0, 1).

    With 25 bits, the difference of an integer below 2^28 and a draw is exact in float64 and at
    least 2^-25 from every integer, which is what keeps the systematic design's count exact.
    """
    bits = _shift(mix64(key), 40)
    return (tf.cast(tf.bitcast(bits, tf.int64), tf.float64) + 0.5) * 2.0**-24


def fingerprint(values: tf.Tensor) -> tf.Tensor:
    """int64 ids in [0, 2^63 - 1) from string ids or serialized examples, of any shape.

    `tf.strings.to_hash_bucket_fast` (FarmHash64) is stable across platforms and releases.
    """
    return tf.strings.to_hash_bucket_fast(values, _MAX_FINGERPRINT)


def to_int64(example_ids: Any) -> Any:
    """int64 ids from integer or text ids: integers stay, text and bytes are fingerprinted.

    A `uuid.UUID` counts as its text, a `datetime64` as its microseconds since 1970. Text that
    looks like a number is text: "007", "7" and 7 are three ids.

    Args:
      example_ids: integers, strings, bytes, `uuid.UUID` or `datetime64`, of any shape: a tensor,
        a numpy array, a Python value or a list. Lists of bytes keep trailing zero bytes, which
        numpy's fixed-width strings have lost already.

    Returns:
      int64 of the same shape: a tensor for a tensor, otherwise a numpy array.

    Raises:
      ValueError: ids are neither integers nor text, or a list holds both, or an integer does not
        fit into int64.
    """
    if not isinstance(example_ids, np.ndarray | list) and tf.is_tensor(example_ids):  # it is slow
        if example_ids.dtype == tf.string:
            return fingerprint(example_ids)
        if not example_ids.dtype.is_integer:
            raise _no_ids(example_ids.dtype.name)
        return tf.cast(example_ids, tf.int64)
    if isinstance(example_ids, list) and set(map(type, example_ids)) == {int}:
        array = np.asarray(example_ids)  # as below, but at once
    elif isinstance(example_ids, np.ndarray | np.generic):
        array = np.asarray(example_ids)
        array = array.astype(object) if array.dtype.kind in "SU" else array
    else:
        array = np.array(example_ids, object)  # numpy's own strings drop trailing zero bytes
        if not any(isinstance(value, bytes | str) for value in array.flat):
            array = np.asarray(example_ids)
    if array.dtype.kind == "M":
        if np.isnat(array).any():
            raise _no_ids("datetime64 with NaT")
        return array.astype("datetime64[us]").view(np.int64)
    if array.dtype.kind == "O":
        if any(isinstance(value, uuid.UUID) for value in array.flat):
            texts = [str(v) if isinstance(v, uuid.UUID) else v for v in array.flat]
            array = np.array([*texts, None], object)[:-1].reshape(array.shape)
        kinds = sorted({type(value).__name__ for value in array.flat} - {"bytes_", "str_"})
        if not set(kinds) <= {"bytes", "str"}:
            raise _no_ids(" and ".join(kinds))
        return fingerprint(tf.constant(array, tf.string, array.shape)).numpy()
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise _no_ids(array.dtype.name)
    if array.dtype == np.uint64 and array.max() >= 2**63:
        raise _no_ids(f"uint64 with {array.max()}")
    return array.astype(np.int64, copy=False)


def id_vector(example_ids: Any) -> np.ndarray:
    """int64 `[n]` from `n` ids as of `to_int64`; a ValueError for any other shape."""
    ids = np.asarray(to_int64(example_ids))
    if ids.ndim != 1:
        raise ValueError(f"example_ids must have shape [n]. Received: {list(ids.shape)}")
    return ids


def example_id_of(*columns: Any) -> Any:
    """A stable 64-bit id for rows of a table without one, from columns that identify a row.

    The same row has the same id in numpy, pandas, tf.data and Beam, on both sides: where the
    model is served and where it is trained. Two rows with equal columns have one id: choose
    columns that tell all rows apart, such as user, item and time. Of n ids, two collide with a
    probability of about n² / 2^65.

    ```python
    import numpy as np
    import tensorflow as tf

    import ofb_tf

    user, price = np.array(["ann", "bob"]), np.array([1.5, 2.0])
    ids = ofb_tf.example_id_of(user, price)
    table = tf.data.Dataset.from_tensor_slices({"user": user, "price": price})
    keyed = table.map(lambda x: x | {"example_id": ofb_tf.example_id_of(x["user"], x["price"])})
    assert [row["example_id"] for row in keyed] == list(ids)
    ```

    Args:
      *columns: at least one; tensors, arrays, pandas columns or Python values of one shape. Text,
        bytes, `uuid.UUID`, integers, booleans and `datetime64` (by its microseconds) count as what
        they are, floats as float64: 7, 7.0 and "7" are three values. A float32 column is not
        equal to the float64 column that it was rounded from: take integers and text where there
        are any.

    Returns:
      int64 of the columns' shape: a tensor if any column is one, otherwise a numpy array.

    Raises:
      ValueError: no column, or one of another kind or with missing values.
    """
    if not columns:
        raise ValueError("example_id_of needs at least one column. Received: none")
    key: Any = np.int64(0)
    for column in columns:
        key = fold_in(key, _bits(column))
    return key


def _bits(column: Any) -> Any:
    """What stands for a value in `example_id_of`: int64 of the column's shape."""
    if tf.is_tensor(column) and not isinstance(column, np.ndarray | np.generic):
        if column.dtype == tf.bool:
            return tf.cast(column, tf.int64)
        if not column.dtype.is_floating:
            return to_int64(column)
        wide = tf.cast(column, tf.float64) + 0.0  # -0.0 is 0.0
        wide = tf.where(tf.math.is_nan(wide), tf.constant(np.nan, tf.float64), wide)
        return tf.bitcast(wide, tf.int64)
    array = column if isinstance(column, str | bytes | uuid.UUID) else np.asarray(column)
    if isinstance(array, np.ndarray) and array.dtype.kind == "b":
        return array.astype(np.int64)
    if isinstance(array, np.ndarray) and array.dtype.kind == "f":
        wide = array.astype(np.float64) + 0.0
        return np.where(np.isnan(wide), np.nan, wide).view(np.int64)
    return to_int64(array)


def _no_ids(received: str) -> ValueError:
    return ValueError(
        f"example_ids must be integers that fit into int64, or strings. Received: {received}. "
        "Cast integers to int64, or pass their text."
    )


def partition_of(example_ids: Any, num_partitions: int) -> Any:
    """The partition that holds an id's record: a hash of the id modulo their number.

    Args:
      example_ids: as for `to_int64`, `[n]`.
      num_partitions: at least 1.

    Returns:
      int64 `[n]` in `[0, num_partitions)`, a tensor for a tensor, an array for an array.

    Raises:
      ValueError: num_partitions is out of range.
    """
    num_partitions = check_count("num_partitions", num_partitions)
    mixed = mix64(to_int64(example_ids))
    partition = mixed % _uint64(num_partitions, mixed)
    return tf.cast(partition, tf.int64) if tf.is_tensor(partition) else partition.astype(np.int64)


def rows_by_partition(
    example_ids: np.ndarray, num_partitions: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Each partition that has rows, in order, with its rows of int64 `[n]`, ascending."""
    partitions = partition_of(example_ids, num_partitions)
    order = np.argsort(partitions, kind="stable")
    bounds = np.searchsorted(partitions[order], np.arange(num_partitions + 1))
    for partition in np.flatnonzero(np.diff(bounds)).tolist():
        yield partition, order[bounds[partition] : bounds[partition + 1]]


def read_secret(path: str | os.PathLike) -> tuple[int, int]:
    """Reads the key of `keyed_ids` from a file.

    Args:
      path: file of at least 16 bytes, not counting surrounding white space:
        `head -c 32 /dev/urandom | base64 > secret`.

    Returns:
      Two halves of the key, each in [0, 2^63 - 1).

    Raises:
      ValueError: it is shorter.
      tf.errors.NotFoundError: there is no such file.
    """
    with tf.io.gfile.GFile(os.fspath(path), "rb") as file:
        secret = file.read().strip()
    if len(secret) < _MIN_SECRET_BYTES:
        raise ValueError(
            f"The secret in {os.fspath(path)!r} must have at least {_MIN_SECRET_BYTES} bytes. "
            f"Received: {len(secret)}. Make one: head -c 32 /dev/urandom | base64 > FILE"
        )
    # Two hashes under fixed, different keys stretch or shrink any secret to SipHash's 128 bits.
    halves = [tf.strings.to_hash_bucket_strong(secret, _MAX_FINGERPRINT, [0, i]) for i in (1, 2)]
    return int(halves[0]), int(halves[1])


def keyed_ids(example_ids: tf.Tensor, secret: tuple[int, int]) -> tf.Tensor:
    """SipHash of each id under a secret; the same in the graph and in Python.

    A record holds an id, numbers that the model computed, a version and a time, but no features.
    Where the id itself must not be readable, hash it on both sides, serving and training.

    ```python
    import pathlib

    from ofb_tf.records import keyed_ids, read_secret
    from ofb_tf.testing import tiny_dataset

    pathlib.Path("secret").write_text("thirty-two bytes from /dev/urandom")
    secret = read_secret("secret")
    hidden = tiny_dataset(3).map(lambda x: x | {"example_id": keyed_ids(x["example_id"], secret)})
    assert next(iter(hidden))["example_id"] == keyed_ids([1000], secret)[0]
    ```

    Args:
      example_ids: integers or strings, any shape. Text is hashed as it is, never as its
        fingerprint.
      secret: from `read_secret`.

    Returns:
      int64 in [0, 2^63 - 1) of the same shape.
    """
    ids = tf.convert_to_tensor(example_ids)
    ids = ids if ids.dtype == tf.string else tf.strings.as_string(tf.cast(ids, tf.int64))
    return tf.strings.to_hash_bucket_strong(ids, _MAX_FINGERPRINT, list(secret))

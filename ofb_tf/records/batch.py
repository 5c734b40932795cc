"""What a caller hands to `ForwardRecordWriter.write`, checked and turned into columns."""

from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import blocks as block_format


def join_runs(runs: list[tuple[Any, int]]) -> block_format.Runs:
    """Runs from one `(value or values, count)` a batch."""
    if all(isinstance(value, int) for value, _ in runs):
        values = np.fromiter((value for value, _ in runs), np.int64, len(runs))
        counts = np.fromiter((count for _, count in runs), np.int64, len(runs))
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        counts = np.add.reduceat(counts, starts)
        if 2 * len(starts) > counts.sum():
            return block_format.Runs(np.repeat(values[starts], counts))
        return block_format.Runs(values[starts], counts)
    return block_format.run_lengths(
        np.concatenate([np.full(n, v, np.int64) if isinstance(v, int) else v for v, n in runs])
    )


def as_ids(example_ids: Any) -> np.ndarray:
    """int64 `[n]` from integers or strings, or a ValueError."""
    ids = np.asarray(example_ids)
    if ids.ndim != 1:
        raise ValueError(f"write: example_ids must have shape [n]. Received: {list(ids.shape)}")
    if ids.dtype.kind in "SUO":
        return hashing.fingerprint(tf.constant(ids, tf.string)).numpy()
    if ids.dtype.kind not in "iu":
        raise ValueError(
            f"write: example_ids must be integers or strings. Received dtype: {ids.dtype}"
        )
    return ids.astype(np.int64, copy=False)


def as_floats(name: str, values: Any, shape: tuple) -> np.ndarray:
    """float32 of this shape, or a ValueError."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise ValueError(f"write: {name} must be floats. Received dtype: {array.dtype}")
    if array.shape != shape:
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(
            f"write: {name} must have shape [{wanted}] to go with {shape[0]} example ids. "
            f"Received: {list(array.shape)}"
        )
    return array.astype(np.float32, copy=False)


def as_int64(name: str, values: Any, num_records: int) -> int | np.ndarray:
    """An int, or int64 `[n]` of the caller's own, or a ValueError."""
    if isinstance(values, int):
        if not -(2**63) <= values < 2**63:
            raise ValueError(f"write: {name} must fit into int64. Received: {values}")
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or array.shape not in ((), (num_records,)):
        raise ValueError(
            f"write: {name} must be int64, one or [{num_records}]. "
            f"Received: {array.dtype} {list(array.shape)}"
        )
    return int(array) if array.ndim == 0 else np.array(array, np.int64)


def count_nonfinite(columns: dict[str, np.ndarray]) -> int:
    """Rows with a NaN or infinite logit or loss."""
    bad = None
    for name in (constants.LOGITS, constants.LOSS):
        if name in columns:
            finite = np.isfinite(columns[name])
            if not finite.all():
                rows = ~finite.reshape(len(finite), -1).all(axis=1)
                bad = rows if bad is None else bad | rows
    return 0 if bad is None else int(bad.sum())


def top_k_columns(logits: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The top-k form of many logits: constant size, whatever the number of classes.

    Args:
      logits: float32 `[n, num_outputs]`.
      k: at least 1 and less than num_outputs.

    Returns:
      `logits` float32 `[n, k]`, descending, `class_ids` int32 `[n, k]`, and over all classes
      `logsumexp` and `sum_squared_probabilities` float32 `[n]`. A row with a logit that is NaN or
      +inf has NaN for the latter two, so that the sampler treats it as missing.
    """
    largest = np.argpartition(logits, -k, axis=1)[:, -k:]
    kept = np.take_along_axis(logits, largest, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    # In float64: the sums run over up to millions of classes.
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        total = shifted.sum(axis=1)
        logsumexp = logits.max(axis=1) + np.log(total)
        sum_squares = np.square(shifted).sum(axis=1) / np.square(total)
    return {
        constants.LOGITS: np.take_along_axis(kept, order, axis=1),
        constants.CLASS_IDS: np.take_along_axis(largest, order, axis=1).astype(np.int32),
        constants.LOGSUMEXP: logsumexp.astype(np.float32),
        constants.SUM_SQUARED_PROBABILITIES: sum_squares.astype(np.float32),
    }

"""Helpers for the tests of pipelines that select and weight examples."""

import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf.checks import check_choice
from ofb_tf.constants import EXAMPLE_ID, LABEL, LOGITS, LOSS, MULTICLASS, TASKS


def tiny_dataset(
    num_examples: int = 24, *, task: str = "binary", num_classes: int = 3, seed: int = 0
) -> tf.data.Dataset:
    """A handful of examples that already carry the fields of a forward record.

    Args:
      num_examples: how many, at least 0.
      task: "binary" (logits `[1]`, labels in {0, 1}), "multiclass" (logits `[num_classes]`, labels
        in `[0, num_classes)`) or "regression" (logits `[1]`, float32 labels).
      num_classes: number of classes of "multiclass".
      seed: another seed gives other values.

    Returns:
      A dataset of dicts: `example_id` int64, `feature` float32 `[2]`, `logits` float32 `[k]`,
      `label` int64 or float32, `loss` float32 (squared or cross-entropy).

    Raises:
      ValueError: an unknown task.
    """
    check_choice("task", task, TASKS)
    rng = np.random.default_rng(seed)
    num_outputs = num_classes if task == MULTICLASS else 1
    logits = rng.normal(size=(num_examples, num_outputs)).astype(np.float32)
    labels: np.ndarray
    if task == "regression":
        labels = rng.normal(size=num_examples).astype(np.float32)
        losses = (logits[:, 0] - labels) ** 2
    else:
        labels = rng.integers(num_classes if task == MULTICLASS else 2, size=num_examples)
        padded = logits if task == MULTICLASS else np.pad(logits, [[0, 0], [1, 0]])
        own = padded[np.arange(num_examples), labels]
        losses = np.log(np.sum(np.exp(padded), axis=1)) - own
    return tf.data.Dataset.from_tensor_slices(
        {
            EXAMPLE_ID: np.arange(1000, 1000 + num_examples, dtype=np.int64),
            "feature": rng.normal(size=(num_examples, 2)).astype(np.float32),
            LOGITS: logits,
            LABEL: labels,
            LOSS: losses.astype(np.float32),
        }
    )


def assert_same_elements(first: Iterable[Any], second: Iterable[Any], *, message: str = "") -> None:
    """Asserts that two datasets or lists are equal in structure and, bit for bit, in values.

    Their elements are nested structures of arrays or tensors. The AssertionError begins with
    `message` and names element and component.
    """
    first, second = list(first), list(second)
    if len(first) != len(second):
        raise AssertionError(f"{message}{len(first)} elements differ from {len(second)} elements")
    for index, (left, right) in enumerate(zip(first, second, strict=True)):
        tf.nest.assert_same_structure(left, right)
        pairs = zip(tf.nest.flatten(left), tf.nest.flatten(right), strict=True)
        for component, (a, b) in enumerate(pairs):
            a, b = np.asarray(a), np.asarray(b)
            # Strings are objects, whose bytes are addresses; of numbers, NaN must equal itself.
            ours, theirs = (x.tolist() if x.dtype == object else x.tobytes() for x in (a, b))
            if (a.dtype, a.shape, ours) != (b.dtype, b.shape, theirs):
                raise AssertionError(
                    f"{message}element {index}, component {component}: {a!r} differs from {b!r}"
                )


def assert_checkpoint_roundtrip(dataset: tf.data.Dataset, *, max_steps: int = 100) -> None:
    """Asserts that an iterator restored at any step goes on exactly as the saved one did.

    One iterator runs to the end; a `tf.train.Checkpoint(iterator=...)` is saved before its first
    step and after each one. Each is restored into a fresh iterator, whose elements must be those
    that the first one went on to give. Iterators of a dataset that redraws in each epoch, as
    `shuffle` and `ofb_sample` do, differ until they are restored; this is not a fault.

    Args:
      dataset: a finite dataset, or one of which `max_steps` elements are enough.
      max_steps: how many elements are read at most; each is a restore of its own.

    Raises:
      AssertionError: a continuation differs; the message names the step.
      tf.errors.FailedPreconditionError: the pipeline holds state that cannot be saved.
    """
    dataset = dataset.take(max_steps)
    with tempfile.TemporaryDirectory() as directory:
        iterator = iter(dataset)
        checkpoint = tf.train.Checkpoint(iterator=iterator)
        paths = [checkpoint.write(os.path.join(directory, "step-0"))]
        expected = []
        for element in iterator:
            expected.append(element)
            paths.append(checkpoint.write(os.path.join(directory, f"step-{len(expected)}")))
        for step, path in enumerate(paths):
            iterator = iter(dataset)
            tf.train.Checkpoint(iterator=iterator).read(path).assert_consumed()
            assert_same_elements(
                list(iterator), expected[step:], message=f"restored at step {step}: "
            )


def assert_unbiased(
    draw: Callable[[int], float | np.ndarray],
    truth: float | np.ndarray,
    *,
    trials: int = 2000,
    num_standard_errors: float = 5.0,
    max_relative_error: float | None = 0.05,
) -> None:
    """Asserts that an estimate's mean over many seeds is the truth.

    The tolerance is `num_standard_errors` standard errors of the mean, as measured from the draws,
    plus what float32 rounding may add. A test that could not have noticed a bias fails too: the
    tolerance must not exceed `max_relative_error` of the truth.

    Args:
      draw: a seed in `[0, trials)` → one estimate, a scalar or an array, each with another seed.
      truth: what it estimates, of the same shape.
      trials: number of draws.
      num_standard_errors: width of the tolerance; 5 errs once in two million checks.
      max_relative_error: largest tolerance relative to the largest `|truth|`; None for any.

    Raises:
      AssertionError: a component's mean is farther off, not finite, or the tolerance is too wide.
    """
    estimates = np.stack([np.asarray(draw(seed), np.float64) for seed in range(trials)])
    truth = np.asarray(truth, np.float64)
    if estimates.shape[1:] != truth.shape:
        raise AssertionError(f"estimates of shape {estimates.shape[1:]}, truth of {truth.shape}")
    if not np.all(np.isfinite(estimates)):
        raise AssertionError("an estimate is not finite")
    mean = estimates.mean(axis=0)
    rounding = 8 * np.finfo(np.float32).eps * np.abs(truth)
    tolerance = num_standard_errors * estimates.std(axis=0, ddof=1) / np.sqrt(trials) + rounding
    scale = np.max(np.abs(truth))
    if max_relative_error is not None and np.max(tolerance) > max_relative_error * scale:
        raise AssertionError(
            f"{trials} trials tell the mean to {np.max(tolerance):.3g} only, more than "
            f"{max_relative_error} of {scale:.3g}: raise trials or max_relative_error."
        )
    excess = np.abs(mean - truth) - tolerance
    if np.max(excess) > 0:
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(
            f"biased: mean {mean[worst]:.6g} over {trials} trials, truth {truth[worst]:.6g}, "
            f"tolerance {tolerance[worst]:.3g}"
        )

"""`Dataset.map` and `rebatch` for elements of dense tensors, without tracing what was traced.

The public methods wrap the function of a map in another one, and a rebatch in a map that makes
elements dense: for 39 features that takes 40 and 20 ms of CPU each time one is applied.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def is_dense(spec: Any) -> bool:
    """Whether elements of this spec hold dense tensors alone."""
    return all(isinstance(part, tf.TensorSpec) for part in tf.nest.flatten(spec))


class Traced:
    """A function for `map`, traced once for elements of one spec.

    Args:
      function: from an element's components to an element; tensor operations on dense tensors.
      spec: of the elements, a tuple of dense components.
    """

    def __init__(self, function: Callable, spec: tuple) -> None:
        def flat(*tensors: tf.Tensor) -> list[tf.Tensor]:
            result = function(*tf.nest.pack_sequence_as(spec, tensors))
            self._spec = tf.nest.map_structure(
                lambda part: tf.TensorSpec(part.shape, part.dtype), result
            )
            return tf.nest.flatten(result)

        signature = [tf.TensorSpec(part.shape, part.dtype) for part in tf.nest.flatten(spec)]
        traced = tf.function(flat, input_signature=signature, autograph=False)
        self._function = traced.get_concrete_function()

    def map(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """`dataset.map(function, AUTOTUNE, deterministic=True)`."""
        parts = tf.nest.flatten(self._spec)
        variant = tf.raw_ops.ParallelMapDatasetV2(
            input_dataset=tf.data.experimental.to_variant(dataset),
            other_arguments=self._function.captured_inputs,
            num_parallel_calls=tf.data.AUTOTUNE,
            f=self._function,
            output_types=[part.dtype for part in parts],
            output_shapes=[part.shape for part in parts],
            deterministic="true",
            preserve_cardinality=True,
        )
        return _successor(variant, self._spec, dataset, self)


def rebatch(
    dataset: tf.data.Dataset, size: int | Sequence[int], drop_remainder: bool = False
) -> tf.data.Dataset:
    """`dataset.rebatch(size, drop_remainder)`; of several sizes each in turn."""
    if not is_dense(dataset.element_spec):
        return dataset.rebatch(size, drop_remainder=drop_remainder)
    spec = tf.nest.map_structure(
        lambda part: tf.TensorSpec([size if drop_remainder else None, *part.shape[1:]], part.dtype),
        dataset.element_spec,
    )
    parts = tf.nest.flatten(spec)
    variant = tf.raw_ops.RebatchDatasetV2(
        input_dataset=tf.data.experimental.to_variant(dataset),
        batch_sizes=tf.reshape(tf.constant(size, tf.int64), [-1]),
        drop_remainder=drop_remainder,
        output_types=[part.dtype for part in parts],
        output_shapes=[part.shape for part in parts],
    )
    return _successor(variant, spec, dataset)


def _successor(
    variant: tf.Tensor, spec: Any, source: tf.data.Dataset, *kept: Any
) -> tf.data.Dataset:
    dataset = tf.data.experimental.from_variant(variant, spec)
    # As a dataset of tf.data's own: it knows its source, and keeps alive what its graph names.
    dataset._inputs = lambda: [source]
    dataset._kept = kept
    return dataset

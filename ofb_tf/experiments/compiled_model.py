"""A workload's model and its functions, traced once and used by every cell of a process."""

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.experiments.workloads import Workload
from ofb_tf.training.model import OFBModel

_FORWARD_BATCH = 4096


class CompiledModel:
    """A model and its functions, traced once for any number of examples.

    Args:
      workload: gives architecture, loss and the inputs' shapes.
    """

    def __init__(self, workload: Workload):
        self.model = OFBModel(*workload.build())
        self.model.compile(keras.optimizers.Adam(), workload.loss(), jit_compile=False)
        self._inputs = {
            name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name=name)
            for name, tensor in self.model.input.items()
        }
        label = workload.test[constants.LABEL]
        fields = self._inputs | {constants.LABEL: tf.TensorSpec([None], label.dtype)}
        self._train_on_one(fields)
        int32 = tf.TensorSpec([], tf.int32)
        self._forward = tf.function(
            lambda inputs: self.model(inputs, training=False), [self._inputs], autograph=False
        )
        self._train = tf.function(
            self._train_in_batches,
            [fields, tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.float32), int32],
            autograph=False,
        )
        self._trace(fields)

    def reset(self, weights: list[np.ndarray], learning_rate: float) -> None:
        """Makes the model untrained, and the optimiser new."""
        self.model.set_weights(weights)
        for variable in self.model.optimizer.variables:
            variable.assign(tf.zeros(variable.shape, variable.dtype))
        self.model.optimizer.learning_rate = learning_rate

    def outputs(self, fields: dict[str, tf.Tensor]) -> np.ndarray:
        """The model's outputs, float32 `[n, num_outputs]`."""
        inputs = {name: fields[name] for name in self._inputs}
        count = len(next(iter(inputs.values())))
        parts = [
            self._forward({name: x[start : start + _FORWARD_BATCH] for name, x in inputs.items()})
            for start in range(0, count, _FORWARD_BATCH)
        ]
        return np.concatenate([part.numpy() for part in parts])

    def train(
        self, fields: dict[str, tf.Tensor], rows: np.ndarray, weights: np.ndarray, batch_size: int
    ) -> None:
        """One step of `OFBModel` for each batch of rows, of which the last may be smaller.

        Args:
          fields: of an interval's examples.
          rows: int32 `[m]`: which of them, in order.
          weights: float32 `[m]`.
          batch_size: of a step.
        """
        used = {name: fields[name] for name in (*self._inputs, constants.LABEL)}
        self._train(used, tf.constant(rows), tf.constant(weights), tf.constant(batch_size))

    def _train_in_batches(
        self,
        fields: dict[str, tf.Tensor],
        rows: tf.Tensor,
        weights: tf.Tensor,
        batch_size: tf.Tensor,
    ) -> None:
        def step(start: tf.Tensor) -> list[tf.Tensor]:
            batch = rows[start : start + batch_size]
            gathered = {name: tf.gather(values, batch) for name, values in fields.items()}
            gathered[constants.IMPORTANCE_WEIGHT] = weights[start : start + batch_size]
            self.model.train_step(gathered)
            return [start + batch_size]

        tf.while_loop(lambda start: start < tf.size(rows), step, [0], parallel_iterations=1)

    def _train_on_one(self, fields: dict[str, tf.TensorSpec]) -> None:
        """Has Keras make every variable, which it may not do inside a loop."""
        one = _example(fields)
        self.model.train_step(one | {constants.IMPORTANCE_WEIGHT: tf.ones([1])})

    def _trace(self, fields: dict[str, tf.TensorSpec]) -> None:
        """Runs every function once, so that no cell's time has tracing in it."""
        one = _example(fields)
        self.outputs(one)
        self.train(one, np.zeros(1, np.int32), np.ones(1, np.float32), 1)


def _example(fields: dict[str, tf.TensorSpec]) -> dict[str, tf.Tensor]:
    return {name: tf.ones([1, *spec.shape[1:]], spec.dtype) for name, spec in fields.items()}


_models: dict[tuple, CompiledModel] = {}


def compiled_model(dataset: str, workload: Workload) -> CompiledModel:
    """The process's model for workloads of this dataset, task and shape."""
    shapes = {name: tuple(values.shape[1:]) for name, values in workload.test.items()}
    key = (dataset, workload.task, workload.num_outputs, *sorted(shapes.items()))
    if key not in _models:
        _models[key] = CompiledModel(workload)
    return _models[key]

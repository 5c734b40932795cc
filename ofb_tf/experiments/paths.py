"""The two ways from a served model to a trained one: through files, or in memory.

Both answer with the same model, select the same examples with the same weights and train by
`OFBModel.train_step`. `ofb demo` runs every real part of a production loop, `ThroughFiles`;
`ofb compare` runs hundreds of trials, each on one core, `InMemory`.
"""

import abc
import functools
import os
import shutil
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.experiments import config as configs
from ofb_tf.experiments.workloads import Workload
from ofb_tf.records import ForwardRecordWriter
from ofb_tf.selection import scores, stream_budget, window
from ofb_tf.training.model import OFBModel
from ofb_tf.transforms.join import join_forward_records
from ofb_tf.transforms.sample import ofb_sample

_FORWARD_BATCH = 4096
_REQUEST_SIZE = 1024
# Seeds of selection: every trial's intervals have their own.
_SEED_STRIDE = 1_000_003
_SELECTION_FIELDS = (
    "rate",
    "window_size",
    "steps_per_window",
    "uniform_mix",
    "selective_beta",
    "estimator",
    "budget",
)

Examples = dict[str, tf.Tensor]


class RecordPath(abc.ABC):
    """Serves, selects and trains one policy with one seed, one interval after the other.

    `model` is an `OFBModel`, at first untrained, with the initial weights of the seed.
    """

    clock: Callable[[], float]  # seconds, of which differences are reported

    def __init__(
        self,
        config: configs.SimulationConfig,
        policy: str,
        seed: int,
        workload: Workload,
        directory: str = "",
    ):
        self.config, self.policy, self.seed, self.workload = config, policy, seed, workload
        self.directory = directory  # for temporary files
        self.is_everything = policy == configs.EVERYTHING
        self.batch_size = config.whole_batch_size if self.is_everything else config.batch_size
        self.compiled = compiled_model(config.dataset, workload)
        self.compiled.reset(workload.initial_weights(seed), config.learning_rate)
        self.model = self.compiled.model
        self._records: Any = None  # of the interval that was served last

    @abc.abstractmethod
    def serve(self, interval: int, examples: Examples, kept: np.ndarray) -> None:
        """Has a snapshot, numbered `interval`, answer requests and record those that are `kept`."""

    @abc.abstractmethod
    def train(self, interval: int, examples: Examples) -> float:
        """Selects from the interval by the records of the last `serve`, and trains on the selected.

        Returns the seconds spent on loading the records and building the pipeline.
        """

    @abc.abstractmethod
    def inspect(self, interval: int, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Losses under the records, float32 `[n]`, NaN without one, and bool `[n]`: selected."""

    def selection_seed(self, interval: int) -> int:
        """The seed of `ofb_sample` in an interval."""
        return _SEED_STRIDE * self.seed + interval


class ThroughFiles(RecordPath):
    """The real path, without short cuts; seconds are wall-clock.

    The snapshot is a SavedModel on disk that is loaded back, its outputs are written by
    `ForwardRecordWriter`, the join reads those files, selection runs inside tf.data, and
    `OFBModel.fit` trains with the weights.
    """

    clock = staticmethod(time.perf_counter)

    def serve(self, interval: int, examples: Examples, kept: np.ndarray) -> None:
        """Leaves record files; see `RecordPath.serve`."""
        if self._records:
            shutil.rmtree(self._records)
        snapshot = os.path.join(self.directory, f"snapshot_{interval}")
        self._records = os.path.join(self.directory, f"records_{interval}")
        export_snapshot(self.model, snapshot)
        served = tf.saved_model.load(snapshot)
        ids = examples[constants.EXAMPLE_ID]
        names = list(served.serve.input_signature[0])
        with ForwardRecordWriter(self._records, num_outputs=self.workload.num_outputs) as writer:
            for start in range(0, len(ids), _REQUEST_SIZE):
                request = slice(start, start + _REQUEST_SIZE)
                logits = served.serve({name: examples[name][request] for name in names})
                written = kept[request]
                writer.write(ids[request][written], logits[written], model_version=interval)
        shutil.rmtree(snapshot)

    def train(self, interval: int, examples: Examples) -> float:
        """Fits on the selected stream; see `RecordPath.train`."""
        began = self.clock()
        selected = self._selected(interval, examples).prefetch(tf.data.AUTOTUNE)
        seconds = self.clock() - began
        with warnings.catch_warnings():
            # Keras warns because it cannot know how many batches a selection has.
            warnings.filterwarnings("ignore", message="Your input ran out of data")
            self.model.fit(selected, epochs=1, shuffle=False, verbose=0)
        return seconds

    def inspect(self, interval: int, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Joins the interval to its records; see `RecordPath.inspect`."""
        ids = examples[constants.EXAMPLE_ID]
        labelled = {name: examples[name] for name in (constants.EXAMPLE_ID, constants.LABEL)}
        stream = tf.data.Dataset.from_tensor_slices(labelled)
        fields = next(iter(stream.apply(join_forward_records(self._records)).batch(len(ids))))
        losses = scores.example_loss(fields, fields[constants.LABEL], self.workload.task)
        batches = self._selected(interval, examples)
        selected = np.concatenate([batch[constants.EXAMPLE_ID] for batch in batches])
        return losses.numpy(), np.isin(ids, selected)

    @tf.autograph.experimental.do_not_convert  # no Python control flow: tracing takes half as long
    def _selected(self, interval: int, examples: Examples) -> tf.data.Dataset:
        """The interval's stream after selection, in batches."""
        stream = tf.data.Dataset.from_tensor_slices(examples)
        if self.is_everything:
            return stream.batch(self.batch_size)
        return stream.apply(
            ofb_sample(
                records=self._records,
                rate=self.config.rate,
                policy=self.config.make_policy(self.policy),
                task=self.workload.task,
                window_size=self.config.window_size,
                batch_size=self.batch_size,
                seed=self.selection_seed(interval),
                num_outputs=self.workload.num_outputs,
                estimator=self.config.estimator,
                budget=self.config.budget,
                redraw_each_iteration=False,
            )
        )


class InMemory(RecordPath):
    """The same, compiled: records are an array, and functions are traced once per process.

    Selection is a function of seed and ids alone, so the windows give what `ofb_sample` gives.
    Seconds are processor time, which is what the wall clock shows on a core that is otherwise idle.
    """

    clock = staticmethod(time.process_time)

    def serve(self, interval: int, examples: Examples, kept: np.ndarray) -> None:
        """Keeps logits, NaN where the record is lost; see `RecordPath.serve`."""
        self._records = self.compiled.outputs(examples)
        self._records[~kept] = np.nan

    def train(self, interval: int, examples: Examples) -> float:
        """Trains on the selected rows; see `RecordPath.train`."""
        rows, weights, offsets = self._selected(interval, examples)
        self.model.importance_weight_statistics.reset_state()  # as `fit` does
        self.compiled.train(examples, rows, weights, offsets, self.batch_size)
        return 0.0

    def inspect(self, interval: int, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """See `RecordPath.inspect`."""
        losses = scores.example_loss(
            {constants.LOGITS: self._records}, examples[constants.LABEL], self.workload.task
        )
        is_selected = np.zeros(len(losses), bool)
        is_selected[self._selected(interval, examples)[0]] = True
        return losses.numpy(), is_selected

    def _selected(self, interval: int, examples: Examples) -> tuple[np.ndarray, ...]:
        """Rows in the order of training, int32 `[m]`, their weights, float32 `[m]`, and offsets.

        Offsets are float32 `[m, num_outputs]`, 0 with the estimator "weights".
        """
        ids, labels = examples[constants.EXAMPLE_ID].numpy(), examples[constants.LABEL].numpy()
        num_outputs, size = self.workload.num_outputs, self.config.window_size
        if self.is_everything:
            offsets = np.zeros([len(ids), num_outputs], np.float32)
            return np.arange(len(ids), dtype=np.int32), np.ones(len(ids), np.float32), offsets
        logits = self._records
        if logits is None:
            logits = np.zeros([len(ids), num_outputs], np.float32)
        config = configs.SimulationConfig(**{n: getattr(self.config, n) for n in _SELECTION_FIELDS})
        select = _traced_selection(
            config, self.policy, self.workload.task, num_outputs, labels.dtype.name
        )
        arrays = (ids, labels, logits, ~np.isnan(logits[:, 0]))
        # The key of `ofb_sample(seed=..., redraw_each_iteration=False)`: with epoch 0 folded in.
        key = hashing.fold_in(np.int64(self.selection_seed(interval)), np.int64(0))
        state = stream_budget.initial_state()
        parts = []
        for start in range(0, len(ids), size):
            window_arrays = (a[start : start + size] for a in arrays)
            indices, importance, offsets, state = select(*window_arrays, key, state)
            rows = indices.numpy() + np.int32(start)
            parts.append((rows, importance.numpy(), offsets.numpy()))
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@functools.cache
def _traced_selection(
    config: configs.SimulationConfig, policy: str, task: str, num_outputs: int, label_dtype: str
) -> Callable:
    """The selection from one window as a function, traced once.

    Returns indices, weights, offsets and the state of `budget="stream"`.
    """
    chosen = config.make_policy(policy)
    follows = config.budget == constants.BUDGET_STREAM and chosen.needs_records

    def select(
        ids: tf.Tensor,
        labels: tf.Tensor,
        logits: tf.Tensor,
        has_record: tf.Tensor,
        key: tf.Tensor,
        state: stream_budget.StreamState,
    ) -> tuple:
        record = {constants.HAS_RECORD: has_record, constants.LOGITS: logits}
        sample = window.select(
            chosen,
            rate=config.rate,
            task=task,
            missing=constants.MISSING_UNIFORM,
            example_ids=ids,
            labels=labels,
            record=record if chosen.needs_records else {},
            key=key,
            batch_size=config.batch_size,
            estimator=config.estimator,
            num_outputs=num_outputs,
            state=state if follows else None,
        )
        offsets = sample.log_inclusion
        if offsets is None:
            offsets = tf.zeros([tf.size(sample.indices), num_outputs])
        return sample.indices, sample.weights, offsets, sample.state if follows else state

    shapes: Any = ([None], [None], [None, num_outputs], [None], [])
    dtypes = (tf.int64, label_dtype, tf.float32, tf.bool, tf.int64)
    state = tf.nest.map_structure(
        lambda part: tf.TensorSpec(part.shape, part.dtype), stream_budget.initial_state()
    )
    specs = [*map(tf.TensorSpec, shapes, dtypes), state]
    traced = tf.function(select, specs, autograph=False)
    traced.get_concrete_function()  # traces now, so that no trial's time includes it
    return traced


def export_snapshot(model: keras.Model, directory: str) -> None:
    """Writes the model as a SavedModel with one endpoint, `serve`, from input fields to logits."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [_input_specs(model)]
    archive.add_endpoint("serve", lambda fields: model(fields, training=False), signature)
    archive.write_out(directory, verbose=False)


def _input_specs(model: keras.Model) -> dict[str, tf.TensorSpec]:
    """A spec for any number of examples by input field."""
    return {
        name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name=name)
        for name, tensor in model.input.items()
    }


class CompiledModel:
    """A workload's model and its functions, traced once for any number of examples."""

    def __init__(self, workload: Workload):
        self.model = OFBModel(*workload.build())
        self.model.compile(keras.optimizers.Adam(), workload.loss, jit_compile=False)
        self._inputs = _input_specs(self.model)
        self._is_classifier = workload.task != constants.REGRESSION
        label = tf.TensorSpec([None], workload.test[constants.LABEL].dtype)
        fields = self._inputs | {constants.LABEL: label}
        self._forward = tf.function(
            lambda inputs: self.model(inputs, training=False), [self._inputs], autograph=False
        )
        rows, weights = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.float32)
        offsets = tf.TensorSpec([None, workload.num_outputs], tf.float32)
        specs = [fields, rows, weights, offsets, tf.TensorSpec([], tf.int32)]
        self._train = tf.function(self._train_in_batches, specs, autograph=False)
        one = {name: tf.ones([1, *s.shape[1:]], s.dtype) for name, s in fields.items()}
        # Keras makes its variables in this step, which it may not do inside a loop.
        self.model.train_step(one | {constants.IMPORTANCE_WEIGHT: tf.ones([1])})
        for function in (self._forward, self._train):
            function.get_concrete_function()  # traces now, so that no trial's time includes it

    def reset(self, weights: list[np.ndarray], learning_rate: float) -> None:
        """Makes the model untrained and the optimiser new."""
        self.model.set_weights(weights)
        for variable in self.model.optimizer.variables:
            variable.assign(tf.zeros(variable.shape, variable.dtype))
        self.model.optimizer.learning_rate = learning_rate

    def outputs(self, fields: Examples) -> np.ndarray:
        """The model's outputs, float32 `[n, num_outputs]`."""
        inputs = {name: fields[name] for name in self._inputs}
        count = len(next(iter(inputs.values())))
        parts = [
            self._forward({name: x[start : start + _FORWARD_BATCH] for name, x in inputs.items()})
            for start in range(0, count, _FORWARD_BATCH)
        ]
        return np.concatenate([part.numpy() for part in parts])

    def train(
        self,
        fields: Examples,
        rows: np.ndarray,
        weights: np.ndarray,
        offsets: np.ndarray,
        batch_size: int,
    ) -> None:
        """A step for each batch of rows (int32 `[m]`); the last is short.

        Weights are float32 `[m]`, offsets float32 `[m, num_outputs]`.
        """
        used = {name: fields[name] for name in (*self._inputs, constants.LABEL)}
        arrays = (rows, weights, offsets, batch_size)
        self._train(used, *map(tf.constant, arrays))

    def _train_in_batches(
        self,
        fields: Examples,
        rows: tf.Tensor,
        weights: tf.Tensor,
        offsets: tf.Tensor,
        batch_size: tf.Tensor,
    ) -> None:
        def step(start: tf.Tensor) -> list[tf.Tensor]:
            batch = rows[start : start + batch_size]
            gathered = {name: tf.gather(values, batch) for name, values in fields.items()}
            gathered[constants.IMPORTANCE_WEIGHT] = weights[start : start + batch_size]
            if self._is_classifier:
                gathered[constants.LOG_INCLUSION] = offsets[start : start + batch_size]
            self.model.train_step(gathered)
            return [start + batch_size]

        tf.while_loop(lambda start: start < tf.size(rows), step, [0], parallel_iterations=1)


_models: dict[tuple, CompiledModel] = {}


def compiled_model(dataset: str, workload: Workload) -> CompiledModel:
    """The process's model for workloads of this dataset, task and shape."""
    shapes = {name: tuple(values.shape[1:]) for name, values in workload.test.items()}
    key = (dataset, workload.task, workload.num_outputs, *sorted(shapes.items()))
    if key not in _models:
        _models[key] = CompiledModel(workload)
    return _models[key]

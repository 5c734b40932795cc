"""The two ways from a served model to a trained one: through files, or in memory.

Both answer with the same model, select the same examples with the same weights and train by
`OFBModel.train_step`. `ofb demo` runs every real part of a production loop without a pause,
`ThroughFiles`; `ofb compare` runs hundreds of trials, each on one core, `InMemory`.
"""

import abc
import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing, streaming
from ofb_tf.datasets import tf_examples
from ofb_tf.experiments import config as configs
from ofb_tf.experiments import continuous
from ofb_tf.experiments.workload import Workload, graph
from ofb_tf.experiments.workloads import get_workload
from ofb_tf.records import ForwardRecordWriter
from ofb_tf.selection import heads, stream_budget, window
from ofb_tf.training.model import OFBModel
from ofb_tf.transforms.sample import ofb_sample

_FORWARD_BATCH = 4096
_REQUEST_SIZE = 1024
_MAX_AGE = 86_400.0  # seconds, of records: longer than a run
_SEED_STRIDE = 1_000_003  # of the seeds of selection: every pass of a trial has its own
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

    An interval is what comes between two refreshes of the serving snapshot: `serve`, `arrive`,
    `train`. `model` is an `OFBModel`, at first untrained.
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
        self.interval_size = config.window_size * config.refresh_interval or workload.num_examples
        self.is_everything = policy == configs.EVERYTHING
        self.batch_size = config.whole_batch_size if self.is_everything else config.batch_size
        self.compiled = compiled_model(config, workload)
        self.model = self.compiled.model
        # Once: drawing weights sets the global seed, at which TensorFlow forgets what it compiled.
        self._initial_weights = workload.initial_weights(seed)
        self.reset()
        self.records: Any = None  # of the interval that was served last
        self.answers = np.empty([0, workload.num_outputs], np.float32)  # to its examples
        self._snapshots: dict[int, Any] = {}  # by number

    def reset(self) -> None:
        """Makes the model untrained, with the initial weights of the seed."""
        self.compiled.reset(self._initial_weights, self.config.learning_rate)

    def serve(
        self,
        interval: int,
        examples: Examples,
        kept: np.ndarray | None,
        snapshots: np.ndarray | None = None,
    ) -> None:
        """Has snapshots answer requests, and records the answers that are `kept`, bool `[n]`.

        One more snapshot is taken first, numbered `interval`. `snapshots`, int64 `[n]`, says which
        answered each request; None is the new one. Nothing is recorded if `kept` is None.
        """
        self._snapshots[interval] = self._snapshot(interval)
        ids = examples[constants.EXAMPLE_ID].numpy()
        numbers = np.full(len(ids), interval) if snapshots is None else snapshots
        self.answers = np.empty([len(ids), self.workload.num_outputs], np.float32)
        for number in np.unique(numbers):
            (rows,) = np.nonzero(numbers == number)
            requests = {name: tf.gather(values, rows) for name, values in examples.items()}
            self.answers[rows] = self._answer(self._snapshots[number], requests)
        if kept is not None:
            self._record(interval, ids, numbers, kept)

    def drop_snapshots(self, before: int) -> None:
        """Forgets the snapshots with smaller numbers."""
        self._snapshots = {n: one for n, one in self._snapshots.items() if n >= before}

    @abc.abstractmethod
    def _snapshot(self, interval: int) -> Any:
        """The model as it is now, for `_answer`."""

    @abc.abstractmethod
    def _answer(self, snapshot: Any, examples: Examples) -> np.ndarray:
        """A snapshot's outputs, float32 `[n, num_outputs]`."""

    @abc.abstractmethod
    def _record(
        self, interval: int, ids: np.ndarray, numbers: np.ndarray, kept: np.ndarray
    ) -> None:
        """Leaves records of the kept answers, by snapshots with these numbers."""

    @abc.abstractmethod
    def arrive(self, interval: int, examples: Examples) -> None:
        """Has the labelled examples of an interval arrive."""

    @abc.abstractmethod
    def warm_up(self) -> None:
        """Has everything traced that `train` needs; leaves the model untrained."""

    @abc.abstractmethod
    def train(self, *, ends_pass: bool) -> None:
        """Selects from the interval that arrived last, and trains on the selected.

        Args:
          ends_pass: whether the next interval begins in another pass, or there is none.
        """

    def close(self) -> None:
        """Forgets the snapshots, and ends what is still going on."""
        self._snapshots.clear()

    def pass_of(self, interval: int) -> int:
        """The pass in which an interval begins."""
        return interval * self.interval_size // self.workload.num_examples

    def selection_seed(self, number: int) -> int:
        """The seed of `ofb_sample` in a pass, in which no id comes twice."""
        return _SEED_STRIDE * self.seed + number


class ThroughFiles(RecordPath):
    """The real path, without short cuts, as a continuous run; seconds are wall-clock.

    The snapshot is a SavedModel on disk that is loaded back, and `ForwardRecordWriter` writes its
    answers. Labelled examples arrive as files of tf.Examples. A `SampledStream`, traced once,
    follows both, and one `OFBModel.fit` in a thread trains on what it selects, without a pause for
    as long as the pass lasts. So that runs repeat, serving waits until training has used what
    arrived. A pass repeats the ids of the last one, so it is another stream.

    Two things go on from one interval to the next that `InMemory` begins again: a batch that is not
    full, where a policy's selections are no whole batches, and the state of `budget="stream"`.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._feed: continuous.Feed | None = None  # of the pass that goes on
        self._training: continuous.Training | None = None
        self._unfinished = ""  # the last file of examples, until it is finished
        self._num_arrived = 0  # examples of the pass

    def _snapshot(self, interval: int) -> Any:
        """A SavedModel, written and loaded back."""
        directory = os.path.join(self.directory, f"snapshot_{interval}")
        export_snapshot(self.model, directory)
        loaded = tf.saved_model.load(directory)
        shutil.rmtree(directory)
        return loaded

    def _answer(self, snapshot: Any, examples: Examples) -> np.ndarray:
        """By requests of `_REQUEST_SIZE`."""
        names = list(snapshot.serve.input_signature[0])
        answers = [
            snapshot.serve({name: examples[name][start : start + _REQUEST_SIZE] for name in names})
            for start in range(0, len(examples[constants.EXAMPLE_ID]), _REQUEST_SIZE)
        ]
        return np.concatenate(answers)

    def _record(
        self, interval: int, ids: np.ndarray, numbers: np.ndarray, kept: np.ndarray
    ) -> None:
        """Writes record files, by requests."""
        self.records = self._log("records", interval)
        with ForwardRecordWriter(self.records, num_outputs=self.workload.num_outputs) as writer:
            for start in range(0, len(ids), _REQUEST_SIZE):
                rows = start + np.flatnonzero(kept[start : start + _REQUEST_SIZE])
                writer.write(ids[rows], self.answers[rows], model_version=numbers[rows])

    def _log(self, name: str, interval: int) -> str:
        return os.path.join(self.directory, f"{name}_{self.pass_of(interval)}")

    def arrive(self, interval: int, examples: Examples) -> None:
        """Writes a file, which `train` finishes; see `RecordPath.arrive`."""
        directory = self._log("examples", interval)
        if self._feed is None:
            os.makedirs(directory)
            self._feed, self._num_arrived = self._new_feed(interval, examples), 0
        self._unfinished = os.path.join(directory, f"{interval:06d}.tmp")
        with tf.io.TFRecordWriter(self._unfinished) as writer:
            for example in tf_examples.serialize(examples):
                writer.write(example)
        self._num_arrived += len(examples[constants.EXAMPLE_ID])

    def _new_feed(self, interval: int, examples: Examples) -> continuous.Feed:
        log = streaming.ExampleDirectory(self._log("examples", interval))
        parse = tf_examples.parser(examples)
        if self.is_everything:
            return continuous.WholeFeed(log, parse, self.batch_size)
        records = self._log("records", interval)
        if self.records is None:  # but a stream takes its form from them
            with ForwardRecordWriter(records) as writer:
                writer.write([0], np.zeros([1, self.workload.num_outputs], np.float32))
        keys = {constants.EXAMPLE_ID, *self.workload.label_fields}
        sampler = ofb_sample(
            rate=self.config.rate,
            policy=self.config.make_policy(self.policy),
            task=self.workload.task,
            label_key=self.workload.label_key,
            window_size=self.config.window_size,
            batch_size=self.batch_size,
            seed=self.selection_seed(self.pass_of(interval)),
            num_outputs=self.workload.num_outputs,
            estimator=self.config.estimator,
            budget=self.config.budget,
            max_age=_MAX_AGE,
            parse_fn=parse,
            feature_spec=tf_examples.feature_spec({n: examples[n] for n in keys}),
        )
        return continuous.SampledFeed(sampler, log, streaming.RecordDirectory(records))

    def _finish_file(self) -> None:
        if self._unfinished:
            os.rename(self._unfinished, self._unfinished.replace(".tmp", ".tfrecord"))
        self._unfinished = ""

    def _batches(self, *, only_first: bool = False) -> tf.data.Dataset:
        assert self._feed is not None
        return self._feed.dataset(only_first=only_first).prefetch(tf.data.AUTOTUNE)

    def warm_up(self) -> None:
        """A step, after which the stream begins again; see `RecordPath.warm_up`."""
        self._finish_file()
        continuous.fit(self.model, self._batches(only_first=True))
        self.reset()

    def train(self, *, ends_pass: bool) -> None:
        """Waits until all that arrived is used; see `RecordPath.train`."""
        if self._training is None:
            self._training = continuous.Training(self.model, self._batches())
        else:
            self.model.importance_weight_statistics.reset_state()  # as `fit` does
        self._finish_file()
        feed, arrived = self._feed, self._num_arrived
        assert feed is not None
        self._training.wait(lambda batches: feed.is_used(arrived, batches))
        if ends_pass:
            feed.end()
            self._training.wait()
            self._feed = self._training = self.records = None

    def close(self) -> None:
        """Ends also a run that an error has stopped; see `RecordPath.close`."""
        super().close()
        if self._feed is not None:
            self._feed.close()


class InMemory(RecordPath):
    """The same, compiled: records are an array, and functions are traced once per process.

    Selection is a function of seed and ids alone, so the windows give what `ofb_sample` gives.
    Seconds are processor time, which is what the wall clock shows on a core that is otherwise idle.
    With `served_model`, that model serves, and is trained on the same selected examples.
    """

    clock = staticmethod(time.process_time)

    def __init__(self, config: configs.SimulationConfig, *arguments: Any):
        super().__init__(config, *arguments)
        self._served = self.compiled
        self._trained_on: tuple | None = None  # arguments of `CompiledModel.train`
        if config.served_model:
            production = dataclasses.replace(config, model=config.served_model, served_model=None)
            workload = get_workload(production, self.seed, in_memory=True)
            self._served = compiled_model(production, workload)
            self._served.reset(workload.initial_weights(self.seed), config.learning_rate)

    def _snapshot(self, interval: int) -> Any:
        """The weights of the model that serves."""
        if self._served is not self.compiled and self._trained_on is not None:
            self._served.train(*self._trained_on)  # here, where its time does not count
        return self._served.model.get_weights()

    def _answer(self, snapshot: Any, examples: Examples) -> np.ndarray:
        """By the model that serves, with the snapshot's weights for as long."""
        model = self._served.model
        weights = model.get_weights()
        model.set_weights(snapshot)
        answers = self._served.outputs(examples)
        model.set_weights(weights)
        return answers

    def _record(
        self, interval: int, ids: np.ndarray, numbers: np.ndarray, kept: np.ndarray
    ) -> None:
        """Keeps logits, NaN where the record is lost."""
        self.records = np.where(kept[:, None], self.answers, np.float32(np.nan))

    def arrive(self, interval: int, examples: Examples) -> None:
        """Keeps the examples; see `RecordPath.arrive`."""
        self._examples, self._number = examples, self.pass_of(interval)

    def warm_up(self) -> None:
        """Selection; the training step was traced when it was made."""
        self._selected()

    def train(self, *, ends_pass: bool) -> None:
        """Trains on the selected rows; see `RecordPath.train`."""
        rows, weights, offsets = self._selected()
        self.model.importance_weight_statistics.reset_state()  # as `fit` does
        self._trained_on = (self._examples, rows, weights, offsets, self.batch_size)
        self.compiled.train(*self._trained_on)

    def _selected(self) -> tuple[np.ndarray, ...]:
        """Rows in the order of training, int32 `[m]`, their weights, float32 `[m]`, and offsets.

        Offsets are float32 `[m, num_outputs]`, 0 with the estimator "weights".
        """
        examples = self._examples
        ids = examples[constants.EXAMPLE_ID].numpy()
        labels = [examples[name].numpy() for name in self.workload.label_fields]
        num_outputs, size = self.workload.num_outputs, self.config.window_size
        if self.is_everything:
            offsets = np.zeros([len(ids), num_outputs], np.float32)
            return np.arange(len(ids), dtype=np.int32), np.ones(len(ids), np.float32), offsets
        logits = self.records
        if logits is None:
            logits = np.zeros([len(ids), num_outputs], np.float32)
        config = configs.SimulationConfig(**{n: getattr(self.config, n) for n in _SELECTION_FIELDS})
        task: Any = self.workload.task
        task = task if isinstance(task, str) else heads.Heads.of(task, None)
        dtypes = tuple(label.dtype.name for label in labels)
        select = _traced_selection(config, self.policy, task, num_outputs, dtypes)
        arrays = (ids, logits, ~np.isnan(logits[:, 0]), *labels)
        # The key of `ofb_sample(seed=..., redraw_each_iteration=False)`: with epoch 0 folded in.
        key = hashing.fold_in(np.int64(self.selection_seed(self._number)), np.int64(0))
        state = stream_budget.initial_state()
        parts = []
        for start in range(0, len(ids), size):
            window_arrays = (a[start : start + size] for a in arrays)
            indices, importance, offsets, state = select(key, state, *window_arrays)
            rows = indices.numpy() + np.int32(start)
            parts.append((rows, importance.numpy(), offsets.numpy()))
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@functools.cache
def _traced_selection(
    config: configs.SimulationConfig,
    policy: str,
    task: str | heads.Heads,
    num_outputs: int,
    label_dtypes: tuple[str, ...],
) -> Callable:
    """The selection from one window as a function, traced once.

    Returns indices, weights, offsets and the state of `budget="stream"`.
    """
    chosen = config.make_policy(policy)
    follows = config.budget == constants.BUDGET_STREAM and chosen.needs_records

    def select(
        key: tf.Tensor,
        state: stream_budget.StreamState,
        ids: tf.Tensor,
        logits: tf.Tensor,
        has_record: tf.Tensor,
        *labels_of: tf.Tensor,
    ) -> tuple:
        record = {constants.HAS_RECORD: has_record, constants.LOGITS: logits}
        record, labels = record if chosen.needs_records else {}, labels_of[0]
        if isinstance(task, heads.Heads):
            record, labels, _ = heads.combine(task, record, [*labels_of], chosen.score)
        sample = window.select(
            chosen,
            rate=config.rate,
            task=task if isinstance(task, str) else constants.MULTICLASS,
            missing=constants.MISSING_UNIFORM,
            example_ids=ids,
            labels=labels,
            record=record,
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

    shapes: Any = ([None], [None, num_outputs], [None], *[[None]] * len(label_dtypes))
    dtypes = (tf.int64, tf.float32, tf.bool, *label_dtypes)
    state = tf.nest.map_structure(
        lambda part: tf.TensorSpec(part.shape, part.dtype), stream_budget.initial_state()
    )
    specs = [tf.TensorSpec([], tf.int64), state, *map(tf.TensorSpec, shapes, dtypes)]
    return tf.function(select, specs, autograph=False)


def export_snapshot(model: keras.Model, directory: str) -> None:
    """Writes the model as a SavedModel with one endpoint, `serve`, from input fields to logits."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [_input_specs(model)]
    archive.add_endpoint(
        "serve", lambda fields: heads.side_by_side(model(fields, training=False)), signature
    )
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
        self.model = OFBModel(*graph(workload.build()), label_key=workload.label_key)
        self.model.compile(keras.optimizers.Adam(), workload.loss, jit_compile=False)
        self._inputs = _input_specs(self.model)
        self._has_offsets = workload.task in (constants.BINARY, constants.MULTICLASS)
        labels = {
            name: tf.TensorSpec([None], workload.test[name].dtype) for name in workload.label_fields
        }
        fields = self._inputs | labels
        self._fields = list(fields)
        self._forward = tf.function(
            lambda inputs: heads.side_by_side(self.model(inputs, training=False)),
            [self._inputs],
            autograph=False,
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
        used = {name: fields[name] for name in self._fields}
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
            if self._has_offsets:
                gathered[constants.LOG_INCLUSION] = offsets[start : start + batch_size]
            self.model.train_step(gathered)
            return [start + batch_size]

        tf.while_loop(lambda start: start < tf.size(rows), step, [0], parallel_iterations=1)


_models: dict[tuple, CompiledModel] = {}


def compiled_model(config: configs.SimulationConfig, workload: Workload) -> CompiledModel:
    """The process's model for workloads of this dataset, model, task and shape."""
    shapes = {name: tuple(values.shape[1:]) for name, values in workload.test.items()}
    key = (
        config.dataset,
        config.model,
        config.num_examples,
        str(workload.task),
        workload.num_outputs,
        *sorted(shapes.items()),
    )
    if key not in _models:
        _models[key] = CompiledModel(workload)
    return _models[key]

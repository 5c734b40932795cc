"""Keras callbacks: recording forward passes, saving the input's place, guarding selection."""

import json
import os
import pathlib
import shutil
import warnings
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.checks import check_count
from ofb_tf.records import ForwardRecordWriter
from ofb_tf.selection import Inclusion, Policy, Window, get_policy
from ofb_tf.streaming import SampledStream
from ofb_tf.training import metrics
from ofb_tf.training.model import OFBModel


class RecordForwardPasses(keras.callbacks.Callback):
    """Writes the forward passes of `OFBModel(backward_rate=...)` as forward records.

    A training job that has no serving records yet thus warms up the record store: the next job
    joins them with `ofb_sample(records=...)`. Elements must be dicts with `example_id`.

    ```python
    import keras

    import ofb_tf
    from ofb_tf.testing import tiny_dataset

    feature = keras.Input((2,), name="feature")
    model = ofb_tf.OFBModel(feature, keras.layers.Dense(1)(feature), backward_rate=0.1)
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    recorder = ofb_tf.RecordForwardPasses("records", batch_size=240)
    model.fit(tiny_dataset(960).batch(240), callbacks=[recorder], verbose=0)
    assert len(ofb_tf.ForwardRecords.load("records")) == 960
    ```

    Args:
      directory: where the record files go.
      batch_size: of the batches that `fit` gets; the last one may be smaller.
      model_version: version in the records; None for the number of optimiser steps so far.
      **writer_settings: of `ForwardRecordWriter`.

    Raises:
      ValueError: `batch_size` is below 1; in `fit`, a model without `backward_rate`, elements
        without ids, a batch that is larger, or `steps_per_execution` above 1.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        batch_size: int,
        model_version: int | None = None,
        **writer_settings: Any,
    ):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: {batch_size}")
        self.directory = directory
        self.batch_size = batch_size
        self.model_version = model_version
        self._settings = writer_settings
        self._writer: Any = None
        self._ids: Any = None
        self._logits: Any = None
        self._count = tf.Variable(0, dtype=tf.int32, trainable=False)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the writer; raises ValueError where the model does not fit."""
        _check_model(self.model, type(self).__name__)
        if self.model.backward_rate is None:
            raise ValueError(
                "RecordForwardPasses needs OFBModel(backward_rate=...): only then does a batch "
                "go forward as a whole. Received: backward_rate=None"
            )
        if self.model.steps_per_execution != 1:
            raise ValueError(
                "RecordForwardPasses needs compile(steps_per_execution=1), as it reads every step. "
                f"Received: {self.model.steps_per_execution}"
            )
        self._writer = ForwardRecordWriter(self.directory, **self._settings)
        self.model.observe(self)
        self.model.make_train_function()

    def update(self, fields: dict[str, tf.Tensor]) -> None:
        """Keeps one step's forward passes; runs in the graph."""
        if constants.EXAMPLE_ID not in fields:
            raise ValueError(
                "RecordForwardPasses: elements must be dicts with 'example_id', without "
                f"class_weight and on one replica. Received fields: {sorted(fields)}"
            )
        ids = hashing.to_int64(fields[constants.EXAMPLE_ID])
        logits = fields[constants.FORWARD_LOGITS]
        if self._ids is None:
            with tf.init_scope():  # variables of a fixed shape, as XLA wants them
                shape = [self.batch_size]
                self._ids = tf.Variable(tf.zeros(shape, tf.int64), trainable=False)
                self._logits = tf.Variable(tf.zeros([*shape, logits.shape[1]]), trainable=False)
        size = ids.shape[0] if ids.shape[0] is not None else tf.shape(ids)[0]
        if isinstance(size, int) and size > self.batch_size:
            raise ValueError(
                f"RecordForwardPasses: batch_size={self.batch_size}, but a batch has {size}."
            )
        room = self.batch_size - size
        ids = tf.pad(ids, [[0, room]])
        logits = tf.pad(logits, [[0, room], [0, 0]])
        self._ids.assign(tf.ensure_shape(ids, self._ids.shape))
        self._logits.assign(tf.ensure_shape(logits, self._logits.shape))
        self._count.assign(size)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes one step's forward passes."""
        count = int(self._count.numpy())
        version = self.model_version
        if version is None:
            version = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) - 1
        self._writer.write(
            self._ids.numpy()[:count], self._logits.numpy()[:count], model_version=version
        )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Completes the files."""
        self.model.stop_observing(self)
        self._writer.close()


class OFBTensorBoard(keras.callbacks.TensorBoard):
    """Deprecated: `keras.callbacks.TensorBoard` writes what `OFBModel` reports for each epoch.

    Args:
      log_dir: directory of the event files.
      **kwargs: as for `keras.callbacks.TensorBoard`.
    """

    def __init__(self, log_dir: str | os.PathLike, **kwargs: Any):
        warnings.warn(
            "OFBTensorBoard is deprecated, use keras.callbacks.TensorBoard.",
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(os.fspath(log_dir), **kwargs)


class BackupIterator(keras.callbacks.Callback):
    """Saves the place in the input at the end of every epoch, next to `BackupAndRestore`.

    `keras.callbacks.BackupAndRestore` restores the model and the epoch; the input would start
    over. With both, a run that was killed goes on as if it had never stopped:

    ```python
    import keras

    import ofb_tf
    from ofb_tf.testing import tiny_dataset

    feature = keras.Input((2,), name="feature")
    model = ofb_tf.OFBModel(feature, keras.layers.Dense(1)(feature))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    train = tiny_dataset(960).apply(ofb_tf.ofb_sample(window_size=240, batch_size=24, seed=17))
    place = ofb_tf.BackupIterator(train.repeat(), "backup/input")
    backup = keras.callbacks.BackupAndRestore("backup/model")
    model.fit(place.dataset, steps_per_epoch=4, epochs=2, callbacks=[backup, place], verbose=0)
    ```

    Args:
      dataset: the input. Its iterator must be one that TensorFlow can save: no Python function,
        no stateful random op, no tf.data service. `ofb_sample` can.
      directory: of the iterator's checkpoints; restored from where it has one.

    Attributes:
      dataset: what `fit` is to be given, with `steps_per_epoch`.

    Raises:
      tf.errors.FailedPreconditionError: in `fit`, the iterator holds state that cannot be saved.
    """

    def __init__(self, dataset: tf.data.Dataset, directory: str | os.PathLike):
        super().__init__()
        iterator = iter(dataset)
        self._manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(iterator=iterator), os.fspath(directory), max_to_keep=2
        )
        self._manager.restore_or_initialize()
        # Keras takes no iterator, and reads ahead of a generator. This takes one element a step.
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        endless = tf.data.Dataset.from_tensors(0).repeat()
        self.dataset = endless.map(lambda _: iterator.get_next()).with_options(options)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the iterator."""
        self._manager.save()


class StreamCheckpoint(keras.callbacks.Callback):
    """Saves the model and its place in a `SampledStream` in one step.

    A process that is killed at any moment and started again goes on from the last checkpoint,
    with the examples that follow it: none is lost, none is trained on twice.

    ```py
    checkpoint = ofb_tf.StreamCheckpoint(stream, "checkpoints", every=1000)
    checkpoint.restore(model)  # does nothing at the first start
    model.fit(stream.dataset(), steps_per_epoch=1000, epochs=24, callbacks=[checkpoint])
    ```

    Args:
      stream: whose `dataset()` is given to `fit`.
      directory: of the checkpoints, on a file system that renames directories atomically. Each is
        a directory with `model.weights.h5` (with the optimizer) and `stream.json`.
      every: batches between two checkpoints. Another one is saved at the end of training.
      keep: how many are kept.

    Raises:
      ValueError: `every` or `keep` is below 1.
    """

    _WEIGHTS, _STATE = "model.weights.h5", "stream.json"

    def __init__(
        self,
        stream: SampledStream,
        directory: str | os.PathLike,
        *,
        every: int = 1000,
        keep: int = 2,
    ) -> None:
        super().__init__()
        self._stream = stream
        self._directory = pathlib.Path(directory)
        self._every, self._keep = check_count("every", every), check_count("keep", keep)
        self._steps = 0  # before this iteration over the stream
        self._of_epochs = self._batches = self._saved = 0  # in it

    @property
    def batches(self) -> int:
        """Batches trained, since the first start."""
        return self._steps + self._batches

    def restore(self, model: keras.Model) -> int:
        """Goes back to the newest checkpoint, before `fit`; the model must be compiled.

        Returns:
          The batches trained up to there, 0 if there is no checkpoint.

        Raises:
          ValueError: the checkpoint is of another model, or of a stream with other settings.
        """
        found = self._complete()
        if not found:
            return 0
        content = json.loads((found[-1] / self._STATE).read_text())
        model.optimizer.build(model.trainable_variables)
        model.load_weights(str(found[-1] / self._WEIGHTS))
        self._stream.restore(content["stream"])
        self._steps = content["batches"]
        return self._steps

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """The stream begins where `restore` said, or at its beginning."""
        self._of_epochs = self._batches = self._saved = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves, if it is time."""
        self._batches = self._of_epochs + batch + 1
        if self._batches // self._every > self._saved // self._every:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Batches are numbered from 0 again in the next epoch."""
        self._of_epochs = self._batches

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Saves, and a further `fit` goes on from here."""
        if self._batches > self._saved:
            self._save()
        self._stream.restore(self._stream.state(self._batches))
        self._steps, self._batches = self.batches, 0

    def _save(self) -> None:
        target = self._directory / f"batch-{self.batches:012d}"
        unfinished = target.with_suffix(".tmp")
        for path in self._directory.glob("*.tmp"):
            shutil.rmtree(path)  # a process was killed while it saved
        unfinished.mkdir(parents=True)
        self.model.save_weights(str(unfinished / self._WEIGHTS))
        state = self._stream.state(self._batches)
        content = {"batches": self.batches, "stream": state}
        (unfinished / self._STATE).write_text(json.dumps(content))
        unfinished.rename(target)
        self._stream.commit(state)
        self._saved = self._batches
        for path in self._complete()[: -self._keep]:
            shutil.rmtree(path)

    def _complete(self) -> list[pathlib.Path]:
        return sorted(path for path in self._directory.glob("batch-*") if not path.suffix)


class SelectionGuard(keras.callbacks.Callback):
    """Warns, and if asked falls back to uniform sampling, when the weighted estimate is worse.

    It reads `variance_ratio` (`ofb_tf.training.metrics.VarianceRatio`) from a uniform part of
    the stream: the variance of the weighted estimate over that of uniform sampling at the same
    rate. Useless records (another model's, mixed-up ids) put it above 1.

    ```python
    import keras

    import ofb_tf
    from ofb_tf.testing import tiny_dataset

    guard = ofb_tf.SelectionGuard(fall_back=True, min_examples=20)
    sampler = ofb_tf.ofb_sample(
        policy=guard.policy("importance"), uniform_probe=0.02, batch_size=32, seed=17
    )
    feature = keras.Input((2,), name="feature")
    model = ofb_tf.OFBModel(feature, keras.layers.Dense(1)(feature))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(tiny_dataset(8192).apply(sampler), callbacks=[guard], verbose=0)
    assert model.variance_ratio.count() > 20  # what the guard has judged by
    ```

    Args:
      max_variance_ratio: above 0; a larger ratio trips the guard.
      min_examples: probe examples since the beginning of the epoch before it judges, at least 1.
      every_batches: it judges after this many batches and at the end of every epoch.
      fall_back: whether `policy` becomes uniform when the guard trips. Batches that tf.data has
        prefetched are still weighted as they were selected: the estimate stays unbiased.

    Attributes:
      tripped: whether the guard has tripped.

    Raises:
      ValueError: an argument is out of range; in `fit`, the model is not an `OFBModel`.
    """

    def __init__(
        self,
        *,
        max_variance_ratio: float = 1.0,
        min_examples: int = 200,
        every_batches: int = 50,
        fall_back: bool = False,
    ):
        super().__init__()
        if not max_variance_ratio > 0:
            raise ValueError(f"max_variance_ratio must be above 0. Received: {max_variance_ratio}")
        for name, value in (("min_examples", min_examples), ("every_batches", every_batches)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {value}")
        self.max_variance_ratio = max_variance_ratio
        self.min_examples = min_examples
        self.every_batches = every_batches
        self.fall_back = fall_back
        self.tripped = False
        self._is_uniform = tf.Variable(False, trainable=False)

    def policy(self, policy: str | Policy = "importance") -> "GuardedPolicy":
        """The policy that this guard can make uniform.

        Args:
          policy: a name or a `Policy`: what is used until the guard trips.

        Returns:
          A `Policy` for `ofb_sample`, in the process that trains.

        Raises:
          ValueError: an unknown name.
          TypeError: neither a name nor a `Policy`.
        """
        return GuardedPolicy(get_policy(policy), self._is_uniform)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the model; raises ValueError unless it is an `OFBModel`."""
        if not isinstance(self.model, OFBModel):
            raise ValueError(
                f"SelectionGuard needs an OFBModel. Received: {type(self.model).__name__}"
            )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Judges every `every_batches` batches."""
        if (batch + 1) % self.every_batches == 0:
            self._judge()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Judges; says so where there was nothing to judge by."""
        self._judge()
        if self.model.variance_ratio.count() == 0:
            warnings.warn(
                "SelectionGuard saw no example with uniform_probe and a weight. Sample with "
                "ofb_sample(uniform_probe=0.02) on dict elements.",
                stacklevel=2,
            )

    def _judge(self) -> None:
        monitor = self.model.variance_ratio
        count = monitor.count()
        if self.tripped or count < self.min_examples:
            return
        ratio = float(monitor.result())
        if ratio <= self.max_variance_ratio:
            return
        self.tripped = True
        figures = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        correlation = figures.get(metrics.SCORE_CORRELATION)
        stale = "" if correlation is None else f" and score_correlation is {correlation:.2f}"
        action = "sampling is uniform from here on" if self.fall_back else "fall_back=False"
        warnings.warn(
            f"SelectionGuard: the weighted estimate has {ratio:.2f} times the variance of uniform "
            f"sampling on {count} probe examples (max_variance_ratio={self.max_variance_ratio})"
            f"{stale}; {action}. Check that the records belong to these examples and to a model "
            "like this one; raise uniform_mix, or use policy='uniform'.",
            stacklevel=3,
        )
        if self.fall_back:
            self._is_uniform.assign(True)


class GuardedPolicy(Policy):
    """Another policy, or uniform sampling with weights of 1, as a variable says.

    The variable is state, so an iterator over such a dataset cannot be checkpointed, and it has
    to be in the process that trains (not in a tf.data service worker).

    Args:
      policy: the policy.
      is_uniform: bool scalar variable.
    """

    def __init__(self, policy: Policy, is_uniform: tf.Variable):
        self.design = policy.design
        self.score = policy.score
        self.needs_records = policy.needs_records
        self.affine = policy.affine
        if hasattr(policy, "uniform_mix"):  # bounds the probe, and the budget under "keep"
            self.uniform_mix = policy.uniform_mix
        self._policy = policy
        self._is_uniform = is_uniform

    def inclusion(self, window: Window, budget: tf.Tensor) -> Inclusion:
        """The policy's inclusion, or `budget / n` for all."""
        chosen = self._policy.inclusion(window, budget)
        n = tf.maximum(tf.cast(tf.size(window.scores), tf.float64), 1.0)
        even = tf.ones_like(chosen.probabilities) * tf.minimum(budget / n, 1.0)
        is_uniform = self._is_uniform.read_value()
        weights = chosen.weights
        if weights is not None:
            weights = tf.where(is_uniform, tf.ones_like(weights), weights)
        line = chosen.line
        if line is not None:
            flat = tf.stack([tf.constant(0.0, tf.float64), tf.minimum(budget / n, 1.0)])
            line = tf.where(is_uniform, flat, line)
        return Inclusion(tf.where(is_uniform, even, chosen.probabilities), weights, line)


def _check_model(model: keras.Model, callback: str) -> None:
    if not isinstance(model, OFBModel):
        raise ValueError(f"{callback} needs an OFBModel. Received: {type(model).__name__}")

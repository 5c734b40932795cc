"""Keras callbacks: records from training's own forward passes, and TensorBoard."""

import os
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import ForwardRecordWriter
from ofb_tf.training import metrics
from ofb_tf.training.model import OFBModel

FORWARD_LOGITS = "forward_logits"

_SCALAR, _TENSOR = 1, 2  # DataClass of summary.proto


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
        """Keeps one step's forward passes; runs in the graph.

        Args:
          fields: the step's tensors by name, as of `OFBModel.observe`.

        Raises:
          ValueError: no ids, or a batch larger than `batch_size`.
        """
        if constants.EXAMPLE_ID not in fields:
            raise ValueError(
                "RecordForwardPasses: elements must be dicts with 'example_id', without "
                f"class_weight and on one replica. Received fields: {sorted(fields)}"
            )
        ids, logits = fields[constants.EXAMPLE_ID], fields[FORWARD_LOGITS]
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
        ids = tf.pad(tf.cast(ids, tf.int64), [[0, room]])
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


class OFBTensorBoard(keras.callbacks.Callback):
    """Writes what `OFBModel` measures of weights and records, with histograms, for TensorBoard.

    Scalars under `ofb/`, once an epoch: `effective_sample_size`, `mean_weight`, `max_weight`, and
    `realized_rate`, `record_coverage`, `score_correlation`, `variance_ratio` where they are
    measured. Histograms: `ofb/importance_weight`, and `ofb/record_age_seconds` where elements keep
    `timestamp` (`ofb_sample(keep_record=True)`), with the age at the beginning of the epoch.

    Args:
      log_dir: directory of the event files.

    Raises:
      ValueError: in `fit`, the model is not an `OFBModel`.
    """

    def __init__(self, log_dir: str | os.PathLike):
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self._writer: Any = None
        self._weights: Any = None
        self._ages: Any = None
        self._now: Any = None
        self._has_ages = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the event file."""
        _check_model(self.model, type(self).__name__)
        self._writer = tf.summary.create_file_writer(self.log_dir)
        with self.model.distribute_strategy.scope():
            self._weights = metrics.LogHistogram(2.0**-6, 2.0**10, 32)
            self._ages = metrics.LogHistogram(1e-3, 1e9, 48)
            self._now = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.model.observe(self)
        self.model.make_train_function()

    def update(self, fields: dict[str, tf.Tensor]) -> None:
        """Counts one step's weights and ages; runs in the graph.

        Args:
          fields: the step's tensors by name, as of `OFBModel.observe`.
        """
        self._weights.update_state(fields[constants.IMPORTANCE_WEIGHT])
        if constants.TIMESTAMP in fields:
            self._has_ages = True
            timestamp = fields[constants.TIMESTAMP]
            age = tf.cast(self._now - timestamp, tf.float32) / constants.MICROSECONDS
            missing = timestamp < 0
            self._ages.update_state(tf.where(missing, float("nan"), tf.maximum(age, 0.0)))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the epoch's histograms."""
        self._now.assign(time.time_ns() // 1000)
        self._weights.reset_state()
        self._ages.reset_state()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's scalars and histograms."""
        with self._writer.as_default():
            for name, value in (logs or {}).items():
                if name in metrics.OWN_FIGURES:
                    _write(f"ofb/{name}", np.float32(value), epoch, "scalars", _SCALAR)
            histograms = {"importance_weight": self._weights}
            if self._has_ages:
                histograms["record_age_seconds"] = self._ages
            for name, histogram in histograms.items():
                _write(f"ofb/{name}", histogram.buckets(), epoch, "histograms", _TENSOR)
        self._writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event file."""
        self.model.stop_observing(self)
        self._writer.close()


class BackupIterator(keras.callbacks.Callback):
    """Saves the place in the input at the end of every epoch, beside `BackupAndRestore`.

    `keras.callbacks.BackupAndRestore` restores the model and the epoch; the input would begin
    anew. With both, a run that was killed goes on as if it had never stopped:

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


def _write(
    tag: str, value: np.ndarray | np.float32, step: int, plugin: str, data_class: int
) -> None:
    """One summary as a TensorBoard plugin reads it; TensorBoard itself need not be installed."""
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin),
        data_class=data_class,
    )
    tf.summary.write(tag, tf.constant(value), step=step, metadata=metadata)


def _check_model(model: keras.Model, callback: str) -> None:
    if not isinstance(model, OFBModel):
        raise ValueError(f"{callback} needs an OFBModel. Received: {type(model).__name__}")

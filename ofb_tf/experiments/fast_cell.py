"""The same cell in memory: what `simulation` streams through files and pipelines, but compiled.

Selection is a function of seed and ids alone, so this selects what `ofb_sample` would, by the same
`window.sample_window`, and trains by `OFBModel.train_step`. Functions are traced once and serve
every cell of a process. `ofb compare` runs hundreds of cells this way, each on one core; seconds
are processor time, which is what the wall clock shows on a core that nobody else uses.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.experiments import config as configs
from ofb_tf.experiments import simulation
from ofb_tf.experiments.compiled_model import compiled_model
from ofb_tf.experiments.workloads import ClickWorkload, Workload
from ofb_tf.selection import scores, window
from ofb_tf.training.model import OFBModel

_CURVE_POINTS = 10
_HISTOGRAM_POINTS = 500
_GENERATED_AT_ONCE = 25_600
_SELECTION_FIELDS = (
    "rate",
    "window_size",
    "steps_per_window",
    "uniform_mix",
    "selective_beta",
)
_DATA_FIELDS = (
    "dataset",
    "data_dir",
    "passes",
    "num_examples",
    "test_examples",
    "positive_rate",
)


@functools.cache
def _selector(
    config: configs.SimulationConfig,
    policy: str,
    task: str,
    num_outputs: int,
    label_dtype: tf.DType,
) -> Callable:
    """The selection of one window as a function, traced once: indices and weights."""
    chosen = config.make_policy(policy)

    def select(
        ids: tf.Tensor, labels: tf.Tensor, logits: tf.Tensor, has_record: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        record = {constants.HAS_RECORD: has_record, constants.LOGITS: logits}
        sample = window.select(
            policy=chosen,
            rate=config.rate,
            task=task,
            missing="uniform",
            example_ids=ids,
            labels=labels,
            record=record if chosen.needs_records else {},
            key=key,
            batch_size=config.batch_size,
        )
        return sample.indices, sample.weights

    signature = [
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None], label_dtype),
        tf.TensorSpec([None, num_outputs], tf.float32),
        tf.TensorSpec([None], tf.bool),
        tf.TensorSpec([], tf.int64),
    ]
    traced = tf.function(select, signature, autograph=False)
    traced(*(tf.zeros([32] * bool(s.shape.rank) + s.shape[1:], s.dtype) for s in signature))
    return traced


class Records(NamedTuple):
    """What serving leaves behind of an interval.

    Attributes:
      logits: float32 `[n, num_outputs]`, not-a-number where the record is lost.
      has_record: bool `[n]`.
    """

    logits: np.ndarray
    has_record: np.ndarray


class Selection(NamedTuple):
    """What was selected of an interval.

    Attributes:
      rows: int32 `[m]`, in the order of training.
      weights: float32 `[m]`.
    """

    rows: np.ndarray
    weights: np.ndarray


class FastCell(simulation.Cell):
    """A cell in memory. Arguments as of `simulation.Cell`, without a directory."""

    def __init__(
        self, config: configs.SimulationConfig, policy: str, seed: int, workload: Workload
    ):
        super().__init__(config, policy, seed, workload, directory="")
        if policy != configs.EVERYTHING:
            used = {name: getattr(config, name) for name in _SELECTION_FIELDS}
            self._select = _selector(
                configs.SimulationConfig(**used),
                policy,
                workload.task,
                workload.num_outputs,
                workload.test[constants.LABEL].dtype,
            )

    def _build_model(self) -> OFBModel:
        self._compiled = compiled_model(self.config.dataset, self.workload)
        weights = _initial_weights(self.workload, self.seed)
        self._compiled.reset(weights, self.config.learning_rate)
        return self._compiled.model

    def _outputs_on_test(self) -> np.ndarray:
        return self._compiled.outputs(self.workload.test)

    def _is_measured(self, interval: int, num_intervals: int) -> bool:
        """About ten times, among them the last."""
        return (interval + 1) * _CURVE_POINTS // num_intervals > (
            interval * _CURVE_POINTS // num_intervals
        )

    def _discard(self, records: Records) -> None:
        del records

    def _serve(self, interval: int, examples: dict[str, tf.Tensor]) -> Records:
        """The snapshot is the model as it is now, and answers before training goes on."""
        began = time.process_time()
        logits = self._compiled.outputs(examples)
        has_record = self.conditions.has_record(examples[constants.EXAMPLE_ID].numpy(), interval)
        logits[~has_record] = np.nan
        self.result.serving_seconds += time.process_time() - began
        return Records(logits, has_record)

    def _sample(
        self, interval: int, examples: dict[str, tf.Tensor], records: Records | None
    ) -> Selection:
        count = len(examples[constants.EXAMPLE_ID])
        if self.policy == configs.EVERYTHING:
            return Selection(np.arange(count, dtype=np.int32), np.ones(count, np.float32))
        if records is None:
            shape = [count, self.workload.num_outputs]
            records = Records(np.zeros(shape, np.float32), np.ones(count, bool))
        ids, labels = (
            np.asarray(examples[name]) for name in (constants.EXAMPLE_ID, constants.LABEL)
        )
        # The key that ofb_sample makes of its seed, where the epoch does not count.
        key = hashing.fold_in_numpy(np.int64(self._selection_seed(interval)), np.int64(0))
        rows, weights = [], []
        for start in range(0, count, self.config.window_size):
            part = slice(start, start + self.config.window_size)
            indices, importance = self._select(
                ids[part], labels[part], *(r[part] for r in records), key
            )
            rows.append(indices.numpy() + np.int32(start))
            weights.append(importance.numpy())
        return Selection(np.concatenate(rows), np.concatenate(weights))

    def _train(
        self, interval: int, examples: dict[str, tf.Tensor], records: Records | None
    ) -> None:
        began = time.process_time()
        selected = self._sample(interval, examples, records)
        everything = self.policy == configs.EVERYTHING
        batch_size = self.config.whole_batch_size if everything else self.config.batch_size
        self._compiled.train(examples, *selected, batch_size)
        self.result.train_seconds += time.process_time() - began
        weights = selected.weights.astype(np.float64)
        totals = [weights.size, weights.sum(), np.square(weights).sum(), weights.max(initial=0.0)]
        self._count(len(examples[constants.EXAMPLE_ID]), np.array(totals))

    def _histogram(
        self, interval: int, examples: dict[str, tf.Tensor], records: Records
    ) -> dict[str, list[float]]:
        """As in a full cell, but a fixed number of quantiles instead of every loss."""
        losses = scores.example_loss(records.logits, examples[constants.LABEL], self.workload.task)
        is_chosen = np.zeros(len(losses), bool)
        is_chosen[self._sample(interval, examples, records).rows] = True
        groups = simulation.split_losses(losses.numpy(), is_chosen)
        quantiles = (np.arange(_HISTOGRAM_POINTS) + 0.5) / _HISTOGRAM_POINTS
        histogram: dict[str, Any] = {f"num_{name}": len(losses) for name, losses in groups.items()}
        for name, values in groups.items():
            histogram[name] = np.quantile(values, quantiles).tolist() if values else []
        return histogram


def _initial_weights(workload: Workload, seed: int) -> list[np.ndarray]:
    """Those with which a full cell of this seed begins."""
    keras.utils.set_random_seed(seed)
    return keras.Model(*workload.build()).get_weights()


class _GeneratedStream:
    """A workload whose stream is generated once and kept."""

    def __init__(self, workload: Workload, length: int):
        self._workload = workload
        parts = [
            workload.examples(start, min(_GENERATED_AT_ONCE, length - start))
            for start in range(0, length, _GENERATED_AT_ONCE)
        ]
        self._fields = {name: tf.concat([part[name] for part in parts], 0) for name in parts[0]}

    def examples(self, start: int, count: int) -> dict[str, tf.Tensor]:
        """As `Workload.examples`."""
        return {name: values[start : start + count] for name, values in self._fields.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workload, name)


@functools.lru_cache(maxsize=2)
def _workload(data: configs.SimulationConfig, seed: int) -> Any:
    workload = simulation.get_workload(data, seed)
    if isinstance(workload, ClickWorkload):
        return _GeneratedStream(workload, workload.num_examples * data.passes)
    return workload


def workload_of(config: configs.SimulationConfig, seed: int) -> Workload:
    """The workload of a cell; the data of the last two seeds or datasets are kept."""
    data = {name: getattr(config, name) for name in _DATA_FIELDS}
    return _workload(configs.SimulationConfig(**data), seed)


def run_cell(config: configs.SimulationConfig, policy: str, seed: int) -> simulation.CellResult:
    """Streams the whole dataset by one policy, in memory; see `simulation.run_cell`."""
    return FastCell(config, policy, seed, workload_of(config, seed)).run(lambda windows: None)

"""One cell of an experiment: serve → record → join → sample → train → measure, in intervals.

Nothing is short-cut: the snapshot is a SavedModel on disk that is loaded back, its forward passes
go through `ForwardRecordWriter` into files, the join reads those files, selection runs inside
tf.data, and `OFBModel.fit` trains with the weights. `fast_cell` does the same in memory.
"""

import dataclasses
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.experiments import conditions, serving
from ofb_tf.experiments import config as configs
from ofb_tf.experiments.workloads import Workload, get_workload
from ofb_tf.selection import scores
from ofb_tf.training.model import OFBModel
from ofb_tf.transforms.join import join_forward_records
from ofb_tf.transforms.sample import ofb_sample

_HISTOGRAM_SEED = 0


@dataclasses.dataclass
class CellResult:
    """What one policy did with one seed.

    Attributes:
      policy: its name.
      seed: the seed.
      metrics: the workload's metric, calibration and what else it measures, at the end.
      stream_examples: examples that the stream brought.
      backward_examples: examples that went through forward and backward pass in training.
      mean_weight: of the importance weights of those.
      max_weight: of the same.
      effective_sample_size: (Σw)² / (n Σw²) of the same, in (0, 1].
      train_seconds: input pipeline, join, selection and training, with `build_seconds`.
      build_seconds: of those, loading the records and building the pipeline anew in every
        interval; it grows with the number of refreshes and not with the length of the stream.
      serving_seconds: export, load, forward passes and writing records. A production system pays
        the forward passes for its users anyway; 0 for policies that use no records.
      curve: dicts of `stream_examples`, `backward_examples`, `train_seconds` and the metric,
        once before training and after intervals.
      histogram: losses of the last interval's examples under their records, `selected` and
        `not_selected`; None for policies without records and for seeds after the first.
    """

    policy: str
    seed: int
    metrics: dict[str, float]
    stream_examples: int
    backward_examples: int
    mean_weight: float
    max_weight: float
    effective_sample_size: float
    train_seconds: float
    build_seconds: float
    serving_seconds: float
    curve: list[dict[str, float]]
    histogram: dict[str, list[float]] | None = None


def run_cell(
    config: configs.SimulationConfig,
    policy: str,
    seed: int,
    *,
    on_progress: Callable[[int], None] = lambda windows: None,
) -> CellResult:
    """Streams the whole dataset by one policy.

    Args:
      config: the experiment.
      policy: a name of `config.policies`.
      seed: of initial weights, data order and selection.
      on_progress: called with the number of windows after each interval.

    Returns:
      The measurements.
    """
    workload = get_workload(config, seed)
    directory = tempfile.mkdtemp(prefix="ofb_simulation_")
    try:
        return Cell(config, policy, seed, workload, directory).run(on_progress)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def num_windows(config: configs.SimulationConfig, num_examples: int) -> int:
    """Windows of all passes; the last of an interval may be short."""
    length = num_examples * config.passes
    per_interval = config.interval_length(num_examples)
    starts = range(0, length, per_interval)
    return sum(-(-min(per_interval, length - s) // config.window_size) for s in starts)


class Cell:
    """The state of a running cell.

    Args:
      config: the experiment.
      policy: a name of `config.policies`.
      seed: of initial weights, data order, conditions and selection.
      workload: the dataset's, for this seed.
      directory: where snapshots and records are put for the while that they are needed.
    """

    def __init__(
        self,
        config: configs.SimulationConfig,
        policy: str,
        seed: int,
        workload: Workload,
        directory: str,
    ):
        self.config, self.seed, self.workload, self.directory = config, seed, workload, directory
        self.policy = policy
        self.uses_records = (
            policy != configs.EVERYTHING and config.make_policy(policy).needs_records
        )
        self.conditions = conditions.Conditions(config, seed, workload)
        self.model = self._build_model()
        self._weight_totals = np.zeros(3)
        self._max_weight = 0.0
        self.result = CellResult(policy, seed, {}, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, [])

    def run(self, on_progress: Callable[[int], None]) -> CellResult:
        """Goes through the stream and returns the measurements."""
        length = self.workload.num_examples * self.config.passes
        per_interval = self.config.interval_length(self.workload.num_examples)
        num_intervals = -(-length // per_interval)
        self._measure()
        for interval, start in enumerate(range(0, length, per_interval)):
            count = min(per_interval, length - start)
            is_last = start + count == length
            examples = self.conditions.corrupt(self.workload.examples(start, count))
            records = self._serve(interval, examples) if self.uses_records else None
            self._train(interval, examples, records)
            if self._is_measured(interval, num_intervals):
                self._measure()
            if records is not None:
                if is_last and self.seed == _HISTOGRAM_SEED:
                    self.result.histogram = self._histogram(interval, examples, records)
                self._discard(records)
            on_progress(-(-count // self.config.window_size))
        return self._finish()

    def _build_model(self) -> OFBModel:
        keras.utils.set_random_seed(self.seed)  # the same initial weights for every policy
        model = OFBModel(*self.workload.build())
        model.compile(
            keras.optimizers.Adam(self.config.learning_rate),
            self.workload.loss(),
            jit_compile=False,
        )
        self._forward = tf.function(lambda fields: model(fields, training=False))
        return model

    def _outputs_on_test(self) -> np.ndarray:
        return self._forward({name: self.workload.test[name] for name in self.model.input}).numpy()

    def _is_measured(self, interval: int, num_intervals: int) -> bool:
        del interval, num_intervals
        return True

    def _discard(self, records: Any) -> None:
        shutil.rmtree(records)

    def _selection_seed(self, interval: int) -> int:
        return 1_000_003 * self.seed + interval

    def _serve(self, interval: int, examples: dict[str, tf.Tensor]) -> Any:
        """Exports the snapshot and has it answer the interval; returns the records' directory."""
        began = time.perf_counter()
        snapshot = os.path.join(self.directory, f"snapshot_{interval}")
        records = os.path.join(self.directory, f"records_{interval}")
        serving.export_snapshot(self.model, snapshot)
        serving.serve_and_record(
            snapshot,
            examples,
            records,
            num_outputs=self.workload.num_outputs,
            version=interval,
            kept=self.conditions.has_record(examples[constants.EXAMPLE_ID].numpy(), interval),
        )
        shutil.rmtree(snapshot)
        self.result.serving_seconds += time.perf_counter() - began
        return records

    @tf.autograph.experimental.do_not_convert  # no Python control flow: tracing takes half as long
    def _sample(
        self, interval: int, examples: dict[str, tf.Tensor], records: str | None
    ) -> tf.data.Dataset:
        """The interval's stream after selection, in batches."""
        stream = tf.data.Dataset.from_tensor_slices(examples)
        if self.policy == configs.EVERYTHING:
            return stream.batch(self.config.whole_batch_size)
        return stream.apply(
            ofb_sample(
                records=records,
                rate=self.config.rate,
                policy=self.config.make_policy(self.policy),
                task=self.workload.task,
                window_size=self.config.window_size,
                batch_size=self.config.batch_size,
                seed=self._selection_seed(interval),
                redraw_each_iteration=False,
            )
        )

    def _train(self, interval: int, examples: dict[str, tf.Tensor], records: Any) -> None:
        began = time.perf_counter()
        selected = self._sample(interval, examples, records).prefetch(tf.data.AUTOTUNE)
        self.result.build_seconds += time.perf_counter() - began
        with warnings.catch_warnings():
            # How many batches a selection gives is unknown beforehand; Keras warns of that.
            warnings.filterwarnings("ignore", message="Your input ran out of data")
            self.model.fit(selected, epochs=1, shuffle=False, verbose=0)
        self.result.train_seconds += time.perf_counter() - began
        self._count(
            len(examples[constants.EXAMPLE_ID]), self.model.importance_weight_statistics.totals()
        )

    def _count(self, num_examples: int, totals: np.ndarray) -> None:
        """Adds an interval: its examples, and count, sum, sum of squares and maximum of weights."""
        self._weight_totals += totals[:3]
        self._max_weight = max(self._max_weight, totals[3])
        self.result.stream_examples += num_examples
        self.result.backward_examples = int(self._weight_totals[0])

    def _measure(self) -> None:
        self.result.metrics = self.workload.evaluate(self._outputs_on_test())
        self.result.curve.append(
            {
                "stream_examples": self.result.stream_examples,
                "backward_examples": self.result.backward_examples,
                "train_seconds": self.result.train_seconds,
                self.workload.metric: self.result.metrics[self.workload.metric],
            }
        )

    def _histogram(
        self, interval: int, examples: dict[str, tf.Tensor], records: Any
    ) -> dict[str, list[float]]:
        """Losses under the records of the last interval, by whether the example was selected."""
        ids = examples[constants.EXAMPLE_ID]
        labelled = {constants.EXAMPLE_ID: ids, constants.LABEL: examples[constants.LABEL]}
        joined = tf.data.Dataset.from_tensor_slices(labelled).apply(join_forward_records(records))
        fields = next(iter(joined.batch(len(ids))))
        losses = scores.example_loss(
            fields[constants.LOGITS], fields[constants.LABEL], self.workload.task
        ).numpy()
        selected = self._sample(interval, examples, records)
        is_chosen = np.isin(ids, np.concatenate([b[constants.EXAMPLE_ID] for b in selected]))
        return split_losses(losses, is_chosen)

    def _finish(self) -> CellResult:
        count, total, squares = self._weight_totals
        self.result.mean_weight = float(total / max(count, 1))
        self.result.max_weight = float(self._max_weight)
        self.result.effective_sample_size = float(total**2 / max(count * squares, 1e-30))
        return self.result


def split_losses(losses: np.ndarray, is_chosen: np.ndarray) -> dict[str, list[float]]:
    """The losses of the selected and of the others, without those that have no record."""
    known = np.isfinite(losses)
    return {
        "selected": losses[is_chosen & known].tolist(),
        "not_selected": losses[~is_chosen & known].tolist(),
    }


def to_json(result: CellResult) -> dict[str, Any]:
    """The result as plain values."""
    return dataclasses.asdict(result)

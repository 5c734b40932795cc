"""One trial: serve → record → join → sample → train → measure, interval by interval."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ofb_tf import constants
from ofb_tf.experiments import config as configs
from ofb_tf.experiments import paths
from ofb_tf.experiments.corruption import Corruption
from ofb_tf.experiments.workload import Workload
from ofb_tf.experiments.workloads import get_workload
from ofb_tf.transforms import statistics

PROGRESSIVE = "progressive"

_CURVE_POINTS = 10


@dataclasses.dataclass
class TrialResult:
    """What one policy did with one seed; weights are those of the backward examples."""

    policy: str
    seed: int
    metric: str
    metric_text: str
    # Other metrics whose gap closure is reported, as of other heads: words by name.
    further_metrics: dict[str, str] = dataclasses.field(default_factory=dict)
    # At the end: the workload's metric, calibration and what else it measures, and where it is
    # progressive, `PROGRESSIVE`: the metric of what was answered while serving, over the stream.
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    stream_examples: int = 0
    backward_examples: int = 0  # went through forward and backward pass in training
    mean_weight: float = 0.0
    max_weight: float = 0.0
    effective_sample_size: float = 0.0  # (Σw)² / (n Σw²), in (0, 1]
    # Input pipeline, join, selection, forward and backward passes: what training costs. Generating
    # and writing the stream, serving it, evaluating and `warm_up_seconds` are not in it.
    train_seconds: float = 0.0
    cpu_seconds: float = 0.0  # processor time of the same
    wall_seconds: float = 0.0  # wall-clock time of the same
    warm_up_seconds: float = 0.0  # tracing selection and training step, once
    # Export, load, forward passes and writing records; 0 for policies that use no records. A
    # production system pays for the forward passes anyway.
    serving_seconds: float = 0.0
    # Examples, seconds and the metric, before training and about ten times during it.
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)


def run(
    config: configs.SimulationConfig,
    policy: str,
    seed: int,
    *,
    through_files: bool = False,
    workload: Workload | None = None,
    kind: type[paths.RecordPath] | None = None,
) -> TrialResult:
    """Streams the whole dataset under one policy.

    `kind` is the way of the records; by default `paths.ThroughFiles` or `paths.InMemory`.
    """
    if workload is None:
        workload = get_workload(config, seed, in_memory=not through_files)
    kind = kind or (paths.ThroughFiles if through_files else paths.InMemory)
    with (
        tempfile.TemporaryDirectory(prefix="ofb_simulation_", ignore_cleanup_errors=True) as files,
        contextlib.closing(kind(config, policy, seed, workload, files)) as path,
    ):
        return _stream(path)


def _stream(path: paths.RecordPath) -> TrialResult:
    config, workload = path.config, path.workload
    policy, seed = path.policy, path.seed
    uses_records = not path.is_everything and config.make_policy(policy).needs_records
    corruption = Corruption(config, seed, workload)
    texts = (workload.metric_text, workload.further_metrics)
    result = TrialResult(policy, seed, workload.metric, *texts)
    sums, max_weight = np.zeros(3), 0.0  # of the weights: count, sum and sum of squares
    spent = np.zeros(3)  # on training, as by `timed`
    # Of a progressive workload, interval by interval.
    answers: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def timed(function: Callable[..., None], *arguments: Any, **settings: Any) -> np.ndarray:
        """Seconds of the path's clock, of the processor and of the wall clock."""
        clocks = path.clock, time.process_time, time.perf_counter
        began = [clock() for clock in clocks]
        function(*arguments, **settings)
        return np.subtract([clock() for clock in clocks], began)

    def measure() -> None:
        result.metrics = workload.evaluate(workload.test, path.compiled.outputs(workload.test))
        counted = ("stream_examples", "backward_examples", "train_seconds")
        point = {name: getattr(result, name) for name in counted}
        result.curve.append(point | {workload.metric: result.metrics[workload.metric]})

    length = workload.num_examples * config.passes
    per_interval = path.interval_size
    starts = range(0, length, per_interval)
    snapshots = workload.served(0, length) // per_interval  # that answered
    oldest = np.minimum.accumulate(snapshots[::-1])[::-1]  # from here on
    measure()
    for interval, start in enumerate(starts):
        count = min(per_interval, length - start)
        clean = workload.examples(start, count)
        examples, kept = corruption.corrupt(clean), None
        if uses_records:
            kept = corruption.has_record(examples[constants.EXAMPLE_ID].numpy(), interval)
        if uses_records or workload.is_progressive:
            path.drop_snapshots(before=oldest[start])
            by = snapshots[start : start + count]
            serving = timed(path.serve, interval, examples, kept, by)
            result.serving_seconds += float(serving[0]) if uses_records else 0.0
        if workload.is_progressive:
            answers.append(path.answers)
            labels.append(clean[constants.LABEL].numpy())
        path.arrive(interval, examples)
        if interval == 0:
            result.warm_up_seconds = float(timed(path.warm_up)[0])
        is_last = start + count == length
        ends_pass = is_last or path.pass_of(interval + 1) != path.pass_of(interval)
        spent += timed(path.train, ends_pass=ends_pass)
        result.train_seconds, result.cpu_seconds, result.wall_seconds = map(float, spent)
        *of_interval, largest = path.model.importance_weight_statistics.totals()
        sums, max_weight = sums + of_interval, max(max_weight, float(largest))
        result.stream_examples += count
        result.backward_examples = int(sums[0])
        due = _CURVE_POINTS * np.array([interval, interval + 1]) // len(starts)
        if due[0] < due[1]:
            measure()
    if workload.is_progressive:
        stream = {constants.LABEL: np.concatenate(labels)}
        over_stream = workload.evaluate(stream, np.concatenate(answers))
        result.metrics[PROGRESSIVE] = over_stream[workload.metric]
    selected, sum_weights, _ = sums
    result.mean_weight = statistics.ratio(sum_weights, selected)
    result.effective_sample_size = statistics.effective_sample_size(*sums)
    result.max_weight = max_weight if selected else float("nan")
    return result

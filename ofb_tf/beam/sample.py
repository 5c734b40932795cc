"""The sampler of whole data sets: examples and records → selected examples with weights.

Examples are never shuffled. A first read takes ids and labels, about 25 bytes per example, to the
partition of their records; the probabilities are normalised over the split; a second read of the
files writes the selected examples. Partitions are sorted by id before anything is computed on
them, and what is combined across them is integers, so the same examples leave with the same
weights whatever the runner, the workers and the retries.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.beam.columns import Columns, by_partition
from ofb_tf.beam.evaluation import EvaluationFn
from ofb_tf.beam.examples import KeySpec, probe, read_keys, write_selected
from ofb_tf.beam.reports import Manifest, SplitStatistics, WeightStats
from ofb_tf.checks import check_choice, check_ranges
from ofb_tf.evaluation.quality import Measured, measure
from ofb_tf.evaluation.tfrecords import match_examples
from ofb_tf.records import ForwardRecords
from ofb_tf.records.partitioned import partition_path
from ofb_tf.selection import Importance, Policy, Uniform, log_odds, window
from ofb_tf.selection.policy import GRADIENT_NORM_BOUND, LOSS, POISSON
from ofb_tf.selection.score_summary import ScoreSummary, SplitInclusion, solve
from ofb_tf.transforms.join import lookup_in_memory

IMPORTANCE, UNIFORM = "importance", "uniform"

_SUMMARY, _STATISTICS, _JOINED = "summary", "statistics", "joined"
# Columns of examples, besides the fields of `constants`.
_FILE, _POSITION, _SLICES = "file", "position", "slices"
_SCORE, _HAS_SCORE, _CLASS_SCORES = "score", "has_score", "class_scores"
_RANGES: dict[str, tuple[float, float]] = {
    "uniform_mix": (0, 1),
    "max_age": (0, math.inf),
    "as_of": (0, math.inf),
    "num_outputs": (0, math.inf),
}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How `SampleExamples`, and TFX's `OFBSampler`, select and weight examples.

    Attributes:
      task: "multiclass", "binary" or "regression".
      label_feature: one number per example: class id, 0 / 1, or target.
      id_feature: one int64 or bytes value per example; "" for the fingerprint of the example
        (`example_fingerprints`).
      slice_features: statistics are also kept for each of their values.
      rate: in (0, 1].
      policy: "importance"; or "uniform", with the same probability for every example and weights
        of exactly 1, whose records count only for the coverage in the statistics.
      uniform_mix: in [0, 1]: weights are at most 1 / uniform_mix.
      score: "gradient_norm_bound" or "loss".
      missing: examples without a usable record: "uniform", "keep", "drop" or "error", as in
        `ofb_tf.ofb_sample`.
      estimator: "weights"; or "log_odds", with which the selected get float features
        `log_inclusion` instead of weights, one per class (binary: one), as `ofb_tf.ofb_sample`
        has it. The statistics are still those of the importance weights.
      max_age: seconds after which a record counts as missing; 0 for no limit.
      as_of: microseconds since 1970: later records are left out, ages count from here; 0 for the
        newest record's timestamp.
      num_outputs: how many logits a record must have; 0 for one (binary, regression) or at
        least two (multiclass).
      seed: fixes the selection.
      epoch: another value makes other draws from the same seed.

    Raises:
      ValueError: a field is out of range.
    """

    task: str
    label_feature: str = constants.LABEL
    id_feature: str = ""
    slice_features: Sequence[str] | None = None
    rate: float = 0.1
    policy: str = IMPORTANCE
    uniform_mix: float = 0.2
    score: str = GRADIENT_NORM_BOUND
    missing: str = constants.MISSING_UNIFORM
    estimator: str = constants.WEIGHTS
    max_age: float = 0.0
    as_of: int = 0
    num_outputs: int = 0
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, (IMPORTANCE, UNIFORM))
        check_choice("score", self.score, (GRADIENT_NORM_BOUND, LOSS))
        check_choice("task", self.task, constants.TASKS)
        check_choice("missing", self.missing, constants.MISSING)
        check_choice("estimator", self.estimator, constants.ESTIMATORS)
        if self.estimator == constants.LOG_ODDS:
            log_odds.check_log_odds(self.make_policy(), self.task)
        check_ranges(_RANGES, vars(self))
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate must be in (0, 1]. Received: {self.rate!r}")

    def check_records(self, manifest: Manifest) -> None:
        """Raises ValueError where records of this manifest cannot be used."""
        if self.policy != IMPORTANCE:
            return
        width, is_multiclass = manifest.num_outputs, self.task == constants.MULTICLASS
        if self.estimator == constants.LOG_ODDS and not width:
            raise ValueError(
                "forward records must have logits for estimator='log_odds', got losses alone. "
                "Record logits, or use estimator='weights'."
            )
        if self.num_outputs and width != self.num_outputs:
            expected = f"num_outputs={self.num_outputs}"
        elif width and is_multiclass != (width > 1):
            expected = (
                f"{'at least 2 outputs' if is_multiclass else '1 output'} for task={self.task!r}"
            )
        else:
            return
        raise ValueError(
            f"forward records must have {expected}, got {width}. Generate "
            "records from the model that serves these examples, or set task."
        )

    def make_policy(self) -> Policy:
        """The same policy of `ofb_tf`, by independent draws."""
        if self.policy == UNIFORM:
            return Uniform(design=POISSON)
        return Importance(uniform_mix=self.uniform_mix, score=self.score, design=POISSON)

    def feature(self) -> str:
        """What the selected examples get."""
        is_log_odds = self.estimator == constants.LOG_ODDS
        return constants.LOG_INCLUSION if is_log_odds else constants.IMPORTANCE_WEIGHT

    def budget(self) -> dict[str, Any]:
        """The settings that `solve` takes."""
        return {"rate": self.rate, "uniform_mix": self.uniform_mix, "missing": self.missing}


class SampleExamples(beam.PTransform):
    """Examples and their forward records → about one example in ten, with weights.

    Applied to a pipeline, it writes the selected examples to files named like those that they came
    from, with a float feature `importance_weight`; their weighted mean loss, and its gradient,
    estimate those of all examples without bias. Draws are keyed by `seed`, `epoch` and the
    example's id. Its output is one `SplitStatistics`, once the files are written.

    Args:
      examples: TFRecord files of tf.Examples, GZIP or plain: a file, glob or directory.
      records: directory that `PartitionRecords` wrote.
      output_directory: another directory than that of the examples; created if missing.
      config: see `SamplerConfig`.

    Raises:
      FileNotFoundError: there are no examples, or no manifest in the directory of records.
      ValueError: examples, records and `config` do not fit together.
    """

    def __init__(
        self,
        examples: str | os.PathLike,
        records: str | os.PathLike,
        output_directory: str | os.PathLike,
        config: SamplerConfig,
    ) -> None:
        super().__init__()
        self._config, self._records = config, os.fspath(records)
        self._manifest = Manifest.read(self._records)
        config.check_records(self._manifest)
        sources = match_examples(os.fspath(examples))
        directory = os.fspath(output_directory)
        outputs = [os.path.join(directory, os.path.basename(path)) for path in sources]
        if len({*sources, *outputs}) < 2 * len(sources):
            raise ValueError(
                "output_directory must be another directory than that of the examples, whose files "
                f"must differ in name. Received: {directory!r} for {sources[:3]}"
            )
        self._files = list(zip(sources, outputs, strict=True))
        slices = config.slice_features or ()
        self._spec = probe(sources, config.id_feature, config.label_feature, slices)
        tf.io.gfile.makedirs(directory)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """Applies it to a pipeline."""
        config, manifest = self._config, self._manifest
        paths = pipeline | "Files" >> beam.Create(list(enumerate(self._files)))
        joined = (
            paths
            | "Spread" >> beam.Reshuffle()
            | "ReadKeys" >> beam.FlatMap(_read_keys, self._spec, manifest.num_partitions)
            | "ByPartition" >> beam.GroupByKey()
            | "Join"
            >> beam.FlatMap(_join, config, self._records, manifest).with_outputs(
                _SUMMARY, _STATISTICS, _JOINED, main="rows"
            )
        )
        inclusion = (
            joined[_SUMMARY]
            | "Summarize" >> beam.CombineGlobally(ScoreSummary.merge)
            | "Solve" >> beam.Map(solve, **config.budget())
        )
        selected = joined["rows"] | "Select" >> beam.FlatMap(
            _select, beam.pvalue.AsSingleton(inclusion), config
        ).with_outputs(_STATISTICS, main="selected")
        written = (
            {"paths": paths, "selected": selected["selected"]}
            | "ByFile" >> beam.CoGroupByKey()
            | "WriteSelected" >> beam.Map(_write_file, config.feature())
        )
        statistics = (
            (joined[_STATISTICS], selected[_STATISTICS], written)
            | "AllStatistics" >> beam.Flatten()
            | "MergeStatistics" >> beam.CombineGlobally(SplitStatistics.merge)
        )
        evaluation = joined[_JOINED] | "Evaluate" >> beam.CombineGlobally(
            EvaluationFn(
                config.task,
                manifest.num_outputs,
                config.as_of or manifest.newest_timestamp,
                config.uniform_mix,
            )
        )
        return statistics | "AddEvaluation" >> beam.Map(
            dataclasses.replace, evaluation=beam.pvalue.AsSingleton(evaluation)
        )


def _read_keys(
    element: tuple[int, tuple[str, str]], spec: KeySpec, num_partitions: int
) -> Iterator[tuple[int, Columns]]:
    """(file index, paths) → (partition, columns of the examples that belong there)."""
    file, (source, _) = element
    batches = read_keys(source, spec)
    for partition, positions, columns in by_partition(batches, num_partitions):
        slices = {}
        for name in spec.slice_features:
            vocabulary, codes = np.unique(columns.pop(("slice", name)), return_inverse=True)
            slices[name] = (vocabulary.tolist(), codes.astype(np.uint32))
        positions = positions.astype(np.min_scalar_type(positions[-1]))
        yield partition, columns | {_FILE: file, _POSITION: positions, _SLICES: slices}


def _concatenate(chunks: list[Columns]) -> Columns:
    """One partition's chunks as columns sorted by id, file and position."""
    ids, labels, positions = (
        np.concatenate([chunk[name] for chunk in chunks])
        for name in (constants.EXAMPLE_ID, constants.LABEL, _POSITION)
    )
    sizes = [len(chunk[_POSITION]) for chunk in chunks]
    files = np.repeat(np.array([chunk[_FILE] for chunk in chunks], np.int32), sizes)
    order = np.lexsort((positions, files, ids))
    slices = {}
    for name in chunks[0][_SLICES]:
        coded = [chunk[_SLICES][name] for chunk in chunks]
        vocabulary = sorted({value for values, _ in coded for value in values})
        place = {value: code for code, value in enumerate(vocabulary)}
        codes = np.concatenate([np.array([place[v] for v in values])[c] for values, c in coded])
        keys = [f"{name}={value.decode('utf-8', 'replace')}" for value in vocabulary]
        slices[name] = (keys, codes[order].astype(np.int32))
    return {
        constants.EXAMPLE_ID: ids[order],
        constants.LABEL: labels[order],
        _FILE: files[order],
        _POSITION: positions[order].astype(np.int64),
        _SLICES: slices,
    }


def _join(
    element: tuple[int, Iterable[Columns]],
    config: SamplerConfig,
    records_directory: str,
    manifest: Manifest,
) -> Iterator[Any]:
    """(partition, columns of its examples) → scored rows, a score summary, statistics."""
    partition, chunks = element
    rows = _concatenate(list(chunks))
    ids, labels = rows[constants.EXAMPLE_ID], rows.pop(constants.LABEL)
    as_of = config.as_of or manifest.newest_timestamp
    nothing = tf.zeros(len(ids))
    record = dict.fromkeys((constants.LOSS, constants.MODEL_VERSION, constants.TIMESTAMP), nothing)
    record[constants.HAS_RECORD] = nothing > 0
    if manifest.records_by_partition[partition]:
        path = partition_path(records_directory, partition, manifest.num_partitions)
        records = ForwardRecords.load(path, as_of=as_of)
        if len(records):
            record = lookup_in_memory(records, oldest=None).fields(tf.constant(ids))
    found = record[constants.HAS_RECORD].numpy()
    age = (as_of - record[constants.TIMESTAMP].numpy()) / constants.MICROSECONDS
    joined = found & (age <= (config.max_age or math.inf))
    record[constants.HAS_RECORD] = tf.constant(joined)
    policy = config.make_policy()
    scores, has_score = _score(policy, config.task, labels, record)
    usable = has_score
    if not policy.needs_records:  # it selects without them, but the coverage is still counted
        usable = _score(Importance(score=config.score), config.task, labels, record)[1]
    if config.missing == constants.MISSING_ERROR and not has_score.all():
        raise ValueError(
            f"{int((~usable).sum())} of {len(ids)} examples of partition {partition} have no "
            f"usable forward record, such as id {ids[~usable][0]}. Set missing='uniform', "
            "'keep' or 'drop', or widen max_age."
        )
    columns = {_SCORE: scores, _HAS_SCORE: has_score}
    if config.estimator == constants.LOG_ODDS:
        is_soft = (labels > 0) & (labels < 1)
        if is_soft.any():
            raise ValueError(
                f"label {labels[is_soft][0]} of id {ids[is_soft][0]} is neither 0 nor 1, as "
                "estimator='log_odds' needs: use estimator='weights'."
            )
        columns[_CLASS_SCORES] = _class_scores(record, has_score, manifest.num_outputs, config)
    yield rows | columns
    summary = ScoreSummary.of(scores[has_score], int((~has_score).sum()))
    yield beam.pvalue.TaggedOutput(_SUMMARY, summary)
    age = np.where(found, age, np.nan)
    columns = {
        "num_examples": np.ones(len(ids)),
        "num_scored": usable,
        "num_no_record": ~found,
        "num_stale": found & ~joined,
        "num_unusable": joined & ~usable,
        "num_repeated_ids": np.append(False, ids[1:] == ids[:-1]),
        "sum_age": age,
        "max_age": age,
    }
    measured = measure(record, tf.constant(labels), config.task)
    model_versions = record[constants.MODEL_VERSION].numpy().astype(np.int64)
    yield beam.pvalue.TaggedOutput(
        _JOINED,
        {
            "measured": Measured(*(part.numpy() for part in measured)),
            "model_versions": model_versions,
            "timestamps": record[constants.TIMESTAMP].numpy().astype(np.int64),
            "slices": _values(rows[_SLICES]),
        },
    )
    counted = np.unique(model_versions[found], return_counts=True)
    versions = {str(version): int(count) for version, count in zip(*counted, strict=True)}
    yield _statistics(rows, columns, versions)


def _values(slices: dict[str, tuple[list[str], np.ndarray]]) -> dict[str, np.ndarray]:
    """The value of each example, by feature."""
    return {
        name: np.array([key.removeprefix(f"{name}=") for key in keys])[codes]
        for name, (keys, codes) in slices.items()
    }


def _score(
    policy: Policy, task: str, labels: np.ndarray, record: dict[str, tf.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, float32 `[n]`, 0 where unusable, and bool `[n]`: where usable."""
    scored = window.score(policy, task, tf.constant(labels), record)
    return np.where(scored.usable, scored.scores, np.float32(0.0)), scored.usable.numpy()


def _class_scores(
    record: dict[str, tf.Tensor], has_score: np.ndarray, num_outputs: int, config: SamplerConfig
) -> np.ndarray:
    """The score under each label: float32 `[n, k]`, arbitrary where there is no score."""
    if constants.LOGITS in record and config.policy == IMPORTANCE:
        return log_odds.class_scores(record, config.task, num_outputs).numpy()
    width = 2 if config.task == constants.BINARY else max(num_outputs, 1)
    return np.zeros((len(has_score), width), np.float32)


def _select(rows: Columns, inclusion: SplitInclusion, config: SamplerConfig) -> Iterator[Any]:
    """Scored rows → (file index, (positions, weights or offsets)) selected, and statistics."""
    key = hashing.fold_in(np.int64(config.seed), np.int64(config.epoch))
    p = inclusion.probabilities(rows[_SCORE], rows[_HAS_SCORE])
    weights = inclusion.weights(p)
    selected = hashing.hash01(rows[constants.EXAMPLE_ID], key) < p
    files, feature = rows[_FILE][selected], weights[selected][:, None]
    if config.estimator == constants.LOG_ODDS:
        line = tf.constant([inclusion.slope, inclusion.offset], tf.float64)
        by_class, usable = rows[_CLASS_SCORES][selected], rows[_HAS_SCORE][selected]
        feature = log_odds.offsets_of(by_class, line, usable, config.task).numpy()
    for file in np.unique(files).tolist():
        mine = files == file
        yield file, (rows[_POSITION][selected][mine], feature[mine])
    reachable = p > 0.0
    weight = np.where(selected, weights, np.nan).astype(np.float64)
    columns = {
        "num_selected": selected,
        "expected_selected": p,
        "variance_selected": p * (1.0 - p),
        "variance_inverse": np.divide(1.0 - p, p, out=np.zeros_like(p), where=reachable),
        "unreachable": ~reachable,
        "sum_weights": weight,
        "sum_squared_weights": weight**2,
        "min_weight": weight,
        "max_weight": weight,
    }
    yield _statistics(rows, columns)


def _statistics(
    rows: Columns, columns: dict[str, np.ndarray], versions: dict[str, int] | None = None
) -> beam.pvalue.TaggedOutput:
    """The `SplitStatistics` of columns of numbers, NaN for what does not count."""
    whole = np.zeros(len(rows[constants.EXAMPLE_ID]), np.int64)
    slices: dict[str, WeightStats] = {}
    for keys, codes in rows[_SLICES].values():
        slices |= dict(zip(keys, WeightStats.by_group(codes, len(keys), columns), strict=True))
    total = WeightStats.by_group(whole, 1, columns)[0]
    return beam.pvalue.TaggedOutput(_STATISTICS, SplitStatistics(total, slices, versions or {}))


def _write_file(element: tuple[int, dict[str, Iterable]], feature: str) -> SplitStatistics:
    _, group = element
    ((source, destination),) = group["paths"]
    parts = list(group["selected"])
    width = parts[0][1].shape[1] if parts else 1
    positions = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
    values = np.concatenate([np.zeros((0, width), np.float32), *(part[1] for part in parts)])
    order = np.argsort(positions, kind="stable")
    write_selected(source, destination, positions[order], feature, values[order])
    read, written = (tf.io.gfile.stat(path).length for path in (source, destination))
    return SplitStatistics(WeightStats(bytes_read=read, bytes_written=written))

"""The sampler as Beam transforms. Nothing of TFX: paths in, files and statistics out.

Examples are never shuffled. A first read takes ids and labels, about 25 bytes per example, to the
partition of their records; the probabilities are normalised over the split; a second read of the
files writes the selected examples. Partitions are sorted by id before anything is computed on
them, and what is combined across them is integers, so the same examples leave with the same
weights whatever the runner, the workers and the retries.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import ForwardRecords
from ofb_tf.records.partitioned import partition_path
from ofb_tf.selection import Importance, Policy, Uniform, window
from ofb_tf.selection.policy import GRADIENT_NORM_BOUND, LOSS, POISSON
from tfx_components.artifacts import Manifest, SplitStatistics, WeightStats
from tfx_components.component_utils import in_chunks
from tfx_components.ofb_sampler import examples
from tfx_components.ofb_sampler.inclusion import ScoreSummary, SplitInclusion, solve

IMPORTANCE, UNIFORM = "importance", "uniform"

_SUMMARY, _STATISTICS = "summary", "statistics"
# Columns of examples, besides the fields of `constants`.
_FILE, _FIRST, _POSITION, _SLICES = "file", "first", "position", "slices"
_SCORE, _HAS_SCORE = "score", "has_score"
_FOUND, _AGE = "found", "age"

Columns = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How splits are sampled: the parameters of `OFBSampler`, which documents them."""

    task: str
    label_feature: str = constants.LABEL
    id_feature: str = ""
    splits: Sequence[str] | None = None
    slice_features: Sequence[str] | None = None
    rate: float = 0.1
    policy: str = IMPORTANCE
    uniform_mix: float = 0.2
    score: str = GRADIENT_NORM_BOUND
    missing: str = constants.MISSING_UNIFORM
    max_age: float = 0.0
    as_of: int = 0
    num_outputs: int = 0
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        choices = {
            "policy": (IMPORTANCE, UNIFORM),
            "score": (GRADIENT_NORM_BOUND, LOSS),
            "task": constants.TASKS,
            "missing": constants.MISSING,
        }
        checks = [
            ("rate", 0.0 < self.rate <= 1.0, "be in (0, 1]"),
            ("uniform_mix", 0.0 <= self.uniform_mix <= 1.0, "be in [0, 1]"),
            ("max_age", self.max_age >= 0.0, "be seconds, 0 for no limit"),
            ("as_of", self.as_of >= 0, "be microseconds since 1970"),
            ("num_outputs", self.num_outputs >= 0, "be at least 0"),
            ("splits", self.splits is None or self.splits, "name at least one split"),
        ]
        checks += [
            (k, getattr(self, k) in known, f"be one of {known}") for k, known in choices.items()
        ]
        for name, valid, expected in checks:
            if not valid:
                raise ValueError(f"{name} must {expected}. Received: {getattr(self, name)!r}")

    def make_policy(self) -> Policy:
        """The same policy of `ofb_tf`, by independent draws."""
        if self.policy == UNIFORM:
            return Uniform(design=POISSON)
        return Importance(uniform_mix=self.uniform_mix, score=self.score, design=POISSON)


@beam.ptransform_fn
def SampleSplit(
    pipeline: beam.Pipeline,
    config: SamplerConfig,
    spec: examples.KeySpec,
    files: Sequence[tuple[str, str]],
    records_uri: str,
    manifest: Manifest,
) -> beam.PCollection:
    """Samples one split, whose files are (source, destination) pairs.

    Returns one `SplitStatistics`, once the destinations are written.
    """
    paths = pipeline | "Files" >> beam.Create(list(enumerate(files)))
    joined = (
        paths
        | "Spread" >> beam.Reshuffle()
        | "ReadKeys" >> beam.FlatMap(_read_keys, spec, manifest.num_partitions)
        | "ByPartition" >> beam.GroupByKey()
        | "Join"
        >> beam.ParDo(_Join(config, records_uri, manifest)).with_outputs(
            _SUMMARY, _STATISTICS, main="rows"
        )
    )
    inclusion = (
        joined[_SUMMARY]
        | "Summarize" >> beam.CombineGlobally(ScoreSummary.merge)
        | "Solve" >> beam.Map(_solve, config)
    )
    selected = joined["rows"] | "Select" >> beam.ParDo(
        _Select(config), beam.pvalue.AsSingleton(inclusion)
    ).with_outputs(_STATISTICS, main="selected")
    written = (
        {"paths": paths, "selected": selected["selected"]}
        | "ByFile" >> beam.CoGroupByKey()
        | "WriteSelected" >> beam.Map(_write_file)
    )
    return (
        (joined[_STATISTICS], selected[_STATISTICS], written)
        | "AllStatistics" >> beam.Flatten()
        | "MergeStatistics" >> beam.CombineGlobally(SplitStatistics.merge)
    )


@beam.ptransform_fn
def CopyFiles(pipeline: beam.Pipeline, files: Sequence[tuple[str, str]]) -> beam.PCollection:
    """Copies files, (source, destination) each, byte for byte; returns the destinations."""
    return (
        pipeline
        | "Files" >> beam.Create(list(files))
        | "Spread" >> beam.Reshuffle()
        | "Copy" >> beam.MapTuple(_copy)
    )


def _read_keys(
    element: tuple[int, tuple[str, str]], spec: examples.KeySpec, num_partitions: int
) -> Iterator[tuple[int, Columns]]:
    """(file index, paths) → (partition, columns of the examples that belong there)."""
    file, (source, _) = element
    first = 0
    for batches in in_chunks(examples.read_keys(source, spec)):
        keys = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        ids, labels = keys[constants.EXAMPLE_ID], keys[constants.LABEL]
        for partition, rows in hashing.rows_by_partition(ids, num_partitions):
            slices = {}
            for name in spec.slice_features:
                values = keys["slice", name][rows]
                vocabulary, codes = np.unique(values, return_inverse=True)
                slices[name] = (vocabulary.tolist(), codes.astype(np.uint32))
            columns = {
                _FILE: file,
                _FIRST: first,
                _POSITION: rows.astype(np.uint32),
                constants.EXAMPLE_ID: ids[rows],
                constants.LABEL: labels[rows],
                _SLICES: slices,
            }
            yield partition, columns
        first += len(ids)


def _concatenate(chunks: list[Columns]) -> Columns:
    """One partition's chunks as columns sorted by id, file and position."""
    sizes = [len(chunk[constants.EXAMPLE_ID]) for chunk in chunks]
    ids = np.concatenate([chunk[constants.EXAMPLE_ID] for chunk in chunks])
    files = np.repeat(np.array([chunk[_FILE] for chunk in chunks], np.int32), sizes)
    positions = np.concatenate(
        [chunk[_FIRST] + chunk[_POSITION].astype(np.int64) for chunk in chunks]
    )
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
        constants.LABEL: np.concatenate([chunk[constants.LABEL] for chunk in chunks])[order],
        _FILE: files[order],
        _POSITION: positions[order],
        _SLICES: slices,
    }


class _Join(beam.DoFn):
    """(partition, columns of its examples) → scored rows, a score summary, statistics."""

    def __init__(self, config: SamplerConfig, records_uri: str, manifest: Manifest) -> None:
        self._config = config
        self._uri = records_uri
        self._manifest = manifest

    def process(self, element: tuple[int, Iterable[Columns]]) -> Iterator[Any]:
        partition, chunks = element
        config = self._config
        rows = _concatenate(list(chunks))
        ids, labels = rows[constants.EXAMPLE_ID], rows.pop(constants.LABEL)
        record = self._record(partition, ids)
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
        yield rows | {_SCORE: scores, _HAS_SCORE: has_score}
        summary = ScoreSummary.of(scores[has_score], int((~has_score).sum()))
        yield beam.pvalue.TaggedOutput(_SUMMARY, summary)
        yield beam.pvalue.TaggedOutput(_STATISTICS, _coverage(rows, record, usable))

    def _record(self, partition: int, example_ids: np.ndarray) -> Columns:
        """Each example's record, by the names of `constants`; arbitrary values where not `found`.

        `found` says whether there is one whatever its age, and `age` is in seconds.
        """
        nothing = {
            name: np.zeros(len(example_ids), bool) for name in (_FOUND, constants.HAS_RECORD)
        }
        nothing[constants.LOSS] = np.full(len(example_ids), np.nan, np.float32)
        manifest = self._manifest
        if not manifest.records_by_partition[partition]:
            return nothing
        as_of = self._config.as_of or manifest.newest_timestamp
        path = partition_path(self._uri, partition, manifest.num_partitions)
        loaded = ForwardRecords.load(path, as_of=as_of)
        if not len(loaded):
            return nothing
        columns = loaded.columns | {constants.MODEL_VERSION: loaded.model_versions}
        known = columns.pop(constants.EXAMPLE_ID).numpy()
        row = np.minimum(np.searchsorted(known, example_ids), len(known) - 1)
        found = known[row] == example_ids
        record = {name: column.numpy()[row] for name, column in columns.items()}
        age = (as_of - record[constants.TIMESTAMP]) / constants.MICROSECONDS
        limit = self._config.max_age or np.inf
        return record | {_FOUND: found, _AGE: age, constants.HAS_RECORD: found & (age <= limit)}


def _score(
    policy: Policy, task: str, labels: np.ndarray, record: Columns
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, float32 `[n]`, 0 where unusable, and bool `[n]`: where usable."""
    fields = {name: tf.constant(record[name]) for name in constants.RECORD_FIELDS if name in record}
    _, scores, usable = window.score(policy, task, tf.constant(labels), fields)
    return np.where(usable, scores, np.float32(0.0)), usable.numpy()


def _coverage(rows: Columns, record: Columns, usable: np.ndarray) -> SplitStatistics:
    ids, found, joined = rows[constants.EXAMPLE_ID], record[_FOUND], record[constants.HAS_RECORD]
    columns = {
        "num_examples": np.ones(len(ids)),
        "num_scored": usable,
        "num_no_record": ~found,
        "num_stale": found & ~joined,
        "num_unusable": joined & ~usable,
        "num_repeated_ids": np.append(False, ids[1:] == ids[:-1]),
    }
    versions: dict[str, int] = {}
    if found.any():
        age = np.where(found, record[_AGE], np.nan)
        columns |= {"sum_age": age, "max_age": age}
        counted = np.unique(record[constants.MODEL_VERSION][found], return_counts=True)
        versions = {str(version): int(count) for version, count in zip(*counted, strict=True)}
    return _split_statistics(rows, columns, versions)


class _Select(beam.DoFn):
    """Scored rows and the split's `SplitInclusion` → (file index, (positions, weights))."""

    def __init__(self, config: SamplerConfig) -> None:
        self._key = hashing.fold_in(np.int64(config.seed), np.int64(config.epoch))

    def process(self, rows: Columns, inclusion: SplitInclusion) -> Iterator[Any]:
        p = inclusion.probabilities(rows[_SCORE], rows[_HAS_SCORE])
        weights = inclusion.weights(p)
        selected = hashing.hash01(rows[constants.EXAMPLE_ID], self._key) < p
        files = rows[_FILE][selected]
        for file in np.unique(files).tolist():
            mine = files == file
            yield file, (rows[_POSITION][selected][mine], weights[selected][mine])
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
        yield beam.pvalue.TaggedOutput(_STATISTICS, _split_statistics(rows, columns))


def _split_statistics(
    rows: Columns, columns: dict[str, np.ndarray], versions: dict[str, int] | None = None
) -> SplitStatistics:
    whole = np.zeros(len(rows[constants.EXAMPLE_ID]), np.int64)
    slices: dict[str, WeightStats] = {}
    for keys, codes in rows[_SLICES].values():
        slices |= dict(zip(keys, WeightStats.by_group(codes, len(keys), columns), strict=True))
    return SplitStatistics(WeightStats.by_group(whole, 1, columns)[0], slices, versions or {})


def _write_file(element: tuple[int, dict[str, Iterable]]) -> SplitStatistics:
    _, group = element
    ((source, destination),) = group["paths"]
    parts = list(group["selected"])
    positions = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
    weights = np.concatenate([np.zeros(0, np.float32), *(part[1] for part in parts)])
    order = np.argsort(positions, kind="stable")
    examples.write_selected(source, destination, positions[order], weights[order])
    read, written = (tf.io.gfile.stat(path).length for path in (source, destination))
    return SplitStatistics(WeightStats(bytes_read=read, bytes_written=written))


def _solve(summary: ScoreSummary, config: SamplerConfig) -> SplitInclusion:
    return solve(summary, rate=config.rate, uniform_mix=config.uniform_mix, missing=config.missing)


def _copy(source: str, destination: str) -> str:
    tf.io.gfile.copy(source, destination, overwrite=True)
    return destination

"""The sampler as Beam transforms. Nothing of TFX: paths in, files and statistics out.

Examples are never shuffled. A first read takes ids and labels, about 25 bytes an example, to the
partition of their records; the probabilities are normalised over the split; a second read of the
files writes the selected. Partitions are sorted by id before anything is computed on them, and
what is combined across them is integers, so the same examples leave with the same weights
whatever the runner, the workers and the retries.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import partition_of
from tfx_components import example_files, manifest, partition_rows
from tfx_components.partition_rows import AGE, FOUND, Columns
from tfx_components.sampler_config import SamplerConfig
from tfx_components.score_summary import Inclusion, ScoreSummary, solve
from tfx_components.statistics import SplitStatistics, Tally, tally_by
from tfx_components.statistics import write as write_statistics

_CHUNK = 1 << 18  # rows that a reader gathers before it splits them into partitions
_SUMMARY, _STATISTICS = "summary", "statistics"


class SampleSplit(beam.PTransform):
    """Samples the files of one split.

    Input: the pipeline. Output: one `SplitStatistics`.

    Args:
      config: how.
      spec: the examples' key features.
      files: (source, destination) a file.
      records_uri: an `ofb.ForwardRecords` artifact.
      records: its manifest.
    """

    def __init__(
        self,
        config: SamplerConfig,
        spec: example_files.KeySpec,
        files: Sequence[tuple[str, str]],
        records_uri: str,
        records: manifest.Manifest,
    ) -> None:
        super().__init__()
        self._config = config
        self._spec = spec
        self._files = list(files)
        self._records_uri = records_uri
        self._records = records

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """The split's statistics, once its files are written; called by Beam."""
        files = pipeline | "Files" >> beam.Create(list(enumerate(self._files)))
        joined = (
            files
            | "Spread" >> beam.Reshuffle()
            | "ReadKeys" >> beam.ParDo(_ReadKeys(self._spec, self._records.num_partitions))
            | "ByPartition" >> beam.GroupByKey()
            | "Join"
            >> beam.ParDo(_Join(self._config, self._records_uri, self._records)).with_outputs(
                _SUMMARY, _STATISTICS, main="rows"
            )
        )
        inclusion = (
            joined[_SUMMARY]
            | "Summarize" >> beam.CombineGlobally(_MergeSummaries())
            | "Solve" >> beam.Map(_solve, self._config)
        )
        selected = joined["rows"] | "Select" >> beam.ParDo(
            _Select(self._config), beam.pvalue.AsSingleton(inclusion)
        ).with_outputs(_STATISTICS, main="selected")
        written = (
            {"paths": files, "selected": selected["selected"]}
            | "ByFile" >> beam.CoGroupByKey()
            | "WriteSelected" >> beam.FlatMap(_write_file)
        )
        return (
            (joined[_STATISTICS], selected[_STATISTICS], written)
            | "AllStatistics" >> beam.Flatten()
            | "MergeStatistics" >> beam.CombineGlobally(_merge_statistics)
        )


class CopyFiles(beam.PTransform):
    """Copies files byte for byte. Input: the pipeline. Output: destinations."""

    def __init__(self, files: Iterable[tuple[str, str]]) -> None:
        super().__init__()
        self._files = list(files)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """The paths that were written; called by Beam."""

        def copy(paths: tuple[str, str]) -> str:
            tf.io.gfile.copy(*paths, overwrite=True)
            return paths[1]

        return (
            pipeline
            | "Files" >> beam.Create(self._files)
            | "Spread" >> beam.Reshuffle()
            | "Copy" >> beam.Map(copy)
        )


class WriteStatistics(beam.PTransform):
    """Writes `statistics.json`. Input: a tuple of what `SampleSplit` gave for each split.

    Args:
      splits: their names, in the same order.
      uri: of the `ofb.SamplingStatistics` artifact.
      settings: of the sampler, written too.
    """

    def __init__(self, splits: Sequence[str], uri: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self._splits = list(splits)
        self._uri = uri
        self._settings = settings

    # Beam reads type hints, and takes no tuple.
    def expand(self, parts):  # type: ignore[no-untyped-def]
        """From a tuple of statistics, one a split, to the file; called by Beam."""

        def with_name(statistics: SplitStatistics, split: str) -> tuple[None, tuple]:
            return None, (split, statistics)

        def write(element: tuple[None, Iterable[tuple]], uri: str, settings: dict) -> None:
            write_statistics(uri, settings, dict(sorted(element[1])))

        named = tuple(
            part | f"Name_{split}" >> beam.Map(with_name, split)
            for part, split in zip(parts, self._splits, strict=True)
        )
        return (
            named
            | "AllSplits" >> beam.Flatten()
            | "Gather" >> beam.GroupByKey()
            | "Write" >> beam.Map(write, self._uri, self._settings)
        )


class _ReadKeys(beam.DoFn):
    """(file index, paths) → (partition, columns of the examples that belong there)."""

    def __init__(self, spec: example_files.KeySpec, num_partitions: int) -> None:
        self._spec = spec
        self._num_partitions = num_partitions

    def process(self, element: tuple[int, tuple[str, str]]) -> Iterator[tuple[int, Columns]]:
        file, (source, _) = element
        batches, first, count = [], 0, 0
        for keys in example_files.read_keys(source, self._spec):
            batches.append(keys)
            count += len(keys)
            if count - first >= _CHUNK:
                yield from self._split(file, first, batches)
                batches, first = [], count
        if batches:
            yield from self._split(file, first, batches)

    def _split(
        self, file: int, first: int, batches: list[example_files.Keys]
    ) -> Iterator[tuple[int, Columns]]:
        ids = np.concatenate([keys.example_ids for keys in batches])
        labels = np.concatenate([keys.labels for keys in batches])
        slices = {
            name: np.concatenate([keys.slices[name] for keys in batches])
            for name in self._spec.slice_features
        }
        partitions = partition_of(ids, self._num_partitions)
        order = np.argsort(partitions, kind="stable")
        bounds = np.searchsorted(partitions[order], np.arange(self._num_partitions + 1))
        for partition in np.flatnonzero(np.diff(bounds)).tolist():
            rows = order[bounds[partition] : bounds[partition + 1]]
            columns = {
                "file": file,
                "first": first,
                "offsets": rows.astype(np.uint32),
                "example_ids": ids[rows],
                "labels": labels[rows],
            }
            for name, values in slices.items():
                vocabulary, codes = np.unique(values[rows], return_inverse=True)
                columns[f"slice/{name}"] = (vocabulary.tolist(), codes.astype(np.uint32))
            yield partition, columns


class _Join(beam.DoFn):
    """(partition, columns of its examples) → scored rows, a score summary, statistics."""

    def __init__(self, config: SamplerConfig, records_uri: str, records: manifest.Manifest) -> None:
        self._config = config
        self._uri = records_uri
        self._records = records

    def process(self, element: tuple[int, Iterable[Columns]]) -> Iterator[Any]:
        partition, chunks = element
        rows = partition_rows.concatenate(list(chunks))
        ids = rows["example_ids"]
        fields = partition_rows.record_fields(
            self._config, self._uri, self._records, partition, ids
        )
        score, usable = partition_rows.score_rows(self._config, fields, rows.pop("labels"))
        rows["scores"], rows["has_score"] = score, usable
        if self._config.missing == "error" and not usable.all():
            raise ValueError(
                f"{int((~usable).sum())} of {len(ids)} examples of partition {partition} have no "
                f"usable forward record, such as id {ids[~usable][0]}. Set missing='uniform', "
                "'keep' or 'drop', or widen max_age."
            )
        yield rows
        yield beam.pvalue.TaggedOutput(
            _SUMMARY, ScoreSummary.of(score[usable], int((~usable).sum()))
        )
        yield beam.pvalue.TaggedOutput(_STATISTICS, self._statistics(rows, fields))

    def _statistics(self, rows: Columns, fields: dict[str, np.ndarray]) -> SplitStatistics:
        found, joined, usable = fields[FOUND], fields[constants.HAS_RECORD], rows["has_score"]
        ids = rows["example_ids"]
        columns = {
            "num_examples": np.ones(len(ids)),
            "num_scored": usable,
            "num_no_record": ~found,
            "num_stale": found & ~joined,
            "num_unusable": joined & ~usable,
            "num_repeated_ids": np.append(False, ids[1:] == ids[:-1]),
        }
        versions: dict[str, int] = {}
        if AGE in fields:
            age = np.where(found, fields[AGE], np.nan)
            columns |= {"sum_age": age, "max_age": age}
            table, counts = np.unique(fields[constants.MODEL_VERSION][found], return_counts=True)
            versions = {str(v): int(c) for v, c in zip(table, counts, strict=True)}
        return _split_statistics(rows, columns, versions)


class _Select(beam.DoFn):
    """Scored rows and the split's `Inclusion` → (file index, (positions, weights))."""

    def __init__(self, config: SamplerConfig) -> None:
        self._config = config
        seed, epoch = np.int64(config.seed), np.int64(config.epoch)
        self._key = hashing.fold_in_numpy(seed, epoch)

    def process(self, rows: Columns, inclusion: Inclusion) -> Iterator[Any]:
        p = inclusion.probabilities(rows["scores"], rows["has_score"])
        weights = inclusion.weights(p)
        selected = hashing.hash01_numpy(rows["example_ids"], self._key) < p
        files = rows["files"][selected]
        for file in np.unique(files).tolist():
            mine = files == file
            yield (
                file,
                (rows["positions"][selected][mine], weights[selected][mine]),
            )
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
        yield beam.pvalue.TaggedOutput(_STATISTICS, _split_statistics(rows, columns, {}))


class _MergeSummaries(beam.CombineFn):
    """Score summaries → one."""

    def create_accumulator(self) -> ScoreSummary:
        return ScoreSummary.empty()

    def add_input(self, accumulator: ScoreSummary, element: ScoreSummary) -> ScoreSummary:
        return ScoreSummary.merge([accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[ScoreSummary]) -> ScoreSummary:
        return ScoreSummary.merge(list(accumulators))

    def extract_output(self, accumulator: ScoreSummary) -> ScoreSummary:
        return accumulator


def _merge_statistics(parts: Iterable[SplitStatistics]) -> SplitStatistics:
    return SplitStatistics.merge(parts)


def _solve(summary: ScoreSummary, config: SamplerConfig) -> Inclusion:
    mix = 1.0 if config.policy == "uniform" else config.uniform_mix
    return solve(summary, rate=config.rate, uniform_mix=mix, missing=config.missing)


def _split_statistics(
    rows: Columns, columns: dict[str, np.ndarray], versions: dict[str, int]
) -> SplitStatistics:
    n = len(rows["example_ids"])
    slices: dict[str, Any] = {}
    for keys, codes in rows["slices"].values():
        slices |= dict(zip(keys, tally_by(codes, len(keys), columns), strict=True))
    return SplitStatistics(tally_by(np.zeros(n, np.int64), 1, columns)[0], slices, versions)


def _write_file(element: tuple[int, dict[str, Iterable]]) -> Iterator[SplitStatistics]:
    _, group = element
    ((source, destination),) = group["paths"]
    parts = list(group["selected"])
    positions = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
    weights = np.concatenate([np.zeros(0, np.float32), *(part[1] for part in parts)])
    order = np.argsort(positions, kind="stable")
    example_files.write_selected(source, destination, positions[order], weights[order])
    sizes = [tf.io.gfile.stat(path).length for path in (source, destination)]
    yield SplitStatistics(Tally(bytes_read=sizes[0], bytes_written=sizes[1]))

"""Artifact types of the sampling components, and the JSON files in them.

The types have no `PROPERTIES`: the Kubeflow v2 compiler takes custom properties only.
"""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from tfx.types import artifact

BLESSED = "blessed"
MAX_SLICES = 10_000
_MANIFEST, _STATISTICS = "manifest.json", "statistics.json"


class ForwardRecords(artifact.Artifact):
    """Forward records, one per example id, partitioned by `ofb_tf.records.partition_of`.

    * `{uri}/manifest.json`: a `Manifest`.
    * `{uri}/partition-00000-of-00016.ofbr`: one file per partition, sorted by id, as
      `ofb records partition` writes them; a partition without records has none.
    """

    TYPE_NAME = "ofb.ForwardRecords"


class SamplingStatistics(artifact.Artifact):
    """What a sampler did: `{uri}/statistics.json`, see `write_statistics`."""

    TYPE_NAME = "ofb.SamplingStatistics"


class SamplingBlessing(artifact.Artifact):
    """Whether a sample may be trained on.

    * Custom property `blessed`: 1 or 0, for `tfx.dsl.Cond`.
    * `{uri}/BLESSED` or `{uri}/NOT_BLESSED`, and `{uri}/anomalies.txt`.
    """

    TYPE_NAME = "ofb.SamplingBlessing"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Counts of an `ofb.ForwardRecords` artifact.

    Attributes:
      num_partitions: files that ids are hashed to.
      num_outputs: outputs of the model, 0 where records hold only losses.
      num_read: records read from the sources.
      num_duplicates: records among them that a newer one with the same id replaced.
      num_records: records kept.
      records_by_partition: records kept in each partition, a list of length `num_partitions`.
      records_by_version: model version (as text) → records kept.
      oldest_timestamp: microseconds since 1970, of the records kept.
      newest_timestamp: microseconds since 1970.
    """

    num_partitions: int
    num_outputs: int
    num_read: int
    num_duplicates: int
    num_records: int
    records_by_partition: list[int]
    records_by_version: dict[str, int]
    oldest_timestamp: int
    newest_timestamp: int

    def write(self, uri: str) -> None:
        """Writes it into the artifact."""
        write_text(uri, _MANIFEST, json.dumps(vars(self), indent=1, sort_keys=True))

    @classmethod
    def read(cls, uri: str) -> "Manifest":
        """Reads the manifest of an artifact.

        Raises:
          FileNotFoundError: the directory is not an `ofb.ForwardRecords` artifact.
        """
        return cls(**_read_json(uri, _MANIFEST, ForwardRecords, "ForwardRecordGen"))


@dataclasses.dataclass
class WeightStats:
    """Coverage, selection and weights of a set of examples.

    Adding two merges them: fields are summed, `min_*` and `max_*` fields combined.

    Attributes:
      num_examples: all examples.
      num_scored: examples with a usable record: the numerator of the coverage.
      num_no_record: examples without a record.
      num_stale: examples whose record is older than `max_age`.
      num_unusable: examples whose logits, loss or label are not finite or out of range.
      num_repeated_ids: examples whose id an earlier example of the split has.
      num_selected: examples selected.
      bytes_read: size of the input files; whole split only.
      bytes_written: size of the output files; whole split only.
      expected_selected: sum of p.
      variance_selected: sum of p (1 - p).
      variance_inverse: sum of (1 - p) / p over p > 0: the variance of the sum of 1 / p over the
        selected.
      unreachable: examples with p = 0 (`missing="drop"`).
      sum_weights: sum of the selected examples' weights.
      sum_squared_weights: sum of their squares.
      min_weight: smallest weight.
      max_weight: largest weight.
      sum_age: seconds, over examples with a record.
      max_age: seconds.
    """

    num_examples: int = 0
    num_scored: int = 0
    num_no_record: int = 0
    num_stale: int = 0
    num_unusable: int = 0
    num_repeated_ids: int = 0
    num_selected: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    expected_selected: float = 0.0
    variance_selected: float = 0.0
    variance_inverse: float = 0.0
    unreachable: int = 0
    sum_weights: float = 0.0
    sum_squared_weights: float = 0.0
    min_weight: float = math.inf
    max_weight: float = 0.0
    sum_age: float = 0.0
    max_age: float = 0.0

    def __add__(self, other: "WeightStats") -> "WeightStats":
        merged = {
            name: _ufunc(name)(value, getattr(other, name)).item()
            for name, value in vars(self).items()
        }
        return WeightStats(**merged)

    @property
    def coverage(self) -> float:
        """Share of the examples with a usable record."""
        return self.num_scored / self.num_examples if self.num_examples else 0.0

    @property
    def realized_rate(self) -> float:
        """Share of the examples that were selected."""
        return self.num_selected / self.num_examples if self.num_examples else 0.0

    @property
    def mean_weight(self) -> float:
        """Mean weight of the selected examples."""
        return self.sum_weights / self.num_selected if self.num_selected else 0.0

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / (m sum w^2) of the m selected, in (0, 1]; 0 where none is."""
        if not self.num_selected:
            return 0.0
        return self.sum_weights**2 / (self.num_selected * self.sum_squared_weights)

    @classmethod
    def by_group(
        cls, groups: np.ndarray, num_groups: int, columns: dict[str, np.ndarray]
    ) -> "list[WeightStats]":
        """One `WeightStats` per group of examples.

        `groups` are int64 `[n]`; `columns` maps fields to numbers `[n]` to combine, NaN for an
        example that does not count.
        """
        stats = [cls() for _ in range(num_groups)]
        for name, values in columns.items():
            combined = np.full(num_groups, getattr(cls, name))
            counted = ~np.isnan(values)
            _ufunc(name).at(combined, groups[counted], values[counted].astype(combined.dtype))
            for one, value in zip(stats, combined.tolist(), strict=True):
                setattr(one, name, value)
        return stats


def _ufunc(name: str) -> np.ufunc:
    """How a field of `WeightStats` is combined."""
    return {"min_": np.minimum, "max_": np.maximum}.get(name[:4], np.add)


_DERIVED = ("coverage", "realized_rate", "mean_weight", "effective_sample_size")


@dataclasses.dataclass
class SplitStatistics:
    """One split: the total, the slices, the model versions of the records.

    Attributes:
      total: every example.
      slices: "feature=value" → the examples with that value.
      examples_by_version: model version (as text) → examples joined to a record of that version.
    """

    total: WeightStats = dataclasses.field(default_factory=WeightStats)
    slices: dict[str, WeightStats] = dataclasses.field(default_factory=dict)
    examples_by_version: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def merge(cls, parts: "Iterable[SplitStatistics]") -> "SplitStatistics":
        """The statistics of all examples of several.

        Raises:
          ValueError: there are more than `MAX_SLICES` slice keys.
        """
        total = WeightStats()
        slices: dict[str, WeightStats] = collections.defaultdict(WeightStats)
        versions: dict[str, int] = collections.Counter()
        for part in parts:
            total += part.total
            versions.update(part.examples_by_version)
            for key, stats in part.slices.items():
                slices[key] += stats
            if len(slices) > MAX_SLICES:
                raise ValueError(
                    f"slice_features have more than {MAX_SLICES} values, such as {key!r}. Slice "
                    "by features with fewer, or bucketise them."
                )
        return cls(total, dict(slices), dict(versions))


def write_statistics(uri: str, config: dict, splits: dict[str, SplitStatistics]) -> None:
    """Writes `statistics.json` of a sampler: its settings, and what it did in each split."""

    def as_json(stats: WeightStats) -> dict:
        fields = vars(stats) | {name: getattr(stats, name) for name in _DERIVED}
        # Infinity, the least weight of nothing, is not JSON.
        return fields if stats.num_selected else fields | {"min_weight": None}

    content = {
        name: {
            "total": as_json(split.total),
            "slices": {key: as_json(split.slices[key]) for key in sorted(split.slices)},
            "examples_by_version": split.examples_by_version,
        }
        for name, split in sorted(splits.items())
    }
    write_text(uri, _STATISTICS, json.dumps({"config": config, "splits": content}, indent=1))


def read_statistics(uri: str) -> tuple[dict, dict[str, SplitStatistics]]:
    """Reads what `write_statistics` wrote: the settings and the splits.

    Raises:
      FileNotFoundError: the directory is not an `ofb.SamplingStatistics` artifact.
    """

    def stats(fields: dict) -> WeightStats:
        if not fields["num_selected"]:
            fields = fields | {"min_weight": math.inf}
        return WeightStats(**{name: v for name, v in fields.items() if name not in _DERIVED})

    content = _read_json(uri, _STATISTICS, SamplingStatistics, "OFBSampler")
    splits = {
        name: SplitStatistics(
            total=stats(split["total"]),
            slices={key: stats(fields) for key, fields in split["slices"].items()},
            examples_by_version=split["examples_by_version"],
        )
        for name, split in content["splits"].items()
    }
    return content["config"], splits


def write_blessing(blessing: artifact.Artifact, blessed: bool) -> None:
    """Marks an artifact, by a file and a custom property, as blessed or not."""
    write_text(blessing.uri, "BLESSED" if blessed else "NOT_BLESSED", "")
    blessing.set_int_custom_property(BLESSED, int(blessed))


def write_text(uri: str, name: str, text: str) -> None:
    """Writes a text file into an artifact's directory, which is made if missing."""
    tf.io.gfile.makedirs(uri)
    with tf.io.gfile.GFile(os.path.join(uri, name), "w") as file:
        file.write(text)


def _read_json(uri: str, name: str, kind: type[artifact.Artifact], producer: str) -> dict:
    path = os.path.join(uri, name)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"{path} does not exist: {uri} is not an {kind.TYPE_NAME} artifact. Make one with "
            f"{producer}."
        )
    with tf.io.gfile.GFile(path) as file:
        return json.loads(file.read())

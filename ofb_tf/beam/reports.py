"""What the transforms did: manifests and statistics, and the JSON files that hold them."""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

MAX_SLICES = 10_000
_MANIFEST, _STATISTICS = "manifest.json", "statistics.json"
_DERIVED = ("coverage", "realized_rate", "mean_weight", "effective_sample_size")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a directory of `PartitionRecords` holds: `manifest.json`."""

    num_partitions: int  # that ids are hashed to
    num_outputs: int  # of the model, 0 where records hold only losses
    num_read: int  # records read from the sources
    num_duplicates: int  # of these, records that a newer one with the same id replaced
    num_records: int  # kept
    records_by_partition: list[int]  # kept, of length `num_partitions`
    records_by_version: dict[str, int]  # kept, by model version
    oldest_timestamp: int  # microseconds since 1970, of the records kept
    newest_timestamp: int

    def write(self, uri: str) -> None:
        """Writes it into a directory."""
        write_text(uri, _MANIFEST, json.dumps(vars(self), indent=1, sort_keys=True))

    @classmethod
    def read(cls, uri: str) -> "Manifest":
        """Reads the manifest in a directory.

        Raises:
          FileNotFoundError: there is none.
        """
        return cls(**_read_json(uri, _MANIFEST, "PartitionRecords (in TFX: ForwardRecordGen)"))


@dataclasses.dataclass
class WeightStats:
    """Coverage, selection and weights of a set of examples.

    Adding two merges them: fields are summed, `min_*` and `max_*` fields combined.
    """

    num_examples: int = 0
    num_scored: int = 0  # with a usable record: the numerator of the coverage
    num_no_record: int = 0
    num_stale: int = 0  # with a record that is older than `max_age`
    num_unusable: int = 0  # whose logits, loss or label are not finite or out of range
    num_repeated_ids: int = 0  # whose id an earlier example of the split has
    num_selected: int = 0
    bytes_read: int = 0  # size of the input files; whole split only
    bytes_written: int = 0  # size of the output files; whole split only
    expected_selected: float = 0.0  # sum of p
    variance_selected: float = 0.0  # sum of p (1 - p)
    variance_inverse: float = 0.0  # of the sum of 1 / p over the selected: sum of (1 - p) / p
    unreachable: int = 0  # examples with p = 0 (`missing="drop"`)
    sum_weights: float = 0.0  # of the selected, as the next three
    sum_squared_weights: float = 0.0
    min_weight: float = math.inf
    max_weight: float = 0.0
    sum_age: float = 0.0  # seconds, over examples with a record
    max_age: float = 0.0  # seconds

    def __add__(self, other: "WeightStats") -> "WeightStats":
        merged = {
            name: _ufunc(name)(value, getattr(other, name)).item()
            for name, value in vars(self).items()
        }
        return WeightStats(**merged)

    @property
    def coverage(self) -> float:
        """Share of the examples with a usable record."""
        return _ratio(self.num_scored, self.num_examples)

    @property
    def realized_rate(self) -> float:
        """Share of the examples that were selected."""
        return _ratio(self.num_selected, self.num_examples)

    @property
    def mean_weight(self) -> float:
        """Mean weight of the selected examples."""
        return _ratio(self.sum_weights, self.num_selected)

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / (m sum w^2) of the m selected, in (0, 1]; 0 where none is."""
        return _ratio(self.sum_weights**2, self.num_selected * self.sum_squared_weights)

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


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _ufunc(name: str) -> np.ufunc:
    """How a field of `WeightStats` is combined."""
    return {"min_": np.minimum, "max_": np.maximum}.get(name[:4], np.add)


@dataclasses.dataclass
class SplitStatistics:
    """One split: the total, the slices, the model versions of the records.

    Attributes:
      total: every example.
      slices: "feature=value" → the examples with that value.
      examples_by_version: model version (as text) → examples joined to a record of that version.
      evaluation: of the model that served, see `ofb_tf.evaluate`.
    """

    total: WeightStats = dataclasses.field(default_factory=WeightStats)
    slices: dict[str, WeightStats] = dataclasses.field(default_factory=dict)
    examples_by_version: dict[str, int] = dataclasses.field(default_factory=dict)
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def merge(cls, parts: "Iterable[SplitStatistics]") -> "SplitStatistics":
        """The statistics of all examples of several.

        Raises:
          ValueError: there are more than `MAX_SLICES` slice keys.
        """
        merged = cls(WeightStats(), collections.defaultdict(WeightStats), collections.Counter())
        for part in parts:
            merged.total += part.total
            merged.examples_by_version.update(part.examples_by_version)
            for key, stats in part.slices.items():
                merged.slices[key] += stats
            if len(merged.slices) > MAX_SLICES:
                raise ValueError(
                    f"slice_features have more than {MAX_SLICES} values, such as {key!r}. Slice "
                    "by features with fewer, or bucketise them."
                )
        return cls(merged.total, dict(merged.slices), dict(merged.examples_by_version))


def write_statistics(uri: str, config: dict, splits: dict[str, SplitStatistics]) -> None:
    """Writes `statistics.json` of a sampler: its settings, and what it did in each split."""

    def as_json(stats: WeightStats) -> dict:
        fields = vars(stats) | {name: getattr(stats, name) for name in _DERIVED}
        # Infinity, the least weight of nothing, is not JSON.
        return {name: None if value == math.inf else value for name, value in fields.items()}

    content = {
        name: vars(split)
        | {"total": as_json(split.total)}
        | {"slices": {key: as_json(stats) for key, stats in sorted(split.slices.items())}}
        for name, split in sorted(splits.items())
    }
    write_text(uri, _STATISTICS, json.dumps({"config": config, "splits": content}, indent=1))


def read_statistics(uri: str) -> tuple[dict, dict[str, SplitStatistics]]:
    """Reads what `write_statistics` wrote: the settings and the splits.

    Raises:
      FileNotFoundError: the directory holds none.
    """

    def stats(fields: dict) -> WeightStats:
        given: dict[str, Any] = {
            name: math.inf if value is None else value
            for name, value in fields.items()
            if name not in _DERIVED
        }
        return WeightStats(**given)

    content = _read_json(uri, _STATISTICS, "`write_statistics` (in TFX: OFBSampler)")
    splits = {}
    for name, split in content["splits"].items():
        slices = {key: stats(fields) for key, fields in split["slices"].items()}
        splits[name] = SplitStatistics(
            stats(split["total"]),
            slices,
            split["examples_by_version"],
            split.get("evaluation", {}),  # an earlier release wrote none
        )
    return content["config"], splits


def write_text(uri: str, name: str, text: str) -> None:
    """Writes a text file into a directory, which is made if missing."""
    tf.io.gfile.makedirs(uri)
    with tf.io.gfile.GFile(os.path.join(uri, name), "w") as file:
        file.write(text)


def _read_json(uri: str, name: str, producer: str) -> dict:
    path = os.path.join(uri, name)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(f"{path} does not exist: write it with {producer}.")
    with tf.io.gfile.GFile(path) as file:
        return json.loads(file.read())

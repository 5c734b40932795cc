"""What a sampler did, counted per split and per slice key, mergeable across workers."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

_FILE = "statistics.json"
MAX_SLICES = 10_000


@dataclasses.dataclass
class Tally:
    """Counts of a set of examples. Fields add up, but `min_*` and `max_*`.

    Attributes:
      num_examples: all.
      num_scored: with a usable record: the numerator of the coverage.
      num_no_record: no record of that id.
      num_stale: record older than `max_age`.
      num_unusable: logits, loss or label not finite or out of range.
      num_repeated_ids: examples whose id an earlier example of the split has.
      num_selected: selected.
      bytes_read: of the files that came in; whole split only.
      bytes_written: of the files that went out; whole split only.
      expected_selected: sum of p.
      variance_selected: sum of p (1 - p).
      variance_inverse: sum of (1 - p) / p over p > 0: variance of the selected's sum of 1 / p.
      unreachable: examples with p = 0 (`missing="drop"`).
      sum_weights: of the selected.
      sum_squared_weights: of the selected.
      min_weight: of the selected.
      max_weight: of the selected.
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

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            **{
                name: _OPERATIONS.get(name[:4], lambda a, b: a + b)(value, getattr(other, name))
                for name, value in vars(self).items()
            }
        )

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
        """Of the selected."""
        return self.sum_weights / self.num_selected if self.num_selected else 0.0

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / (m sum w^2) of the m selected, in (0, 1]; 0 where none is."""
        if not self.num_selected:
            return 0.0
        return self.sum_weights**2 / (self.num_selected * self.sum_squared_weights)


_OPERATIONS = {"min_": min, "max_": max}
_DERIVED = ("coverage", "realized_rate", "mean_weight", "effective_sample_size")


@dataclasses.dataclass
class SplitStatistics:
    """One split: the total, the slices, the records' model versions.

    Attributes:
      total: every example.
      slices: "feature=value" → the examples with that value.
      examples_by_version: model version (as text) → examples joined to a record of it.
    """

    total: Tally = dataclasses.field(default_factory=Tally)
    slices: dict[str, Tally] = dataclasses.field(default_factory=dict)
    examples_by_version: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def merge(cls, parts: "Iterable[SplitStatistics]") -> "SplitStatistics":
        """The statistics of all examples of several.

        Raises:
          ValueError: there are more than `MAX_SLICES` slice keys.
        """
        merged = cls()
        for part in parts:
            merged.total = merged.total + part.total
            for key, tally in part.slices.items():
                merged.slices[key] = merged.slices.get(key, Tally()) + tally
            for version, count in part.examples_by_version.items():
                known = merged.examples_by_version.get(version, 0)
                merged.examples_by_version[version] = known + count
            if len(merged.slices) > MAX_SLICES:
                raise ValueError(
                    f"slice_features have more than {MAX_SLICES} values, such as {key!r}. Slice "
                    "by features with fewer, or bucketise them."
                )
        return merged


def tally_by(groups: np.ndarray, num_groups: int, columns: dict[str, np.ndarray]) -> list[Tally]:
    """Tallies of groups of examples.

    Args:
      groups: int64 `[n]` in [0, num_groups).
      num_groups: at least 1.
      columns: a field of `Tally` → numbers `[n]`, which are summed (`min_*`, `max_*`: the least
        and the largest), with NaN for an example that does not count.

    Returns:
      One `Tally` a group.
    """
    tallies = [Tally() for _ in range(num_groups)]
    for name, values in columns.items():
        values = np.asarray(values, np.float64)
        counted = ~np.isnan(values)
        default = getattr(tallies[0], name)
        result: np.ndarray
        if name.startswith(("min_", "max_")):
            result = np.full(num_groups, default, np.float64)
            ufunc = np.minimum if name.startswith("min_") else np.maximum
            ufunc.at(result, groups[counted], values[counted])
        else:
            result = np.bincount(groups[counted], values[counted], minlength=num_groups)
        for tally, value in zip(tallies, result.tolist(), strict=True):
            setattr(tally, name, int(value) if isinstance(default, int) else value)
    return tallies


def write(uri: str, config: dict, splits: dict[str, SplitStatistics]) -> None:
    """Writes `statistics.json`: the sampler's settings, and per split what it did."""
    content = {"config": config, "splits": {}}
    for name, split in splits.items():
        content["splits"][name] = {
            "total": _with_derived(split.total),
            "slices": {key: _with_derived(split.slices[key]) for key in sorted(split.slices)},
            "examples_by_version": split.examples_by_version,
        }
    tf.io.gfile.makedirs(uri)
    with tf.io.gfile.GFile(os.path.join(uri, _FILE), "w") as file:
        file.write(json.dumps(content, indent=1))


def read(uri: str) -> tuple[dict, dict[str, SplitStatistics]]:
    """Reads what `write` wrote: the settings and the splits.

    Raises:
      FileNotFoundError: the directory is no `ofb.SamplingStatistics` artifact.
    """
    path = os.path.join(uri, _FILE)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"{path} does not exist: {uri} is not an ofb.SamplingStatistics artifact. Make one "
            "with OFBSampler."
        )
    with tf.io.gfile.GFile(path) as file:
        content = json.loads(file.read())
    splits = {
        name: SplitStatistics(
            total=_tally(split["total"]),
            slices={key: _tally(value) for key, value in split["slices"].items()},
            examples_by_version=split["examples_by_version"],
        )
        for name, split in content["splits"].items()
    }
    return content["config"], splits


def _with_derived(tally: Tally) -> dict:
    fields = dict(vars(tally))
    if not tally.num_selected:
        fields["min_weight"] = None  # infinity is not JSON
    return fields | {name: getattr(tally, name) for name in _DERIVED}


def _tally(fields: dict) -> Tally:
    known = {field.name for field in dataclasses.fields(Tally)}
    values = {name: value for name, value in fields.items() if name in known}
    if values["min_weight"] is None:
        values["min_weight"] = math.inf
    return Tally(**values)

"""The structure of a benchmark: peers that do the same work, and rows that compare them."""

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the inputs are, and how much work to do.

    Attributes:
      inputs: directory of input files, kept between runs.
      quick: a tenth of the work, to check that everything runs; its figures mean little.
    """

    inputs: pathlib.Path
    quick: bool = False

    def count(self, full: int) -> int:
        """A number of items, or a tenth of it."""
        return max(full // 10, 1) if self.quick else full


Run = Callable[[], Mapping[str, float] | int]
"""Does the work once: returns the number of items, or a dict of "items" and further figures."""


@dataclasses.dataclass(frozen=True)
class Medians:
    """Medians over the repeats of one peer: `figures["items"]`, "wall_seconds", "cpu_seconds"
    (user and system), "wall_us" and "cpu_us" (microseconds per item), and the peer's own."""

    samples: Sequence[Mapping[str, float]]

    def __getitem__(self, figure: str) -> float:
        return statistics.median(sample[figure] for sample in self.samples)

    def figures(self) -> list[str]:
        return list(self.samples[0])


Value = Callable[[Mapping[str, Medians]], float]
"""Maps the medians of a part's peers, by name, to a figure."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the result, with its goal, if any.

    Attributes:
      text: what is compared, with its unit.
      value: the figure.
      at_least: the goal, or None.
      at_most: the goal, or None.
    """

    text: str
    value: Value
    at_least: float | None = None
    at_most: float | None = None

    def goal(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def met(self, figure: float) -> bool | None:
        if self.at_least is not None:
            return figure >= self.at_least
        return None if self.at_most is None else figure <= self.at_most


@dataclasses.dataclass(frozen=True)
class Part:
    """A comparison: each peer has a separate process; they take turns, `repeats` times.

    Attributes:
      name: for `--only`.
      title: a sentence for the table.
      item: what is counted, such as "example".
      peers: name → a function of the settings that sets up (not measured) and returns the run.
      rows: lines computed from the medians.
      repeats: how often each peer runs.
      curves: the plots of the peers' own figures `curve_<x>` (an x value → a y value).
      prepare: writes input files in a separate process, unless they exist.
    """

    name: str
    title: str
    item: str
    peers: Mapping[str, Callable[[Settings], Run]]
    rows: Sequence[Row] = ()
    repeats: int = 3
    curves: Sequence["Curve"] = ()
    prepare: Callable[[Settings], None] | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """One panel of the growth plot, from a peer's figures named `prefix` + the x value."""

    prefix: str
    x_label: str
    y_label: str


def of(peer: str, figure: str) -> Value:
    """A row's value: one peer's figure."""
    return lambda medians: medians[peer][figure]


def ratio(figure: str, numerator: str, denominator: str) -> Value:
    """A row's value: one peer's figure over another's."""
    return lambda medians: medians[numerator][figure] / medians[denominator][figure]


def added(figure: str, peer: str, base: str) -> Value:
    """A row's value: one peer's figure minus another's."""
    return lambda medians: medians[peer][figure] - medians[base][figure]


def millions_per_second(peer: str, clock: str = "cpu") -> Value:
    """A row's value: a peer's speed in million items per second of the "cpu" or "wall" clock."""
    return lambda medians: 1.0 / medians[peer][f"{clock}_us"]

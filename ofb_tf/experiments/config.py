"""What a simulation runs: one dataclass, validated at construction."""

import dataclasses
from typing import Any

from ofb_tf.selection import POLICIES, Importance, Policy, SelectiveBackprop, get_policy

UNIFORM = "uniform"
IMPORTANCE = "importance"
EVERYTHING = "everything"
SELECTIVE_BACKPROP = "selective_backprop"

CLICK_STREAM = "click_stream"

_DEFAULTS: dict[str, dict[str, Any]] = {
    CLICK_STREAM: {"window_size": 1280, "passes": 1, "num_examples": 600_000, "seeds": 3},
    "mnist": {"window_size": 640, "passes": 6, "seeds": 3},
    "diamonds": {"window_size": 640, "passes": 10, "seeds": 5},
}
_OTHER_DEFAULTS = {"window_size": 640, "passes": 3, "seeds": 3}


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """Settings of one dataset's comparison; every policy and seed shares them.

    Attributes:
      dataset: "click_stream", or the name of a supervised TFDS dataset.
      data_dir: directory of TFDS datasets; None for TFDS's own, with download.
      rate: fraction of the stream that goes on to the backward pass, in (0, 1].
      window_size: examples among which one selection is made, at least 2.
      steps_per_window: optimiser steps that share the `rate * window_size` selected examples of a
        window, or the whole window for "everything"; at least 1.
      uniform_mix: of `Importance`, in [0, 1].
      selective_beta: `beta` of `SelectiveBackprop`, at least 0; None for its default.
      refresh_interval: windows between two exports of the serving snapshot; 0 for one export a
        pass, at its start.
      passes: times the stream goes over the data, at least 1.
      num_examples: examples of one pass; None for all that the dataset has.
      test_examples: at most this many held-out examples are evaluated.
      learning_rate: of Adam, the same for every policy.
      policies: names from `ofb_tf.selection.POLICIES` and "everything". "uniform" and
        "everything", between which gap closure is measured, are added where absent.
      seeds: number of repetitions, numbered from 0. A seed fixes initial weights, data order and
        selection; all policies of one seed share the first two.
      positive_rate: share of positives of the click stream, in (0, 1).
      label_noise: fraction in [0, 1) of the examples whose label is replaced by one drawn from
        the distribution of labels. Not for regression. Evaluation is always clean.
      outliers: fraction in [0, 1) of the examples whose target is moved up or down by
        `conditions.OUTLIER_SHIFT` standard deviations of the targets. For regression alone.
      missing_records: fraction in [0, 1) of the serving records that are lost.
    """

    dataset: str = CLICK_STREAM
    data_dir: str | None = None
    rate: float = 0.1
    window_size: int = 1280
    refresh_interval: int = 20
    passes: int = 1
    num_examples: int | None = None
    test_examples: int = 50_000
    learning_rate: float = 1e-3
    policies: tuple[str, ...] = (UNIFORM, IMPORTANCE, EVERYTHING)
    seeds: int = 3
    positive_rate: float = 0.01
    label_noise: float = 0.0
    outliers: float = 0.0
    missing_records: float = 0.0
    steps_per_window: int = 1
    uniform_mix: float = Importance().uniform_mix
    selective_beta: float | None = None

    def __post_init__(self) -> None:
        if not self.dataset or not isinstance(self.dataset, str):
            raise ValueError(f"dataset must be a name. Received: {self.dataset!r}")
        _check("rate", self.rate, "in (0, 1]", 0 < self.rate <= 1)
        _check("window_size", self.window_size, "at least 2", self.window_size >= 2)
        for name in ("passes", "seeds", "test_examples", "steps_per_window"):
            _check(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        interval = self.refresh_interval
        _check("refresh_interval", interval, "at least 1, or 0 for once a pass", interval >= 0)
        for name in ("label_noise", "outliers", "missing_records"):
            _check(name, getattr(self, name), "in [0, 1)", 0 <= getattr(self, name) < 1)
        if self.num_examples is not None:
            _check("num_examples", self.num_examples, "at least 1", self.num_examples >= 1)
        _check("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0)
        _check("positive_rate", self.positive_rate, "in (0, 1)", 0 < self.positive_rate < 1)
        _check("uniform_mix", self.uniform_mix, "in [0, 1]", 0 <= self.uniform_mix <= 1)
        if self.selective_beta is not None:
            beta = self.selective_beta
            _check("selective_beta", beta, "finite and at least 0", 0 <= beta < float("inf"))
        if self.window_size % self.steps_per_window:
            raise ValueError(
                "window_size must be a multiple of steps_per_window. Received: "
                f"window_size={self.window_size}, steps_per_window={self.steps_per_window}"
            )
        if self.batch_size < 1:
            raise ValueError(
                "rate * window_size must be at least 1 a step. Received: "
                f"rate={self.rate}, window_size={self.window_size}, "
                f"steps_per_window={self.steps_per_window}"
            )
        known = [*POLICIES, EVERYTHING]
        for policy in self.policies:
            if policy not in known:
                raise ValueError(f"policies must be among {known}. Received: {policy!r}")
        ends = [UNIFORM, *self.policies, EVERYTHING]
        order = [UNIFORM, *(p for p in ends if p not in (UNIFORM, EVERYTHING)), EVERYTHING]
        object.__setattr__(self, "policies", tuple(dict.fromkeys(order)))

    @classmethod
    def for_dataset(cls, dataset: str, **settings: Any) -> "SimulationConfig":
        """The defaults of a dataset, with those settings replaced that are not None."""
        defaults = _DEFAULTS.get(dataset, _OTHER_DEFAULTS)
        given = {name: value for name, value in settings.items() if value is not None}
        return cls(dataset=dataset, **{**defaults, **given})

    @property
    def batch_size(self) -> int:
        """Examples of one optimiser step after selection, rounded."""
        return round(self.rate * self.window_size / self.steps_per_window)

    @property
    def whole_batch_size(self) -> int:
        """Examples of one optimiser step of "everything"."""
        return self.window_size // self.steps_per_window

    def make_policy(self, name: str) -> Policy:
        """The policy of a name, with the settings that are given here."""
        if name == IMPORTANCE:
            return Importance(uniform_mix=self.uniform_mix)
        if name == SELECTIVE_BACKPROP:
            return SelectiveBackprop(beta=self.selective_beta)
        return get_policy(name)

    def interval_length(self, num_examples: int) -> int:
        """Examples between two refreshes of the snapshot, of a dataset with `num_examples`."""
        return self.window_size * self.refresh_interval or num_examples


def _check(name: str, value: Any, expected: str, fits: bool) -> None:
    if not fits:
        raise ValueError(f"{name} must be {expected}. Received: {value}")

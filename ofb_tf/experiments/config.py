"""What is run: the settings of a simulation, its trials, and the suites of `ofb compare`."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from ofb_tf import constants
from ofb_tf.experiments import flights
from ofb_tf.selection import POLICIES, Importance, Policy, SelectiveBackprop, get_policy

UNIFORM = "uniform"
IMPORTANCE = "importance"
EVERYTHING = "everything"
SELECTIVE_BACKPROP = "selective_backprop"

CLICK_STREAM = "click_stream"
CLICK_CONVERSION = "click_conversion"  # the same stream with a second head
CLICKS = (CLICK_STREAM, CLICK_CONVERSION)

LINEAR, SMALL, DEEP = "linear", "small", "deep"
MODELS = (LINEAR, SMALL, DEEP)
"""See `ofb_tf.experiments.models`."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        CLICKS, {"window_size": 1280, "passes": 1, "num_examples": 600_000, "seeds": 3}
    ),
    "mnist": {"window_size": 640, "passes": 6, "seeds": 3},
    "diamonds": {"window_size": 640, "passes": 10, "seeds": 5},
}
# Streams in the order of time, served by a snapshot of every window.
_STREAM_DEFAULTS = {"window_size": 640, "refresh_interval": 1, "passes": 1, "seeds": 3}
# Over the others, with a deep model: fewer examples, in batches in which a step's fixed part, the
# optimiser's, is small.
_DEEP_DEFAULTS = {
    **dict.fromkeys(
        CLICKS,
        {
            "num_examples": 400_000,
            "test_examples": 20_000,
            "window_size": 2560,
            "refresh_interval": 10,
        },
    ),
}
_OTHER_DEFAULTS = {"window_size": 640, "passes": 3, "seeds": 3}

TRIAL_VERSION = 2
"""To be raised whenever a change of selection, training or data changes what trials measure."""

# What no trial depends on: the other policies, the repetitions, where the data happen to be.
_NOT_OF_A_TRIAL = ("policies", "seeds", "data_dir")

ONCE_A_PASS = 0
AT_BEST = "each policy at its best learning rate"
EVERY_POLICY = (*POLICIES, EVERYTHING)
_NOT_SWEPT = (  # groups of the standard suite
    "Stale snapshots", "Larger windows", "Uniform mix", "Milder selective_backprop",
    "Outliers among the targets", "Lost records",
)  # fmt: skip
_CORRUPTIONS = {
    "label_noise": "of labels random",
    "outliers": "of targets outliers",
    "missing_records": "of records missing",
}
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rate": ("in (0, 1]", lambda value: 0 < value <= 1),
    "window_size": ("at least 2", lambda value: value >= 2),
    **dict.fromkeys(
        ("passes", "seeds", "test_examples", "steps_per_window", "num_examples"),
        ("at least 1", lambda value: value >= 1),
    ),
    "refresh_interval": ("at least 1, or 0 for once a pass", lambda value: value >= 0),
    **dict.fromkeys(_CORRUPTIONS, ("in [0, 1)", lambda value: 0 <= value < 1)),
    "learning_rate": ("above 0", lambda value: value > 0),
    "positive_rate": ("in (0, 1)", lambda value: 0 < value < 1),
    "uniform_mix": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "selective_beta": ("finite and at least 0", lambda value: 0 <= value < float("inf")),
    "estimator": (f"one of {constants.ESTIMATORS}", lambda value: value in constants.ESTIMATORS),
    "budget": (f"one of {constants.BUDGETS}", lambda value: value in constants.BUDGETS),
}


def is_own(dataset: str) -> bool:
    """Whether a name is a user's workload, `module:function`; TFDS has a version after a colon."""
    return dataset.partition(":")[2].isidentifier()


def is_stream(dataset: str) -> bool:
    """Whether a dataset is in the order of time and evaluated as it is served."""
    return dataset in flights.TASKS or is_own(dataset)


def _defaults(dataset: str, model: str | None = None) -> dict[str, Any]:
    others = _STREAM_DEFAULTS if is_stream(dataset) else _OTHER_DEFAULTS
    defaults = _DEFAULTS.get(dataset, others)
    return defaults | (_DEEP_DEFAULTS.get(dataset, {}) if model == DEEP else {})


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """Settings of one dataset's comparison; every policy and seed shares them.

    A seed fixes initial weights, data order and selection; all policies share the first two.
    """

    # Or CLICK_CONVERSION, one of `flights.TASKS`, a supervised TFDS dataset, or your own workload,
    # module:function.
    dataset: str = CLICK_STREAM
    data_dir: str | None = None  # of TFDS datasets; None for the TFDS default, with download
    rate: float = 0.1  # fraction of the stream that goes through the backward pass
    window_size: int = 1280  # examples among which one selection is made
    refresh_interval: int = 20  # windows between two exports of the serving snapshot
    passes: int = 1  # number of times the stream repeats the data
    num_examples: int | None = None  # per pass; None for the whole dataset
    test_examples: int = 50_000  # maximum number of held-out examples to evaluate
    learning_rate: float = 1e-3  # of Adam, the same for every policy
    # The ends, between which gap closure is measured, are added where absent.
    policies: tuple[str, ...] = (UNIFORM, IMPORTANCE, EVERYTHING)
    seeds: int = 3  # number of repetitions, numbered from 0
    positive_rate: float = 0.01  # share of positives of the click stream
    # Fractions of: labels replaced by draws from their distribution (classification), targets
    # moved by `corruption.OUTLIER_SHIFT` standard deviations (regression), serving records lost.
    label_noise: float = 0.0
    outliers: float = 0.0
    missing_records: float = 0.0
    # Optimiser steps that share a window's selected examples (under "everything": all of them).
    steps_per_window: int = 1
    uniform_mix: float = Importance().uniform_mix
    selective_beta: float | None = None  # `beta` of `SelectiveBackprop`; None for its default
    model: str = SMALL  # one of MODELS
    # The model in production, if it is another one than the model that is trained: it serves, its
    # outputs are recorded, and it is trained on the same selected examples.
    served_model: str | None = None
    estimator: str = constants.WEIGHTS  # of "importance"; see `ofb_sample`
    budget: str = constants.BUDGET_WINDOW  # likewise
    fingerprint: str | None = None  # of your own workload: of its source and data

    def __post_init__(self) -> None:
        if not self.dataset or not isinstance(self.dataset, str):
            raise ValueError(f"dataset must be a name. Received: {self.dataset!r}")
        for name, (expected, fits) in _RANGES.items():
            value = getattr(self, name)
            if value != getattr(SimulationConfig, name) and not fits(value):  # may be None
                raise ValueError(f"{name} must be {expected}. Received: {value}")
        if self.window_size % self.steps_per_window:
            raise ValueError(
                "window_size must be a multiple of steps_per_window. Received: "
                f"window_size={self.window_size}, steps_per_window={self.steps_per_window}"
            )
        if self.batch_size < 1:
            raise ValueError(
                "rate * window_size must be at least 1 per step. Received: "
                f"rate={self.rate}, window_size={self.window_size}, "
                f"steps_per_window={self.steps_per_window}"
            )
        if self.dataset == CLICK_CONVERSION and self.estimator != constants.WEIGHTS:
            raise ValueError(
                f"estimator must be {constants.WEIGHTS!r} for the two heads of {CLICK_CONVERSION}. "
                f"Received: {self.estimator!r}"
            )
        for field in ("model", "served_model"):
            if getattr(self, field) not in (*MODELS, getattr(SimulationConfig, field)):
                raise ValueError(f"{field} must be in {MODELS}. Received: {getattr(self, field)!r}")
        if self.served_model and is_stream(self.dataset):
            raise ValueError(
                "served_model must be None for a stream whose evaluation is of what served. "
                f"Received: {self.served_model!r} for {self.dataset!r}"
            )
        if self.served_model == self.model:
            object.__setattr__(self, "served_model", None)
        for policy in self.policies:
            if policy not in EVERY_POLICY:
                known = list(EVERY_POLICY)
                raise ValueError(f"policies must be among {known}. Received: {policy!r}")
        between = (p for p in self.policies if p not in (UNIFORM, EVERYTHING))
        policies = tuple(dict.fromkeys((UNIFORM, *between, EVERYTHING)))
        object.__setattr__(self, "policies", policies)

    @classmethod
    def for_dataset(cls, dataset: str, **settings: Any) -> "SimulationConfig":
        """The dataset's defaults, overridden by the settings that are not None."""
        given = {name: value for name, value in settings.items() if value is not None}
        return cls(dataset=dataset, **{**_defaults(dataset, given.get("model")), **given})

    @property
    def batch_size(self) -> int:
        """Examples per optimiser step after selection, rounded."""
        return round(self.rate * self.window_size / self.steps_per_window)

    @property
    def whole_batch_size(self) -> int:
        """Examples per optimiser step of "everything"."""
        return self.window_size // self.steps_per_window

    def make_policy(self, name: str) -> Policy:
        """The policy called `name`, with the settings given here."""
        if name == IMPORTANCE:
            return Importance(uniform_mix=self.uniform_mix)
        if name == SELECTIVE_BACKPROP:
            return SelectiveBackprop(beta=self.selective_beta)
        return get_policy(name)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One policy with one seed, with settings that the policy ignores reset to their defaults.

    So comparisons share trials: "everything" is the same trial at every rate, and a policy that
    needs no records is the same trial however old or incomplete the records are.
    """

    config: SimulationConfig
    policy: str
    seed: int

    def __post_init__(self) -> None:
        defaults: dict[str, Any] = {"seeds": 1, "policies": (self.policy,)}
        everything = self.policy == EVERYTHING
        served = is_stream(self.config.dataset)  # what serves is evaluated, whatever the policy
        if everything or not get_policy(self.policy).needs_records:
            for field in ("missing_records", "served_model"):
                defaults[field] = getattr(SimulationConfig, field)
            if not served:
                defaults["refresh_interval"] = SimulationConfig.refresh_interval
        if everything:
            defaults["rate"] = 1.0
        if everything and not served:
            defaults["steps_per_window"] = 1
            defaults["window_size"] = self.config.whole_batch_size
        if self.policy != IMPORTANCE:
            for field in ("uniform_mix", "estimator", "budget"):
                defaults[field] = getattr(SimulationConfig, field)
        if self.policy != SELECTIVE_BACKPROP:
            defaults["selective_beta"] = SimulationConfig.selective_beta
        if self.config.dataset not in CLICKS:
            defaults["positive_rate"] = SimulationConfig.positive_rate
        object.__setattr__(self, "config", dataclasses.replace(self.config, **defaults))

    @property
    def settings(self) -> dict[str, Any]:
        """What the trial depends on, as plain values."""
        config = dataclasses.asdict(self.config)
        settings = {name: value for name, value in config.items() if name not in _NOT_OF_A_TRIAL}
        for name in ("fingerprint", "served_model"):
            if settings[name] is None:  # as in the names of trials that are finished
                del settings[name]
        return settings | {"policy": self.policy, "seed": self.seed, "version": TRIAL_VERSION}

    @property
    def file_name(self) -> str:
        """The same for the same settings, on any machine."""
        text = json.dumps(self.settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        return f"{self.config.dataset}-{self.policy}-{self.seed}-{digest}.json"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One table: policies under the same settings; related tables share the heading `group`."""

    group: str
    config: SimulationConfig

    @property
    def title(self) -> str:
        """Dataset, rate and the settings that are not the defaults, in words."""
        config, usual = self.config, SimulationConfig.for_dataset(self.config.dataset)
        name = config.dataset
        if name in CLICKS:
            name += f" ({config.positive_rate:.2g} positives)"
        parts = [name, f"rate {config.rate:g}"]
        if config.model != SMALL:
            parts.append(f"{config.model} model")
        if config.served_model:
            parts.append(f"records of the {config.served_model} model")
        if config.steps_per_window > 1:
            parts.append(f"window {config.window_size} in {config.steps_per_window} steps")
        if config.uniform_mix != SimulationConfig.uniform_mix:
            parts.append(f"uniform mix {config.uniform_mix:g}")
        if config.estimator != SimulationConfig.estimator:
            parts.append("log-odds correction")
        if config.budget != SimulationConfig.budget:
            parts.append("budget of the stream")
        if config.learning_rate != SimulationConfig.learning_rate:
            parts.append(f"learning rate {config.learning_rate:g}")
        if config.selective_beta is not None:
            parts.append(f"selective_backprop with beta {config.selective_beta:g}")
        if config.refresh_interval == ONCE_A_PASS:
            parts.append("snapshot refreshed once a pass")
        elif config.refresh_interval != usual.refresh_interval:
            parts.append(f"snapshot refreshed every {config.refresh_interval} windows")
        for field, words in _CORRUPTIONS.items():
            if getattr(config, field):
                parts.append(f"{getattr(config, field):.3g} {words}")
        return ", ".join(parts)

    def at_default_learning_rate(self) -> "Comparison":
        """The same with the default learning rate: what the members of a sweep have in common."""
        default = SimulationConfig.learning_rate
        return Comparison(self.group, dataclasses.replace(self.config, learning_rate=default))

    def trials(self) -> list[Trial]:
        """The trials that the table is made of, seed by seed."""
        config = self.config
        return [Trial(config, p, seed) for seed in range(config.seeds) for p in config.policies]


def standard(seeds: int, data_dir: str | None) -> list[Comparison]:
    """The suite behind docs/RESULTS.md.

    Every task with every policy at rate 0.1; uniform, importance and everything at the other
    rates, at every rate and under wrong labels with the log-odds correction, with windows four
    times as large (and as many steps and refreshes), and with other mixes; selective-backprop with
    powers below its default, which is 9 at rate 0.1; every policy under each corruption, on the
    tasks where it makes a difference.
    """
    common = {"seeds": seeds, "policies": EVERY_POLICY}
    mnist = {"dataset": "mnist", "data_dir": data_dir, **common}
    diamonds = {"dataset": "diamonds", "data_dir": data_dir, **common}
    rare, click, frequent = (
        {"dataset": CLICK_STREAM, "positive_rate": rate, **common} for rate in (0.004, 0.01, 0.03)
    )
    tasks = (mnist, diamonds, rare, click, frequent)
    three = (mnist, diamonds, click)
    fewer = {"policies": (UNIFORM, IMPORTANCE, EVERYTHING)}
    milder = {"policies": (UNIFORM, IMPORTANCE, EVERYTHING, SELECTIVE_BACKPROP)}
    others = (0.01, 0.02, 0.05, 0.2)
    corrected = {"estimator": constants.LOG_ODDS, **fewer}
    large = {"steps_per_window": 4, "refresh_interval": 5, **fewer}
    plan: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        *(("Every policy at rate 0.1", task, {}) for task in tasks),
        *(("Other rates", t, {"rate": r, **fewer}) for t in tasks for r in others),
        *(
            ("Log-odds correction", task, {"rate": rate, **corrected})
            for task in (mnist, rare, click, frequent)
            for rate in (0.1, *others)
        ),
        *(("Stale snapshots", task, {"refresh_interval": 94}) for task in (mnist, click)),
        *(("Stale snapshots", t, {"refresh_interval": ONCE_A_PASS}) for t in (mnist, diamonds)),
        *(
            ("Larger windows", task, {"window_size": window, **large})
            for task, window in ((mnist, 2560), (diamonds, 2560), (click, 5120))
        ),
        *(("Uniform mix", t, {"uniform_mix": mix, **fewer}) for t in three for mix in (0.05, 0.5)),
        *(
            ("Milder selective_backprop", task, {"selective_beta": beta, **milder})
            for task in three
            for beta in (1.0, 3.0)
        ),
        *(("Wrong labels", task, {"label_noise": 0.1}) for task in (mnist, click)),
        *(("Wrong labels", t, {"label_noise": 0.1, **corrected}) for t in (mnist, click)),
        ("Outliers among the targets", diamonds, {"outliers": 0.05}),
        *(("Lost records", task, {"missing_records": 0.2}) for task in (mnist, click)),
    ]
    return [
        Comparison(group, SimulationConfig.for_dataset(**{**task, **settings}))
        for group, task, settings in plan
    ]


def quick(seeds: int) -> list[Comparison]:
    """Every policy on short click streams: takes a minute, needs no download."""
    common = {"num_examples": 60_000, "seeds": seeds, "policies": EVERY_POLICY}
    settings = [{"positive_rate": 0.01}, {"positive_rate": 0.03}, {"missing_records": 0.2}]
    return [
        Comparison("Short click streams", SimulationConfig.for_dataset(CLICK_STREAM, **common, **s))
        for s in settings
    ]


def grid(
    datasets: Sequence[str], axes: dict[str, Sequence[Any]], **settings: Any
) -> list[Comparison]:
    """Every combination of datasets and axes; an empty axis or None keeps the default."""
    given = {name: values for name, values in axes.items() if values}
    made = []
    for dataset, *values in itertools.product(datasets, *given.values()):
        combination = dict(zip(given, values, strict=True))
        config = SimulationConfig.for_dataset(dataset, **settings, **combination)
        made.append(Comparison("Comparisons", config))
    return made


def sweep(comparisons: Sequence[Comparison], learning_rates: Sequence[float]) -> list[Comparison]:
    """Each comparison at every learning rate, one after the other; unchanged if there are none.

    Groups of the standard suite about other settings stay at the default.
    """
    if not learning_rates:
        return list(comparisons)
    return [
        Comparison(one.group, dataclasses.replace(one.config, learning_rate=learning_rate))
        for one in comparisons
        for learning_rate in dict.fromkeys(
            [one.config.learning_rate] if one.group in _NOT_SWEPT else learning_rates
        )
    ]

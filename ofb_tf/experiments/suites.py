"""What `ofb compare` compares: lists of comparisons, each one table with every policy in it."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from ofb_tf.experiments import config as configs
from ofb_tf.experiments.config import CLICK_STREAM, SimulationConfig
from ofb_tf.selection import POLICIES

STALE_INTERVAL = 94
ONCE_A_PASS = 0
LABEL_NOISE, OUTLIERS, MISSING = 0.1, 0.05, 0.2
POSITIVE_RATES = (0.004, 0.01, 0.03)
OTHER_RATES = (0.02, 0.05, 0.3)
OTHER_MIXES = (0.05, 0.5)
OTHER_BETAS = (1.0, 3.0)
_AT_OTHER_RATES = (configs.UNIFORM, configs.IMPORTANCE, configs.EVERYTHING)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One table: policies under the same settings.

    Attributes:
      group: heading under which comparisons of a kind stand together.
      config: the settings, with policies and number of seeds.
    """

    group: str
    config: SimulationConfig

    @property
    def title(self) -> str:
        """Dataset, rate and conditions in words."""
        config = self.config
        name = config.dataset
        if name == CLICK_STREAM:
            name += f" ({config.positive_rate:.2g} positives)"
        parts = [name, f"rate {config.rate:g}"]
        if config.steps_per_window > 1:
            parts.append(f"window {config.window_size} in {config.steps_per_window} steps")
        if config.uniform_mix != SimulationConfig.uniform_mix:
            parts.append(f"uniform mix {config.uniform_mix:g}")
        if config.selective_beta is not None:
            parts.append(f"selective_backprop with beta {config.selective_beta:g}")
        if config.refresh_interval == ONCE_A_PASS:
            parts.append("snapshot refreshed once a pass")
        elif config.refresh_interval != SimulationConfig.refresh_interval:
            parts.append(f"snapshot refreshed every {config.refresh_interval} windows")
        for field, words in _CONDITIONS.items():
            if getattr(config, field):
                parts.append(f"{getattr(config, field):.3g} {words}")
        return ", ".join(parts)


_CONDITIONS = {
    "label_noise": "of labels random",
    "outliers": "of targets outliers",
    "missing_records": "of records missing",
}


def every_policy() -> tuple[str, ...]:
    """Names of all policies and "everything"."""
    return (*POLICIES, configs.EVERYTHING)


def standard(seeds: int, data_dir: str | None) -> list[Comparison]:
    """The suite behind docs/RESULTS.md.

    Every task with every policy at rate 0.1; uniform, importance and everything at the other
    rates, with windows four times as large (and as many steps and refreshes), and with other
    mixes; selective-backprop with powers below its default, which is 9 at rate 0.1; every policy
    under each condition, on the tasks where it makes a difference.

    Args:
      seeds: repetitions.
      data_dir: of TFDS datasets.
    """
    common = {"seeds": seeds, "policies": every_policy()}
    mnist = {"dataset": "mnist", "data_dir": data_dir, **common}
    diamonds = {"dataset": "diamonds", "data_dir": data_dir, **common}
    clicks = [{"dataset": CLICK_STREAM, "positive_rate": rate, **common} for rate in POSITIVE_RATES]
    tasks = [mnist, diamonds, *clicks]
    click = clicks[POSITIVE_RATES.index(0.01)]
    plan: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    plan += [("Every policy at rate 0.1", task, {}) for task in tasks]
    fewer = {"policies": _AT_OTHER_RATES}
    plan += [
        ("Other rates", task, {"rate": rate, **fewer}) for task in tasks for rate in OTHER_RATES
    ]
    stale = {"refresh_interval": STALE_INTERVAL}
    plan += [("Stale snapshots", task, stale) for task in (mnist, click)]
    pass_old = {"refresh_interval": ONCE_A_PASS}
    plan += [("Stale snapshots", task, pass_old) for task in (mnist, diamonds)]
    for task, window in ((mnist, 640), (diamonds, 640), (click, 1280)):
        large = {"window_size": 4 * window, "steps_per_window": 4, "refresh_interval": 5}
        plan += [("Larger windows", task, {**large, **fewer})]
    plan += [
        ("Uniform mix", task, {"uniform_mix": mix, **fewer})
        for task in (mnist, diamonds, click)
        for mix in OTHER_MIXES
    ]
    milder = {"policies": (*_AT_OTHER_RATES, configs.SELECTIVE_BACKPROP)}
    plan += [
        ("Milder selective_backprop", task, {"selective_beta": beta, **milder})
        for task in (mnist, diamonds, click)
        for beta in OTHER_BETAS
    ]
    plan += [("Wrong labels", task, {"label_noise": LABEL_NOISE}) for task in (mnist, click)]
    plan += [("Outliers among the targets", diamonds, {"outliers": OUTLIERS})]
    plan += [("Lost records", task, {"missing_records": MISSING}) for task in (mnist, click)]
    return [
        Comparison(group, SimulationConfig.for_dataset(**{**task, **settings}))
        for group, task, settings in plan
    ]


def quick(seeds: int) -> list[Comparison]:
    """A minute's worth, without a download: every policy on short click streams."""
    common = {"num_examples": 60_000, "seeds": seeds, "policies": every_policy()}
    settings = [{"positive_rate": 0.01}, {"positive_rate": 0.03}, {"missing_records": MISSING}]
    return [
        Comparison("Short click streams", SimulationConfig.for_dataset(CLICK_STREAM, **common, **s))
        for s in settings
    ]


def grid(
    datasets: Sequence[str], axes: dict[str, Sequence[Any]], **settings: Any
) -> list[Comparison]:
    """Every combination.

    Args:
      datasets: names.
      axes: values to combine, by field of `SimulationConfig`; an empty list leaves the default.
      **settings: what all have in common; None leaves the default.

    Returns:
      A list of `Comparison`.

    Raises:
      ValueError: a setting out of range.
    """
    given = {name: values for name, values in axes.items() if values}
    return [
        Comparison(
            "Comparisons",
            SimulationConfig.for_dataset(
                dataset, **settings, **dict(zip(given, combination, strict=True))
            ),
        )
        for dataset in datasets
        for combination in itertools.product(*given.values())
    ]

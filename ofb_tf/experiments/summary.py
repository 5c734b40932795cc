"""Statistics of finished trials, each computed once: from `TrialResult`s to `results.json`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ofb_tf.experiments import config as configs
from ofb_tf.experiments.trial import PROGRESSIVE, TrialResult
from ofb_tf.version import __version__

_BUDGET_MARGIN = 1.2
_SETTINGS = (
    "dataset", "rate", "seeds", "window_size", "refresh_interval", "passes",
)  # fmt: skip
_AVERAGED = {  # in results.json: in TrialResult
    "mean_weight": "mean_weight",
    "max_weight": "max_weight",
    "effective_sample_size": "effective_sample_size",
    "backward_examples": "backward_examples",
    "train_seconds": "train_seconds",
    "wall_seconds": "wall_seconds",
    "cpu_seconds": "cpu_seconds",
    "warm_up_seconds": "warm_up_seconds",
    "serving_seconds": "serving_seconds",
}


def standard_error(values: Any) -> Any:
    """Standard error of the mean over the first axis; None for a single value."""
    if len(values) < 2:
        return None
    error = np.std(values, axis=0, ddof=1) / math.sqrt(len(values))
    return float(error) if error.ndim == 0 else error


def gap_closure(uniform: float, policy: float, everything: float) -> float | None:
    """(uniform − policy) / (uniform − everything), of means of a metric where less is better.

    None if there is no gap, because training on everything is no better than uniform sampling.
    """
    gap = uniform - everything
    if not math.isfinite(gap) or gap <= 0:
        return None
    return (uniform - policy) / gap


def gap_closure_error(
    uniform: Sequence[float], policy: Sequence[float], everything: Sequence[float]
) -> float | None:
    """Jackknife standard error of the gap closure over seeds, which the policies share.

    Reference: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11.
    """
    count = len(policy)
    if count < 2:
        return None
    left_out = []
    for seed in range(count):
        means = [np.delete(values, seed).mean() for values in (uniform, policy, everything)]
        closure = gap_closure(*means)
        if closure is None:
            return None
        left_out.append(closure)
    return float(math.sqrt((count - 1) * np.var(left_out)))


def mean_curve(curves: Sequence[Sequence[dict]], field: str) -> tuple[np.ndarray, Any]:
    """Mean over seeds of a field of their curves, float64 `[points]`, and its standard error."""
    length = min(len(curve) for curve in curves)
    values = np.array([[point[field] for point in curve[:length]] for curve in curves], float)
    return values.mean(0), standard_error(values)


def against_default(policies: dict[str, Any], policy: str) -> dict[str, Any] | None:
    """A policy's metric minus importance's, paired over seeds; None where there is no such pair."""
    if configs.IMPORTANCE not in policies or policy in (configs.IMPORTANCE, configs.EVERYTHING):
        return None
    differences = np.subtract(policies[policy]["values"], policies[configs.IMPORTANCE]["values"])
    return {"mean": float(differences.mean()), "standard_error": standard_error(differences)}


def quality(values: dict[str, list[float]], policy: str) -> dict[str, Any]:
    """A metric of a policy over seeds, and what it closes of the gap; `values` by policy."""
    ends = (values[configs.UNIFORM], values[policy], values[configs.EVERYTHING])
    return {
        "mean": float(np.mean(values[policy])),
        "standard_error": standard_error(values[policy]),
        "values": values[policy],
        "gap_closure": gap_closure(*(float(np.mean(v)) for v in ends)),
        "gap_closure_standard_error": gap_closure_error(*ends),
    }


def summarize(
    config: configs.SimulationConfig,
    results: Sequence[TrialResult],
    *,
    command: str,
    learning_rates: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The content of `results.json` for one comparison, from one result per policy and seed.

    `learning_rates` are those of the policies where they are not all the configuration's.
    """
    of = {
        policy: sorted((r for r in results if r.policy == policy), key=lambda r: r.seed)
        for policy in config.policies
    }
    metric, further = results[0].metric, results[0].further_metrics

    def values(name: str) -> dict[str, list[float]]:
        return {
            policy: [r.metrics[name] for r in group if name in r.metrics]
            for policy, group in of.items()
        }

    served = values(PROGRESSIVE)
    is_progressive = all(served.values())
    policies = {}
    for policy, group in of.items():
        metrics = {n: float(np.mean([r.metrics[n] for r in group])) for n in group[0].metrics}
        rates = [r.backward_examples / r.stream_examples for r in group]
        policies[policy] = {
            **quality(values(metric), policy),
            "further": {name: quality(values(name), policy) for name in further},
            "progressive": quality(served, policy) if is_progressive else None,
            "learning_rate": (learning_rates or {}).get(policy, config.learning_rate),
            "calibration": metrics["calibration"],
            "realized_rate": float(np.mean(rates)),
            **{n: float(np.mean([getattr(r, f) for r in group])) for n, f in _AVERAGED.items()},
            "metrics": metrics,
            **_until(of, group, metric),
            "curves": [r.curve for r in group],
        }
    for policy, shown in policies.items():
        shown["against_default"] = against_default(policies, policy)
    return {
        **{name: getattr(config, name) for name in _SETTINGS},
        "learning_rate": None if learning_rates else config.learning_rate,
        "metric": metric,
        "metric_text": results[0].metric_text,
        "further_metrics": further,
        "command": command,
        "version": __version__,
        "stream_examples": results[0].stream_examples,
        "policies": policies,
    }


def _until(
    of: dict[str, list[TrialResult]], group: Sequence[TrialResult], metric: str
) -> dict[str, float | None]:
    """What it took to reach the final metrics of uniform sampling and of everything.

    `time_to_uniform` and `stream_to_uniform` are fractions of uniform's total `train_seconds` and
    examples, `seconds_to_full_quality` are `train_seconds` until the metric was that of everything
    at its end. None if the policy never gets there.
    """
    goals = {
        policy: float(np.mean([r.metrics[metric] for r in of[policy]]))
        for policy in (configs.UNIFORM, configs.EVERYTHING)
    }
    curves, whole = [r.curve for r in group], [r.curve for r in of[configs.UNIFORM]]
    found: dict[str, float | None] = {}
    for name, field in (("time", "train_seconds"), ("stream", "stream_examples")):
        reached = first_reached(curves, metric, goals[configs.UNIFORM], field)
        total = max(mean_curve(whole, field)[0][-1], 1e-9)
        found[f"{name}_to_uniform"] = None if reached is None else reached / total
    full = first_reached(curves, metric, goals[configs.EVERYTHING], "train_seconds")
    return found | {"seconds_to_full_quality": full}


def first_reached(
    curves: Sequence[Sequence[dict]], metric: str, goal: float, field: str
) -> float | None:
    """A field of the mean curve where its metric first is `goal` or less; None if it never is.

    The curve goes straight from one evaluation to the next.
    """
    values, _ = mean_curve(curves, metric)
    x, _ = mean_curve(curves, field)
    reached = np.flatnonzero(values <= goal)
    if not len(reached):
        return None
    points = slice(max(reached[0] - 1, 0), reached[0] + 1)  # falling, as np.interp wants it rising
    return float(np.interp(-goal, -values[points], x[points]))


def at_best(
    swept: Mapping[float, Mapping[str, Sequence[TrialResult]]],
) -> tuple[dict[str, Sequence[TrialResult]], dict[str, float]]:
    """The results of each policy at its best learning rate, and that rate, both by policy.

    The best has the least mean of the metric over seeds. `swept` has results by learning rate and
    policy; a policy that is not finished at all of them is left out.
    """

    def mean(learning_rate: float, policy: str) -> float:
        value = np.mean([r.metrics[r.metric] for r in swept[learning_rate][policy]])
        return float(value) if math.isfinite(value) else math.inf

    everywhere = [p for p in next(iter(swept.values())) if all(p in one for one in swept.values())]
    rates = {p: min(swept, key=lambda learning_rate: mean(learning_rate, p)) for p in everywhere}
    return {p: swept[learning_rate][p] for p, learning_rate in rates.items()}, rates


def best(content: dict[str, Any]) -> str:
    """The policy with the least finite mean among those that realised about the rate."""
    budget = _BUDGET_MARGIN * content["rate"]
    means = {
        policy: shown["mean"]
        for policy, shown in content["policies"].items()
        if policy != configs.EVERYTHING and shown["realized_rate"] <= budget
    }
    return min(means, key=lambda p: means[p] if math.isfinite(means[p]) else math.inf)


class BetterPolicy(NamedTuple):
    """A policy that was better than the default in one comparison, with the paired error."""

    title: str
    policy: str
    better_by: float
    standard_error: float
    realized_rate: float


def better_than_default(comparisons: Sequence[dict[str, Any]]) -> list[BetterPolicy]:
    """Where a policy beat the default by more than one paired standard error, at whatever rate."""
    found = []
    for content in comparisons:
        for policy, shown in content["policies"].items():
            difference = against_default(content["policies"], policy)
            if difference is None:
                continue
            better, error = -difference["mean"], difference["standard_error"] or 0.0
            if better > error:
                rate = shown["realized_rate"]
                found.append(BetterPolicy(content["title"], policy, better, error, rate))
    return found

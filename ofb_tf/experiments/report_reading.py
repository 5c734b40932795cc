"""Who wins where, in plain sentences, from the content of a comparison's `results.json`."""

import math
from collections.abc import Sequence
from typing import Any

from ofb_tf.experiments import config as configs

_BUDGET_MARGIN = 1.2
_SMALL_CLOSURE = 0.25
_CALIBRATION_TOLERANCE = 0.05
_REFERENCES = (configs.UNIFORM, configs.EVERYTHING)


def within_budget(content: dict[str, Any], policy: str) -> bool:
    """Whether a policy took about the rate, so that it may be compared at equal cost."""
    realized = content["policies"][policy]["realized_rate"]
    return policy != configs.EVERYTHING and realized <= _BUDGET_MARGIN * content["rate"]


def best(content: dict[str, Any]) -> tuple[str, list[str]]:
    """The policy with the least mean at this budget, and those within one standard error of it.

    The standard error is that of the difference of two means: root of the sum of squares.
    """
    policies = {p: f for p, f in content["policies"].items() if within_budget(content, p)}
    first = min(policies, key=lambda policy: _or_infinity(policies[policy]["mean"]))
    ties = [
        policy
        for policy, figures in policies.items()
        if policy != first
        and _or_infinity(figures["mean"]) - policies[first]["mean"]
        <= _error(figures, policies[first])
    ]
    return first, ties


def winners(comparisons: Sequence[dict[str, Any]], titles: Sequence[str]) -> list[list[str]]:
    """A table: for each comparison the best, its ties, and how the default stands."""
    rows = [["comparison", "best", "within one standard error", "gap closed by importance"]]
    for content, title in zip(comparisons, titles, strict=True):
        first, ties = best(content)
        default = content["policies"].get(configs.IMPORTANCE, {})
        closure, error = default.get("gap_closure"), default.get("gap_closure_standard_error")
        shown = "–" if closure is None else f"{closure:.2f}"
        if closure is not None and error is not None:
            shown += f" ± {error:.2f}"
        rows.append([title, first, ", ".join(ties) or "–", shown])
    return rows


def overview(comparisons: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences on all comparisons: where the default stands, and what is not ranked."""
    sentences = []
    with_default = [c for c in comparisons if configs.IMPORTANCE in c["policies"]]
    if with_default:
        good = [c for c in with_default if _is_best(c, configs.IMPORTANCE)]
        sentences.append(
            f"In {len(good)} of {_count(with_default)}, importance was the best policy at its "
            "budget or within one standard error of the best."
        )
    for policy in _names(comparisons):
        rates = [
            content["policies"][policy]["realized_rate"]
            for content in comparisons
            if policy in content["policies"] and not within_budget(content, policy)
        ]
        if rates:
            shares = dict.fromkeys(f"{rate:.0%}" for rate in (min(rates), max(rates)))
            sentences.append(
                f"{policy} trains on {' to '.join(shares)} of the stream whatever the rate, and "
                "takes more optimiser steps in proportion, so it is shown but not ranked among "
                "policies that keep the budget."
            )
    return sentences


def against_uniform(comparisons: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A table: how often each policy was better or worse than uniform, by one standard error."""
    rows = [["policy", "comparisons", "better than uniform", "alike", "worse"]]
    for policy in _names(comparisons):
        differences = [_above_uniform(c, policy) for c in comparisons if policy in c["policies"]]
        better = sum(difference < 0 for difference in differences)
        worse = sum(difference > 0 for difference in differences)
        counts = (len(differences), better, len(differences) - better - worse, worse)
        rows.append([policy, *map(str, counts)])
    return rows


def of_one(content: dict[str, Any]) -> str:
    """A sentence on one comparison."""
    first, ties = best(content)
    closure = content["policies"][first]["gap_closure"]
    sentence = f"Best at this budget: {first}"
    if closure is not None and first != configs.UNIFORM:
        sentence += f", which closed {closure:.0%} of the gap between uniform and everything"
    if ties:
        sentence += f"; within one standard error of it: {', '.join(ties)}"
    return sentence + "."


def exceptions(comparisons: Sequence[dict[str, Any]], titles: Sequence[str]) -> list[str]:
    """Where a policy beat the default at its budget by more than one standard error."""
    sentences = []
    for content, title in zip(comparisons, titles, strict=True):
        if configs.IMPORTANCE not in content["policies"]:
            continue
        default = content["policies"][configs.IMPORTANCE]
        for policy, figures in content["policies"].items():
            if policy == configs.IMPORTANCE or not within_budget(content, policy):
                continue
            paired = figures.get("against_default")
            if paired is not None and paired["standard_error"] is not None:
                gain, error = -paired["mean"], paired["standard_error"]
            else:
                gain = _or_infinity(default["mean"]) - _or_infinity(figures["mean"])
                error = _error(default, figures)
            if gain > error:
                sentences.append(
                    f"{title}: {policy} was better than importance by {gain:.2g} ± {error:.2g} "
                    f"in {content['metric']} ({figures['mean']:.4g} against "
                    f"{default['mean']:.4g})."
                )
    return sentences


def when_not_to_use(comparisons: Sequence[dict[str, Any]], titles: Sequence[str]) -> list[str]:
    """Where these figures advise against selection by importance, and what they cannot show."""
    sentences = []
    for content, title in zip(comparisons, titles, strict=True):
        default = content["policies"].get(configs.IMPORTANCE)
        if default is None:
            continue
        closure = default["gap_closure"]
        everything = content["policies"][configs.EVERYTHING]
        if closure is None:
            sentences.append(
                f"{title}: training on everything was no better than uniform sampling, so uniform "
                "sampling at this rate is enough."
            )
        elif closure < _SMALL_CLOSURE:
            did = f"closed {closure:.0%} of the gap" if closure > 0 else "was worse than uniform"
            sentences.append(
                f"{title}: importance {did}. Uniform sampling is simpler, and needs no records."
            )
        off = abs(default["calibration"] - 1.0) - abs(everything["calibration"] - 1.0)
        if off > _CALIBRATION_TOLERANCE:
            sentences.append(
                f"{title}: calibration under importance was {default['calibration']:.2f}, under "
                f"everything {everything['calibration']:.2f}. Do not use it here where "
                "predictions are read as probabilities without calibrating them afterwards."
            )
    sentences += [
        "Policies with weights of 1 that prefer some losses (top_loss, bottom_loss, "
        "selective_backprop, and loss_matching where few losses make up the mean) train towards "
        "another distribution than the stream's. Read their calibration before their metric.",
        "Where the backward pass is a small part of a step (input pipelines, small models), "
        "selection saves little time: the charts against wall-clock show it for these models.",
        "Where there is time to train on everything, do that: selection is for streams that bring "
        "more than can be trained on.",
    ]
    return sentences


def _names(comparisons: Sequence[dict[str, Any]]) -> list[str]:
    """All policies but the two between which the gap is."""
    names = dict.fromkeys(policy for content in comparisons for policy in content["policies"])
    return [policy for policy in names if policy not in _REFERENCES]


def _is_best(content: dict[str, Any], policy: str) -> bool:
    first, ties = best(content)
    return policy == first or policy in ties


def _above_uniform(content: dict[str, Any], policy: str) -> float:
    """How far above uniform's mean, where that is more than one standard error; otherwise 0."""
    uniform, figures = content["policies"][configs.UNIFORM], content["policies"][policy]
    difference = _or_infinity(figures["mean"]) - uniform["mean"]
    return difference if abs(difference) > _error(uniform, figures) else 0.0


def _error(one: dict[str, Any], other: dict[str, Any]) -> float:
    return math.hypot(*(figures["standard_error"] or 0.0 for figures in (one, other)))


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None or not math.isfinite(value) else value


def _count(comparisons: Sequence) -> str:
    return f"{len(comparisons)} comparison{'s' * (len(comparisons) != 1)}"

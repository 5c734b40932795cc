"""The SamplingValidator component: may this sample be trained on?"""

import os
from typing import Any, NamedTuple

import tensorflow as tf
from tfx import v1 as tfx

from tfx_components import artifacts, statistics
from tfx_components.component_utils import checked_at_construction, naming_errors
from tfx_components.sampling_report import render
from tfx_components.statistics import Tally

_NAME = "SamplingValidator"
STANDARD_ERRORS = 5.0
_SHARES = ("min_coverage", "min_effective_sample_size", "max_repeated_ids")


class Check(NamedTuple):
    """One threshold on one split.

    Attributes:
      split: its name.
      name: what was looked at.
      passed: whether it is in bounds.
      message: the figure, the bound, and where it is out of bounds the remedy.
    """

    split: str
    name: str
    passed: bool
    message: str


def _check_thresholds(thresholds: dict[str, Any]) -> None:
    for name, value in thresholds.items():
        most = 1.0 if name in _SHARES else float("inf")
        if not 0.0 <= value <= most:
            bound = "in [0, 1]" if most == 1.0 else "at least 0"
            raise ValueError(f"{name} must be {bound}. Received: {value!r}")


@checked_at_construction(_check_thresholds)
@tfx.dsl.components.component
def SamplingValidator(
    sampling_statistics: tfx.dsl.components.InputArtifact[artifacts.SamplingStatistics],
    blessing: tfx.dsl.components.OutputArtifact[artifacts.SamplingBlessing],
    min_coverage: tfx.dsl.components.Parameter[float] = 0.5,
    max_rate_deviation: tfx.dsl.components.Parameter[float] = 0.1,
    min_effective_sample_size: tfx.dsl.components.Parameter[float] = 0.1,
    max_weight: tfx.dsl.components.Parameter[float] = 0.0,
    max_record_age: tfx.dsl.components.Parameter[float] = 0.0,
    max_repeated_ids: tfx.dsl.components.Parameter[float] = 0.01,
) -> None:
    """Checks a sampler's statistics and writes a blessing, anomalies as text, an HTML page.

    Condition Trainer on it:

    ```python
    with tfx.dsl.Cond(blessing.future()[0].custom_property("blessed") == 1):
        trainer = tfx.components.Trainer(...)
    ```

    Besides the thresholds, the number selected and the sum of the weights must be within five
    standard deviations of what the probabilities say; a fair sampler fails that less than once in
    a million runs.

    Args:
      sampling_statistics: from OFBSampler.
      blessing: the artifact that it writes.
      min_coverage: in [0, 1]: share of the examples with a usable record.
      max_rate_deviation: at least 0: of the realised rate from the configured one, relative,
        beyond what chance explains (`missing="keep"` and `"drop"` move it).
      min_effective_sample_size: in [0, 1]: (sum w)^2 / (m sum w^2) of the m selected.
      max_weight: positive; 0 for 1 / uniform_mix, which the sampler promises.
      max_record_age: seconds, of the oldest record that was joined; 0 for no limit.
      max_repeated_ids: in [0, 1]: share of the examples whose id an earlier one has.

    Raises:
      ValueError: a threshold is out of range; names the component.
    """
    with naming_errors(_NAME, [blessing.uri]):
        thresholds = {
            "min_coverage": min_coverage,
            "max_rate_deviation": max_rate_deviation,
            "min_effective_sample_size": min_effective_sample_size,
            "max_weight": max_weight,
            "max_record_age": max_record_age,
            "max_repeated_ids": max_repeated_ids,
        }
        _check_thresholds(thresholds)
        config, splits = statistics.read(sampling_statistics.uri)
        checks = [
            check
            for split, content in splits.items()
            for check in _check_split(split, content.total, config, **thresholds)
        ]
        blessed = all(check.passed for check in checks)
        anomalies = [f"{c.split}: {c.message}" for c in checks if not c.passed]
        _write(blessing.uri, "BLESSED" if blessed else "NOT_BLESSED", "")
        _write(blessing.uri, "anomalies.txt", "".join(f"{line}\n" for line in anomalies))
        _write(blessing.uri, "report.html", render(config, splits, checks, blessed))
        blessing.set_int_custom_property(artifacts.BLESSED, int(blessed))
        blessing.set_string_custom_property("anomalies", "\n".join(anomalies))


def _check_split(
    split: str,
    tally: Tally,
    config: dict,
    *,
    min_coverage: float,
    max_rate_deviation: float,
    min_effective_sample_size: float,
    max_weight: float,
    max_record_age: float,
    max_repeated_ids: float,
) -> list[Check]:
    rate, n = config["rate"], tally.num_examples
    # Rounding: a weight is a float32.
    slack = 1e-6 * max(tally.sum_weights, 1.0)
    count_bound = STANDARD_ERRORS * tally.variance_selected**0.5 + slack
    count_error = abs(tally.num_selected - tally.expected_selected)
    rate_bound = max_rate_deviation * rate * n + count_bound
    expected_weight = rate * (n - tally.unreachable)
    weight_bound = STANDARD_ERRORS * rate * tally.variance_inverse**0.5 + slack
    weight_error = abs(tally.sum_weights - expected_weight)
    mix = config["uniform_mix"] if config["policy"] == "importance" else 1.0
    max_weight = max_weight or (1.0 / mix if mix else float("inf"))
    checks = [
        ("coverage", tally.coverage >= min_coverage,
         f"{tally.coverage:.1%} of {n} examples have a usable record ({tally.num_no_record} have "
         f"none, {tally.num_stale} a stale one, {tally.num_unusable} an unusable one); the least "
         f"is {min_coverage:.1%}. Check that serving records what it serves, and max_age."),
        ("selected", count_error <= count_bound,
         f"{tally.num_selected} are selected, the probabilities sum to "
         f"{tally.expected_selected:.1f} ± {count_bound:.1f}. The draws are not independent of "
         "the scores: check that ids are unique and not made from the label."),
        ("rate", abs(tally.num_selected - rate * n) <= rate_bound,
         f"the realised rate is {tally.realized_rate:.4f}, the configured one {rate}; they may "
         f"differ by {max_rate_deviation:.1%} and chance. Raise the coverage, or use "
         "missing='uniform'."),
        ("sum of weights", weight_error <= weight_bound,
         f"the weights sum to {tally.sum_weights:.1f}, expected {expected_weight:.1f} ± "
         f"{weight_bound:.1f}. The sample is not one of these examples: check that ids are "
         "unique."),
        ("effective sample size", tally.effective_sample_size >= min_effective_sample_size,
         f"the effective sample size is {tally.effective_sample_size:.3f} of the selected; the "
         f"least is {min_effective_sample_size}. Raise uniform_mix."),
        ("maximum weight", tally.max_weight <= max_weight * (1.0 + 1e-6),
         f"the largest weight is {tally.max_weight:.3f}; the most is {max_weight:.3f}. Raise "
         "uniform_mix."),
        ("repeated ids", tally.num_repeated_ids <= max_repeated_ids * n,
         f"{tally.num_repeated_ids} of {n} examples have an id that another has, and are drawn "
         f"with it; the most is {max_repeated_ids:.1%}. Set id_feature to a feature that tells "
         "examples apart."),
    ]  # fmt: skip
    if max_record_age:
        checks.append(
            ("record age", tally.max_age <= max_record_age,
             f"the oldest record is {tally.max_age:.0f} s old; the most is {max_record_age:.0f} "
             "s. Set the sampler's max_age, or serve from a newer model.")
        )  # fmt: skip
    return [Check(split, name, bool(passed), message) for name, passed, message in checks]


def _write(uri: str, name: str, text: str) -> None:
    tf.io.gfile.makedirs(uri)
    with tf.io.gfile.GFile(os.path.join(uri, name), "w") as file:
        file.write(text)

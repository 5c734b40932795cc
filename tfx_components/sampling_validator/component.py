"""The SamplingValidator component: may this sample be trained on?"""

import functools
import math
import types
from typing import Any

from tfx import v1 as tfx

from ofb_tf.beam.reports import WeightStats, read_statistics, write_text
from ofb_tf.beam.sample import IMPORTANCE
from ofb_tf.checks import check_ranges
from tfx_components.artifacts import SamplingBlessing, SamplingStatistics, write_blessing
from tfx_components.component_utils import checked_at_construction, error_context

_STANDARD_ERRORS = 5.0
_RANGES = {
    "min_coverage": (0, 1),
    "max_rate_deviation": (0, math.inf),
    "min_effective_sample_size": (0, 1),
    "max_weight": (0, math.inf),
    "max_record_age": (0, math.inf),
    "max_repeated_ids": (0, 1),
}


@checked_at_construction(functools.partial(check_ranges, _RANGES))
@tfx.dsl.components.component
def SamplingValidator(
    sampling_statistics: tfx.dsl.components.InputArtifact[SamplingStatistics],
    blessing: tfx.dsl.components.OutputArtifact[SamplingBlessing],
    min_coverage: tfx.dsl.components.Parameter[float] = 0.5,
    max_rate_deviation: tfx.dsl.components.Parameter[float] = 0.1,
    min_effective_sample_size: tfx.dsl.components.Parameter[float] = 0.1,
    max_weight: tfx.dsl.components.Parameter[float] = 0.0,
    max_record_age: tfx.dsl.components.Parameter[float] = 0.0,
    max_repeated_ids: tfx.dsl.components.Parameter[float] = 0.01,
) -> None:
    """Checks a sampler's statistics and writes a blessing, and anomalies as text.

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
      blessing: output: the verdict.
      min_coverage: in [0, 1]: least share of examples with a usable record.
      max_rate_deviation: at least 0: relative deviation of the realised rate from the configured
        one, beyond what chance explains (`missing="keep"` and `"drop"` move it).
      min_effective_sample_size: in [0, 1]: (sum w)^2 / (m sum w^2) of the m selected.
      max_weight: positive; 0 for 1 / uniform_mix, which the sampler promises.
      max_record_age: seconds, of the oldest record that was joined; 0 for no limit.
      max_repeated_ids: in [0, 1]: share of examples whose id an earlier one has.

    Raises:
      ValueError: a threshold is out of range; names the component.
    """
    thresholds = types.SimpleNamespace(**locals())
    with error_context("SamplingValidator", [blessing.uri]):
        check_ranges(_RANGES, vars(thresholds))
        config, splits = read_statistics(sampling_statistics.uri)
        anomalies = [
            f"{split}: {message}"
            for split, content in splits.items()
            for message in _anomalies(content.total, config, thresholds)
        ]
        write_blessing(blessing, not anomalies)
        write_text(blessing.uri, "anomalies.txt", "".join(f"{line}\n" for line in anomalies))
        blessing.set_string_custom_property("anomalies", "\n".join(anomalies))


def _anomalies(stats: WeightStats, config: dict, thresholds: Any) -> list[str]:
    """What is out of bounds in one split: the value, the bound, the remedy."""
    rate, n = config["rate"], stats.num_examples
    slack = 1e-6 * max(stats.sum_weights, 1.0)  # weights are rounded to float32
    count_bound = _STANDARD_ERRORS * stats.variance_selected**0.5 + slack
    count_error = abs(stats.num_selected - stats.expected_selected)
    rate_bound = thresholds.max_rate_deviation * rate * n + count_bound
    expected_weight = rate * (n - stats.unreachable)
    weight_bound = _STANDARD_ERRORS * rate * stats.variance_inverse**0.5 + slack
    weight_error = abs(stats.sum_weights - expected_weight)
    mix = config["uniform_mix"] if config["policy"] == IMPORTANCE else 1.0
    max_weight = thresholds.max_weight or (1.0 / mix if mix else float("inf"))
    max_age = thresholds.max_record_age or float("inf")
    checks = [
        (stats.coverage >= thresholds.min_coverage,
         f"{stats.coverage:.1%} of {n} examples have a usable record ({stats.num_no_record} have "
         f"none, {stats.num_stale} a stale one, {stats.num_unusable} an unusable one); the least "
         f"is {thresholds.min_coverage:.1%}. Check that serving records what it serves, and "
         "max_age."),
        (count_error <= count_bound,
         f"{stats.num_selected} are selected, the probabilities sum to "
         f"{stats.expected_selected:.1f} ± {count_bound:.1f}. The draws are not independent of "
         "the scores: check that ids are unique and not made from the label."),
        (abs(stats.num_selected - rate * n) <= rate_bound,
         f"the realised rate is {stats.realized_rate:.4f}, the configured one {rate}; they may "
         f"differ by {thresholds.max_rate_deviation:.1%} and chance. Raise the coverage, or use "
         "missing='uniform'."),
        (weight_error <= weight_bound,
         f"the weights sum to {stats.sum_weights:.1f}, expected {expected_weight:.1f} ± "
         f"{weight_bound:.1f}. The sample is not one of these examples: check that ids are "
         "unique."),
        (stats.effective_sample_size >= thresholds.min_effective_sample_size,
         f"the effective sample size is {stats.effective_sample_size:.3f} of the selected; the "
         f"least is {thresholds.min_effective_sample_size}. Raise uniform_mix."),
        (stats.max_weight <= max_weight * (1.0 + 1e-6),
         f"the largest weight is {stats.max_weight:.3f}; the most is {max_weight:.3f}. Raise "
         "uniform_mix."),
        (stats.num_repeated_ids <= thresholds.max_repeated_ids * n,
         f"{stats.num_repeated_ids} of {n} examples have an id that another has, and are drawn "
         f"with it; the most is {thresholds.max_repeated_ids:.1%}. Set id_feature to a feature "
         "that tells examples apart."),
        (stats.max_age <= max_age,
         f"the oldest record is {stats.max_age:.0f} s old; the most is {max_age:.0f} s. Set the "
         "sampler's max_age, or serve from a newer model."),
    ]  # fmt: skip
    return [message for passed, message in checks if not passed]

"""`ofb compare`: every policy on many tasks, resumable."""

import os
import shlex
import sys
from typing import Any

from absl import flags as absl_flags

from ofb_tf.commands import flags

USAGE = """usage: ofb compare [FLAGS]

Runs the streaming simulation for datasets × policies × rates × seeds × conditions, in memory and
in parallel processes. Every finished cell is kept in OUTPUT_DIR/cells and never run again, so the
same command goes on where it was stopped. Writes results.json, results.csv and report.html.

examples:
  ofb compare --suite=quick --output_dir=out/quick
  ofb compare --suite=standard --seeds=5 --data_dir=~/tensorflow_datasets \\
      --output_dir=out/standard --markdown=docs/RESULTS.md
  ofb compare --datasets=click_stream --policies=importance,top_loss --rates=0.02,0.1 \\
      --missing_records=0,0.2 --seeds=3 --output_dir=out/own

Exit code 1: some cells failed; what they were and why is printed, and the others are kept.
Exit code 130: stopped with Ctrl-C; what is finished is kept.
"""
STANDARD, QUICK, OWN = "standard", "quick", "own"
_SEEDS = {STANDARD: 5, QUICK: 2, OWN: 3}
_FLOAT_AXES = {
    "rates": ("rate", "Rates to combine."),
    "positive_rates": ("positive_rate", "Shares of positives of the click stream, to combine."),
    "label_noise": ("label_noise", "Fractions of training labels made random, to combine."),
    "outliers": ("outliers", "Fractions of regression targets made outliers, to combine."),
    "missing_records": ("missing_records", "Fractions of serving records lost, to combine."),
    "selective_betas": ("selective_beta", "Powers of selective_backprop, to combine."),
}
_INTEGER_AXES = {
    "refresh_intervals": (
        "refresh_interval",
        "Windows between two snapshots (0: once a pass), to combine.",
    ),
}


def _define_flags() -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    shared: dict[str, Any] = {"flag_values": values}
    absl_flags.DEFINE_enum(
        "suite",
        None,
        [STANDARD, QUICK, OWN],
        "standard: the tables of docs/RESULTS.md, about 20 minutes on two cores. quick: about a "
        "minute, no dataset needed. own (the default where datasets are given): all combinations "
        "of the lists below.",
        **shared,
    )
    absl_flags.DEFINE_list(
        "datasets", None, "click_stream and supervised TFDS datasets, for your own.", **shared
    )
    absl_flags.DEFINE_list(
        "policies", None, "Policies; by default all. uniform and everything always run.", **shared
    )
    for name, (_, words) in (_FLOAT_AXES | _INTEGER_AXES).items():
        absl_flags.DEFINE_list(name, None, words, **shared)
    for name, words in {
        "passes": "Times that the stream goes over the data.",
        "num_examples": "Examples of one pass.",
        "window_size": "Examples of one selection.",
        "seeds": "Repetitions, numbered from 0; by default 5 (standard), 2 (quick), 3 (own).",
        "workers": "Processes; one a core by default.",
    }.items():
        absl_flags.DEFINE_integer(name, None, words, **shared)
    absl_flags.DEFINE_string(
        "data_dir",
        None,
        "Directory of TFDS datasets; by default TFDS's own, with download.",
        **shared,
    )
    absl_flags.DEFINE_string(
        "output_dir", "out/compare", "Where results and finished cells are kept.", **shared
    )
    absl_flags.DEFINE_string("markdown", None, "File to write the tables to, too.", **shared)
    absl_flags.DEFINE_bool("progress", True, "Show a progress bar.", **shared)
    return values


def _numbers(name: str, texts: list[str] | None, kind: type) -> list:
    try:
        return [kind(text) for text in texts or []]
    except ValueError as error:
        raise ValueError(f"{name} must be a list of numbers. Received: {texts}") from error


def _comparisons(values: absl_flags.FlagValues) -> list:
    from ofb_tf.experiments import suites

    suite = values.suite or (OWN if values.datasets else STANDARD)
    seeds = values.seeds or _SEEDS[suite]
    data_dir = values.data_dir and os.path.expanduser(values.data_dir)
    axes: dict[str, Any] = {
        field: _numbers(name, values[name].value, kind)
        for kind, group in ((float, _FLOAT_AXES), (int, _INTEGER_AXES))
        for name, (field, _) in group.items()
    }
    sizes = {name: values[name].value for name in ("passes", "num_examples", "window_size")}
    if suite == OWN:
        if not values.datasets:
            raise ValueError("datasets must be given for suite=own. Received: none")
        policies = tuple(values.policies or suites.every_policy())
        settings = {"policies": policies, "seeds": seeds, "data_dir": data_dir, **sizes}
        return suites.grid(values.datasets, axes, **settings)
    given = [name for name in ("datasets", "policies") if values[name].value]
    given += [name for name in (*_FLOAT_AXES, *_INTEGER_AXES, *sizes) if values[name].value]
    if given:
        raise ValueError(f"{', '.join(given)} must not be given with suite={suite}, which is fixed")
    return suites.quick(seeds) if suite == QUICK else suites.standard(seeds, data_dir)


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code: 0 done, 1 some cells failed, 2 wrong usage."""
    values = _define_flags()
    try:
        flags.parse_without_arguments("compare", values, argv, USAGE)
    except flags.Help:
        return 0
    except flags.UsageError:
        return 2
    from ofb_tf.experiments import comparison, report, tables

    try:
        if values.seeds is not None and values.seeds < 1:
            raise ValueError(f"seeds must be at least 1. Received: {values.seeds}")
        workers = (os.cpu_count() or 1) if values.workers is None else values.workers
        if workers < 1:
            raise ValueError(f"workers must be at least 1. Received: {workers}")
        comparisons = _comparisons(values)
        report.require_matplotlib()
        comparison.check_datasets(comparisons)
        print(comparison.estimate(comparisons, values.output_dir, workers), file=sys.stderr)
        failures = comparison.run(
            comparisons, values.output_dir, num_workers=workers, show_progress=values.progress
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"ofb compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nofb compare: stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    content = comparison.summarise(
        comparisons, values.output_dir, command=shlex.join(["ofb", "compare", *argv])
    )
    print("Wrote", comparison.write_results(content, values.output_dir))
    print("Wrote", tables.write_csv(content, values.output_dir))
    if content["comparisons"]:
        print("Wrote", report.write_report(content, values.output_dir))
        if values.markdown:
            print("Wrote", tables.write_markdown(content, values.markdown))
    if failures:
        print(
            f"ofb compare: {len(failures)} cells failed, see above; comparisons are without them. "
            "The same command runs them again.",
            file=sys.stderr,
        )
    return 1 if failures else 0

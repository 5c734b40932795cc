"""`ofb`: records | demo | compare. Flags → configuration → one library call.

Imports TensorFlow only inside the commands, so that `--help` is quick and quiet.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ofb_tf.tables import format_table

USAGE = """usage: ofb COMMAND [ARGUMENTS]

commands:
  compare   every policy on many tasks, resumable; writes the tables of docs/RESULTS.md
  demo      the main job on one dataset: serve, record, join, sample, train, measure
  records   inspect and maintain files of forward records

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
  import     convert a server's logs or a gateway's files to records

examples:
  ofb records inspect records/
  ofb records verify 'records/*.ofbr' --json
  ofb records compact records/ --output_dir=compacted
  ofb records partition records/ --output_dir=partitioned --num_partitions=16
  ofb records expire records/ --max_age_hours=48
  ofb records import logs/*.gz --format=prediction_log --output_dir=records --id_output=example_id
"""
DEMO_USAGE = """usage: ofb demo [FLAGS]

A model snapshot serves a stream and records every forward pass; labels arrive; the records are
joined to the stream, part of it is selected, and an OFBModel is trained on that with its weights;
the snapshot is refreshed, and so on. Prints a table of the policies and writes results.json and
report.html.

examples:
  ofb demo --output_dir=out/demo
  ofb demo --dataset=mnist --data_dir=~/tensorflow_datasets --seeds=3 --output_dir=out/mnist
"""
COMPARE_USAGE = """usage: ofb compare [FLAGS]

Runs the streaming simulation for datasets × policies × rates × seeds × corruptions, in memory and
in parallel processes. Every finished trial is kept in OUTPUT_DIR/cells and never run again, so the
same command continues where it was stopped. Writes results.json, results.csv and report.html.

examples:
  ofb compare --suite=quick --output_dir=out/quick
  ofb compare --suite=standard --seeds=5 --data_dir=~/tensorflow_datasets \\
      --output_dir=out/standard --markdown=docs/RESULTS.md --picture=docs/results.png
  ofb compare --datasets=click_stream --policies=importance,top_loss --rates=0.02,0.1 \\
      --missing_records=0,0.2 --seeds=3 --output_dir=out/own

Exit code 1: some trials failed; the reasons are printed, and the other trials are kept.
Exit code 130: stopped with Ctrl-C; what is finished is kept.
"""
STANDARD, QUICK, OWN = "standard", "quick", "own"
_SEEDS = {STANDARD: 5, QUICK: 2, OWN: 3}
_DATA_DIR = "Directory of TFDS datasets; by default that of TFDS, with download."
_WORKERS = "Number of processes; by default one per core."
_SIZES = {
    "passes": "Number of times the stream repeats the data.",
    "num_examples": "Examples per pass.",
    "window_size": "Examples per selection.",
}
_DEMO_FLOATS = {
    "rate": "Fraction of the stream that goes through the backward pass.",
    "learning_rate": "Learning rate of Adam, the same for all policies.",
    "positive_rate": "Share of positives in the click stream.",
    "label_noise": "Fraction of the training labels to randomise.",
    "outliers": "Fraction of the regression targets to turn into outliers.",
    "missing_records": "Fraction of the serving records to lose.",
}
_COMBINED = "; every combination is run."
_AXES = {  # flag: field of SimulationConfig, type, help
    "rates": ("rate", float, "Comma-separated rates"),
    "positive_rates": ("positive_rate", float, "Comma-separated positive shares of click_stream"),
    "label_noise": ("label_noise", float, "Comma-separated fractions of training labels to randomise"),
    "outliers": ("outliers", float, "Comma-separated outlier fractions"),
    "missing_records": ("missing_records", float, "Comma-separated fractions of records to lose"),
    "selective_betas": ("selective_beta", float, "Comma-separated powers of selective_backprop"),
    "refresh_intervals": (
        "refresh_interval",
        int,
        "Comma-separated numbers of windows between two snapshots (0: once a pass)",
    ),
}  # fmt: skip


class UsageError(Exception):
    """The arguments are wrong; the message says how."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the command and its arguments; None takes the process's own.

    Returns:
      The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    name, *arguments = argv
    if name not in COMMANDS:
        print(f"ofb: unknown command {name!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    usage, make_parser, run = COMMANDS[name]
    parser = make_parser()
    if "-h" in arguments or "--help" in arguments:
        print(usage + "\n" + parser.format_help().partition("\n\n")[2], end="")
        return 0
    # Read when TensorFlow is loaded. Some releases (2.21) write their start-up lines all the same.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        values = parser.parse_intermixed_args(_booleans(arguments))
        if values.arguments and name != "records":
            raise UsageError(f"no arguments expected. Received: {values.arguments}")
        values.command = shlex.join(["ofb", *argv])
        return run(values)
    except UsageError as error:
        print(f"ofb {name}: {error}\n\n{usage}", end="", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    def __init__(self) -> None:
        super().__init__(usage="", add_help=False, allow_abbrev=False)
        self.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)

    def error(self, message: str) -> Any:
        raise UsageError(message)

    def flag(self, name: str, text: str, **settings: Any) -> None:
        """Adds `--name=VALUE` or `--name VALUE`."""
        if settings.get("default") not in (None, ""):
            text += f" (default: {settings['default']})"
        self.add_argument(f"--{name}", help=text, **settings)

    def boolean(self, name: str, text: str, default: bool = False) -> None:
        """Adds `--name` and `--noname`."""
        default_text = f"--{'' if default else 'no'}{name}"
        text += f" (default: {default_text})"
        self.add_argument(f"--{name}", action="store_true", default=default, help=text)
        self.add_argument(f"--no{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


def _booleans(arguments: Sequence[str]) -> list[str]:
    """Rewrites `--name=true` and `--name=false` of booleans, which argparse does not know."""
    pattern = r"--(json|delete_inputs|dry_run|progress)=(true|t|1|(false|f|0))$"
    found = [re.match(pattern, argument, re.IGNORECASE) for argument in arguments]
    return [
        a if match is None else f"--{'no' if match[3] else ''}{match[1]}"
        for a, match in zip(arguments, found, strict=True)
    ]


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1. Received: {text}")
    return value


def _hours(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and above 0. Received: {text}")
    return value


def _records_parser() -> _Parser:
    parser = _Parser()
    parser.boolean("json", "Print JSON.")
    parser.flag("output_dir", "Directory for output files.")
    parser.flag("num_partitions", "Number of partitions (partition only).", type=_positive)
    parser.flag(
        "records_per_file",
        "Maximum number of records per output file (compact only).",
        type=_positive,
        default=50_000_000,
    )
    choices = ("none", "GZIP", "ZLIB")
    parser.flag("compression", "Compression of output files.", choices=choices, default="none")
    parser.boolean("delete_inputs", "Delete the inputs once the output is complete (compact only).")
    parser.flag(
        "on_corrupt",
        "Whether damage is an error, or skipped and counted.",
        choices=("error", "skip"),
        default="error",
    )
    parser.flag("max_age_hours", "Records older than this are removed (expire only).", type=_hours)
    parser.boolean("dry_run", "Only report what would be done (expire only).")
    formats = ("prediction_log", "jsonl", "csv")
    parser.flag("format", "Format of the files to import.", choices=formats)
    parser.flag(
        "id_output",
        "prediction_log: tensor with the ids; empty for fingerprints of the examples.",
        default="example_id",
    )
    parser.flag("logits_output", "prediction_log: tensor with the logits.", default="logits")
    parser.flag("id_field", "jsonl, csv: field with the id.", default="example_id")
    parser.flag("id_type", "csv: type of the ids; int by default.", choices=("int", "string"))
    parser.flag(
        "logits_fields",
        "jsonl, csv: field with a list of logits, or one field per logit.",
        type=_list,
        default="logits",
    )
    parser.flag("loss_field", "jsonl, csv: field with the loss.")
    parser.flag("version_field", "jsonl, csv: field with the version.", default="model_version")
    parser.flag("timestamp_field", "jsonl, csv: field with the time.", default="timestamp")
    units = ("s", "ms", "us")
    parser.flag("timestamp_unit", "Unit of the time since 1970.", choices=units, default="us")
    parser.flag(
        "bad_rows",
        "Whether bad rows to import are counted, listed, or an error.",
        choices=("count", "list", "error"),
        default="count",
    )
    parser.flag("num_outputs", "Outputs of the model; by default those of the first row.", type=int)
    parser.flag("id_secret_file", "Hash imported ids with the secret in this file.")
    return parser


def _records(values: argparse.Namespace) -> int:
    if len(values.arguments) < 2 or values.arguments[0] not in ACTIONS:
        raise UsageError(f"ACTION and PATTERN expected. Received: {values.arguments}")
    action, *patterns = values.arguments
    values.compression = None if values.compression == "none" else values.compression
    try:
        return ACTIONS[action]([os.path.expanduser(p) for p in patterns], values)
    except UsageError as error:
        raise UsageError(f"{action}: {error}") from error
    except (ValueError, OSError, ImportError) as error:
        print(f"ofb records {action}: {error}", file=sys.stderr)
        return 1


def _inspect(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import inspection

    found = inspection.inspect(patterns)
    if values.json:
        return _print_json(dataclasses.asdict(found))
    top_k = f" (the {found.top_k} largest kept)" if found.top_k else ""
    rows = {
        "records": f"{found.num_records:,}",
        "distinct ids": f"{found.num_ids:,}",
        "duplicates": f"{found.num_duplicates:,}",
        "outputs": f"{found.num_outputs}{top_k}",
        "columns": ", ".join(found.columns),
        "first": _time(found.first_timestamp),
        "last": _time(found.last_timestamp),
        "not finite": f"{found.num_nonfinite:,}",
        "files": f"{found.num_files:,} ({found.num_open_files:,} open)",
        "corrupt blocks": f"{found.num_corrupt_blocks:,}",
        "bytes": f"{found.num_bytes:,}",
        "bytes per record": f"{found.bytes_per_instance:.2f}",
    }
    return _print_rows(
        rows | {f"model version {v}": f"{n:,}" for v, n in found.model_versions.items()}
    )


def _verify(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import inspection

    reports = inspection.verify(patterns)
    if values.json:
        _print_json([dataclasses.asdict(report) for report in reports])
    else:
        rows = [("file", "blocks", "records", "state")]
        for report in reports:
            state = f"{len(report.damages)} damaged" if report.damages else "whole"
            state += ", open" if report.is_open else ""
            rows.append((report.path, f"{report.num_blocks:,}", f"{report.num_records:,}", state))
        print(format_table(rows, header=False, numbers=False))
        for damage in (damage for report in reports for damage in report.damages):
            print(f"{damage.path} at byte {damage.offset}: {damage.reason}")
    return 1 if any(report.damages for report in reports) else 0


def _compact(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import maintenance

    report = maintenance.compact(
        patterns,
        _required(values, "output_dir"),
        records_per_file=values.records_per_file,
        compression=values.compression,
        delete_inputs=values.delete_inputs,
        on_corrupt=values.on_corrupt,
    )
    return _print_report(report, values)


def _partition(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import maintenance

    report = maintenance.partition(
        patterns,
        _required(values, "output_dir"),
        _required(values, "num_partitions"),
        compression=values.compression,
        on_corrupt=values.on_corrupt,
    )
    return _print_report(report, values)


def _expire(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import maintenance

    max_age = _required(values, "max_age_hours") * 3600
    report = maintenance.expire(patterns, max_age=max_age, dry_run=values.dry_run)
    return _print_report(report, values)


def _import(patterns: list[str], values: argparse.Namespace) -> int:
    from ofb_tf.records import imports as importers
    from ofb_tf.records.prediction_log import PredictFields
    from ofb_tf.records.text_rows import RowFields

    kind = _required(values, "format")
    fields: Any = PredictFields(values.id_output or None, values.logits_output)
    if kind != "prediction_log":
        fields = RowFields(
            example_id=values.id_field,
            logits=tuple(name for name in values.logits_fields if name),
            loss=values.loss_field,
            model_version=values.version_field,
            timestamp=values.timestamp_field,
            timestamp_unit=values.timestamp_unit,
        )
    report = importers.import_records(
        patterns,
        _required(values, "output_dir"),
        format=kind,
        fields=fields,
        bad_rows=values.bad_rows,
        num_outputs=values.num_outputs,
        secret_file=values.id_secret_file,
        compression=values.compression,
        **({} if values.id_type is None else {"id_type": values.id_type}),
    )
    if values.json:
        return _print_json(dataclasses.asdict(report))
    _print_rows(
        {
            "files read": f"{report.num_files:,}",
            "rows read": f"{report.num_rows:,}",
            "bad rows": f"{report.num_bad_rows:,}",
            "records written": f"{report.num_records:,}",
            "not finite": f"{report.num_nonfinite:,}",
            "log sampling rate": f"{report.sampling_rate:g}",
        }
    )
    for path, offset, reason in report.bad_rows:
        print(f"{path} at byte {offset}: {reason}")
    return 0


ACTIONS: dict[str, Callable[[list[str], argparse.Namespace], int]] = {
    "inspect": _inspect,
    "verify": _verify,
    "compact": _compact,
    "partition": _partition,
    "expire": _expire,
    "import": _import,
}


def _required(values: argparse.Namespace, name: str) -> Any:
    if getattr(values, name) is None:
        raise UsageError(f"--{name} is required")
    return getattr(values, name)


def _print_report(report: Any, values: argparse.Namespace) -> int:
    if values.json:
        result = dataclasses.asdict(report)
        result["read"]["num_corrupt_blocks"] = report.read.num_corrupt_blocks
        return _print_json(result)
    return _print_rows(
        {
            "files read": f"{report.read.num_files:,}",
            "records read": f"{report.read.num_read:,}",
            "duplicates left out": f"{report.read.num_duplicates:,}",
            "expired": f"{report.num_expired:,}",
            "corrupt blocks": f"{report.read.num_corrupt_blocks:,}",
            "records written": f"{report.num_written:,}",
            "files written": f"{len(report.files):,}",
            "files removed": f"{len(report.removed):,}",
        }
    )


def _print_rows(rows: dict[str, str]) -> int:
    print(format_table(list(rows.items()), header=False, numbers=False))
    return 0


def _print_json(content: Any) -> int:
    print(json.dumps(content))
    return 0


def _time(microseconds: int | None) -> str:
    if microseconds is None:
        return "-"
    try:
        moment = datetime.datetime.fromtimestamp(microseconds / 1e6, datetime.timezone.utc)
    except (ValueError, OverflowError, OSError):
        return f"{microseconds} microseconds"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _demo_parser() -> _Parser:
    parser = _Parser()
    parser.flag("dataset", "click_stream, or a supervised TFDS dataset.", default="click_stream")
    parser.flag("data_dir", _DATA_DIR)
    parser.flag("seeds", "Number of repetitions, numbered from 0.", type=int)
    parser.flag("output_dir", "Directory for the results.", default="out/demo")
    text = "Comma-separated policies to compare; uniform and everything always run."
    parser.flag("policies", text, type=_list)
    text = "Windows between two serving snapshots; 0 for one snapshot per pass."
    parser.flag("refresh_interval", text, type=int)
    for name, text in _SIZES.items():
        parser.flag(name, text, type=int)
    for name, text in _DEMO_FLOATS.items():
        parser.flag(name, text, type=float)
    parser.flag("workers", _WORKERS, type=int)
    parser.boolean("progress", "Show a progress bar.", default=True)
    return parser


def _demo(values: argparse.Namespace) -> int:
    from ofb_tf.experiments import SimulationConfig, report, run

    names = ("seeds", "refresh_interval", *_SIZES, *_DEMO_FLOATS)
    try:
        config = SimulationConfig.for_dataset(
            values.dataset,
            data_dir=values.data_dir and os.path.expanduser(values.data_dir),
            policies=values.policies and tuple(values.policies),
            **{name: getattr(values, name) for name in names},
        )
        report.require_matplotlib()
        results = run.run_experiment(
            config,
            command=values.command,
            workers=values.workers,
            show_progress=values.progress,
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"ofb demo: {error}", file=sys.stderr)
        return 2
    print("\n" + format_table(report.table_rows(results)) + "\n")
    print(report.column_notes() + "\n")
    print("Wrote", run.write_results(results, values.output_dir))
    print("Wrote", report.write_report(results, values.output_dir))
    return 0


def _compare_parser() -> _Parser:
    parser = _Parser()
    parser.flag(
        "suite",
        "standard: the tables of docs/RESULTS.md, about 20 minutes on two cores. quick: about a "
        "minute, no dataset needed. own (the default if datasets are given): all combinations of "
        "the lists below.",
        choices=(STANDARD, QUICK, OWN),
    )
    text = "Comma-separated datasets for suite=own: click_stream or supervised TFDS datasets."
    parser.flag("datasets", text, type=_list)
    text = "Comma-separated policies; by default all. uniform and everything always run."
    parser.flag("policies", text, type=_list)
    for name, (_, _, text) in _AXES.items():
        parser.flag(name, text + _COMBINED, type=_list)
    for name, text in _SIZES.items():
        parser.flag(name, text, type=int)
    text = "Number of repetitions, numbered from 0; by default 5 (standard), 2 (quick), 3 (own)."
    parser.flag("seeds", text, type=int)
    parser.flag("workers", _WORKERS, type=int)
    parser.flag("data_dir", _DATA_DIR)
    parser.flag("output_dir", "Directory for results and trials.", default="out/compare")
    parser.flag("markdown", "Markdown file to write the tables to.")
    parser.flag("picture", "PNG file to draw README's picture to; needs --suite=standard.")
    parser.boolean("progress", "Show a progress bar.", default=True)
    return parser


def _comparisons(values: argparse.Namespace) -> list:
    from ofb_tf.experiments import config as suites

    suite = values.suite or (OWN if values.datasets else STANDARD)
    if values.seeds is not None and values.seeds < 1:
        raise ValueError(f"seeds must be at least 1. Received: {values.seeds}")
    seeds = values.seeds or _SEEDS[suite]
    data_dir = values.data_dir and os.path.expanduser(values.data_dir)
    if suite == OWN:
        if not values.datasets:
            raise ValueError("datasets must be given for suite=own. Received: none")
        return suites.grid(
            values.datasets,
            {f: _numbers(n, getattr(values, n), kind) for n, (f, kind, _) in _AXES.items()},
            policies=tuple(values.policies or suites.every_policy()),
            seeds=seeds,
            data_dir=data_dir,
            **{name: getattr(values, name) for name in _SIZES},
        )
    given = [n for n in ("datasets", "policies", *_AXES, *_SIZES) if getattr(values, n)]
    if given:
        raise ValueError(f"{', '.join(given)} must not be given with suite={suite}, which is fixed")
    return suites.quick(seeds) if suite == QUICK else suites.standard(seeds, data_dir)


def _numbers(name: str, texts: list[str] | None, kind: type) -> list:
    try:
        return [kind(text) for text in texts or []]
    except ValueError as error:
        raise ValueError(f"{name} must be a list of numbers. Received: {texts}") from error


def _compare(values: argparse.Namespace) -> int:
    from ofb_tf.experiments import report, run

    output = values.output_dir
    try:
        workers = (os.cpu_count() or 1) if values.workers is None else values.workers
        if workers < 1:
            raise ValueError(f"workers must be at least 1. Received: {workers}")
        comparisons = _comparisons(values)
        report.require_matplotlib()
        run.check_datasets([comparison.config for comparison in comparisons])
        failures = run.run_comparisons(
            comparisons, output, workers=workers, show_progress=values.progress
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"ofb compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nofb compare: stopped. The same command continues from here.", file=sys.stderr)
        return 130
    content = run.summarize_comparisons(comparisons, output, command=values.command)
    print("Wrote", run.write_results(content, output))
    print("Wrote", report.write_csv(content, output))
    if content["comparisons"]:
        print("Wrote", report.write_report(content, output))
        if values.markdown:
            print("Wrote", report.write_markdown(content, values.markdown))
    try:
        if values.picture:
            print("Wrote", report.write_picture(content, values.picture))
    except ValueError as error:
        print(f"ofb compare: {error}", file=sys.stderr)
        return 1
    if failures:
        print(
            f"ofb compare: {len(failures)} trials failed, see above, and are left out. The same "
            "command runs them again.",
            file=sys.stderr,
        )
    return 1 if failures else 0


COMMANDS = {
    "compare": (COMPARE_USAGE, _compare_parser, _compare),
    "demo": (DEMO_USAGE, _demo_parser, _demo),
    "records": (RECORDS_USAGE, _records_parser, _records),
}

if __name__ == "__main__":
    sys.exit(main())

"""`ofb records`: inspect and look after files of forward records."""

import dataclasses
import datetime
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags

from ofb_tf.commands import flags

USAGE = """usage: ofb records ACTION PATTERN... [FLAGS]

PATTERN is a record file, a glob or a directory.

actions:
  inspect    count, versions, time range, outputs, duplicates, bytes an instance
  verify     check every checksum and list the damage; exit code 1 if there is any
  compact    merge files into sorted ones with the newest record of each id
  partition  split by id into sorted files, one a partition
  expire     remove the records older than --max_age_hours
  import     read a server's logs or a gateway's files into records

examples:
  ofb records inspect records/
  ofb records verify 'records/*.ofbr' --json
  ofb records compact records/ --output_dir=compacted
  ofb records partition records/ --output_dir=partitioned --num_partitions=16
  ofb records expire records/ --max_age_hours=48
  ofb records import logs/*.gz --format=prediction_log --output_dir=records --id_output=example_id
"""


def _define_flags() -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    shared: dict[str, Any] = {"flag_values": values}
    absl_flags.DEFINE_bool("json", False, "Print JSON.", **shared)
    absl_flags.DEFINE_string("output_dir", None, "Where output files go.", **shared)
    absl_flags.DEFINE_integer(
        "num_partitions", None, "partition: how many.", lower_bound=1, **shared
    )
    absl_flags.DEFINE_integer(
        "records_per_file", 50_000_000, "compact: at most so many.", lower_bound=1, **shared
    )
    absl_flags.DEFINE_enum(
        "compression", "none", ["none", "GZIP", "ZLIB"], "Of output files.", **shared
    )
    absl_flags.DEFINE_bool(
        "delete_inputs", False, "compact: remove the inputs once the output is complete.", **shared
    )
    absl_flags.DEFINE_enum(
        "on_corrupt", "error", ["error", "skip"], "What damage does; skip counts it.", **shared
    )
    absl_flags.DEFINE_float("max_age_hours", None, "expire: records older than this go.", **shared)
    absl_flags.DEFINE_bool("dry_run", False, "expire: only say what would be done.", **shared)
    absl_flags.DEFINE_enum(
        "format", None, ["prediction_log", "jsonl", "csv"], "import: of the files.", **shared
    )
    absl_flags.DEFINE_string(
        "id_output",
        "example_id",
        "import, prediction_log: tensor with the ids; empty for fingerprints of the examples.",
        **shared,
    )
    absl_flags.DEFINE_string(
        "logits_output", "logits", "import, prediction_log: tensor with the logits.", **shared
    )
    absl_flags.DEFINE_string("id_field", "example_id", "import, jsonl and csv.", **shared)
    absl_flags.DEFINE_list(
        "logits_fields", ["logits"], "import, jsonl and csv: one list, or one a number.", **shared
    )
    absl_flags.DEFINE_string("loss_field", None, "import, jsonl and csv.", **shared)
    absl_flags.DEFINE_string("version_field", "model_version", "import, jsonl and csv.", **shared)
    absl_flags.DEFINE_string("timestamp_field", "timestamp", "import, jsonl and csv.", **shared)
    absl_flags.DEFINE_enum(
        "timestamp_unit", "us", ["s", "ms", "us"], "import, jsonl and csv: since 1970.", **shared
    )
    absl_flags.DEFINE_enum(
        "bad_rows", "count", ["count", "list", "error"], "import: what a bad row does.", **shared
    )
    absl_flags.DEFINE_integer(
        "num_outputs", None, "import: of the model; from the first row by default.", **shared
    )
    absl_flags.DEFINE_string(
        "id_secret_file", None, "import: hash the ids with the secret in this file.", **shared
    )
    return values


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = _define_flags()
    try:
        arguments = flags.parse(values, argv, USAGE)
    except flags.Help:
        return 0
    except flags.UsageError:
        return 2
    if len(arguments) < 2 or arguments[0] not in ACTIONS:
        print(f"ofb records: ACTION and PATTERN expected. Received: {arguments}", file=sys.stderr)
        print(f"\n{USAGE}", end="", file=sys.stderr)
        return 2
    action, patterns = arguments[0], [os.path.expanduser(p) for p in arguments[1:]]
    try:
        return ACTIONS[action](patterns, values)
    except _UsageError as error:
        print(f"ofb records {action}: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, ImportError) as error:
        print(f"ofb records {action}: {error}", file=sys.stderr)
        return 1


class _UsageError(Exception):
    """A flag is missing."""


def _inspect(patterns: list[str], values: absl_flags.FlagValues) -> int:
    from ofb_tf.records import maintenance as inspection

    summary = inspection.inspect(patterns)
    if values.json:
        print(json.dumps(dataclasses.asdict(summary)))
        return 0
    top_k = f" (the {summary.top_k} largest kept)" if summary.top_k else ""
    rows = [
        ("records", f"{summary.num_records:,}"),
        ("distinct ids", f"{summary.num_ids:,}"),
        ("duplicates", f"{summary.num_duplicates:,}"),
        ("outputs", f"{summary.num_outputs}{top_k}"),
        ("columns", ", ".join(summary.columns)),
        ("first", _time(summary.first_timestamp)),
        ("last", _time(summary.last_timestamp)),
        ("not finite", f"{summary.num_nonfinite:,}"),
        ("files", f"{summary.num_files:,} ({summary.num_open_files:,} open)"),
        ("corrupt blocks", f"{summary.num_corrupt_blocks:,}"),
        ("bytes", f"{summary.num_bytes:,}"),
        ("bytes an instance", f"{summary.bytes_per_instance:.2f}"),
    ]
    rows += [(f"model version {v}", f"{n:,}") for v, n in summary.model_versions.items()]
    _print_table(rows)
    return 0


def _verify(patterns: list[str], values: absl_flags.FlagValues) -> int:
    from ofb_tf.records import maintenance as inspection

    reports = inspection.verify(patterns)
    if values.json:
        print(json.dumps([dataclasses.asdict(report) for report in reports]))
    else:
        rows = [("file", "blocks", "records", "state")]
        for report in reports:
            state = f"{len(report.damages)} damaged" if report.damages else "whole"
            state += ", open" if report.is_open else ""
            rows.append((report.path, f"{report.num_blocks:,}", f"{report.num_records:,}", state))
        _print_table(rows)
        for report in reports:
            for damage in report.damages:
                print(f"{damage.path} at byte {damage.offset}: {damage.reason}")
    return 1 if any(report.damages for report in reports) else 0


def _compact(patterns: list[str], values: absl_flags.FlagValues) -> int:
    from ofb_tf.records import maintenance

    report = maintenance.compact(
        patterns,
        _required(values, "output_dir"),
        records_per_file=values.records_per_file,
        compression=None if values.compression == "none" else values.compression,
        delete_inputs=values.delete_inputs,
        on_corrupt=values.on_corrupt,
    )
    return _print_report(report, values)


def _partition(patterns: list[str], values: absl_flags.FlagValues) -> int:
    from ofb_tf.records import maintenance

    report = maintenance.partition(
        patterns,
        _required(values, "output_dir"),
        _required(values, "num_partitions"),
        compression=None if values.compression == "none" else values.compression,
        on_corrupt=values.on_corrupt,
    )
    return _print_report(report, values)


def _expire(patterns: list[str], values: absl_flags.FlagValues) -> int:
    from ofb_tf.records import maintenance

    max_age = _required(values, "max_age_hours") * 3600
    report = maintenance.expire(patterns, max_age=max_age, dry_run=values.dry_run)
    return _print_report(report, values)


def _import(patterns: list[str], values: absl_flags.FlagValues) -> int:
    from ofb_tf.records import importers as imports

    prediction_log = text_rows = imports

    kind = _required(values, "format")
    if kind == "prediction_log":
        fields: Any = prediction_log.PredictFields(values.id_output or None, values.logits_output)
    else:
        fields = text_rows.RowFields(
            example_id=values.id_field,
            logits=tuple(name for name in values.logits_fields if name),
            loss=values.loss_field,
            model_version=values.version_field,
            timestamp=values.timestamp_field,
            timestamp_unit=values.timestamp_unit,
        )
    report = imports.import_records(
        patterns,
        _required(values, "output_dir"),
        format=kind,
        fields=fields,
        bad_rows=values.bad_rows,
        num_outputs=values.num_outputs,
        secret_file=values.id_secret_file,
        compression=None if values.compression == "none" else values.compression,
    )
    if values.json:
        print(json.dumps(dataclasses.asdict(report)))
        return 0
    _print_table(
        [
            ("files read", f"{report.num_files:,}"),
            ("rows read", f"{report.num_rows:,}"),
            ("bad rows", f"{report.num_bad_rows:,}"),
            ("records written", f"{report.num_records:,}"),
            ("not finite", f"{report.num_nonfinite:,}"),
            ("log sampling rate", f"{report.sampling_rate:g}"),
        ]
    )
    for path, offset, reason in report.bad_rows:
        print(f"{path} at byte {offset}: {reason}")
    return 0


def _print_report(report: Any, values: absl_flags.FlagValues) -> int:
    if values.json:
        result = dataclasses.asdict(report)
        result["read"]["num_corrupt_blocks"] = report.read.num_corrupt_blocks
        print(json.dumps(result))
        return 0
    _print_table(
        [
            ("files read", f"{report.read.num_files:,}"),
            ("records read", f"{report.read.num_read:,}"),
            ("duplicates left out", f"{report.read.num_duplicates:,}"),
            ("expired", f"{report.num_expired:,}"),
            ("corrupt blocks", f"{report.read.num_corrupt_blocks:,}"),
            ("records written", f"{report.num_written:,}"),
            ("files written", f"{len(report.files):,}"),
            ("files removed", f"{len(report.removed):,}"),
        ]
    )
    return 0


def _required(values: absl_flags.FlagValues, name: str) -> Any:
    if getattr(values, name) is None:
        raise _UsageError(f"--{name} is required")
    return getattr(values, name)


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _time(microseconds: int | None) -> str:
    if microseconds is None:
        return "-"
    try:
        moment = datetime.datetime.fromtimestamp(microseconds / 1e6, datetime.timezone.utc)
    except (ValueError, OverflowError, OSError):
        return f"{microseconds} microseconds"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


ACTIONS: dict[str, Callable[[list[str], absl_flags.FlagValues], int]] = {
    "inspect": _inspect,
    "verify": _verify,
    "compact": _compact,
    "partition": _partition,
    "expire": _expire,
    "import": _import,
}

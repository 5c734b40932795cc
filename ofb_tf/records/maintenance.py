"""Looking after record files: inspect, verify, compact, partition, expire.

Outputs are complete when they appear; inputs are removed only after that. Open files belong to a
writer until they have not been modified for `open_file_max_age` seconds; from then on they are
treated like closed ones, up to the last whole block. No lock is needed, so object stores will do.
"""

import dataclasses
import math
import os
import time
import uuid

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.checks import check_compression, check_count, check_positive
from ofb_tf.records import files, reader
from ofb_tf.records.blocks import Block
from ofb_tf.records.partitioned import UNFINISHED_PREFIX, partition_path
from ofb_tf.records.reader import Columns, ForwardRecords, ReadCounts
from ofb_tf.records.schema import Schema, expand
from ofb_tf.records.writer import write_record_file

MAX_PARTITIONS = 4096
# Twice the age at which a living writer completes its file (`max_file_seconds`) by default.
OPEN_FILE_MAX_AGE = 7200.0
_SPOOL_RECORDS = 4_000_000


@dataclasses.dataclass(frozen=True)
class RecordSummary:
    """What the files under a pattern hold."""

    num_files: int
    num_open_files: int  # still being written, or their writer died
    num_records: int
    num_ids: int
    num_duplicates: int  # replaced on loading by a newer one of the same id
    num_nonfinite: int  # records with a NaN or infinite logit or loss
    num_corrupt_blocks: int  # damaged files: reading stops at the first damage
    num_outputs: int  # 0 where only losses are recorded
    top_k: int  # logits kept per record in the top-k form, 0 where all are kept
    columns: tuple[str, ...]
    model_versions: dict[int, int]  # records by model version
    first_timestamp: int | None  # microseconds since 1970
    last_timestamp: int | None
    num_bytes: int  # on disk
    bytes_per_instance: float  # `num_bytes / num_records`


@dataclasses.dataclass(frozen=True)
class FileReport:
    """One file's state."""

    path: str
    num_blocks: int  # whole blocks before any damage
    num_records: int  # in those blocks
    is_open: bool  # still being written, or its writer died
    damages: tuple[files.CorruptBlock, ...]  # at most one: reading stops there


@dataclasses.dataclass
class MaintenanceReport:
    """What a command did."""

    read: ReadCounts  # counted while reading the inputs
    num_written: int = 0  # records in the output
    files: list[str] = dataclasses.field(default_factory=list)
    removed: list[str] = dataclasses.field(default_factory=list)
    num_expired: int = 0  # records left out because of their age
    num_open_skipped: int = 0  # open files left alone: their writers may be alive


def inspect(pattern: files.Pattern) -> RecordSummary:
    """Reads what a file, a glob, a directory or a list of them names, and summarises it.

    Damage is counted, not raised.

    Raises:
      FileNotFoundError: the pattern matches nothing.
      ValueError: the files hold different columns, or no record at all.
    """
    counts = ReadCounts()
    columns = reader.read_columns(pattern, on_corrupt="skip", counts=counts)
    times = columns.arrays[constants.TIMESTAMP]
    num_records = len(columns)
    num_ids = len(reader.newest_order(columns.arrays[constants.EXAMPLE_ID], times))
    per_version = np.bincount(
        columns.arrays[constants.MODEL_VERSION], minlength=len(columns.version_table)
    )
    return RecordSummary(
        num_files=counts.num_files,
        num_open_files=counts.num_open_files,
        num_records=num_records,
        num_ids=num_ids,
        num_duplicates=num_records - num_ids,
        num_nonfinite=reader.count_nonfinite(columns.arrays.values()),
        num_corrupt_blocks=counts.num_corrupt_blocks,
        num_outputs=columns.schema.num_outputs,
        top_k=columns.schema.top_k,
        columns=columns.schema.columns,
        model_versions=dict(zip(columns.version_table.tolist(), per_version.tolist(), strict=True)),
        first_timestamp=int(times.min()) if num_records else None,
        last_timestamp=int(times.max()) if num_records else None,
        num_bytes=counts.num_bytes,
        bytes_per_instance=counts.num_bytes / max(num_records, 1),
    )


def verify(pattern: files.Pattern) -> list[FileReport]:
    """Checks every checksum and block of what a file, glob, directory or list of them names.

    The reports, one per file, are in the order of their names.

    Raises:
      FileNotFoundError: the pattern matches nothing.
    """
    reports = []
    for path in files.match_files(pattern):
        counts = ReadCounts()
        for _ in reader.read_blocks(path, on_corrupt="skip", counts=counts):
            pass
        is_open, damages = counts.num_open_files > 0, tuple(counts.damages)
        reports.append(FileReport(path, counts.num_blocks, counts.num_read, is_open, damages))
    return reports


def compact(
    pattern: files.Pattern,
    output_directory: str | os.PathLike,
    *,
    records_per_file: int = 50_000_000,
    compression: str | None = None,
    delete_inputs: bool = False,
    on_corrupt: str = "error",
    open_file_max_age: float = OPEN_FILE_MAX_AGE,
) -> MaintenanceReport:
    """Merges files into sorted ones that keep the newest record of each id.

    All records are in memory at once; partition first what is larger than that.

    Args:
      pattern: input files.
      output_directory: created if missing; may be the inputs' own.
      records_per_file: at most so many go into one output file.
      compression: None, "GZIP" or "ZLIB".
      delete_inputs: remove the input files once the output is complete.
      on_corrupt: "error" or "skip"; a damaged input is never removed.
      open_file_max_age: seconds without modification after which an open file is an input too.
        Longer than any living writer's max_file_seconds, especially with delete_inputs.

    Raises:
      ValueError: an argument is out of range, or the inputs do not fit together.
      CorruptRecordsError: a file is damaged (`on_corrupt="error"`).
      FileNotFoundError: the pattern names no file that may be read.
    """
    records_per_file = check_count("records_per_file", records_per_file)
    check_compression(compression)
    inputs, report = _inputs(pattern, open_file_max_age)
    records = ForwardRecords.load(inputs, on_corrupt=on_corrupt)
    report.read, report.num_written = records.counts, len(records)
    output_directory = os.fspath(output_directory)
    tf.io.gfile.makedirs(output_directory)
    num_files = max(1, -(-len(records) // records_per_file))
    stem = f"compacted-{time.time_ns() // 1000:016d}-{uuid.uuid4().hex[:8]}"
    for index in range(num_files):
        rows = slice(index * records_per_file, (index + 1) * records_per_file)
        part = {name: column[rows] for name, column in records.columns.items()}
        name = f"{stem}-{index:05d}-of-{num_files:05d}{files.SUFFIX}"
        path = os.path.join(output_directory, name)
        write_record_file(path, dataclasses.replace(records, columns=part), compression=compression)
        report.files.append(path)
    if delete_inputs:
        damaged = {damage.path for damage in report.read.damages}
        for path in inputs:
            if path not in damaged:
                tf.io.gfile.remove(path)
                report.removed.append(path)
    return report


def partition(
    pattern: files.Pattern,
    output_directory: str | os.PathLike,
    num_partitions: int,
    *,
    compression: str | None = None,
    on_corrupt: str = "error",
    open_file_max_age: float = OPEN_FILE_MAX_AGE,
) -> MaintenanceReport:
    """Splits records by `partition_of(example_id)` into one sorted file per partition.

    Memory holds four million records or one partition at a time: the first pass deals blocks into
    unsorted files in the output directory, the second sorts these one by one. Partition p is
    `partition-<p>-of-<num_partitions>.ofbr`, even if it is empty.

    Args:
      pattern: input files.
      output_directory: without record files so far, or missing.
      num_partitions: 1 to 4096.
      compression: None, "GZIP" or "ZLIB".
      on_corrupt: "error" or "skip".
      open_file_max_age: seconds without modification after which an open file is an input too.

    Raises:
      ValueError: an argument is out of range, or the inputs do not fit together.
      CorruptRecordsError: a file is damaged (`on_corrupt="error"`).
      FileExistsError: the output directory holds record files already.
      FileNotFoundError: the pattern names no file that may be read.
    """
    num_partitions = check_count("num_partitions", num_partitions, MAX_PARTITIONS)
    check_compression(compression)
    output_directory = files.make_new_directory(output_directory)
    inputs, report = _inputs(pattern, open_file_max_age)
    schema = reader.read_schema(inputs, on_corrupt=on_corrupt)
    spool_directory = os.path.join(output_directory, f"{UNFINISHED_PREFIX}{uuid.uuid4().hex[:16]}")
    tf.io.gfile.makedirs(spool_directory)
    try:
        spool = _Spool(spool_directory, schema, num_partitions)
        for path in inputs:
            for block in reader.read_blocks(path, on_corrupt=on_corrupt, counts=report.read):
                spool.add(block)
        spool.spill()
        for index in range(num_partitions):
            records = ForwardRecords.sort(spool.take(index), report.read)
            path = partition_path(output_directory, index, num_partitions)
            write_record_file(path, records, compression=compression)
            report.files.append(path)
            report.num_written += len(records)
    finally:
        tf.io.gfile.rmtree(spool_directory)
    return report


def expire(
    pattern: files.Pattern,
    *,
    max_age: float,
    now: float | None = None,
    dry_run: bool = False,
    open_file_max_age: float = OPEN_FILE_MAX_AGE,
) -> MaintenanceReport:
    """Removes the records that are older than `max_age`.

    A file of old records only is removed; one that holds some is replaced, in one step, by a file
    of the rest under the same name (an open one by a closed one). So every record is gone once it
    is older than `max_age` and its file is closed or older than `open_file_max_age`.

    Args:
      pattern: files.
      max_age: seconds.
      now: seconds since 1970 from which the age counts; now by default.
      dry_run: only report what would be done.
      open_file_max_age: seconds without modification after which an open file is treated like a
        closed one. Longer than any living writer's max_file_seconds.

    Raises:
      ValueError: max_age is not positive and finite.
      CorruptRecordsError: a file is damaged; it and the files after it are left as they are.
      FileNotFoundError: the pattern names no file that may be read.
    """
    check_positive("max_age", max_age, finite=True)
    now = time.time() if now is None else now
    cutoff = int((now - max_age) * constants.MICROSECONDS)
    inputs, report = _inputs(pattern, open_file_max_age)
    for path in inputs:
        kept = total = 0
        for block in reader.read_blocks(path, counts=report.read):
            total += len(block)
            kept += int((block.columns[constants.TIMESTAMP].expand() >= cutoff).sum())
        report.num_expired += total - kept
        if kept == total and total:
            continue
        target = files.closed_name(path) if files.is_open(path) else path
        if kept:
            if not dry_run:
                columns = reader.read_columns(path)
                rows = columns.arrays[constants.TIMESTAMP] >= cutoff
                compression = files.compression_of(path)
                write_record_file(target, columns.rows(rows), compression=compression)
            report.files.append(target)
            report.num_written += kept
        if target != path or not kept:
            if not dry_run:
                tf.io.gfile.remove(path)
            report.removed.append(path)
    return report


class _Spool:
    """Records by partition, unsorted: gathered in memory, spilled to files per partition."""

    def __init__(self, directory: str, schema: Schema, num_partitions: int):
        self._directory = directory
        self._schema = schema
        self._pieces: list[list[dict[str, np.ndarray]]] = [[] for _ in range(num_partitions)]
        self._files: list[list[str]] = [[] for _ in range(num_partitions)]
        self._buffered = 0

    def add(self, block: Block) -> None:
        if block.schema != self._schema:
            raise ValueError(
                f"Records that are partitioned together must hold the same columns: found "
                f"{self._schema} and {block.schema}. Partition them apart."
            )
        arrays = {name: expand(data) for name, data in block.columns.items()}
        ids = arrays[constants.EXAMPLE_ID]
        for index, rows in hashing.rows_by_partition(ids, len(self._pieces)):
            self._pieces[index].append({name: data[rows] for name, data in arrays.items()})
        self._buffered += len(block)
        if self._buffered >= _SPOOL_RECORDS:
            self.spill()

    def spill(self) -> None:
        """Writes out what is in memory."""
        for index, pieces in enumerate(self._pieces):
            if pieces:
                arrays = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
                name = f"{index:05d}-{len(self._files[index]):06d}{files.SUFFIX}"
                path = os.path.join(self._directory, name)
                write_record_file(path, Columns.of(self._schema, arrays))
                self._files[index].append(path)
                pieces.clear()
        self._buffered = 0

    def take(self, index: int) -> Columns:
        """The records of a partition, in the order of adding; its files are removed."""
        paths, empty = self._files[index], self._schema.empty()
        columns = reader.read_columns(paths) if paths else Columns.of(self._schema, empty)
        for path in paths:
            tf.io.gfile.remove(path)
        return columns


def _inputs(
    pattern: files.Pattern, open_file_max_age: float
) -> tuple[list[str], MaintenanceReport]:
    """The files that may be read, and a report of the open files that must be left alone."""
    if not open_file_max_age >= 0:
        raise ValueError(f"open_file_max_age must be at least 0. Received: {open_file_max_age}")
    matched = files.match_files(pattern)
    newest = time.time() - open_file_max_age
    inputs = [path for path in matched if not files.is_open(path) or _modified(path) <= newest]
    if not inputs:
        raise FileNotFoundError(
            f"The records pattern {pattern!r} names open files only ({files.OPEN_SUFFIX}), which "
            f"were modified less than {open_file_max_age:g} seconds ago. Wait until their writers "
            "close them."
        )
    return inputs, MaintenanceReport(ReadCounts(), num_open_skipped=len(matched) - len(inputs))


def _modified(path: str) -> float:
    """Seconds since 1970; infinite for a file that was completed since it was listed."""
    try:
        return tf.io.gfile.stat(path).mtime_nsec / 1e9
    except tf.errors.NotFoundError:
        return math.inf

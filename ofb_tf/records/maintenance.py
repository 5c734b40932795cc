"""Looking after record files: compact, partition, expire.

Every output file is written under its open name and renamed when complete, so that a reader never
meets half of one, and inputs are removed only after all outputs are in place.
"""

import dataclasses
import os
import time
import uuid
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.hashing import partition_of
from ofb_tf.records import blocks as block_format
from ofb_tf.records import paths, reader, tfrecord
from ofb_tf.records.forward_records import newest_order
from ofb_tf.records.output_file import OutputFile

MAX_PARTITIONS = 4096
_SPOOL_RECORDS = 4_000_000

_Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class MaintenanceReport:
    """What a command did.

    Attributes:
      read: what it came upon.
      num_written: records in the output.
      files: output files.
      removed: input files that were removed.
      num_expired: records left out because of their age.
    """

    read: reader.ReadCounts
    num_written: int = 0
    files: list[str] = dataclasses.field(default_factory=list)
    removed: list[str] = dataclasses.field(default_factory=list)
    num_expired: int = 0


def compact(
    pattern: paths.Pattern,
    output_directory: str | os.PathLike,
    *,
    records_per_file: int = 50_000_000,
    compression: str | None = None,
    delete_inputs: bool = False,
    on_corrupt: str = "error",
) -> MaintenanceReport:
    """Merges files into sorted ones that keep the newest record of each id.

    All records are in memory at once; partition first what is larger than that.

    Args:
      pattern: input files; those that are still open are left out, as they still grow.
      output_directory: made where it is missing; may be the inputs' own.
      records_per_file: at most so many go into one output file.
      compression: None, "GZIP" or "ZLIB".
      delete_inputs: remove the input files once the output is complete.
      on_corrupt: "error" or "skip"; a damaged input is never removed.

    Raises:
      ValueError: an argument is out of range, or the inputs do not fit together.
      FileNotFoundError: the pattern names no closed file.
    """
    if records_per_file < 1:
        raise ValueError(f"records_per_file must be at least 1. Received: {records_per_file}")
    compression = _check_compression(compression)
    inputs = _closed_files(pattern)
    report = MaintenanceReport(reader.ReadCounts())
    columns = reader.read_columns(inputs, on_corrupt=on_corrupt, counts=report.read)
    schema, arrays = columns.schema, _sorted(_arrays(columns), report)
    output_directory = os.fspath(output_directory)
    tf.io.gfile.makedirs(output_directory)
    num_records = len(arrays[constants.EXAMPLE_ID])
    num_files = max(1, -(-num_records // records_per_file))
    stem = f"compacted-{time.time_ns() // 1000:016d}-{uuid.uuid4().hex[:8]}"
    for index in range(num_files):
        rows = slice(index * records_per_file, (index + 1) * records_per_file)
        part = {name: data[rows] for name, data in arrays.items()}
        name = f"{stem}-{index:05d}-of-{num_files:05d}"
        report.files.append(_write(schema, part, output_directory, name, compression))
    report.num_written = num_records
    if delete_inputs:
        damaged = {damage.path for damage in report.read.damages}
        for file in inputs:
            if file not in damaged:
                tf.io.gfile.remove(file)
                report.removed.append(file)
    return report


def partition(
    pattern: paths.Pattern,
    output_directory: str | os.PathLike,
    num_partitions: int,
    *,
    compression: str | None = None,
    on_corrupt: str = "error",
) -> MaintenanceReport:
    """Splits records by `partition_of(example_id)` into one sorted file a partition.

    Memory holds four million records or one partition at a time: the first pass deals blocks into
    unsorted files beside the output, the second sorts these one by one. Partition p is
    `partition-<p>-of-<num_partitions>.ofbr`, there even where it is empty.

    Args:
      pattern: input files.
      output_directory: without record files so far, or missing.
      num_partitions: 1 to 4096.
      compression: None, "GZIP" or "ZLIB".
      on_corrupt: "error" or "skip".

    Raises:
      ValueError: an argument is out of range, or the inputs do not fit together.
      FileExistsError: the output directory holds record files already.
    """
    if not 1 <= num_partitions <= MAX_PARTITIONS:
        raise ValueError(
            f"num_partitions must be in [1, {MAX_PARTITIONS}]. Received: {num_partitions}"
        )
    compression = _check_compression(compression)
    output_directory = os.fspath(output_directory)
    tf.io.gfile.makedirs(output_directory)
    if any(paths.is_record_file(name) for name in tf.io.gfile.listdir(output_directory)):
        raise FileExistsError(
            f"The output directory {output_directory!r} holds record files already. Name an empty "
            "one."
        )
    report = MaintenanceReport(reader.ReadCounts())
    files = paths.match_files(pattern)
    schema = reader.read_schema(files, on_corrupt=on_corrupt)
    spool_directory = os.path.join(output_directory, f"spool-{uuid.uuid4().hex[:16]}")
    tf.io.gfile.makedirs(spool_directory)
    try:
        spool = _Spool(spool_directory, schema, num_partitions)
        for file in files:
            for block in reader.read_blocks(file, on_corrupt=on_corrupt, counts=report.read):
                spool.add(block)
        spool.spill()
        for index in range(num_partitions):
            arrays = _sorted(spool.take(index), report)
            name = f"partition-{index:05d}-of-{num_partitions:05d}"
            report.files.append(_write(schema, arrays, output_directory, name, compression))
            report.num_written += len(arrays[constants.EXAMPLE_ID])
    finally:
        tf.io.gfile.rmtree(spool_directory)
    return report


def expire(
    pattern: paths.Pattern,
    *,
    max_age: float,
    now: float | None = None,
    dry_run: bool = False,
) -> MaintenanceReport:
    """Removes the records that are older than `max_age`.

    A file of old records only is removed; one that holds some is replaced, in one step, by a file
    of the rest. Open files are left alone: they are young, or a new writer finalises them.

    Args:
      pattern: files.
      max_age: seconds.
      now: seconds since 1970 from which the age counts; now by default.
      dry_run: only report what would be done.

    Raises:
      ValueError: max_age is not positive.
      CorruptRecordsError: a file is damaged; it and the files behind it are left as they are.
    """
    if not max_age > 0:
        raise ValueError(f"max_age must be positive. Received: {max_age}")
    now = time.time() if now is None else now
    cutoff = int((now - max_age) * constants.MICROSECONDS)
    report = MaintenanceReport(reader.ReadCounts())
    for file in _closed_files(pattern):
        kept = total = 0
        for block in reader.read_blocks(file, counts=report.read):
            total += len(block)
            kept += int((block.columns[constants.TIMESTAMP].expand() >= cutoff).sum())
        report.num_expired += total - kept
        if kept == total and total:
            continue
        if kept and not dry_run:
            _rewrite(file, cutoff)
        if kept:
            report.files.append(file)
            report.num_written += kept
        else:
            report.removed.append(file)
            if not dry_run:
                tf.io.gfile.remove(file)
    return report


class _Spool:
    """Records by partition, unsorted: gathered in memory, spilled to a file a partition."""

    def __init__(self, directory: str, schema: block_format.Schema, num_partitions: int):
        self._directory = directory
        self._schema = schema
        self._pieces: list[list[_Arrays]] = [[] for _ in range(num_partitions)]
        self._files: list[list[str]] = [[] for _ in range(num_partitions)]
        self._buffered = 0

    def add(self, block: block_format.Block) -> None:
        if block.schema != self._schema:
            raise ValueError(
                f"Records that are partitioned together must hold the same columns: found "
                f"{self._schema} and {block.schema}. Partition them apart."
            )
        arrays = {
            name: data.expand() if isinstance(data, block_format.Runs) else data
            for name, data in block.columns.items()
        }
        index = partition_of(arrays[constants.EXAMPLE_ID], len(self._pieces))
        order = np.argsort(index, kind="stable")
        ends = np.cumsum(np.bincount(index, minlength=len(self._pieces)))
        for number, rows in enumerate(np.split(order, ends[:-1])):
            if len(rows):
                self._pieces[number].append({name: data[rows] for name, data in arrays.items()})
        self._buffered += len(order)
        if self._buffered >= _SPOOL_RECORDS:
            self.spill()

    def spill(self) -> None:
        """Writes out what is in memory."""
        for index, pieces in enumerate(self._pieces):
            if pieces:
                arrays = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
                name = f"{index:05d}-{len(self._files[index]):06d}"
                file = _write(self._schema, arrays, self._directory, name, "")
                self._files[index].append(file)
                pieces.clear()
        self._buffered = 0

    def take(self, index: int) -> _Arrays:
        """The records of a partition, in the order of adding; its files are removed."""
        files = self._files[index]
        if not files:
            return _empty(self._schema)
        arrays = _arrays(reader.read_columns(files))
        for file in files:
            tf.io.gfile.remove(file)
        return arrays


def _arrays(columns: reader.Columns) -> _Arrays:
    arrays = dict(columns.arrays)
    arrays[constants.MODEL_VERSION] = columns.version_table[arrays[constants.MODEL_VERSION]]
    return arrays


def _empty(schema: block_format.Schema) -> _Arrays:
    return {
        column.name: np.zeros((0, schema.logits_width) if column.per_output else 0, column.dtype)
        for column in block_format.COLUMNS
        if column.name in schema.columns
    }


def _sorted(arrays: _Arrays, report: MaintenanceReport) -> _Arrays:
    order = newest_order(arrays[constants.EXAMPLE_ID], arrays[constants.TIMESTAMP])
    report.read.num_duplicates += len(arrays[constants.EXAMPLE_ID]) - len(order)
    return {name: data[order] for name, data in arrays.items()}


def _write(
    schema: block_format.Schema, arrays: _Arrays, directory: str, name: str, compression: str
) -> str:
    """Writes a complete file of at least one block, which may be empty."""
    file = OutputFile(directory, compression, name)
    try:
        num_records = len(arrays[constants.EXAMPLE_ID])
        for start in range(0, max(num_records, 1), block_format.MAX_BLOCK_RECORDS):
            part: dict[str, Any] = {
                name: data[start : start + block_format.MAX_BLOCK_RECORDS]
                for name, data in arrays.items()
            }
            count = len(part[constants.EXAMPLE_ID])
            for column in block_format.COLUMNS:
                if column.runs:
                    part[column.name] = block_format.run_lengths(part[column.name])
            file.write_block(block_format.encode_block(schema, part), count)
    except BaseException:
        file.discard()
        raise
    file.close()
    return file.path


def _rewrite(path: str, cutoff: int) -> None:
    """Replaces a file by one without the records before the cutoff."""
    directory, name = os.path.split(path)
    compression = tfrecord.compression_of(path)
    kept: dict[str, list[np.ndarray]] = {}
    for block in reader.read_blocks(path):
        rows = block.columns[constants.TIMESTAMP].expand() >= cutoff
        for column, data in block.columns.items():
            values = data.expand() if isinstance(data, block_format.Runs) else data
            kept.setdefault(column, []).append(values[rows])
    arrays = {column: np.concatenate(pieces) for column, pieces in kept.items()}
    _write(block.schema, arrays, directory, name.removesuffix(paths.SUFFIX), compression)


def _closed_files(pattern: paths.Pattern) -> list[str]:
    files = [f for f in paths.match_files(pattern) if not f.endswith(paths.OPEN_SUFFIX)]
    if not files:
        raise FileNotFoundError(
            f"The records pattern {pattern!r} names open files only ({paths.OPEN_SUFFIX}). Wait "
            "until their writers close them."
        )
    return files


def _check_compression(compression: str | None) -> str:
    if compression not in (None, "", "GZIP", "ZLIB"):
        raise ValueError(f"compression must be None, 'GZIP' or 'ZLIB'. Received: {compression!r}")
    return compression or ""

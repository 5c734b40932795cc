"""What record files hold, and whether they are whole."""

import dataclasses

import numpy as np

from ofb_tf import constants
from ofb_tf.records import paths, reader
from ofb_tf.records.forward_records import newest_order


@dataclasses.dataclass(frozen=True)
class RecordSummary:
    """What the files under a pattern hold.

    Attributes:
      num_files: files.
      num_open_files: of these, files that are still being written.
      num_records: records read.
      num_ids: distinct ids.
      num_duplicates: records that a newer one of the same id replaces on loading.
      num_nonfinite: records with a NaN or infinite logit or loss.
      num_corrupt_blocks: damaged places.
      num_outputs: outputs of the model, 0 where only losses are recorded.
      top_k: logits kept an instance in the top-k form, 0 where all are kept.
      columns: names.
      model_versions: records by model version.
      first_timestamp: microseconds since 1970.
      last_timestamp: microseconds since 1970.
      num_bytes: on disk.
      bytes_per_instance: `num_bytes / num_records`.
    """

    num_files: int
    num_open_files: int
    num_records: int
    num_ids: int
    num_duplicates: int
    num_nonfinite: int
    num_corrupt_blocks: int
    num_outputs: int
    top_k: int
    columns: tuple[str, ...]
    model_versions: dict[int, int]
    first_timestamp: int | None
    last_timestamp: int | None
    num_bytes: int
    bytes_per_instance: float


@dataclasses.dataclass(frozen=True)
class FileReport:
    """One file's state.

    Attributes:
      path: file.
      num_blocks: whole blocks.
      num_records: records in them.
      is_open: still being written, or its writer died.
      damages: damaged places.
    """

    path: str
    num_blocks: int
    num_records: int
    is_open: bool
    damages: tuple[reader.CorruptBlock, ...]


def inspect(pattern: paths.Pattern) -> RecordSummary:
    """Reads everything under a pattern and sums it up; damage is counted, not raised.

    Raises:
      FileNotFoundError: the pattern matches nothing.
      ValueError: the files hold different columns, or no record at all.
    """
    counts = reader.ReadCounts()
    columns = reader.read_columns(pattern, on_corrupt="skip", counts=counts)
    times = columns.arrays[constants.TIMESTAMP]
    num_records = len(times)
    num_ids = len(newest_order(columns.arrays[constants.EXAMPLE_ID], times))
    nonfinite = np.zeros(num_records, bool)
    for data in columns.arrays.values():
        if data.dtype.kind == "f":
            finite = np.isfinite(data)
            nonfinite |= ~(finite if data.ndim == 1 else finite.all(axis=1))
    per_version = np.bincount(
        columns.arrays[constants.MODEL_VERSION], minlength=len(columns.version_table)
    )
    return RecordSummary(
        num_files=counts.num_files,
        num_open_files=counts.num_open_files,
        num_records=num_records,
        num_ids=num_ids,
        num_duplicates=num_records - num_ids,
        num_nonfinite=int(nonfinite.sum()),
        num_corrupt_blocks=counts.num_corrupt_blocks,
        num_outputs=columns.schema.num_outputs,
        top_k=columns.schema.top_k,
        columns=columns.schema.columns,
        model_versions={
            int(v): int(n) for v, n in zip(columns.version_table, per_version, strict=True)
        },
        first_timestamp=int(times.min()) if num_records else None,
        last_timestamp=int(times.max()) if num_records else None,
        num_bytes=counts.num_bytes,
        bytes_per_instance=counts.num_bytes / max(num_records, 1),
    )


def verify(pattern: paths.Pattern) -> list[FileReport]:
    """Checks every checksum and every block of the files under a pattern.

    Raises:
      FileNotFoundError: the pattern matches nothing.
    """
    reports = []
    for path in paths.match_files(pattern):
        counts = reader.ReadCounts()
        for _ in reader.read_blocks(path, on_corrupt="skip", counts=counts):
            pass
        reports.append(
            FileReport(
                path=path,
                num_blocks=counts.num_blocks,
                num_records=counts.num_read,
                is_open=bool(counts.num_open_files),
                damages=tuple(counts.damages),
            )
        )
    return reports

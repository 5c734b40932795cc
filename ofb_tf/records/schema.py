"""What a block of forward records holds: columns, the schema they form, runs of equal values."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from ofb_tf import constants

MAX_BLOCK_RECORDS = 8192
# Bytes of one block: what a reader may have to hold because of one claim in a file, and what the
# writer never exceeds. 8192 records of 8000 float32 logits fit.
MAX_BLOCK_BYTES = 1 << 28
_BLOCK_OVERHEAD_BYTES = 1 << 12  # names, framing and integers


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a block."""

    name: str
    dtype: type  # what it decodes to
    per_output: bool = False  # `[n, k]` if True, `[n]` otherwise
    narrow_dtype: type | None = None  # that a writer may choose, recognised by the number of bytes
    runs: bool = False  # stored as `Runs`, offsets from the smallest value in as few bytes as fit
    required: bool = False  # every block has it


COLUMNS = (
    Column(constants.EXAMPLE_ID, np.int64, required=True),
    Column(constants.LOGITS, np.float32, per_output=True, narrow_dtype=np.float16),
    Column(constants.LOSS, np.float32),
    Column(constants.CLASS_IDS, np.int32, per_output=True),
    Column(constants.LOGSUMEXP, np.float32),
    Column(constants.SUM_SQUARED_PROBABILITIES, np.float32),
    Column(constants.MODEL_VERSION, np.int64, runs=True, required=True),
    Column(constants.TIMESTAMP, np.int64, runs=True, required=True),
)


@dataclasses.dataclass(frozen=True)
class Schema:
    """What blocks that are read together must agree on."""

    num_outputs: int  # of the model that wrote the records, 0 where they hold losses only
    top_k: int  # logits kept per record in the top-k form, 0 where all are kept
    columns: tuple[str, ...]  # names, in the order of `COLUMNS`

    @classmethod
    def of(cls, names: Iterable[str], num_outputs: int, top_k: int = 0) -> "Schema":
        """The schema of these columns, given in any order."""
        names = set(names)
        return cls(num_outputs, top_k, tuple(c.name for c in COLUMNS if c.name in names))

    @property
    def logits_width(self) -> int:
        """Logits per record: k of `[n, k]`."""
        return self.top_k or self.num_outputs

    @property
    def present(self) -> tuple[Column, ...]:
        """The columns, in the order of `COLUMNS`."""
        return tuple(column for column in COLUMNS if column.name in self.columns)

    def empty(self, num_records: int = 0) -> dict[str, np.ndarray]:
        """Uninitialised arrays for so many records, by column name."""
        return {
            column.name: np.empty(
                (num_records, self.logits_width) if column.per_output else num_records,
                column.dtype,
            )
            for column in self.present
        }

    def records_per_block(self, max_bytes: int | None = None) -> int:
        """The most records that surely fit into so many bytes, at most `MAX_BLOCK_RECORDS`.

        Args:
          max_bytes: None for `MAX_BLOCK_BYTES`.
        """
        max_bytes = MAX_BLOCK_BYTES if max_bytes is None else max_bytes
        num_bytes = sum(
            np.dtype(column.dtype).itemsize * (self.logits_width if column.per_output else 1)
            + 4 * column.runs  # the length of its run
            for column in self.present
        )
        return min((max_bytes - _BLOCK_OVERHEAD_BYTES) // num_bytes, MAX_BLOCK_RECORDS)

    def __str__(self) -> str:
        top_k = f", top_k={self.top_k}" if self.top_k else ""
        return f"num_outputs={self.num_outputs}{top_k}, columns {', '.join(self.columns)}"


@dataclasses.dataclass(frozen=True)
class Runs:
    """A column of `sum(lengths)` int64 values as runs of equal values."""

    values: np.ndarray  # `[r]`
    lengths: np.ndarray | None = None  # `[r]`, or None where every run has length 1

    @classmethod
    def of(cls, values: np.ndarray) -> "Runs":
        """Runs of equal neighbours in int64 `[n]`; plain values where runs do not pay."""
        starts = np.flatnonzero(values[1:] != values[:-1]) + 1
        if 2 * (len(starts) + 1) > len(values):
            return cls(values)
        starts = np.concatenate([[0], starts])
        return cls(values[starts], np.diff(np.append(starts, len(values))))

    def __len__(self) -> int:
        return len(self.values) if self.lengths is None else int(self.lengths.sum())

    def expand(self) -> np.ndarray:
        """One value per record."""
        return self.values if self.lengths is None else np.repeat(self.values, self.lengths)


def expand(data: np.ndarray | Runs) -> np.ndarray:
    """One value per record, of a column that may be stored as runs."""
    return data.expand() if isinstance(data, Runs) else data

"""The records of the last hours in memory: added file by file, found by id, dropped by age."""

import collections
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records.reader import Columns, newest_order
from ofb_tf.records.schema import Schema

_LEAST_CAPACITY = 1 << 16
_NOWHERE = -1


class _Part(NamedTuple):
    """The rows of one file."""

    end: int  # behind the last of them
    newest: int  # its latest timestamp, in microseconds


class ResidentRecords:
    """Forward records of a stream. What is kept is bounded by `drop_before`.

    Columns are rings: rows are numbered from 0 on for ever, and row r is at r modulo the capacity,
    which doubles where it is too small. A hash table leads from ids to rows.

    Args:
      schema: of all records.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, _NOWHERE)
        self._columns: dict[str, np.ndarray] = {}
        self._parts: collections.deque[_Part] = collections.deque()
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def num_parts(self) -> int:
        """How many of the files that were added are still held."""
        return len(self._parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of the columns; the hash table takes about 56 per record in addition."""
        return sum(column.nbytes for column in self._columns.values())

    def add(self, records: Columns) -> None:
        """Adds a file's records; of several records of an id the newest counts.

        Raises:
          ValueError: they hold other columns than the first.
        """
        if records.schema != self.schema:
            raise ValueError(
                f"The stream's records hold {self.schema}, a new file holds {records.schema}. "
                "Write records of another form into another directory, and start a stream there."
            )
        arrays = dict(records.arrays)
        versions = arrays[constants.MODEL_VERSION].astype(np.int64)
        arrays[constants.MODEL_VERSION] = records.version_table[versions]
        ids, timestamps = arrays[constants.EXAMPLE_ID], arrays[constants.TIMESTAMP]
        order = newest_order(ids, timestamps)
        known = self._table.lookup(tf.constant(ids[order])).numpy()
        is_newest = known == _NOWHERE
        if not is_newest.all():
            is_newest |= self.fields(known)[constants.TIMESTAMP] <= timestamps[order]
        order = np.sort(order[is_newest])
        rows = np.arange(self._end, self._end + len(order))
        self._make_room(len(order))
        for name, column in self._columns.items():
            column[rows % self._capacity] = arrays[name][order]
        self._table.insert(tf.constant(ids[order]), tf.constant(rows))
        self._end += len(order)
        self._parts.append(_Part(self._end, int(timestamps.max(initial=0))))

    def drop_before(self, oldest: int) -> int:
        """Drops the oldest files as long as all of their records are older, in microseconds.

        Returns:
          How many files were dropped.
        """
        dropped = 0
        while self._parts and self._parts[0].newest < oldest:
            part = self._parts.popleft()
            dropped += 1
            rows = np.arange(self._begin, part.end)
            ids = self._columns[constants.EXAMPLE_ID][rows % self._capacity] if len(rows) else rows
            found = self._table.lookup(tf.constant(ids)).numpy()
            self._table.remove(tf.constant(ids[found == rows]))  # unless a newer one replaced it
            self._begin = part.end
        return dropped

    def find(self, example_ids: tf.Tensor) -> np.ndarray:
        """int64 rows of ids `[n]`, -1 where there is none."""
        return self._table.lookup(example_ids).numpy()

    def fields(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of these rows, but for the ids; arbitrary where a row is -1."""
        self._make_room(0)
        places = np.maximum(rows, 0) % self._capacity
        return {
            name: column[places]
            for name, column in self._columns.items()
            if name != constants.EXAMPLE_ID
        }

    @property
    def _capacity(self) -> int:
        return len(self._columns[constants.EXAMPLE_ID]) if self._columns else 0

    def _make_room(self, number: int) -> None:
        needed = len(self) + number
        if self._columns and needed <= self._capacity:
            return
        columns = self.schema.empty(max(_LEAST_CAPACITY, 1 << needed.bit_length()))
        rows = np.arange(self._begin, self._end)
        if len(rows):
            places = rows % self._capacity
            for name, column in columns.items():
                column[rows % len(column)] = self._columns.pop(name)[places]
        self._columns = columns

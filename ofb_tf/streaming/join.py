"""The join of records, examples and labels by id, in event time, for one bucket of ids.

Knows no engine: columns in, watermark in, selected examples out. `ofb_tf.streaming.flink` keeps
one `Pending` for each bucket in Flink's state and calls `leave` when an event-time timer fires.
All of it is numpy on blocks, so that an engine's cost per element is paid once for many rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.constants import EXAMPLE_ID, IMPORTANCE_WEIGHT, LABEL, TIMESTAMP
from ofb_tf.records.reader import read_blocks
from ofb_tf.records.schema import expand
from ofb_tf.selection import window
from ofb_tf.selection.policy import POISSON, Policy

RECORDS, EXAMPLES, LABELS = "records", "examples", "labels"
SERIALIZED = "serialized"
_BATCH = 4096
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """When an example leaves, and with which label. Times are in seconds of event time.

    Attributes:
      attribution_window: an example without a label leaves as a negative when its timestamp is
        this long past.
      max_wait: an example with a label waits so long after its timestamp for a record; at most
        the attribution window. None: records are not joined.
      interval: how often a bucket is looked at. Its pending examples are written again each time,
        about attribution_window / interval times each.
      negative: the label of an example without one, or None to drop it (and count it).

    Raises:
      ValueError: a field out of range.
    """

    attribution_window: float = 1800.0
    max_wait: float | None = None
    interval: float = 60.0
    negative: float | None = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= (self.max_wait or 0.0) <= self.attribution_window or self.interval <= 0.0:
            raise ValueError(
                "max_wait must be in [0, attribution_window] and interval above 0. Received: "
                f"max_wait={self.max_wait!r}, attribution_window={self.attribution_window!r}, "
                f"interval={self.interval!r}"
            )

    def micros(self, name: str) -> int:
        """One of the times in microseconds, as timestamps are."""
        return round(getattr(self, name) * constants.MICROSECONDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinConfig(LabelConfig):
    """How a stream in buckets is joined and sampled.

    Attributes:
      policy: with the Poisson design and no need of a window, such as `FixedScale`.
      rate: in (0, 1]: what weights are relative to, rate / p.
      task: "binary", "multiclass" or "regression".
      missing: what becomes of an example without a usable record: "uniform", "keep" or "drop".
      seed: of the draws; with `epoch` as in `ofb_sample`.
      epoch: another one gives other draws.

    Raises:
      ValueError: a field out of range.
    """

    policy: Policy
    rate: float
    task: str = constants.BINARY
    max_wait: float | None = 60.0
    missing: str = constants.MISSING_UNIFORM
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy.design != POISSON:
            raise ValueError(
                "policy must have the Poisson design: a stream in many buckets has no windows. "
                f"Received: {type(self.policy).__name__} with {self.policy.design!r}"
            )
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate must be in (0, 1]. Received: {self.rate!r}")
        for name, choices in (("task", constants.TASKS), ("missing", constants.MISSING[:3])):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {choices}. Received: {getattr(self, name)!r}"
                )


@dataclasses.dataclass
class Pending:
    """What a bucket keeps: columns of n rows by kind, and when which examples left.

    `examples` have `example_id`, `timestamp` and `serialized`; `labels` have `example_id`,
    `timestamp` and `label`; `records` have the columns of the record format. `left` has the ids
    and timestamps of examples that left, kept for as long as a second delivery is possible.
    """

    tables: dict[str, Columns] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, columns: Columns) -> None:
        """Appends rows."""
        table = self.tables.get(kind)
        if table is None:
            self.tables[kind] = columns
        else:
            self.tables[kind] = {
                name: np.concatenate([table[name], columns[name]]) for name in columns
            }

    def keep(self, kind: str, rows: np.ndarray) -> None:
        """Keeps these rows alone; none of them, and the kind is gone."""
        if kind in self.tables:
            if rows.any():
                self.tables[kind] = {name: data[rows] for name, data in self.tables[kind].items()}
            else:
                del self.tables[kind]

    def ids(self, kind: str) -> np.ndarray:
        """int64 `[n]`."""
        return self.tables[kind][EXAMPLE_ID] if kind in self.tables else np.zeros(0, np.int64)

    def __bool__(self) -> bool:
        return bool(self.tables)


class Left(NamedTuple):
    """Examples that leave, ascending by id, m of them.

    Attributes:
      ids: int64 `[m]`.
      serialized: bytes `[m]`: tf.Examples.
      labels: floats `[m]`.
      record: columns of the record format and `has_record`, arbitrary where that is false.
      counts: "left", and of these "unlabelled", which are not among the m, and "without_record";
        "records_without_example", "labels_without_example".
    """

    ids: np.ndarray
    serialized: np.ndarray
    labels: np.ndarray
    record: Columns
    counts: dict[str, int]


def leave(pending: Pending, watermark: int, config: LabelConfig) -> Left:
    """Takes from a bucket what is complete or has waited long enough.

    An example leaves with its label once its record is there or `max_wait` is over, or without a
    label at the end of the attribution window. Only labels no later than the window and records no
    later than `max_wait` count, so the result does not depend on when the bucket is looked at.
    What has no partner, and the memory of what left, goes two windows after its timestamp.

    Args:
      pending: changed in place.
      watermark: microseconds: everything earlier has arrived.
      config: how.

    Returns:
      What leaves.
    """
    drop_repeated(pending)
    left = Left(np.zeros(0, np.int64), np.zeros(0, object), np.zeros(0), {}, {})
    horizon = watermark - 2 * config.micros("attribution_window")
    examples = pending.tables.get(EXAMPLES)
    if examples is not None:
        ids, times = examples[EXAMPLE_ID], examples[TIMESTAMP]
        record: Columns = {}
        has_record = waited = np.ones(len(ids), bool)
        if config.max_wait is not None:
            latest = times + config.micros("max_wait")
            record, has_record = _lookup(pending, RECORDS, ids, latest)
            waited = watermark >= latest
        label, has_label = _lookup(
            pending, LABELS, ids, times + config.micros("attribution_window")
        )
        expired = watermark >= times + config.micros("attribution_window")
        leaving = expired | (has_label & (has_record | waited))
        labels = label[LABEL] if LABEL in label else np.zeros(len(ids))
        labels = np.where(has_label, labels, config.negative or 0.0)
        emitted = leaving & (has_label | (config.negative is not None))
        record[constants.HAS_RECORD] = has_record
        rows = np.flatnonzero(emitted)
        rows = rows[np.argsort(ids[rows])]
        left = Left(
            ids[rows],
            examples[SERIALIZED][rows],
            labels[rows],
            {name: data[rows] for name, data in record.items()},
            {
                "left": int(leaving.sum()),
                "unlabelled": int((leaving & ~emitted).sum()),
                "without_record": int((emitted & ~has_record).sum()),
            },
        )
        pending.add("left", {EXAMPLE_ID: ids[leaving], TIMESTAMP: times[leaving]})
        pending.keep(EXAMPLES, ~leaving)
    for kind in (RECORDS, LABELS):
        if kind in pending.tables:
            joined = np.isin(pending.ids(kind), pending.ids("left"))
            late = ~joined & (pending.tables[kind][TIMESTAMP] < horizon)
            left.counts[f"{kind}_without_example"] = int(late.sum())
            pending.keep(kind, ~joined & ~late)
    if "left" in pending.tables:
        pending.keep("left", pending.tables["left"][TIMESTAMP] >= horizon)
    return left


def drop_repeated(pending: Pending) -> None:
    """Keeps the first delivery of an example, and none of an example that has left."""
    ids = pending.ids(EXAMPLES)
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    pending.keep(EXAMPLES, first & ~np.isin(ids, pending.ids("left")))


def _lookup(
    pending: Pending, kind: str, ids: np.ndarray, latest: np.ndarray
) -> tuple[Columns, np.ndarray]:
    """Each id's newest row that is no later than its `latest`, arbitrary where there is none."""
    table = pending.tables.get(kind)
    if table is None:
        return {}, np.zeros(len(ids), bool)
    order = np.lexsort((table[TIMESTAMP], table[EXAMPLE_ID]))
    known, times = table[EXAMPLE_ID][order], table[TIMESTAMP][order]
    row = np.searchsorted(known, ids, side="right") - 1
    while True:  # few ids have several rows, and fewer one that is too late
        found = (row >= 0) & (known[np.maximum(row, 0)] == ids)
        too_late = found & (times[np.maximum(row, 0)] > latest)
        if not too_late.any():
            break
        row = np.where(too_late, row - 1, row)
    rows = order[np.maximum(row, 0)]
    return {name: data[rows] for name, data in table.items()}, found


@functools.lru_cache(maxsize=8)
def _select(config: JoinConfig) -> Callable[..., Any]:
    """The selection as a function that is traced once."""

    @tf.function(reduce_retracing=True)
    def select(ids: tf.Tensor, labels: tf.Tensor, record: dict[str, tf.Tensor]) -> tuple:
        key = hashing.fold_in(
            tf.constant(config.seed, tf.int64), tf.constant(config.epoch, tf.int64)
        )
        chosen = window.select(
            config.policy,
            rate=config.rate,
            task=config.task,
            missing=config.missing,
            example_ids=ids,
            labels=labels,
            record=record,
            key=key,
            batch_size=None,
        )
        return chosen.indices, chosen.weights

    return select


def sample(left: Left, config: JoinConfig) -> list[bytes]:
    """Serialized tf.Examples with label and `importance_weight` of what is selected of `left`."""
    if not len(left.ids):
        return []
    is_class = config.task != constants.REGRESSION
    labels = left.labels.astype(np.int64 if is_class else np.float32)
    fields = {name: left.record[name] for name in constants.RECORD_FIELDS if name in left.record}
    if constants.LOGITS not in fields and constants.LOSS not in fields:
        # No record has come yet.
        fields[constants.LOSS] = np.full(len(labels), np.nan, np.float32)
    indices, weights = _select(config)(
        tf.constant(left.ids), tf.constant(labels), {k: tf.constant(v) for k, v in fields.items()}
    )
    kind = "int64_list" if is_class else "float_list"
    out = []
    for index, weight in zip(indices.numpy().tolist(), weights.numpy().tolist(), strict=True):
        example = tf.train.Example.FromString(left.serialized[index])
        feature = example.features.feature
        getattr(feature[LABEL], kind).value[:] = [labels[index].item()]
        feature[IMPORTANCE_WEIGHT].float_list.value[:] = [weight]
        out.append(example.SerializeToString(deterministic=True))
    return out


def read_columns(kind: str, path: str, dtypes: dict[str, str]) -> Iterator[Columns]:
    """Blocks of a finished file of a log.

    Args:
      kind: "records" (the record format), "examples" or "labels" (TFRecords of tf.Examples).
      path: the file.
      dtypes: the tf.Examples' features `example_id`, `timestamp` (int64 microseconds) and `label`:
        "int64", "float32" or "string".

    Yields:
      Columns of n rows, as `Pending` has them.
    """
    if kind == RECORDS:
        for block in read_blocks(path):
            yield {name: expand(column) for name, column in block.columns.items()}
        return
    names = (EXAMPLE_ID, TIMESTAMP) if kind == EXAMPLES else (EXAMPLE_ID, TIMESTAMP, LABEL)
    parsing = {name: tf.io.FixedLenFeature([], dtypes[name]) for name in names}
    for serialized in tf.data.TFRecordDataset(path).batch(_BATCH):
        parsed = {k: v.numpy() for k, v in tf.io.parse_example(serialized, parsing).items()}
        parsed[EXAMPLE_ID] = hashing.to_int64(parsed[EXAMPLE_ID])
        if kind == EXAMPLES:
            parsed[SERIALIZED] = serialized.numpy()
        yield parsed


def split(columns: Columns, num_buckets: int) -> Sequence[tuple[int, Columns]]:
    """The rows of each bucket that has some: (bucket, columns)."""
    return [
        (bucket, {name: data[rows] for name, data in columns.items()})
        for bucket, rows in hashing.rows_by_partition(columns[EXAMPLE_ID], num_buckets)
    ]

"""Forward records in memory: columns sorted by id, the newest record of each."""

import dataclasses

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import blocks as block_format
from ofb_tf.records import memory, paths, reader


@dataclasses.dataclass(frozen=True)
class ForwardRecords:
    """Forward records as plain tensors, sorted by id, ids unique.

    Attributes:
      example_ids: int64 `[n]`, ascending.
      timestamps: int64 `[n]`, microseconds since 1970.
      version_indices: uint8, uint16 or int32 `[n]`, into `version_table`.
      version_table: int64 `[v]`, the model versions, ascending.
      num_outputs: outputs of the model, 0 where only losses were recorded.
      logits: float32 or float16 `[n, k]`, or None; k is `num_outputs`, or in the top-k form the
        number of logits kept.
      losses: float32 `[n]`, or None.
      class_ids: int32 `[n, k]` in the top-k form: the classes of `logits`.
      logsumexp: float32 `[n]` in the top-k form, over all logits.
      sum_squared_probabilities: float32 `[n]` in the top-k form, over all classes.
      counts: what reading came upon.
    """

    example_ids: tf.Tensor
    timestamps: tf.Tensor
    version_indices: tf.Tensor
    version_table: tf.Tensor
    num_outputs: int
    logits: tf.Tensor | None = None
    losses: tf.Tensor | None = None
    class_ids: tf.Tensor | None = None
    logsumexp: tf.Tensor | None = None
    sum_squared_probabilities: tf.Tensor | None = None
    counts: reader.ReadCounts = dataclasses.field(default_factory=reader.ReadCounts)

    @classmethod
    def load(
        cls, pattern: paths.Pattern, *, as_of: int | None = None, on_corrupt: str = "error"
    ) -> "ForwardRecords":
        """Reads record files, in parallel, and keeps the newest record of each id.

        ```python
        import ofb_tf

        with ofb_tf.ForwardRecordWriter("records") as writer:
            writer.write([11, 12], [0.1, 0.2], model_version=1)
            writer.write([12], [0.3], model_version=2)
        records = ofb_tf.ForwardRecords.load("records")
        assert records.example_ids.numpy().tolist() == [11, 12]
        assert records.model_versions.numpy().tolist() == [1, 2]  # the newest of each id
        assert records.counts.num_duplicates == 1
        ```

        Args:
          pattern: a file, a glob, a directory, or a list of them. Files that are still being
            written (`*.ofbr.open`) are read up to their last whole block.
          as_of: microseconds since 1970; later records are left out, as for a join at that time.
          on_corrupt: "error", or "skip" to leave damaged blocks out and count them.

        Returns:
          The records; equal timestamps are decided by file name, then position: the last wins.

        Raises:
          FileNotFoundError: the pattern matches no record file.
          CorruptRecordsError: a file is damaged; names file and offset.
          ValueError: the files hold different columns or numbers of outputs, or no record at all.
        """
        counts = reader.ReadCounts()
        columns = reader.read_columns(pattern, as_of=as_of, on_corrupt=on_corrupt, counts=counts)
        return cls._from_numpy(columns, counts)

    @classmethod
    def from_columns(
        cls,
        example_ids: np.ndarray,
        logits: np.ndarray | None = None,
        losses: np.ndarray | None = None,
        model_versions: np.ndarray | int = 0,
        timestamps: np.ndarray | int = 0,
    ) -> "ForwardRecords":
        """Records from arrays in any order, ids repeated or not.

        Args:
          example_ids: int64 `[n]`.
          logits: float32 or float16 `[n, k]`, or `[n]` for one output.
          losses: float32 `[n]`; at least one of logits and losses.
          model_versions: int64, one or `[n]`.
          timestamps: int64 microseconds, one or `[n]`; decide between records of one id.

        Returns:
          The records, the newest of each id.

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        ids = np.asarray(example_ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"example_ids must be int64 [n]. Received: {ids.dtype} {list(ids.shape)}"
            )
        n = len(ids)
        arrays = {constants.EXAMPLE_ID: ids.astype(np.int64)}
        if logits is not None:
            logits = np.asarray(logits)
            logits = logits[:, None] if logits.ndim == 1 else logits
            if logits.ndim != 2 or len(logits) != n or not logits.shape[1]:
                raise ValueError(f"logits must be [{n}, k]. Received: {list(logits.shape)}")
            narrow = logits.dtype == np.float16
            arrays[constants.LOGITS] = logits.astype(np.float16 if narrow else np.float32)
        if losses is not None:
            arrays[constants.LOSS] = np.asarray(losses, np.float32)
            if arrays[constants.LOSS].shape != (n,):
                raise ValueError(
                    f"losses must be [{n}]. Received: {list(arrays[constants.LOSS].shape)}"
                )
        if len(arrays) == 1:
            raise ValueError("logits or losses must be given. Received: neither")
        versions = np.broadcast_to(np.asarray(model_versions, np.int64), (n,))
        table, codes = np.unique(versions, return_inverse=True)
        arrays[constants.MODEL_VERSION] = codes.astype(reader.index_dtype(len(table)))
        arrays[constants.TIMESTAMP] = np.array(
            np.broadcast_to(np.asarray(timestamps, np.int64), (n,))
        )
        schema = block_format.Schema(
            num_outputs=0 if logits is None else logits.shape[1],
            top_k=0,
            columns=tuple(c.name for c in block_format.COLUMNS if c.name in arrays),
        )
        return cls._from_numpy(reader.Columns(schema, arrays, table), reader.ReadCounts(num_read=n))

    @classmethod
    def _from_numpy(cls, columns: reader.Columns, counts: reader.ReadCounts) -> "ForwardRecords":
        arrays = columns.arrays
        order = newest_order(arrays[constants.EXAMPLE_ID], arrays[constants.TIMESTAMP])
        counts.num_duplicates += len(arrays[constants.EXAMPLE_ID]) - len(order)
        tensors = {}
        nonfinite = np.zeros(0, bool)
        for name in columns.schema.columns:
            # A column at a time, its unsorted form freed before the next, bounds the peak memory.
            unsorted = arrays.pop(name)
            data = memory.aligned_empty((len(order), *unsorted.shape[1:]), unsorted.dtype)
            np.take(unsorted, order, axis=0, out=data)
            del unsorted
            if data.dtype.kind == "f":
                bad = ~np.isfinite(data)
                bad = bad if data.ndim == 1 else bad.any(axis=1)
                nonfinite = nonfinite | bad if len(nonfinite) else bad
            tensors[name] = memory.as_tensor(data)
        counts.num_nonfinite += int(nonfinite.sum())
        del order, arrays
        memory.release_freed()
        return cls(
            example_ids=tensors[constants.EXAMPLE_ID],
            timestamps=tensors[constants.TIMESTAMP],
            version_indices=tensors[constants.MODEL_VERSION],
            version_table=tf.constant(columns.version_table, tf.int64),
            num_outputs=columns.schema.num_outputs,
            logits=tensors.get(constants.LOGITS),
            losses=tensors.get(constants.LOSS),
            class_ids=tensors.get(constants.CLASS_IDS),
            logsumexp=tensors.get(constants.LOGSUMEXP),
            sum_squared_probabilities=tensors.get(constants.SUM_SQUARED_PROBABILITIES),
            counts=counts,
        )

    @property
    def columns(self) -> dict[str, tf.Tensor]:
        columns = {
            constants.LOGITS: self.logits,
            constants.LOSS: self.losses,
            constants.TIMESTAMP: self.timestamps,
            constants.CLASS_IDS: self.class_ids,
            constants.LOGSUMEXP: self.logsumexp,
            constants.SUM_SQUARED_PROBABILITIES: self.sum_squared_probabilities,
        }
        return {name: column for name, column in columns.items() if column is not None}

    def __len__(self) -> int:
        return int(self.example_ids.shape[0])

    @property
    def model_versions(self) -> tf.Tensor:
        """int64 `[n]`, made anew at each call: in memory they are indices into a table."""
        return tf.gather(self.version_table, tf.cast(self.version_indices, tf.int32))


def newest_order(example_ids: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Positions that sort by id and keep the newest record of each, the last among equals.

    Args:
      example_ids: int64 `[n]`.
      timestamps: int64 `[n]`.

    Returns:
      int64 `[m]`, m distinct ids.
    """
    order = np.argsort(example_ids, kind="stable")
    ids = example_ids[order]
    same = ids[1:] == ids[:-1]
    del ids
    if not same.any():
        return order
    repeated = np.append(False, same) | np.append(same, False)
    group = order[repeated]
    order[repeated] = group[np.lexsort((timestamps[group], example_ids[group]))]
    return order[np.append(~same, True)]

"""Writing forward records: a buffer of columns, blocks, files that roll over."""

import atexit
import contextlib
import dataclasses
import os
import threading
import time
import weakref
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import batch
from ofb_tf.records import blocks as block_format
from ofb_tf.records.output_file import OutputFile, finalise_dead_files

_LOGITS_DTYPES = ("float32", "float16")
_COMPRESSIONS = (None, "GZIP", "ZLIB")
_EXIT_SECONDS = 30.0


@dataclasses.dataclass
class WriterCounts:
    """What a writer did so far.

    Attributes:
      num_records: records taken by `write`.
      num_written: records in blocks that reached the file system.
      num_dropped: records lost because their block could not be written.
      num_nonfinite: records with a NaN or infinite logit or loss: written as given; the sampler
        treats them as missing.
      num_files: files begun.
      num_blocks: blocks written.
    """

    num_records: int = 0
    num_written: int = 0
    num_dropped: int = 0
    num_nonfinite: int = 0
    num_files: int = 0
    num_blocks: int = 0


class ForwardRecordWriter:
    """Writes forward records to files of one directory; safe to share between threads.

    Every writer writes files of its own, so any number of processes may share a directory. Records
    gather in a block; a full block, `flush`, the flush interval and `close` write it out. What was
    flushed survives a kill of the process (not a power cut: nothing is fsynced). Files are named
    `*.ofbr.open` until they are complete, then `*.ofbr`. A new writer finalises the open files
    that dead writers of this machine left in the directory. A writer that is still open when the
    interpreter exits is closed then.

    ```python
    import numpy as np

    import ofb_tf

    with ofb_tf.ForwardRecordWriter("records", num_outputs=10) as writer:
        writer.write(np.arange(256), np.zeros([256, 10]), model_version=7)
    assert writer.counts.num_written == 256
    ```

    Attributes:
      directory: where the files go.
      counts: `WriterCounts`: what the writer did so far.
      last_error: the last error of the file system, or None.
    """

    _now: int

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        num_outputs: int | None = None,
        top_k: int | None = None,
        logits_dtype: str = "float32",
        compression: str | None = None,
        flush_seconds: float | None = 10.0,
        max_file_records: int = 50_000_000,
        max_file_bytes: int = 1 << 30,
        max_file_seconds: float = 3600.0,
        block_records: int = block_format.MAX_BLOCK_RECORDS,
        on_error: str = "raise",
    ):
        """Makes the directory where it is missing; the first file begins with the first block.

        Args:
          directory: where the files go, on any file system of `tf.io.gfile`.
          num_outputs: outputs of the model, at least 1; None takes it from the first batch.
          top_k: keep this many of each instance's largest logits, with their classes and what
            the loss and its gradient need of the rest; None keeps all. Less than num_outputs.
          logits_dtype: "float32", or "float16" for half the bytes and 11 bits of precision.
          compression: None, "GZIP" or "ZLIB".
          flush_seconds: the longest time that a record waits in the buffer; None: until its block
            is full.
          max_file_records: records after which a new file begins.
          max_file_bytes: bytes after which a new file begins (before compression).
          max_file_seconds: age at which a new file begins.
          block_records: records a block, 1 to 8192.
          on_error: "raise" lets `write` raise what the file system raised; "drop" counts the lost
            records, so that serving goes on. The next block tries again with a new file.

        Raises:
          ValueError: an argument is out of range.
        """
        _check_positive("num_outputs", num_outputs, optional=True)
        _check_positive("top_k", top_k, optional=True)
        if top_k and num_outputs and top_k >= num_outputs:
            raise ValueError(
                f"top_k must be less than num_outputs={num_outputs}; leave it out to keep all "
                f"logits. Received: {top_k}"
            )
        _check_choice("logits_dtype", logits_dtype, _LOGITS_DTYPES)
        _check_choice("compression", compression, _COMPRESSIONS)
        _check_choice("on_error", on_error, ("raise", "drop"))
        _check_positive("flush_seconds", flush_seconds, optional=True)
        _check_positive("max_file_records", max_file_records)
        _check_positive("max_file_bytes", max_file_bytes)
        _check_positive("max_file_seconds", max_file_seconds)
        _check_positive("block_records", block_records)
        if block_records > block_format.MAX_BLOCK_RECORDS:
            raise ValueError(
                f"block_records must be at most {block_format.MAX_BLOCK_RECORDS}. "
                f"Received: {block_records}"
            )
        self.directory = os.fspath(directory)
        self.counts = WriterCounts()
        self.last_error: Exception | None = None
        self._num_outputs = num_outputs
        self._top_k = top_k or 0
        self._logits_dtype = np.dtype(logits_dtype)
        self._compression = compression or ""
        self._flush_seconds = flush_seconds
        self._max_file_records = max_file_records
        self._max_file_bytes = max_file_bytes
        self._max_file_seconds = max_file_seconds
        self._block_records = block_records
        self._on_error = on_error
        self._closed = False
        self._reset()
        tf.io.gfile.makedirs(self.directory)
        finalise_dead_files(self.directory)
        _open_writers.add(self)

    def write(
        self,
        example_ids: Any,
        logits: Any = None,
        *,
        loss: Any = None,
        model_version: int | np.ndarray = 0,
        timestamp: int | np.ndarray | None = None,
    ) -> None:
        """Records a batch of n forward passes.

        Args:
          example_ids: int64 or string `[n]`; strings become 64-bit fingerprints.
          logits: float `[n, num_outputs]`, or `[n]` for one output: logits, or the prediction of
            a regression. Values that are not finite are written as given, and counted.
          loss: float `[n]`, where the label is known already; with logits or in their place.
          model_version: int64, one or `[n]`.
          timestamp: int64 microseconds since 1970, one or `[n]`; now by default, and never before
            an earlier call's now, so that a clock set back does not make new records look old.

        Raises:
          ValueError: shapes or dtypes do not fit, or other columns than in earlier calls.
          RuntimeError: the writer is closed.
          OSError, tf.errors.OpError: the block could not be written (`on_error="raise"`).
        """
        ids = batch.as_ids(example_ids)
        columns: dict[str, Any] = {constants.EXAMPLE_ID: ids}
        if logits is not None:
            columns[constants.LOGITS] = self._as_logits(logits, len(ids))
        if loss is not None:
            columns[constants.LOSS] = batch.as_floats(constants.LOSS, loss, (len(ids),))
        if len(columns) == 1:
            raise ValueError("write: logits or loss must be given. Received: neither")
        num_nonfinite = batch.count_nonfinite(columns)
        if logits is not None and self._top_k:
            columns |= batch.top_k_columns(columns[constants.LOGITS], self._top_k)
        model_version = batch.as_int64(constants.MODEL_VERSION, model_version, len(ids))
        if timestamp is not None:
            timestamp = batch.as_int64(constants.TIMESTAMP, timestamp, len(ids))
        with self._lock:
            if self._closed:
                raise RuntimeError("write: the writer is closed. Make a new ForwardRecordWriter.")
            self._fix_schema(columns)
            if timestamp is None:
                self._now = max(self._now, time.time_ns() // 1000)
                timestamp = self._now
            self.counts.num_records += len(ids)
            self.counts.num_nonfinite += num_nonfinite
            columns[constants.MODEL_VERSION] = model_version
            columns[constants.TIMESTAMP] = timestamp
            self._append(columns)
        if self._flush_seconds is not None and self._flusher is None:
            self._start_flusher()

    def flush(self) -> None:
        """Writes out what is buffered; it survives a kill of the process from here on.

        Raises:
          OSError, tf.errors.OpError: it could not be written (`on_error="raise"`).
        """
        with self._lock:
            self._write_block()

    def close(self) -> None:
        """Flushes, completes the file and gives it its final name. Further calls do nothing.

        Raises:
          OSError, tf.errors.OpError: it could not be written (`on_error="raise"`).
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stop.set()
            _open_writers.discard(self)
            try:
                self._write_block()
            finally:
                self._close_file()

    def __enter__(self) -> "ForwardRecordWriter":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _reset(self) -> None:
        """Begins anew, as a forked child must: buffer, file and flusher are its parent's."""
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._flusher: threading.Thread | None = None
        self._file: OutputFile | None = None
        self._schema: block_format.Schema | None = None
        self._buffer: dict[str, np.ndarray] = {}
        self._runs: dict[str, list[tuple[Any, int]]] = {
            constants.MODEL_VERSION: [],
            constants.TIMESTAMP: [],
        }
        self._buffered = 0
        self._now = 0

    def _as_logits(self, logits: Any, num_records: int) -> np.ndarray:
        array = np.asarray(logits)
        if array.ndim == 1 and self._num_outputs in (None, 1):
            array = array[:, None]
        if self._num_outputs is None and array.ndim == 2 and array.shape[1] > self._top_k:
            self._num_outputs = array.shape[1]
        return batch.as_floats(
            constants.LOGITS, array, (num_records, self._num_outputs or f"more than {self._top_k}")
        )

    def _fix_schema(self, columns: dict[str, np.ndarray]) -> None:
        names = (*columns, constants.MODEL_VERSION, constants.TIMESTAMP)
        schema = block_format.Schema(
            num_outputs=(self._num_outputs or 0) if constants.LOGITS in columns else 0,
            top_k=self._top_k if constants.LOGITS in columns else 0,
            columns=tuple(c.name for c in block_format.COLUMNS if c.name in names),
        )
        if self._schema is None:
            self._schema = schema
            for column in block_format.COLUMNS:
                if column.name not in schema.columns or column.runs:
                    continue
                dtype = self._logits_dtype if column.narrow_dtype else column.dtype
                width = (schema.logits_width,) if column.per_output else ()
                self._buffer[column.name] = np.empty((self._block_records, *width), dtype)
        elif schema != self._schema:
            raise ValueError(
                f"write: this writer's records have {self._schema}, got {schema}. Give the same "
                "columns in every call, or use a second writer."
            )

    def _append(self, columns: dict[str, Any]) -> None:
        num_records = len(columns[constants.EXAMPLE_ID])
        start = 0
        while start < num_records:
            count = min(num_records - start, self._block_records - self._buffered)
            for name, buffer in self._buffer.items():
                data = columns[name][start : start + count]
                with np.errstate(over="ignore"):  # float32 beyond float16's range becomes inf
                    buffer[self._buffered : self._buffered + count] = data
            for name, runs in self._runs.items():
                value = columns[name]
                part = value if isinstance(value, int) else value[start : start + count]
                runs.append((part, count))
            self._buffered += count
            start += count
            if self._buffered == self._block_records:
                self._write_block()

    def _write_block(self) -> None:
        count = self._buffered
        if not count or self._schema is None:
            return
        columns: dict[str, Any] = {name: data[:count] for name, data in self._buffer.items()}
        for name, runs in self._runs.items():
            columns[name] = batch.join_runs(runs)
            self._runs[name] = []
        self._buffered = 0
        try:
            if self._file is None:
                self._file = OutputFile(self.directory, self._compression)
                self.counts.num_files += 1
                self._file_start = time.monotonic()
            self._file.write_block(block_format.encode_block(self._schema, columns), count)
        except (OSError, tf.errors.OpError) as error:
            self.counts.num_dropped += count
            self.last_error = error
            if self._file is not None:
                file, self._file = self._file, None
                file.abandon()
            if self._on_error == "raise":
                raise
            return
        self.counts.num_written += count
        self.counts.num_blocks += 1
        if (
            self._file.num_records >= self._max_file_records
            or self._file.num_bytes >= self._max_file_bytes
            or time.monotonic() - self._file_start >= self._max_file_seconds
        ):
            self._close_file()

    def _close_file(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except (OSError, tf.errors.OpError) as error:
            self.last_error = error
            if self._on_error == "raise":
                raise

    def _start_flusher(self) -> None:
        with self._lock:
            if self._flusher is None and not self._closed:
                self._flusher = threading.Thread(
                    target=_flush_regularly,
                    args=(weakref.ref(self), self._stop, self._flush_seconds),
                    name="ofb-record-flush",
                    daemon=True,
                )
                self._flusher.start()


def _flush_regularly(
    writer_ref: "weakref.ref[ForwardRecordWriter]", stop: threading.Event, seconds: float
) -> None:
    while not stop.wait(seconds):
        writer = writer_ref()
        if writer is None:
            return
        # Counted and kept in last_error; the next block's write raises if the fault lasts.
        with contextlib.suppress(OSError, tf.errors.OpError):
            writer.flush()
        del writer


def _check_positive(name: str, value: float | None, *, optional: bool = False) -> None:
    if not (optional and value is None) and (value is None or not value > 0):
        raise ValueError(f"{name} must be positive. Received: {value}")


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}. Received: {value!r}")


def _close_at_exit() -> None:
    for writer in list(_open_writers):
        # A thread that is stuck on a stalled disk must not keep the process from exiting.
        if writer._lock.acquire(timeout=_EXIT_SECONDS):
            with contextlib.suppress(OSError, tf.errors.OpError):
                writer.close()
            writer._lock.release()


_open_writers: "weakref.WeakSet[ForwardRecordWriter]" = weakref.WeakSet()


def _reset_in_child() -> None:
    for writer in list(_open_writers):
        writer._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)

atexit.register(_close_at_exit)

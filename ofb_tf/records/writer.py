"""Writing forward records: a buffer of columns, blocks, files that roll over."""

import atexit
import contextlib
import ctypes
import dataclasses
import multiprocessing.util
import os
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.checks import check_choice, check_compression, check_count, check_positive
from ofb_tf.records import blocks, files, reader
from ofb_tf.records.outputs import logits_of, look_like_probabilities, side_by_side
from ofb_tf.records.reader import Columns, ForwardRecords
from ofb_tf.records.schema import MAX_BLOCK_BYTES, MAX_BLOCK_RECORDS, Schema

_EXIT_SECONDS = 30.0
_FORK_SECONDS = 5.0
_DESCRIPTORS = "/proc/self/fd"  # of Linux
_Writer = TypeVar("_Writer", bound="BlockWriter")


@dataclasses.dataclass
class WriterCounts:
    """Counters of a writer.

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


class BlockWriter:
    """Gathers forward records in blocks, which a subclass puts somewhere.

    Attributes:
      counts: `WriterCounts`: what the writer did so far.
      last_error: the last error of where the blocks go, or None.
    """

    _now: int  # the latest timestamp, in microseconds
    _flusher: threading.Thread | None

    def __init__(
        self,
        *,
        num_outputs: int | None,
        top_k: int | None,
        logits_dtype: str,
        flush_seconds: float | None,
        block_records: int,
        on_error: str,
        max_block_bytes: int | None = None,
    ):
        """Checks the arguments, which are those of `ForwardRecordWriter`."""
        self._top_k = 0 if top_k is None else check_count("top_k", top_k)
        self._num_outputs = None if num_outputs is None else check_count("num_outputs", num_outputs)
        if self._num_outputs and self._top_k >= self._num_outputs:
            raise ValueError(
                f"top_k must be less than num_outputs={num_outputs}; leave it out to keep all "
                f"logits. Received: {top_k}"
            )
        self._block_records = check_count("block_records", block_records, MAX_BLOCK_RECORDS)
        self._max_block_bytes = max_block_bytes
        self.last_error: Exception | None = None
        self._logits_dtype = check_choice("logits_dtype", logits_dtype, ("float32", "float16"))
        self._flush_seconds = (
            None if flush_seconds is None else check_positive("flush_seconds", flush_seconds)
        )
        self._on_error = check_choice("on_error", on_error, ("raise", "drop"))
        self._closed = False
        self._schema: Schema | None = None
        self._reset()
        _open_writers.add(self)

    def write(
        self,
        example_ids: Any,
        logits: Any = None,
        *,
        probabilities: Any = None,
        loss: Any = None,
        model_version: int | np.ndarray = 0,
        timestamp: int | np.ndarray | None = None,
    ) -> None:
        """Records a batch of n forward passes; n may be 0.

        Args:
          example_ids: integers or text `[n]`; text becomes its 64-bit fingerprint.
          logits: float `[n, num_outputs]`, or `[n]` for one output: logits, or the prediction of
            a regression. Of several heads a dict, by the name of each; they are recorded side by
            side in the order of their names. Values that are not finite are written as given, and
            counted.
          probabilities: instead of logits, of a model that ends in a sigmoid or softmax, in [0, 1];
            their logits are recorded. Of several heads a dict likewise.
          loss: float `[n]`, if the label is already known; with logits or instead of them.
          model_version: int64, one or `[n]`.
          timestamp: int64 microseconds since 1970, one or `[n]`; now by default, and never before
            an earlier call's now, so that a clock set back does not make new records look old.

        Raises:
          ValueError: shapes or dtypes do not fit, or other columns than in earlier calls.
          RuntimeError: the writer is closed.
          OSError, tf.errors.OpError: the block could not be written (`on_error="raise"`).
        """
        ids = hashing.id_vector(example_ids)
        columns: dict[str, Any] = {constants.EXAMPLE_ID: ids}
        if probabilities is not None:
            if logits is not None:
                raise ValueError("write: give logits or probabilities. Received: both")
            logits = logits_of(probabilities)
        elif logits is not None and self._schema is None:
            for part in logits.values() if isinstance(logits, Mapping) else [logits]:
                _warn_of_probabilities(part)
        if isinstance(logits, Mapping) and self._top_k:
            raise ValueError(
                "write: top_k would keep the largest of all heads' logits, not those of each head: "
                f"make the writer without top_k. Received: top_k={self._top_k}"
            )
        logits = side_by_side(logits)
        if logits is not None:
            columns[constants.LOGITS] = self._as_logits(logits, len(ids))
        if loss is not None:
            columns[constants.LOSS] = _as_floats(constants.LOSS, loss, (len(ids),))
        if len(columns) == 1:
            raise ValueError("write: logits or loss must be given. Received: neither")
        num_outputs = columns[constants.LOGITS].shape[1] if len(ids) and logits is not None else 0
        num_nonfinite = reader.count_nonfinite(columns.values())
        model_version = _as_int64(constants.MODEL_VERSION, model_version, len(ids))
        if timestamp is not None:
            timestamp = _as_int64(constants.TIMESTAMP, timestamp, len(ids))
        if num_outputs and self._top_k:
            columns |= _top_k_columns(columns[constants.LOGITS], self._top_k)
        with self._lock:
            if self._closed:
                raise RuntimeError(
                    f"write: the writer is closed. Make a new {type(self).__name__}."
                )
            if not len(ids):
                return
            self._set_schema(columns, num_outputs)
            if timestamp is None:
                self._now = max(self._now, time.time_ns() // 1000)
                timestamp = self._now
            self.counts.num_records += len(ids)
            self.counts.num_nonfinite += num_nonfinite
            columns[constants.MODEL_VERSION] = model_version
            columns[constants.TIMESTAMP] = timestamp
            self._append(columns)
            if self._flush_seconds is not None and self._flusher is None:
                self._flusher = threading.Thread(
                    target=_flush_regularly,
                    args=(weakref.ref(self), self._stop, self._flush_seconds),
                    name="ofb-record-flush",
                    daemon=True,
                )
                self._flusher.start()

    def flush(self) -> None:
        """Writes out what is buffered; in a file, it survives a kill of the process from here on.

        Raises:
          OSError, tf.errors.OpError: it could not be written (`on_error="raise"`).
        """
        with self._lock:
            self._write_block()

    def close(self) -> None:
        """Flushes, and completes the last file under its final name. Further calls do nothing.

        Raises:
          OSError, tf.errors.OpError: it could not be written (`on_error="raise"`).
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stop.set()
            try:
                self._write_block()
            finally:
                self._finish()
                _open_writers.discard(self)

    def __enter__(self: _Writer) -> _Writer:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _reset(self) -> None:
        """The state of a writer that has written nothing, which is also that of a forked child."""
        self.counts = WriterCounts()
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._flusher = None
        self._buffered = 0
        self._now = 0

    def _as_logits(self, logits: Any, num_records: int) -> np.ndarray:
        array = np.asarray(logits)
        width = self._num_outputs
        if array.ndim == 1 and width in (None, 1):
            array = array[:, None]
        if width is None and array.ndim == 2 and array.shape[1] > self._top_k:
            width = array.shape[1]
        expected = (num_records, width or f"more than {self._top_k}")
        return _as_floats(constants.LOGITS, array, expected)

    def _set_schema(self, columns: dict[str, np.ndarray], num_outputs: int) -> None:
        """Takes the schema from the first batch, and checks that of the others."""
        names = (*columns, constants.MODEL_VERSION, constants.TIMESTAMP)
        schema = Schema.of(names, num_outputs, self._top_k if num_outputs else 0)
        if self._schema is None:
            block_records = min(
                self._block_records, schema.records_per_block(self._max_block_bytes)
            )
            if not block_records:
                raise ValueError(
                    f"write: a record of {schema} is larger than a block may be "
                    f"({self._max_block_bytes or MAX_BLOCK_BYTES} bytes). Set top_k."
                )
            self._schema, self._block_records = schema, block_records
            self._num_outputs = num_outputs or self._num_outputs
            self._buffer = schema.empty(block_records)
            if num_outputs:
                logits = np.empty_like(self._buffer[constants.LOGITS], self._logits_dtype)
                self._buffer[constants.LOGITS] = logits
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
            with np.errstate(over="ignore"):  # float32 beyond float16's range becomes inf
                for name, buffer in self._buffer.items():
                    data = columns[name]
                    buffer[self._buffered : self._buffered + count] = (
                        data if isinstance(data, int) else data[start : start + count]
                    )
            self._buffered += count
            start += count
            if self._buffered == self._block_records:
                self._write_block()

    def _write_block(self) -> None:
        count = self._buffered
        if not count or self._schema is None:
            return
        columns = {name: data[:count] for name, data in self._buffer.items()}
        try:
            self._put(self._schema, columns)
        except (OSError, tf.errors.OpError) as error:
            self._buffered = 0
            self.counts.num_dropped += count
            self.last_error = error
            if self._on_error == "raise":
                raise
            return
        # Only now: an exception of a signal handler leaves the block to `close`.
        self._buffered = 0
        self._tend()

    def _put(self, schema: Schema, columns: dict[str, np.ndarray]) -> None:
        """Takes a block; raises OSError or OpError where it is lost."""
        raise NotImplementedError

    def _tend(self) -> None:
        """After each block, and at every flush interval."""

    def _finish(self) -> None:
        """Completes what the blocks were put into."""

    def _leak(self) -> None:
        """In a forked child, before `_reset`: leaves alone what is the parent's."""


class ForwardRecordWriter(BlockWriter):
    """Writes forward records to files in one directory; safe to share between threads.

    Every writer writes its own files, so any number of processes may share a directory. Records
    gather in a block; a full block, `flush`, the flush interval and `close` write it out. What was
    flushed survives a kill of the process (not a power cut: nothing is fsynced). Files are named
    `*.ofbr.open` until they are complete, then `*.ofbr`; what a killed process left open stays
    readable, and `compact`, `partition` and `expire` take it once it is old enough. A writer that
    is still open when the interpreter or a process of multiprocessing exits is closed then. After a
    fork the child starts with an empty buffer and its own files.

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
        block_records: int = MAX_BLOCK_RECORDS,
        on_error: str = "raise",
    ):
        """Creates the directory if it is missing; the first file begins with the first block.

        Args:
          directory: where the files go, on any file system of `tf.io.gfile`.
          num_outputs: outputs of the model, at least 1; None takes it from the first batch.
          top_k: keep this many of each record's largest logits, with their classes and what
            the loss and its gradient need of the rest; None keeps all. Less than num_outputs.
          logits_dtype: "float32", or "float16" for half the bytes and 11 bits of precision.
          compression: None, "GZIP" or "ZLIB".
          flush_seconds: the longest time that a record waits in the buffer; None: until its block
            is full.
          max_file_records: records after which a new file begins.
          max_file_bytes: bytes after which a new file begins (before compression).
          max_file_seconds: age at which a file is completed, also while nothing is written unless
            flush_seconds is None.
          block_records: records per block, 1 to 8192; fewer where a block would be larger than
            `schema.MAX_BLOCK_BYTES`.
          on_error: "raise" lets `write` raise what the file system raised; "drop" counts the lost
            records, so that serving goes on. The next block tries again with a new file.

        Raises:
          ValueError: an argument is out of range.
          TypeError: an integer argument is not one.
        """
        super().__init__(
            num_outputs=num_outputs,
            top_k=top_k,
            logits_dtype=logits_dtype,
            flush_seconds=flush_seconds,
            block_records=block_records,
            on_error=on_error,
        )
        self.directory = os.fspath(directory)
        self._compression = check_compression(compression)
        self._max_file_records = check_count("max_file_records", max_file_records)
        self._max_file_bytes = check_count("max_file_bytes", max_file_bytes)
        self._max_file_seconds = check_positive("max_file_seconds", max_file_seconds)
        tf.io.gfile.makedirs(self.directory)

    def _reset(self) -> None:
        super()._reset()
        self._file: _OutputFile | None = None

    def _leak(self) -> None:
        if self._file is not None:
            self._file.leak()

    def _put(self, schema: Schema, columns: dict[str, np.ndarray]) -> None:
        try:
            if self._file is None:
                # Names sort by time: between records of one timestamp the later file wins.
                name = f"records-{time.time_ns() // 1000:016d}-{uuid.uuid4().hex[:16]}"
                stem = os.path.join(self.directory, name)
                self._file = _OutputFile(
                    stem + files.OPEN_SUFFIX, stem + files.SUFFIX, self._compression
                )
                self.counts.num_files += 1
            self._file.write_block(schema, columns)
        except BaseException:
            if self._file is not None:
                file, self._file = self._file, None
                file.abandon()
            raise
        self.counts.num_written += len(columns[constants.EXAMPLE_ID])
        self.counts.num_blocks += 1

    def _tend(self) -> None:
        if self._file is not None and (
            self._file.num_records >= self._max_file_records
            or self._file.num_bytes >= self._max_file_bytes
            or time.monotonic() - self._file.begun >= self._max_file_seconds
        ):
            self._finish()

    def _finish(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except (OSError, tf.errors.OpError) as error:
            self.last_error = error
            if self._on_error == "raise":
                raise


def write_record_file(
    path: str, records: ForwardRecords | Columns, *, compression: str | None = None
) -> None:
    """Writes records in their order to one file, which appears under its name when complete."""
    if isinstance(records, ForwardRecords):
        arrays = {name: np.asarray(column) for name, column in records.columns.items()}
        columns = Columns(records.schema, arrays, np.asarray(records.version_table))
    else:
        columns = records
    compression = check_compression(compression)
    # Under an open name, so that `expire` sees what an interruption leaves behind.
    temporary = os.path.join(os.path.dirname(path), f".tmp-{uuid.uuid4().hex}{files.OPEN_SUFFIX}")
    file = _OutputFile(temporary, path, compression)
    try:
        step = max(columns.schema.records_per_block(), 1)
        for start in range(0, max(len(columns), 1), step):
            part = columns.rows(slice(start, start + step)).arrays
            part[constants.MODEL_VERSION] = columns.version_table[part[constants.MODEL_VERSION]]
            file.write_block(columns.schema, part)
        file.close()
    except BaseException:
        file.abandon(keep=False)
        raise


class _OutputFile:
    """A file of blocks that has a temporary name until `close` completes it."""

    def __init__(self, temporary: str, path: str, compression: str):
        self.num_records = self.num_blocks = self.num_bytes = 0  # before compression
        self.begun = time.monotonic()
        self._temporary = temporary
        self._path = path
        in_memory = files.is_local(temporary) and os.path.isdir(_DESCRIPTORS)
        self._writer = (_LocalTFRecords if in_memory else tf.io.TFRecordWriter)(
            temporary, compression
        )

    def write_block(self, schema: Schema, columns: dict[str, np.ndarray]) -> None:
        """Writes a block and hands it to the operating system; after an error call `abandon`."""
        serialized = blocks.encode_block(schema, columns)
        self._writer.write(serialized)
        self._writer.flush()
        self.num_records += len(columns[constants.EXAMPLE_ID])
        self.num_blocks += 1
        self.num_bytes += len(serialized) + files.FRAME_BYTES

    def close(self) -> None:
        """Writes the footer and gives the file its final name; whole blocks survive an error."""
        try:
            footer = blocks.Footer(self.num_blocks, self.num_records)
            self._writer.write(blocks.encode_footer(footer))
            self._writer.flush()
            self._writer.close()
            files.rename(self._temporary, self._path)
        except (OSError, tf.errors.OpError):
            self.abandon()
            raise

    def abandon(self, keep: bool = True) -> None:
        """Gives up, and unless told otherwise keeps the whole blocks, if any; never raises."""
        with contextlib.suppress(OSError, tf.errors.OpError):
            self._writer.close()
        if not (keep and self.num_blocks):
            with contextlib.suppress(OSError, tf.errors.OpError):
                files.remove(self._temporary)

    def leak(self) -> None:
        """Keeps TensorFlow's writer from ever being destroyed in this process.

        Its destructor would end the compressed stream in a file shared with the parent process.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._writer))


class _LocalTFRecords:
    """`tf.io.TFRecordWriter` for a local file, which never stops the other threads.

    TensorFlow's holds the GIL while it flushes and closes, so that on a stalled disk no thread of a
    server would run. Here it writes to memory, and a Python file takes that to the disk.
    """

    def __init__(self, path: str, compression: str):
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed in close
        self._memory = os.memfd_create("ofb-records")
        self._writer = tf.io.TFRecordWriter(f"{_DESCRIPTORS}/{self._memory}", compression)
        self._position = 0
        self._failed = False

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def flush(self) -> None:
        self._writer.flush()
        self._move()

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._writer.close()
            if not self._failed:
                self._move()
        finally:
            os.close(self._memory)
            self._file.close()

    def _move(self) -> None:
        end = os.fstat(self._memory).st_size
        if end <= self._position:
            return
        data = memoryview(os.pread(self._memory, end - self._position, self._position))
        os.ftruncate(self._memory, 0)  # frees it; TensorFlow goes on at its own position
        self._position = end
        self._failed = True  # unless all of it gets there, nothing may follow it
        while data:
            data = data[self._file.write(data) :]
        self._failed = False


def _as_floats(name: str, values: Any, shape: tuple) -> np.ndarray:
    """float32 of this shape, or a ValueError."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise ValueError(f"write: {name} must be floats. Received dtype: {array.dtype}")
    if array.shape != shape and (array.size or shape[0]):
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(
            f"write: {name} must have shape [{wanted}] to match {shape[0]} example ids. "
            f"Received: {list(array.shape)}"
        )
    return array.astype(np.float32, copy=False)


def _warn_of_probabilities(logits: Any) -> None:
    rows = np.asarray(logits)
    # One output in [0, 1] may be a prediction: ofb_sample warns of it, which knows the task.
    if rows.ndim == 2 and rows.shape[1] > 1 and look_like_probabilities(rows):
        warnings.warn(
            "write: logits lie in [0, 1] and sum to 1, as probabilities do. Recorded as logits "
            "they make selection nearly uniform: pass them as probabilities=.",
            stacklevel=3,
        )


def _as_int64(name: str, values: Any, num_records: int) -> int | np.ndarray:
    """An int, or a copy as int64 `[n]`, or a ValueError."""
    array = np.asarray(values)
    too_large = array.dtype == np.uint64 and array.max(initial=0) >= 2**63
    if too_large or array.dtype.kind not in "iu" or array.shape not in ((), (num_records,)):
        raise ValueError(
            f"write: {name} must be integers that fit into int64, one or [{num_records}]. "
            f"Received: {array.dtype} {list(array.shape)}: {str(values)[:60]}"
        )
    return np.array(array, np.int64) if array.ndim else int(array)


def _top_k_columns(logits: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The top-k form of float32 logits `[n, num_outputs]`, 1 <= k < num_outputs.

    A row with a logit that is NaN or +inf has NaN for the sums over all classes, so that the
    sampler treats it as missing.
    """
    largest = np.argpartition(logits, -k, axis=1)[:, -k:]
    kept = np.take_along_axis(logits, largest, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    # In float64: the sums run over up to millions of classes.
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        total = shifted.sum(axis=1)
        logsumexp = logits.max(axis=1) + np.log(total)
        sum_squares = np.square(shifted).sum(axis=1) / np.square(total)
    return {
        constants.LOGITS: np.take_along_axis(kept, order, axis=1),
        constants.CLASS_IDS: np.take_along_axis(largest, order, axis=1).astype(np.int32),
        constants.LOGSUMEXP: logsumexp.astype(np.float32),
        constants.SUM_SQUARED_PROBABILITIES: sum_squares.astype(np.float32),
    }


def _flush_regularly(
    writer_ref: "weakref.ref[BlockWriter]", stop: threading.Event, seconds: float
) -> None:
    while not stop.wait(seconds):
        writer = writer_ref()
        if writer is None:
            return
        # Counted and kept in last_error; the next block's write raises if the fault lasts.
        with contextlib.suppress(OSError, tf.errors.OpError), writer._lock:
            writer._write_block()
            writer._tend()
        del writer


_open_writers: "weakref.WeakSet[BlockWriter]" = weakref.WeakSet()
_forking = threading.local()


def _close_at_exit() -> None:
    for writer in list(_open_writers):
        # A thread that is stuck on a stalled disk must not keep the process from exiting.
        if writer._lock.acquire(timeout=_EXIT_SECONDS):
            with contextlib.suppress(OSError, tf.errors.OpError):
                writer.close()
            writer._lock.release()


def call_at_exit(function: Callable[[], None]) -> None:
    """Calls it when the interpreter exits; the last one registered is the first one called.

    Also in the processes that multiprocessing starts, which do not call what atexit has.
    """

    def finalize(*unused: Any) -> None:
        multiprocessing.util.Finalize(None, function, exitpriority=0)

    if multiprocessing.parent_process() is None:
        atexit.register(function)
    else:
        finalize()
    multiprocessing.util.register_after_fork(function, finalize)


def _lock_for_fork() -> None:
    """No block is half written while the process is copied, unless the disk stalls."""
    _forking.writers = list(_open_writers)
    _forking.locked = [w for w in _forking.writers if w._lock.acquire(timeout=_FORK_SECONDS)]


def _unlock_in_parent() -> None:
    for writer in _forking.locked:
        writer._lock.release()


def _reset_in_child() -> None:
    for writer in _forking.writers:
        writer._leak()
        writer._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock_for_fork,
        after_in_parent=_unlock_in_parent,
        after_in_child=_reset_in_child,
    )

call_at_exit(_close_at_exit)

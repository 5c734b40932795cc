"""A background thread that writes ids and logits of responses as forward records."""

import collections
import dataclasses
import functools
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ofb_tf import constants, hashing
from ofb_tf.checks import check_count, check_positive
from ofb_tf.records import importers
from ofb_tf.records.writer import BlockWriter, call_at_exit

_LOGGER = logging.getLogger(__name__)
_PAUSES = 10  # seconds of pause per second of work
_LEAST_WORK = 20e-6  # seconds; a pause costs some microseconds itself
_MAX_JOINED = 16  # responses that are written in one call of the writer
_MAX_JOINED_BYTES = 2**16  # of one of their columns; beyond, copying costs more than calls
# What gives the columns, and their timestamp.
_Response = tuple[Callable[[], dict[str, Any]], Any]


@dataclasses.dataclass
class RecorderCounts:
    """What became of the calls that a recorder was offered, in this process.

    Attributes:
      num_responses: responses offered.
      num_recorded: examples handed to the writer (which counts what it wrote).
      num_full: responses dropped because the queue was full or the recorder was closed.
      num_unusable: responses without usable ids and logits, or of another message type.
      num_failed_calls: calls that ended in an error; there is nothing to record.
      num_write_errors: responses lost because the writer raised.
      num_abandoned: responses still waiting or being written when `close` ran out of time.
    """

    num_responses: int = 0
    num_recorded: int = 0
    num_full: int = 0
    num_unusable: int = 0
    num_failed_calls: int = 0
    num_write_errors: int = 0
    num_abandoned: int = 0


class PredictionRecorder:
    """Writes ids and logits of responses as forward records, in a background thread.

    `offer` takes the messages of a Predict call, `write` the ids and logits of any other server.
    Both cost the caller an append to a queue; they never wait and never raise. The thread starts
    with the first response, looks at the queue every `poll_seconds`, or earlier when it is half
    full, decodes and writes, and leaves the interpreter to the callers after every response. When
    the queue is full, responses are dropped and counted.

    ```python
    import ofb_tf
    from ofb_tf.serving import PredictionRecorder

    writer = ofb_tf.ForwardRecordWriter("records", on_error="drop")
    with PredictionRecorder(writer) as recorder:
        recorder.write([17], [[0.25]], model_version=3)
    assert writer.counts.num_written == 1
    ```

    In a forked process, such as a worker of a pre-forking server, the recorder starts over with
    an empty queue, new counts and new files; what waited at the fork is written by the parent. A
    recorder that is still open when the interpreter exits is closed then. A signal whose default
    action ends the process, such as SIGTERM, does not let the interpreter exit: handle it.

    Attributes:
      counts: `RecorderCounts`: what became of the calls so far.
      last_error: the last error, or None.
    """

    def __init__(
        self,
        writer: BlockWriter,
        *,
        id_output: str | None = constants.EXAMPLE_ID,
        logits_output: str = constants.LOGITS,
        from_logits: bool = True,
        model_name: str | None = None,
        queue_size: int = 1024,
        poll_seconds: float = 0.5,
    ):
        """Makes a recorder.

        Args:
          writer: takes the records; `close` closes it. Give it `on_error="drop"` to continue
            after a full disk.
          id_output: the response's tensor with the ids; None: the fingerprint of each of the
            request's serialized `examples`.
          logits_output: the response's tensor with the logits (for regression the prediction).
          from_logits: False where that tensor holds probabilities, whose logits are then recorded.
          model_name: record only this model's responses; None: all.
          queue_size: the maximum number of waiting responses.
          poll_seconds: seconds between two looks at the queue. Decoding one response, or writing up
            to 16, may delay a caller by 50 to a few hundred microseconds.

        Raises:
          ValueError: queue_size or poll_seconds is not positive.
        """
        self._writer = writer
        self._fields = importers.PredictFields(id_output, logits_output)
        self._from_logits = from_logits
        self._model_name = model_name
        self._queue_size = check_count("queue_size", queue_size)
        self._half_full = (self._queue_size + 1) // 2
        self._poll_seconds = check_positive("poll_seconds", poll_seconds)
        self._reset()
        _open_recorders.add(self)

    def _reset(self) -> None:
        """The state of a new recorder, or of one in a forked child, where no thread runs."""
        self.counts = RecorderCounts()
        self.last_error: Exception | None = None
        self._queue: collections.deque[_Response] = collections.deque()
        self._lock = threading.Lock()
        self._drain_lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._abandoned = False

    def offer(self, request: Any, response: Any) -> None:
        """Queues a `PredictRequest` and its `PredictResponse`, without waiting or raising.

        Neither may be changed afterwards.
        """
        try:
            wanted = self._model_name is None or request.model_spec.name == self._model_name
        except Exception:
            with self._lock:
                self.counts.num_responses += 1
            self._count_error("num_unusable", _wrong_type(request, response))
            return
        if wanted:
            self._append(functools.partial(self._extract, request, response), _now())

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
        """Queues what `ForwardRecordWriter.write` takes, without waiting or raising.

        Ids are int64 or text `[n]`, logits and probabilities `[n, k]`, losses `[n]`; the timestamp
        is in microseconds since 1970, by default the time of the call. No array may be changed
        afterwards. What does not fit counts as unusable.
        """
        columns = {
            constants.EXAMPLE_ID: example_ids,
            constants.LOGITS: logits,
            "probabilities": probabilities,
            constants.LOSS: loss,
            constants.MODEL_VERSION: model_version,
        }
        self._append(columns.copy, _now() if timestamp is None else timestamp)

    def count_failure(self) -> None:
        """Counts a call that ended in an error."""
        with self._lock:
            self.counts.num_failed_calls += 1

    def flush(self) -> None:
        """Waits until the responses offered so far are written out."""
        self._drain(0.0)
        self._guard(self._writer.flush)

    def close(self, timeout: float | None = 30.0) -> None:
        """Writes what waits, stops the thread and closes the writer.

        If the writer is not done in time, because the disk stalls, the loss is counted in
        `num_abandoned` and logged, and `last_error` becomes a TimeoutError. Like every other loss,
        it does not raise.

        Args:
          timeout: seconds to wait at most; None: no limit.
        """
        with self._lock:
            self._closing = True
            self._wake.set()
            thread = self._running_thread()
        if thread is not None:
            thread.join(timeout)
        if (thread is None or thread.is_alive()) and not self._abandoned:
            self._abandoned = True
            self.counts.num_abandoned = len(self._queue)
            self.last_error = TimeoutError(
                f"PredictionRecorder.close: the writer did not finish within {timeout} seconds; "
                f"{len(self._queue)} responses are lost, and what the writer has buffered may be. "
                "Check the disk, or give a longer timeout."
            )
            _LOGGER.warning("%s", self.last_error)
        _open_recorders.discard(self)

    def __enter__(self) -> "PredictionRecorder":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _append(self, columns: Callable[[], dict[str, Any]], timestamp: Any) -> None:
        with self._lock:
            self.counts.num_responses += 1
            if len(self._queue) >= self._queue_size or self._closing:
                self.counts.num_full += 1
                return
            self._queue.append((columns, timestamp))
            self._running_thread()
            if len(self._queue) == self._half_full:
                self._wake.set()

    def _running_thread(self) -> threading.Thread | None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="ofb-recorder", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # too many threads: the next offer tries again
                self.last_error = error
            else:
                self._thread = thread
        return self._thread

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._poll_seconds)
            self._wake.clear()
            self._drain(self._poll_seconds / 2)
        self._drain(0.0)
        self._guard(self._writer.close)

    def _drain(self, seconds: float) -> None:
        """Writes what waits, and takes up to so many seconds longer for the callers' sake."""
        # One thread at a time, so that flush also waits for what another thread is writing.
        with self._drain_lock:
            longest = seconds / (2 * len(self._queue) + 1)
            while self._queue and not self._abandoned:
                with self._lock:
                    waiting = list(itertools.islice(self._queue, _MAX_JOINED))
                self._record(waiting, longest)
                for _ in waiting:  # only now: while they are being written, they still wait
                    self._queue.popleft()

    def _pause(self, begin: float, longest: float) -> float:
        """Leaves the interpreter to the callers, ten times as long as it was taken from them.

        Args:
          begin: when the work began, as of `time.perf_counter`.
          longest: seconds of the pause at most.

        Returns:
          When the next work begins: now, or `begin` if there was too little work for a pause.
        """
        worked = time.perf_counter() - begin
        if worked < _LEAST_WORK:
            return begin
        if len(self._queue) < self._half_full and not self._closing:
            time.sleep(min(_PAUSES * worked, longest))
        return time.perf_counter()

    def _record(self, responses: list[_Response], longest: float) -> None:
        calls = []
        begin = time.perf_counter()
        for columns, timestamp in responses:
            try:
                calls.append(columns() | {constants.TIMESTAMP: timestamp})
            except Exception as error:
                self._count_error("num_unusable", error)
            begin = self._pause(begin, longest)
        try:
            if calls:
                self._write(_joined(calls), len(calls))
        except Exception:  # none of them is written: only the bad ones shall be lost
            for call in calls:
                try:
                    self._write(call, 1)
                except ValueError as error:
                    self._count_error("num_unusable", error)
        self._pause(begin, longest)

    def _write(self, columns: dict[str, Any], num_responses: int) -> None:
        example_ids = columns.pop(constants.EXAMPLE_ID)
        try:
            self._writer.write(example_ids, **columns)
        except ValueError:
            raise
        except Exception as error:
            self._count_error("num_write_errors", error, num_responses)
        else:
            self.counts.num_recorded += len(example_ids)

    def _extract(self, request: Any, response: Any) -> dict[str, Any]:
        """The columns of a Predict call; UnusableError where there are none."""
        try:
            columns = self._fields.extract(request, response)
        except importers.UnusableError:
            raise
        except Exception:
            raise _wrong_type(request, response) from None
        if not self._from_logits:
            columns["probabilities"] = columns.pop(constants.LOGITS)
        return columns

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._count_error("num_write_errors", error)

    def _count_error(self, name: str, error: Exception, number: int = 1) -> None:
        with self._lock:
            before = getattr(self.counts, name)
            count = before + number
            setattr(self.counts, name, count)
            self.last_error = error
        # The first, and at each doubling: a log must not flood.
        if count.bit_length() > before.bit_length():
            _LOGGER.warning("Forward records lost (%s is now %d): %s", name, count, error)


def _joined(calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One call's columns for all, which costs a fraction of theirs; ValueError if they do not fit.

    They fit if the one call writes what all of them would.
    """
    if len(calls) == 1:
        return dict(calls[0])
    ids = [hashing.id_vector(call[constants.EXAMPLE_ID]) for call in calls]
    columns: dict[str, Any] = {constants.EXAMPLE_ID: np.concatenate(ids)}
    for name in set().union(*calls) - {constants.EXAMPLE_ID}:
        values = [call.get(name) for call in calls]
        if all(value is None for value in values):
            continue
        if name in (constants.MODEL_VERSION, constants.TIMESTAMP):
            arrays = [np.full(len(i), value) for i, value in zip(ids, values, strict=True)]
        else:
            arrays = [np.asarray(value) for value in values]
        fit = [array.shape[:1] for array in arrays] == [i.shape for i in ids]
        kinds = {array.dtype.kind for array in arrays}
        size = sum(array.nbytes for array in arrays)
        if not fit or kinds not in ({"f"}, {"i"}) or size > _MAX_JOINED_BYTES:
            raise ValueError(f"{name} of these responses cannot be joined")
        columns[name] = np.concatenate(arrays)
    return columns


def _now() -> int:
    return time.time_ns() // 1000


def _wrong_type(request: Any, response: Any) -> importers.UnusableError:
    return importers.UnusableError(
        "request and response must be a PredictRequest and a PredictResponse. Received: "
        f"{type(request).__name__} and {type(response).__name__}. Offer deserialized messages."
    )


def _close_at_exit() -> None:
    for recorder in list(_open_recorders):
        if recorder._thread is not None:
            recorder.close()


def _reset_in_child() -> None:
    for recorder in list(_open_recorders):
        recorder._reset()


_open_recorders: "weakref.WeakSet[PredictionRecorder]" = weakref.WeakSet()
call_at_exit(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)

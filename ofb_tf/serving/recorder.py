"""A background writer between a client's responses and the record files."""

import collections
import dataclasses
import logging
import threading
import time
from typing import Any

import numpy as np

from ofb_tf.records import ForwardRecordWriter, importers

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass
class RecorderCounts:
    """What became of the calls that a recorder saw.

    Attributes:
      num_responses: answered calls that were offered.
      num_recorded: instances handed to the writer (which counts what it wrote).
      num_full: responses dropped because the queue was full.
      num_unusable: responses without ids or logits, or with shapes that do not go together.
      num_failed_calls: calls that the server answered with an error; nothing to record.
      num_write_errors: responses lost because the writer raised.
    """

    num_responses: int = 0
    num_recorded: int = 0
    num_full: int = 0
    num_unusable: int = 0
    num_failed_calls: int = 0
    num_write_errors: int = 0


class PredictionRecorder:
    """Takes ids and logits out of Predict responses and writes them, off the caller's thread.

    Attributes:
      counts: `RecorderCounts`: what became of the calls so far.
      last_error: the last error, or None.

    `offer` costs the caller an append to a queue; it never waits and never raises. A background
    thread looks at the queue every `poll_seconds` (a caller never has to wake it), decodes and
    writes. When the queue is full, responses are dropped and counted.
    """

    def __init__(
        self,
        writer: ForwardRecordWriter,
        *,
        id_output: str | None = "example_id",
        logits_output: str = "logits",
        model_name: str | None = None,
        queue_size: int = 1024,
        poll_seconds: float = 0.005,
    ):
        """Starts the background thread.

        Args:
          writer: takes the records; `close` closes it. Give it `on_error="drop"` to go on after a
            full disk.
          id_output: the response's tensor with the ids; None: the fingerprint of each of the
            request's serialized `examples`.
          logits_output: the response's tensor with the logits (for regression the prediction).
          model_name: record only this model's answers; None: all.
          queue_size: responses that may wait.
          poll_seconds: time between two looks at the queue. Decoding holds the interpreter, some
            50 microseconds a response, and a caller waits for all that one look found: look often.

        Raises:
          ValueError: queue_size or poll_seconds is not positive.
        """
        if queue_size < 1:
            raise ValueError(f"queue_size must be at least 1. Received: {queue_size}")
        if not poll_seconds > 0:
            raise ValueError(f"poll_seconds must be positive. Received: {poll_seconds}")
        self.counts = RecorderCounts()
        self.last_error: Exception | None = None
        self._writer = writer
        self._fields = importers.PredictFields(id_output, logits_output)
        self._model_name = model_name
        self._queue: collections.deque[tuple[Any, Any, int]] = collections.deque()
        self._queue_size = queue_size
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._drain_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ofb-recorder", daemon=True)
        self._thread.start()

    def offer(self, request: Any, response: Any) -> None:
        """Queues an answered call; at once, and without raising.

        Args:
          request: `PredictRequest`.
          response: `PredictResponse`; neither may be changed afterwards.
        """
        if self._model_name is not None and request.model_spec.name != self._model_name:
            return
        with self._lock:
            self.counts.num_responses += 1
            if len(self._queue) >= self._queue_size or self._stop.is_set():
                self.counts.num_full += 1
                return
            self._queue.append((request, response, time.time_ns() // 1000))

    def count_failure(self) -> None:
        """Counts a call that ended in an error."""
        with self._lock:
            self.counts.num_failed_calls += 1

    def flush(self) -> None:
        """Waits until what was offered so far is written out."""
        self._drain()
        self._guard(self._writer.flush)

    def close(self) -> None:
        """Writes what waits, stops the thread and closes the writer."""
        self._stop.set()
        self._thread.join()
        self._drain()
        self._guard(self._writer.close)

    def __enter__(self) -> "PredictionRecorder":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self._drain()

    def _drain(self) -> None:
        # One at a time, so that flush returns only when what another thread took is written too.
        with self._drain_lock:
            while self._queue:
                self._record(*self._queue.popleft())

    def _record(self, request: Any, response: Any, timestamp: int) -> None:
        try:
            batch = self._fields.extract(request, response)
        except importers.UnusableError as error:
            self._count_error("num_unusable", error)
            return
        try:
            self._writer.write(
                batch.example_ids,
                batch.logits,
                model_version=batch.model_version,
                timestamp=np.full(len(batch.example_ids), timestamp),
            )
        except ValueError as error:
            self._count_error("num_unusable", error)
        except Exception as error:
            self._count_error("num_write_errors", error)
        else:
            self.counts.num_recorded += len(batch.example_ids)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            self._count_error("num_write_errors", error)

    def _count_error(self, name: str, error: Exception) -> None:
        with self._lock:
            count = getattr(self.counts, name) + 1
            setattr(self.counts, name, count)
        self.last_error = error
        if count & (count - 1) == 0:  # the first, second, fourth, …: a log must not flood
            _LOGGER.warning("Forward records lost (%s is now %d): %s", name, count, error)

"""Tasks in worker processes, of which one may fail or die without harm to the others."""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any


def run(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    on_done: Callable[[Any, str | None], None],
) -> None:
    """Calls `function` with every task.

    Args:
      function: of one task; importable by name, as processes are spawned.
      tasks: in the order in which they are begun; a worker takes the next one when it is free.
      workers: processes, at least 1, each with one TensorFlow thread. With 1 the tasks run in
        this process, also with one thread where TensorFlow has not begun yet.
      on_done: called with each task and None, or what went wrong: a traceback, or that the
        process died.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1. Received: {workers}")
    if workers == 1:
        use_one_thread()
        for task in tasks:
            on_done(task, _attempt(function, task))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    waiting = collections.deque(tasks)
    idle: list[_Worker] = []
    busy: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker(function)
                worker.begin(waiting.popleft())
                busy.append(worker)
            multiprocessing.connection.wait([w.connection for w in busy])
            for worker in [w for w in busy if w.connection.poll()]:
                task, error, alive = worker.finish()
                busy.remove(worker)
                if alive:
                    idle.append(worker)
                on_done(task, error)
    finally:
        for worker in (*idle, *busy):
            worker.stop()


class _Worker:
    """One process and what it is at."""

    def __init__(self, function: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, function), daemon=True)
        self._process.start()
        theirs.close()  # so that the connection ends with the process
        self._task = None

    def begin(self, task: Any) -> None:
        self._task = task
        with contextlib.suppress(ConnectionError):  # it died: finish() will say so
            self.connection.send(task)

    def finish(self) -> tuple[Any, str | None, bool]:
        """The task, its error or None, and whether the process lives."""
        try:
            return self._task, self.connection.recv(), True
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            return self._task, f"The worker process died with exit code {code}.", False

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def _attempt(function: Callable[[Any], Any], task: Any) -> str | None:
    try:
        function(task)
    except Exception:
        return traceback.format_exc()
    return None


def use_one_thread() -> None:
    """Has TensorFlow use one thread, unless it has already begun with more."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def _work(connection: multiprocessing.connection.Connection, function: Callable) -> None:
    use_one_thread()
    try:
        while True:
            connection.send(_attempt(function, connection.recv()))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the parent process is gone or going

"""What a stream is doing, once a minute: a line, Prometheus text, TensorBoard scalars."""

import importlib.util
import os
import pathlib
import time

import tensorflow as tf

from ofb_tf import constants
from ofb_tf.streaming.stream import SampledStream

# name → title of its column, format, help text of Prometheus
_COLUMNS = {
    "examples": ("examples", ",.0f", "examples that were selected from"),
    "examples_per_second": ("examples/s", ",.0f", "examples per second since the last report"),
    constants.COVERAGE: ("coverage", ".4f", "share of examples with a usable record"),
    constants.REALIZED_RATE: ("rate", ".4f", "share of examples that were selected"),
    constants.EFFECTIVE_SAMPLE_SIZE: ("ESS", ".3f", "effective sample size over selected examples"),
    "lag_seconds": ("lag s", ".1f", "seconds since the oldest waiting example arrived"),
    "resident_records": ("resident", ",.0f", "records in memory"),
    "corrupt_files": ("corrupt", ",.0f", "damaged files of examples"),
    "rejected_examples": ("rejected", ",.0f", "examples of a topic that could not be parsed"),
}


class StreamReport:
    """Reports on a stream.

    Args:
      stream: a stream that something is reading.
      prometheus_file: a file for the text collector of Prometheus' node exporter, replaced as a
        whole by each report; None for none.
      log_dir: of TensorBoard scalars, by the number of examples; None for none.

    Raises:
      ImportError: `log_dir` is given, and TensorBoard is not installed.
    """

    def __init__(
        self,
        stream: SampledStream,
        *,
        prometheus_file: str | os.PathLike | None = None,
        log_dir: str | os.PathLike | None = None,
    ) -> None:
        self._stream = stream
        self._prometheus = None if prometheus_file is None else pathlib.Path(prometheus_file)
        if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
            raise ImportError("log_dir needs TensorBoard: pip install tensorboard")
        self._writer = None if log_dir is None else tf.summary.create_file_writer(str(log_dir))
        self._last = time.monotonic(), stream.status()["examples"]

    @staticmethod
    def header() -> str:
        """Titles of the columns of `line`."""
        return "  ".join(f"{title:>12}" for title, *_ in _COLUMNS.values())

    @staticmethod
    def line(figures: dict[str, float]) -> str:
        """One report as a row."""
        return "  ".join(
            f"{format(figures.get(name, 0), spec):>12}" for name, (_, spec, _) in _COLUMNS.items()
        )

    def report(self) -> dict[str, float]:
        """Writes the file and the scalars.

        Returns:
          `SampledStream.status`, and `examples_per_second` since the last report.
        """
        now, status = time.monotonic(), self._stream.status()
        then, before = self._last
        self._last = now, status["examples"]
        per_second = (status["examples"] - before) / max(now - then, 1e-9)
        figures = status | {"examples_per_second": per_second}
        if self._prometheus is not None:
            unfinished = self._prometheus.with_name(self._prometheus.name + ".tmp")
            unfinished.write_text(prometheus_text(figures))
            unfinished.replace(self._prometheus)
        if self._writer is not None:
            with self._writer.as_default(step=int(figures["examples"])):
                for name, value in figures.items():
                    tf.summary.scalar(f"stream/{name}", value)
            self._writer.flush()
        return figures


def prometheus_text(figures: dict[str, float]) -> str:
    """The figures of a report in Prometheus' text format, as gauges named `ofb_stream_…`."""
    lines = []
    for name, value in figures.items():
        if name in _COLUMNS:
            lines.append(f"# HELP ofb_stream_{name} {_COLUMNS[name][2]}")
        lines += [f"# TYPE ofb_stream_{name} gauge", f"ofb_stream_{name} {float(value)}"]
    return "\n".join(lines) + "\n"

"""Streams that do not end: records, examples and labels joined and sampled as they arrive."""

from ofb_tf.streaming.labels import DelayedLabels
from ofb_tf.streaming.logs import (
    Directory,
    ExampleDirectory,
    Follower,
    Log,
    RecordDirectory,
    Segment,
)
from ofb_tf.streaming.report import StreamReport
from ofb_tf.streaming.stream import SampledStream

__all__ = [
    "DelayedLabels",
    "Directory",
    "ExampleDirectory",
    "Follower",
    "Log",
    "RecordDirectory",
    "SampledStream",
    "Segment",
    "StreamReport",
]

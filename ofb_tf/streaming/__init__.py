"""Streams that do not end: records, examples and labels joined and sampled as they arrive.

`ExampleTopic` and `RecordTopic` need confluent-kafka (extra `kafka`).
"""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ofb_tf.streaming.kafka import ExampleTopic, RecordTopic

__all__ = [
    "DelayedLabels",
    "Directory",
    "ExampleDirectory",
    "ExampleTopic",
    "Follower",
    "Log",
    "RecordDirectory",
    "RecordTopic",
    "SampledStream",
    "Segment",
    "StreamReport",
]


def __getattr__(name: str) -> Any:
    if name in ("ExampleTopic", "RecordTopic"):
        from ofb_tf.streaming import kafka

        return getattr(kafka, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

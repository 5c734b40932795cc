"""Recording forward passes where models serve.

`record_stub` needs grpc (extra `serving`), `KafkaRecordWriter` confluent-kafka (extra `kafka`).
"""

from typing import TYPE_CHECKING, Any

from ofb_tf.serving.callback import RecordPredictions
from ofb_tf.serving.export import export_recording_model
from ofb_tf.serving.recorder import PredictionRecorder, RecorderCounts

if TYPE_CHECKING:
    from ofb_tf.serving.grpc import record_stub
    from ofb_tf.serving.kafka import KafkaRecordWriter

__all__ = [
    "KafkaRecordWriter",
    "PredictionRecorder",
    "RecordPredictions",
    "RecorderCounts",
    "export_recording_model",
    "record_stub",
]


def __getattr__(name: str) -> Any:
    if name == "record_stub":
        from ofb_tf.serving.grpc import record_stub

        return record_stub
    if name == "KafkaRecordWriter":
        from ofb_tf.serving.kafka import KafkaRecordWriter

        return KafkaRecordWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

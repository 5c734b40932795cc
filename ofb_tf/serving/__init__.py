"""Recording forward passes where models serve; `interceptor` needs grpc (extra `serving`)."""

from ofb_tf.serving.callback import RecordPredictions
from ofb_tf.serving.export import export_recording_model

__all__ = ["RecordPredictions", "export_recording_model"]

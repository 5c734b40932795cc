"""The documented path of `ofb_tf.beam.EvaluationFn`, which pipelines pickle by name."""

from ofb_tf.beam.evaluation import EvaluationFn

__all__ = ["EvaluationFn"]

"""Sampling, partitioning, importing and evaluating as Beam transforms. Needs the extra `beam`.

`partition` and `sample` have the two large transforms, `examples` and `sources` read what these
take, `columns` deals it to partitions, `reports` is what they say they did, `evaluation` is a
`CombineFn`, `importing` reads logs and tables. TFX's components are these in a wrapper.
"""

from ofb_tf.beam.evaluation import EvaluationFn
from ofb_tf.beam.examples import example_fingerprints
from ofb_tf.beam.importing import ImportRecords
from ofb_tf.beam.partition import PartitionRecords
from ofb_tf.beam.reports import (
    Manifest,
    SplitStatistics,
    WeightStats,
    read_statistics,
    write_statistics,
)
from ofb_tf.beam.sample import SampleExamples, SamplerConfig
from ofb_tf.beam.sources import read_prediction_logs, read_record_file

__all__ = [
    "EvaluationFn",
    "ImportRecords",
    "Manifest",
    "PartitionRecords",
    "SampleExamples",
    "SamplerConfig",
    "SplitStatistics",
    "WeightStats",
    "example_fingerprints",
    "read_prediction_logs",
    "read_record_file",
    "read_statistics",
    "write_statistics",
]

"""Artifact types of the sampling components; what is in them is read by `ofb_tf.beam.reports`.

The types have no `PROPERTIES`: the Kubeflow v2 compiler takes custom properties only.
"""

from tfx.types import artifact

from ofb_tf.beam.reports import (
    Manifest,
    SplitStatistics,
    WeightStats,
    read_statistics,
    write_statistics,
    write_text,
)

# What reads and writes the artifacts is documented under this module, and stays importable from it.
__all__ = [
    "BLESSED",
    "ForwardRecords",
    "Manifest",
    "SamplingBlessing",
    "SamplingStatistics",
    "SplitStatistics",
    "WeightStats",
    "read_statistics",
    "write_blessing",
    "write_statistics",
]

BLESSED = "blessed"


class ForwardRecords(artifact.Artifact):
    """Forward records, one per example id, partitioned by `ofb_tf.records.partition_of`.

    * `{uri}/manifest.json`: a `Manifest`.
    * `{uri}/partition-00000-of-00016.ofbr`: one file per partition, sorted by id, as
      `ofb records partition` writes them; a partition without records has none.
    """

    TYPE_NAME = "ofb.ForwardRecords"


class SamplingStatistics(artifact.Artifact):
    """What a sampler did: `{uri}/statistics.json`, see `write_statistics`."""

    TYPE_NAME = "ofb.SamplingStatistics"


class SamplingBlessing(artifact.Artifact):
    """Whether a sample may be trained on.

    * Custom property `blessed`: 1 or 0, for `tfx.dsl.Cond`.
    * `{uri}/BLESSED` or `{uri}/NOT_BLESSED`, and `{uri}/anomalies.txt`.
    """

    TYPE_NAME = "ofb.SamplingBlessing"


def write_blessing(blessing: artifact.Artifact, blessed: bool) -> None:
    """Marks an artifact, by a file and a custom property, as blessed or not."""
    write_text(blessing.uri, "BLESSED" if blessed else "NOT_BLESSED", "")
    blessing.set_int_custom_property(BLESSED, int(blessed))

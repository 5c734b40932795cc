"""Artifact types of the sampling components.

No `PROPERTIES`: the Kubeflow v2 compiler takes custom properties only.
"""

from tfx.types import artifact


class ForwardRecords(artifact.Artifact):
    """Forward records, one per example id, partitioned by `ofb_tf.records.partition_of`.

    * `{uri}/manifest.json`: counts, see `tfx_components.manifest.Manifest`.
    * `{uri}/partition-00000-of-00016.ofbr`: one file a partition, sorted by id, as
      `ofb records partition` writes them; a partition without records has none.
    """

    TYPE_NAME = "ofb.ForwardRecords"


class SamplingStatistics(artifact.Artifact):
    """What a sampler did, as `{uri}/statistics.json`: see `tfx_components.statistics`."""

    TYPE_NAME = "ofb.SamplingStatistics"


class SamplingBlessing(artifact.Artifact):
    """Whether a sample may be trained on.

    * Custom property `blessed`: 1 or 0, for `tfx.dsl.Cond`.
    * `{uri}/BLESSED` or `{uri}/NOT_BLESSED`, `{uri}/anomalies.txt`, `{uri}/report.html`.
    """

    TYPE_NAME = "ofb.SamplingBlessing"


BLESSED = "blessed"

"""The ForwardRecordGen component: what serving left behind → an `ofb.ForwardRecords` artifact."""

import functools
import math
import os
import re

import apache_beam as beam
import tensorflow as tf
from tfx import v1 as tfx
from tfx.components.example_gen import utils as example_gen_utils
from tfx.dsl.component.experimental.annotations import BeamComponentParameter
from tfx.proto import example_gen_pb2, range_config_pb2

from ofb_tf import constants
from ofb_tf.beam import sources
from ofb_tf.beam.examples import TEMPORARY_PREFIX
from ofb_tf.beam.partition import PartitionRecords
from ofb_tf.beam.reports import Manifest
from ofb_tf.checks import check_ranges
from ofb_tf.records import files as record_files
from tfx_components.artifacts import ForwardRecords
from tfx_components.component_utils import (
    checked_at_construction,
    error_context,
    remove_children,
)

_LATEST = -1
_SPAN = re.compile(r"\{(SPAN|VERSION|YYYY|MM|DD)(:\d+)?\}")
_RANGES = {"num_partitions": (1, math.inf), "span": (_LATEST, math.inf)}


@checked_at_construction(functools.partial(check_ranges, _RANGES))
@tfx.dsl.components.component(use_beam=True)
def ForwardRecordGen(
    forward_records: tfx.dsl.components.OutputArtifact[ForwardRecords],
    inference_result: tfx.dsl.components.InputArtifact[
        tfx.types.standard_artifacts.InferenceResult
    ] = None,
    records_pattern: tfx.dsl.components.Parameter[str] = "",
    prediction_log_pattern: tfx.dsl.components.Parameter[str] = "",
    span: tfx.dsl.components.Parameter[int] = _LATEST,
    id_feature: tfx.dsl.components.Parameter[str] = "",
    logits_output: tfx.dsl.components.Parameter[str] = constants.LOGITS,
    model_version: tfx.dsl.components.Parameter[int] = 0,
    timestamp: tfx.dsl.components.Parameter[int] = 0,
    num_partitions: tfx.dsl.components.Parameter[int] = 16,
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Gathers forward records: the newest of each id, partitioned by a hash of the id.

    Exactly one of `inference_result`, `records_pattern` and `prediction_log_pattern` is given.
    With a pattern, TFX's cache sees the pattern and the span but not the files: name the span, or
    run without cache.

    Args:
      forward_records: output: the artifact.
      inference_result: BulkInferrer's PredictionLogs.
      records_pattern: `*.ofbr` files that `ofb_tf.ForwardRecordWriter` wrote, with every logit or
        the loss and not in the top-k form; may hold `{SPAN}`.
      prediction_log_pattern: TFRecords of PredictionLogs; may hold `{SPAN}`.
      span: which span of a pattern with `{SPAN}`; -1 for the latest.
      id_feature: of the requests' serialized examples, "" for their fingerprint; as in OFBSampler.
        `ofb_tf.beam.sources` says which id is used when a log holds several.
      logits_output: name of the model's output with the logits.
      model_version: for PredictionLogs that do not name one.
      timestamp: microseconds since 1970, for PredictionLogs that do not have one; 0 for the time
        at which the files were written.
      num_partitions: files of the artifact. A partition is joined in memory, at about 100 bytes
        per example and record: a million of each per partition is a good size.
      beam_pipeline: set by TFX.

    Raises:
      ValueError: an argument is out of range, or the records do not fit together; names the
        component and the remedy. The artifact is left empty.
    """
    uri = forward_records.uri
    with error_context("ForwardRecordGen", [uri]):
        check_ranges(_RANGES, {"num_partitions": num_partitions, "span": span})
        given = sum(map(bool, (inference_result, records_pattern, prediction_log_pattern)))
        if given != 1:
            raise ValueError(
                "exactly one of inference_result, records_pattern and prediction_log_pattern "
                f"must be given. Received: {given}"
            )
        pattern, selected_span = _resolve_span(records_pattern or prediction_log_pattern, span)
        if records_pattern:
            files = record_files.match_files(pattern)
            read = sources.read_record_file
        else:
            pattern = pattern or os.path.join(inference_result.uri, "*")
            files = sorted(tf.io.gfile.glob(pattern))
            if not files:
                raise FileNotFoundError(
                    f"no PredictionLog file matches {pattern}. Check that inference has run."
                )
            newest = max(tf.io.gfile.stat(file).mtime_nsec for file in files) // 1000
            read = functools.partial(
                sources.read_prediction_logs,
                id_feature=id_feature,
                logits_output=logits_output,
                model_version=model_version,
                timestamp=timestamp or newest,
            )
        tf.io.gfile.makedirs(uri)
        remove_children(uri, "partition-")  # of an attempt that failed and is retried
        with beam_pipeline as pipeline:
            _ = pipeline | PartitionRecords(files, uri, num_partitions=num_partitions, read=read)
        remove_children(uri, TEMPORARY_PREFIX)  # of workers that were retried
        _publish(forward_records, len(files), selected_span)


def _resolve_span(pattern: str, span: int) -> tuple[str, int | None]:
    """The pattern with TFX's `{SPAN}` (or date) filled in, and the span."""
    if not _SPAN.search(pattern):
        return pattern, None
    # The base is what comes before the first directory with a wildcard or a placeholder.
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if re.search(r"[*?\[{]", part))
    split = example_gen_pb2.Input.Split(name="records", pattern="/".join(parts[first:]))
    range_config = None
    if span != _LATEST:
        range_config = range_config_pb2.RangeConfig(
            static_range=range_config_pb2.StaticRange(start_span_number=span, end_span_number=span)
        )
    base = "/".join(parts[:first])
    _, selected, _ = example_gen_utils.calculate_splits_fingerprint_span_and_version(
        base, [split], range_config
    )
    return os.path.join(base, split.pattern), selected


def _publish(artifact: ForwardRecords, num_files: int, span: int | None) -> None:
    """Copies the counts into the metadata."""
    manifest = Manifest.read(artifact.uri)
    artifact.set_int_custom_property("num_files", num_files)
    for name in ("num_records", "num_duplicates", "num_outputs", "newest_timestamp"):
        artifact.set_int_custom_property(name, getattr(manifest, name))
    if span is not None:
        artifact.set_int_custom_property("span", span)
    for version, count in manifest.records_by_version.items():
        artifact.set_int_custom_property(f"records_of_version_{version}", count)

"""The ForwardRecordGen component: what serving left behind → an `ofb.ForwardRecords` artifact."""

import functools
import os
import re
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tfx import v1 as tfx
from tfx.components.example_gen import utils as example_gen_utils
from tfx.dsl.component.experimental.annotations import BeamComponentParameter
from tfx.proto import example_gen_pb2, range_config_pb2

from ofb_tf import constants
from ofb_tf.records import files as record_files
from tfx_components import artifacts, record_sources
from tfx_components.component_utils import (
    checked_at_construction,
    naming_errors,
    remove_children,
)
from tfx_components.manifest import Manifest
from tfx_components.record_transforms import WritePartitions

_NAME = "ForwardRecordGen"
_LATEST = -1
_SPAN = re.compile(r"\{(SPAN|VERSION|YYYY|MM|DD)(:\d+)?\}")


def _check_parameters(parameters: dict[str, Any]) -> None:
    num_partitions, span = parameters.get("num_partitions", 1), parameters.get("span", _LATEST)
    if num_partitions < 1:
        raise ValueError(f"num_partitions must be at least 1. Received: {num_partitions}")
    if span < _LATEST:
        raise ValueError(f"span must be at least 0, or -1 for the latest. Received: {span}")


@checked_at_construction(_check_parameters)
@tfx.dsl.components.component(use_beam=True)
def ForwardRecordGen(
    forward_records: tfx.dsl.components.OutputArtifact[artifacts.ForwardRecords],
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
      forward_records: the artifact that it writes.
      inference_result: BulkInferrer's PredictionLogs.
      records_pattern: `*.ofbr` files that `ofb_tf.ForwardRecordWriter` wrote, with every logit or
        the loss and not in the top-k form; may hold `{SPAN}`.
      prediction_log_pattern: TFRecords of PredictionLogs; may hold `{SPAN}`.
      span: which one of a pattern with `{SPAN}`; -1 for the latest.
      id_feature: of the requests' serialized examples, "" for their fingerprint; as in OFBSampler.
        `record_sources` says what wins over what.
      logits_output: name of the model's output with the logits.
      model_version: of PredictionLogs that do not say.
      timestamp: microseconds since 1970, of PredictionLogs that do not say; 0 for when the files
        were written.
      num_partitions: files of the artifact. A partition is joined in memory: about 100 bytes an
        example and record, so a million of each a partition is a good size.
      beam_pipeline: set by TFX.

    Raises:
      ValueError: an argument is out of range, or the records do not fit together; names the
        component and the remedy. Nothing is left in the artifact then.
    """
    with naming_errors(_NAME, [forward_records.uri]):
        _check_parameters({"num_partitions": num_partitions, "span": span})
        given = [
            source
            for source in (inference_result, records_pattern, prediction_log_pattern)
            if source
        ]
        if len(given) != 1:
            raise ValueError(
                "exactly one of inference_result, records_pattern and prediction_log_pattern "
                f"must be given. Received: {len(given)}"
            )
        selected_span = None
        if records_pattern:
            pattern, selected_span = _resolve_span(records_pattern, span)
            files = record_files.match_files(pattern)
            read = record_sources.read_record_file
        else:
            if prediction_log_pattern:
                pattern, selected_span = _resolve_span(prediction_log_pattern, span)
            else:
                pattern = os.path.join(inference_result.uri, "*")
            files = sorted(tf.io.gfile.glob(pattern))
            if not files:
                raise FileNotFoundError(
                    f"no PredictionLog file matches {pattern}. Check that inference has run."
                )
            newest = max(tf.io.gfile.stat(file).mtime_nsec for file in files) // 1000
            spec = record_sources.PredictionLogSpec(
                id_feature, logits_output, model_version, timestamp or newest
            )
            read = functools.partial(record_sources.read_prediction_logs, spec=spec)

        uri = forward_records.uri
        tf.io.gfile.makedirs(uri)
        with beam_pipeline as pipeline:
            _ = pipeline | WritePartitions(read, files, uri, num_partitions)
        _finish(forward_records, uri, len(files), selected_span)


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


def _finish(artifact: tfx.dsl.Artifact, uri: str, num_files: int, span: int | None) -> None:
    """Removes what retries left and copies the counts into the metadata."""
    remove_children(uri, prefix=".tmp-")
    written = Manifest.read(uri)
    artifact.set_int_custom_property("num_files", num_files)
    artifact.set_int_custom_property("num_records", written.num_records)
    artifact.set_int_custom_property("num_duplicates", written.num_duplicates)
    artifact.set_int_custom_property("num_outputs", written.num_outputs)
    artifact.set_int_custom_property("newest_timestamp", written.newest_timestamp)
    if span is not None:
        artifact.set_int_custom_property("span", span)
    for version, count in written.records_by_version.items():
        artifact.set_int_custom_property(f"records_of_version_{version}", count)

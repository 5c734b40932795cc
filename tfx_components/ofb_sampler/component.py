"""The OFBSampler component: examples and forward records → one example in ten, with weights."""

import dataclasses
import functools
import os
from typing import Any, List  # noqa: UP035 - TFX reads these type hints

import apache_beam as beam
import tensorflow as tf
from tfx import v1 as tfx
from tfx.components.util import examples_utils
from tfx.dsl.component.experimental.annotations import BeamComponentParameter
from tfx.proto import example_gen_pb2
from tfx.types.standard_artifacts import Examples

from ofb_tf import constants
from ofb_tf.beam.examples import TEMPORARY_PREFIX
from ofb_tf.beam.reports import Manifest, read_statistics, write_statistics
from ofb_tf.beam.sample import IMPORTANCE, SampleExamples, SamplerConfig
from ofb_tf.evaluation.tfrecords import match_examples
from ofb_tf.selection.policy import GRADIENT_NORM_BOUND
from tfx_components.artifacts import ForwardRecords, SamplingStatistics
from tfx_components.component_utils import (
    checked_at_construction,
    error_context,
    remove_children,
)

_KEPT_PROPERTIES = ("span", "version", "payload_format", "file_format")
_SETTINGS = [field.name for field in dataclasses.fields(SamplerConfig)]


def _check(known: dict[str, Any]) -> None:
    splits = known.get("splits")
    if splits is not None and not splits:
        raise ValueError(f"splits must name at least one split. Received: {splits!r}")
    settings = {name: known[name] for name in _SETTINGS if name in known}
    SamplerConfig(**{"task": constants.BINARY} | settings)


@checked_at_construction(_check)
@tfx.dsl.components.component(use_beam=True)
def OFBSampler(
    examples: tfx.dsl.components.InputArtifact[Examples],
    forward_records: tfx.dsl.components.InputArtifact[ForwardRecords],
    sampled_examples: tfx.dsl.components.OutputArtifact[Examples],
    sampling_statistics: tfx.dsl.components.OutputArtifact[SamplingStatistics],
    task: tfx.dsl.components.Parameter[str],
    label_feature: tfx.dsl.components.Parameter[str] = constants.LABEL,
    id_feature: tfx.dsl.components.Parameter[str] = "",
    splits: tfx.dsl.components.Parameter[List[str]] = None,  # noqa: UP006
    slice_features: tfx.dsl.components.Parameter[List[str]] = None,  # noqa: UP006
    rate: tfx.dsl.components.Parameter[float] = 0.1,
    policy: tfx.dsl.components.Parameter[str] = IMPORTANCE,
    uniform_mix: tfx.dsl.components.Parameter[float] = 0.2,
    score: tfx.dsl.components.Parameter[str] = GRADIENT_NORM_BOUND,
    missing: tfx.dsl.components.Parameter[str] = constants.MISSING_UNIFORM,
    estimator: tfx.dsl.components.Parameter[str] = constants.WEIGHTS,
    max_age: tfx.dsl.components.Parameter[float] = 0.0,
    as_of: tfx.dsl.components.Parameter[int] = 0,
    num_outputs: tfx.dsl.components.Parameter[int] = 0,
    seed: tfx.dsl.components.Parameter[int] = 0,
    epoch: tfx.dsl.components.Parameter[int] = 0,
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Samples splits by forward records; the other splits pass through byte for byte.

    The sampling is that of `ofb_tf.beam.SampleExamples`, split by split.

    `examples` are TFRecords of tf.Examples, and `forward_records` those of ForwardRecordGen with
    the same `id_feature`. `sampled_examples` get the same splits, span, version, payload format
    and compression; `ofb_tf.beam.SplitStatistics` describes `sampling_statistics`. `splits` are
    sampled, None for `["train"]`; the other parameters are those of `ofb_tf.beam.SamplerConfig`.

    Raises:
      ValueError: an argument is out of range, or the inputs do not fit; names the component and
        the remedy. The outputs are left empty.
    """
    arguments = locals()
    with error_context("OFBSampler", [sampled_examples.uri, sampling_statistics.uri]):
        config = SamplerConfig(**{name: arguments[name] for name in _SETTINGS})
        splits = ["train"] if splits is None else splits
        _check_examples(examples, splits)
        manifest = Manifest.read(forward_records.uri)
        sampled_examples.split_names = examples.split_names
        copies, named = [], []
        with beam_pipeline as pipeline:
            for split in examples.splits:
                source, directory = (
                    each.path(split=split) for each in (examples, sampled_examples)
                )
                if split in splits:
                    with error_context(f"split {split!r}"):
                        sample = SampleExamples(source, forward_records.uri, directory, config)
                    found = pipeline | f"Sample_{split}" >> sample
                    named.append(found | f"Name_{split}" >> beam.WithKeys(split))
                    continue
                tf.io.gfile.makedirs(directory)
                copies += [
                    (path, os.path.join(directory, os.path.basename(path)))
                    for path in match_examples(source)
                ]
            _ = (
                pipeline
                | "OtherSplits" >> beam.Create(copies)
                | "SpreadCopies" >> beam.Reshuffle()
                | "Copy" >> beam.MapTuple(tf.io.gfile.copy, overwrite=True)
            )
            settings = dataclasses.asdict(config) | {
                "splits": splits,
                "num_records": manifest.num_records,
            }
            write = functools.partial(write_statistics, sampling_statistics.uri, settings)
            _ = (
                named
                | "AllSplits" >> beam.Flatten()
                | "BySplit" >> beam.combiners.ToDict()
                | "WriteStatistics" >> beam.Map(write)
            )
        for split in splits:  # of workers that were retried
            remove_children(sampled_examples.path(split=split), TEMPORARY_PREFIX)
        _publish(examples, sampled_examples, sampling_statistics)


def _check_examples(examples: Examples, splits: list[str]) -> None:
    unknown = [split for split in splits if split not in examples.splits]
    if unknown:
        raise ValueError(f"splits must be among {list(examples.splits)}. Received: {unknown}")
    payload = examples_utils.get_payload_format(examples)
    if payload != example_gen_pb2.PayloadFormat.FORMAT_TF_EXAMPLE:
        raise ValueError(
            "examples must have the payload format FORMAT_TF_EXAMPLE. Received: "
            f"{example_gen_pb2.PayloadFormat.Name(payload)}. Set ExampleGen's payload_format."
        )
    file_format = examples_utils.get_file_format(examples)
    if file_format not in ("", "tfrecords_gzip", "tfrecord"):
        raise ValueError(f"examples must be TFRecord files. Received: {file_format}")


def _publish(
    examples: Examples, sampled_examples: Examples, sampling_statistics: SamplingStatistics
) -> None:
    """Copies what describes the examples, and the main statistics, into the metadata."""
    sampled_examples.span = examples.span
    sampled_examples.version = examples.version
    source, target = (
        artifact.mlmd_artifact.custom_properties for artifact in (examples, sampled_examples)
    )
    for name in set(source).intersection(_KEPT_PROPERTIES):
        target[name].CopyFrom(source[name])
    _, splits = read_statistics(sampling_statistics.uri)
    for split, content in splits.items():
        total = content.total
        for name in ("num_examples", "num_scored", "num_selected"):
            sampling_statistics.set_int_custom_property(f"{split}/{name}", getattr(total, name))
        for name in ("coverage", "realized_rate", "effective_sample_size", "max_weight"):
            sampling_statistics.set_float_custom_property(f"{split}/{name}", getattr(total, name))

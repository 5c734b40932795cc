"""The OFBSampler component: examples and forward records → one example in ten, with weights."""

import dataclasses
import os
from typing import Any, List  # noqa: UP035 - TFX reads these type hints

import apache_beam as beam
import tensorflow as tf
from tfx import v1 as tfx
from tfx.components.util import examples_utils
from tfx.dsl.component.experimental.annotations import BeamComponentParameter
from tfx.proto import example_gen_pb2

from ofb_tf import constants
from tfx_components import artifacts, example_files, statistics
from tfx_components.beam_transforms import CopyFiles, SampleSplit, WriteStatistics
from tfx_components.component_utils import (
    checked_at_construction,
    naming_errors,
    remove_children,
)
from tfx_components.manifest import Manifest
from tfx_components.sampler_config import SamplerConfig

_NAME = "OFBSampler"
_SETTINGS = {field.name for field in dataclasses.fields(SamplerConfig)}
_KEPT_PROPERTIES = ("span", "version", "payload_format", "file_format")


def _check_parameters(parameters: dict[str, Any]) -> None:
    settings = {name: value for name, value in parameters.items() if name in _SETTINGS}
    SamplerConfig(**{"task": constants.BINARY} | settings)
    if parameters.get("splits") == []:
        raise ValueError("splits must name at least one split. Received: []")
    if parameters.get("num_outputs", 0) < 0:
        raise ValueError(f"num_outputs must be at least 0. Received: {parameters['num_outputs']}")


@checked_at_construction(_check_parameters)
@tfx.dsl.components.component(use_beam=True)
def OFBSampler(
    examples: tfx.dsl.components.InputArtifact[tfx.types.standard_artifacts.Examples],
    forward_records: tfx.dsl.components.InputArtifact[artifacts.ForwardRecords],
    sampled_examples: tfx.dsl.components.OutputArtifact[tfx.types.standard_artifacts.Examples],
    sampling_statistics: tfx.dsl.components.OutputArtifact[artifacts.SamplingStatistics],
    task: tfx.dsl.components.Parameter[str],
    label_feature: tfx.dsl.components.Parameter[str] = constants.LABEL,
    id_feature: tfx.dsl.components.Parameter[str] = "",
    splits: tfx.dsl.components.Parameter[List[str]] = None,  # noqa: UP006
    slice_features: tfx.dsl.components.Parameter[List[str]] = None,  # noqa: UP006
    rate: tfx.dsl.components.Parameter[float] = 0.1,
    policy: tfx.dsl.components.Parameter[str] = "importance",
    uniform_mix: tfx.dsl.components.Parameter[float] = 0.2,
    score: tfx.dsl.components.Parameter[str] = "gradient_norm_bound",
    missing: tfx.dsl.components.Parameter[str] = "uniform",
    max_age: tfx.dsl.components.Parameter[float] = 0.0,
    as_of: tfx.dsl.components.Parameter[int] = 0,
    num_outputs: tfx.dsl.components.Parameter[int] = 0,
    seed: tfx.dsl.components.Parameter[int] = 0,
    epoch: tfx.dsl.components.Parameter[int] = 0,
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Samples splits by forward records; the other splits pass through byte for byte.

    The selected get a float feature `importance_weight`; the weighted mean over them estimates
    the split's mean loss, and its gradient, without bias. Draws are keyed by `seed`, `epoch` and
    the example's id.

    Args:
      examples: TFRecords of tf.Examples.
      forward_records: from ForwardRecordGen.
      sampled_examples: output: the same splits, span, version, payload format and compression.
      sampling_statistics: output: see `tfx_components.statistics`.
      task: "multiclass", "binary" or "regression".
      label_feature: one number an example: class id, 0 / 1, or target.
      id_feature: one int64 or bytes value an example; "" for the fingerprint of the example
        (`example_files.fingerprints`), as in ForwardRecordGen with `id_feature=""`.
      splits: to sample; None for `["train"]`.
      slice_features: statistics are also kept for each of their values.
      rate: in (0, 1].
      policy: "importance" or "uniform" (weights of exactly 1).
      uniform_mix: in [0, 1]: weights are at most 1 / uniform_mix.
      score: "gradient_norm_bound" or "loss".
      missing: examples without a usable record: "uniform", "keep", "drop" or "error".
      max_age: seconds after which a record counts as missing; 0 for no limit.
      as_of: microseconds since 1970: later records are left out, ages count from here; 0 for the
        newest record's timestamp.
      num_outputs: how many logits a record must have; 0 for one (binary, regression) or at
        least two (multiclass).
      seed: fixes the selection.
      epoch: another one draws anew.
      beam_pipeline: set by TFX.

    Raises:
      ValueError: an argument is out of range, or the inputs do not fit; names the component and
        the remedy. Nothing is left in the outputs then.
    """
    outputs = [sampled_examples.uri, sampling_statistics.uri]
    with naming_errors(_NAME, outputs):
        _check_parameters({"splits": splits, "num_outputs": num_outputs})
        config = SamplerConfig(
            task=task,
            rate=rate,
            policy=policy,
            uniform_mix=uniform_mix,
            score=score,
            missing=missing,
            max_age=max_age,
            as_of=as_of,
            seed=seed,
            epoch=epoch,
        )
        splits = ["train"] if splits is None else splits
        _check_examples(examples, splits)
        records = Manifest.read(forward_records.uri)
        if policy == "importance":
            _check_width(records.num_outputs, task, num_outputs)
        stages = {
            split: _sample_split(
                examples, sampled_examples, split, config, records, forward_records.uri,
                (id_feature, label_feature, slice_features or ()),
            )
            for split in splits
        }  # fmt: skip
        copies = [
            pair
            for split in examples.splits
            if split not in splits
            for pair in _files(examples, sampled_examples, split)
        ]
        settings = dataclasses.asdict(config) | {
            "id_feature": id_feature,
            "label_feature": label_feature,
            "num_records": records.num_records,
        }
        with beam_pipeline as pipeline:
            if copies:
                _ = pipeline | "CopyOtherSplits" >> CopyFiles(copies)
            parts = tuple(pipeline | f"Sample_{split}" >> stage for split, stage in stages.items())
            _ = parts | WriteStatistics(list(stages), sampling_statistics.uri, settings)
        for split in splits:
            remove_children(os.path.join(sampled_examples.uri, f"Split-{split}"), ".tmp-")
        _publish(examples, sampled_examples, sampling_statistics)


def _check_examples(examples: tfx.types.standard_artifacts.Examples, splits: list[str]) -> None:
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


def _check_width(width: int, task: str, num_outputs: int) -> None:
    """Checks the records' number of logits; 0 is records that hold losses only."""
    if num_outputs and width != num_outputs:
        raise ValueError(
            f"forward records must have num_outputs={num_outputs}, got {width}. Generate records "
            "from the model that serves these examples."
        )
    if width and (task == constants.MULTICLASS) != (width > 1):
        expected = "at least 2 outputs" if task == constants.MULTICLASS else "1 output"
        raise ValueError(
            f"forward records must have {expected} for task={task!r}, got {width}. Generate "
            "records from the model that serves these examples, or set task."
        )


def _files(
    source: tfx.types.standard_artifacts.Examples,
    destination: tfx.types.standard_artifacts.Examples,
    split: str,
) -> list[tuple[str, str]]:
    """(from, to) of each file of a split; makes the directory."""
    directory = os.path.join(destination.uri, f"Split-{split}")
    tf.io.gfile.makedirs(directory)
    files = example_files.list_files(os.path.join(source.uri, f"Split-{split}"))
    return [(file, os.path.join(directory, os.path.basename(file))) for file in files]


def _sample_split(
    examples: tfx.types.standard_artifacts.Examples,
    sampled_examples: tfx.types.standard_artifacts.Examples,
    split: str,
    config: SamplerConfig,
    records: Manifest,
    records_uri: str,
    features: tuple,
) -> SampleSplit:
    files = _files(examples, sampled_examples, split)
    try:
        spec = example_files.probe([source for source, _ in files], *features)
    except ValueError as error:
        raise ValueError(f"split {split!r}: {error}") from error
    return SampleSplit(config, spec, tuple(files), records_uri, records)


def _publish(
    examples: tfx.types.standard_artifacts.Examples,
    sampled_examples: tfx.types.standard_artifacts.Examples,
    sampling_statistics: artifacts.SamplingStatistics,
) -> None:
    """Copies what describes the examples, and the headline figures, into the metadata."""
    sampled_examples.split_names = examples.split_names
    sampled_examples.span = examples.span
    sampled_examples.version = examples.version
    for name in _KEPT_PROPERTIES:
        if not examples.has_custom_property(name):
            continue
        value = examples.mlmd_artifact.custom_properties[name]
        if value.WhichOneof("value") == "int_value":
            sampled_examples.set_int_custom_property(name, value.int_value)
        else:
            sampled_examples.set_string_custom_property(name, value.string_value)
    _, splits = statistics.read(sampling_statistics.uri)
    for split, content in splits.items():
        total = content.total
        for name in ("num_examples", "num_scored", "num_selected"):
            sampling_statistics.set_int_custom_property(f"{split}/{name}", getattr(total, name))
        for name in ("coverage", "realized_rate", "effective_sample_size", "max_weight"):
            sampling_statistics.set_float_custom_property(f"{split}/{name}", getattr(total, name))

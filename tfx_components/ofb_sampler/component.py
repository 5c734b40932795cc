"""The OFBSampler component: examples and forward records → one example in ten, with weights."""

import dataclasses
import functools
import os
from typing import List  # noqa: UP035 - TFX reads these type hints

import apache_beam as beam
import tensorflow as tf
from tfx import v1 as tfx
from tfx.components.util import examples_utils
from tfx.dsl.component.experimental.annotations import BeamComponentParameter
from tfx.proto import example_gen_pb2
from tfx.types.standard_artifacts import Examples

from ofb_tf import constants
from ofb_tf.selection.policy import GRADIENT_NORM_BOUND
from tfx_components.artifacts import (
    ForwardRecords,
    Manifest,
    SamplingStatistics,
    read_statistics,
    write_statistics,
)
from tfx_components.component_utils import (
    TEMPORARY_PREFIX,
    checked_at_construction,
    error_context,
    list_files,
    remove_children,
)
from tfx_components.ofb_sampler.examples import probe
from tfx_components.ofb_sampler.transforms import IMPORTANCE, SamplerConfig, SampleSplit

_KEPT_PROPERTIES = ("span", "version", "payload_format", "file_format")
_SETTINGS = [field.name for field in dataclasses.fields(SamplerConfig)]


@checked_at_construction(lambda known: SamplerConfig(**{"task": constants.BINARY} | known))
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

    The selected examples get a float feature `importance_weight`; their weighted mean loss, and
    its gradient, estimate those of the whole split without bias. Draws are keyed by `seed`,
    `epoch` and the example's id.

    Args:
      examples: TFRecords of tf.Examples.
      forward_records: from ForwardRecordGen.
      sampled_examples: output: the same splits, span, version, payload format and compression.
      sampling_statistics: output: see `tfx_components.artifacts.SplitStatistics`.
      task: "multiclass", "binary" or "regression".
      label_feature: one number per example: class id, 0 / 1, or target.
      id_feature: one int64 or bytes value per example; "" for the fingerprint of the example
        (`component_utils.example_fingerprints`), as in ForwardRecordGen with `id_feature=""`.
      splits: splits to sample; None for `["train"]`.
      slice_features: statistics are also kept for each of their values.
      rate: in (0, 1].
      policy: "importance"; or "uniform", with the same probability for every example and weights
        of exactly 1, whose records count only for the coverage in the statistics.
      uniform_mix: in [0, 1]: weights are at most 1 / uniform_mix.
      score: "gradient_norm_bound" or "loss".
      missing: examples without a usable record: "uniform", "keep", "drop" or "error", as in
        `ofb_tf.ofb_sample`.
      estimator: "weights"; or "log_odds", with which the selected get float features
        `log_inclusion` instead of weights, one per class (binary: one), as `ofb_tf.ofb_sample`
        has it. The statistics are still those of the importance weights.
      max_age: seconds after which a record counts as missing; 0 for no limit.
      as_of: microseconds since 1970: later records are left out, ages count from here; 0 for the
        newest record's timestamp.
      num_outputs: how many logits a record must have; 0 for one (binary, regression) or at
        least two (multiclass).
      seed: fixes the selection.
      epoch: another value makes other draws from the same seed.
      beam_pipeline: set by TFX.

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
        if policy == IMPORTANCE:
            _check_width(manifest.num_outputs, config)
            if estimator == constants.LOG_ODDS and not manifest.num_outputs:
                raise ValueError(
                    "forward records must have logits for estimator='log_odds', got losses alone. "
                    "Record logits, or use estimator='weights'."
                )
        sampled_examples.split_names = examples.split_names
        samples, copies = {}, []
        for split in examples.splits:
            directory = sampled_examples.path(split=split)
            tf.io.gfile.makedirs(directory)
            sources = list_files(examples.path(split=split))
            files = [(path, os.path.join(directory, os.path.basename(path))) for path in sources]
            if split in splits:
                with error_context(f"split {split!r}"):
                    spec = probe(sources, id_feature, label_feature, slice_features or ())
                samples[split] = SampleSplit(config, spec, files, forward_records.uri, manifest)
            else:
                copies += files
        settings = dataclasses.asdict(config) | {"num_records": manifest.num_records}
        with beam_pipeline as pipeline:
            _ = (
                pipeline
                | "OtherSplits" >> beam.Create(copies)
                | "SpreadCopies" >> beam.Reshuffle()
                | "Copy" >> beam.MapTuple(tf.io.gfile.copy, overwrite=True)
            )
            named = [
                pipeline | f"Sample_{split}" >> sample | f"Name_{split}" >> beam.WithKeys(split)
                for split, sample in samples.items()
            ]
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


def _check_width(width: int, config: SamplerConfig) -> None:
    """Checks the records' number of logits; 0 means records that hold only losses."""
    multiclass = config.task == constants.MULTICLASS
    if config.num_outputs and width != config.num_outputs:
        expected = f"num_outputs={config.num_outputs}"
    elif width and multiclass != (width > 1):
        expected = f"{'at least 2 outputs' if multiclass else '1 output'} for task={config.task!r}"
    else:
        return
    raise ValueError(
        f"forward records must have {expected}, got {width}. Generate records from the model that "
        "serves these examples, or set task."
    )


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

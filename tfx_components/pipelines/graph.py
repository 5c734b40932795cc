"""The whole loop as one TFX pipeline, the same for every orchestrator."""

import dataclasses
from typing import Any

from tfx import v1 as tfx
from tfx.dsl.components.base import base_node

from tfx_components import artifacts
from tfx_components.forward_record_gen import ForwardRecordGen
from tfx_components.ofb_sampler import OFBSampler
from tfx_components.pipelines.comparison import ModelComparison
from tfx_components.sampling_validator import SamplingValidator

BASE, TRAIN, EVAL = "base", "train", "eval"
_RUN_FN = "tfx_components.pipelines.trainer.run_fn"


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """One loop: what serves now → what is trained next.

    Attributes:
      csv_directory: holds `span-1/*.csv` and so on; the latest span is read.
      serving_directory: where Pusher puts the model.
      training: Trainer's `custom_config`, see `trainer.TrainingConfig`.
      base_training: settings that differ for the first model.
      task: "multiclass", "binary" or "regression".
      label_feature: a CSV column.
      splits: hash buckets of the splits base, train and eval.
      sampling: further arguments of `OFBSampler`.
      validation: thresholds of `SamplingValidator`.
      num_partitions: of the forward records.
    """

    csv_directory: str
    serving_directory: str
    training: dict[str, Any]
    task: str
    label_feature: str
    base_training: dict[str, Any] = dataclasses.field(default_factory=dict)
    splits: tuple[int, int, int] = (1, 13, 6)
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    validation: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_partitions: int = 4


def create_components(config: LoopConfig) -> list[base_node.BaseNode]:
    """The nodes of the loop, in order, for `tfx.dsl.Pipeline(components=...)`.

    ExampleGen → StatisticsGen → SchemaGen → Trainer (base) → BulkInferrer → ForwardRecordGen →
    OFBSampler → SamplingValidator → where blessed: Trainer (continued) → ModelComparison → Pusher.

    Raises:
      ValueError: an argument of a component is out of range.
    """
    proto = tfx.proto

    def trainer(name: str, examples: Any, split: str, settings: dict, **more: Any) -> Any:
        return tfx.components.Trainer(
            run_fn=_RUN_FN,
            examples=examples,
            schema=schema_gen.outputs["schema"],
            train_args=proto.TrainArgs(splits=[split]),
            eval_args=proto.EvalArgs(splits=[EVAL]),
            custom_config=settings,
            **more,
        ).with_id(name)

    buckets = zip((BASE, TRAIN, EVAL), config.splits, strict=True)
    splits = [proto.SplitConfig.Split(name=name, hash_buckets=n) for name, n in buckets]
    example_gen = tfx.components.CsvExampleGen(
        input_base=config.csv_directory,
        input_config=proto.Input(
            splits=[proto.Input.Split(name="all", pattern="span-{SPAN}/*.csv")]
        ),
        output_config=proto.Output(split_config=proto.SplitConfig(splits=splits)),
    )
    examples = example_gen.outputs["examples"]
    statistics_gen = tfx.components.StatisticsGen(examples=examples)
    schema_gen = tfx.components.SchemaGen(
        statistics=statistics_gen.outputs["statistics"], infer_feature_shape=True
    )
    base_trainer = trainer("BaseTrainer", examples, BASE, config.training | config.base_training)
    base_model = base_trainer.outputs["model"]
    bulk_inferrer = tfx.components.BulkInferrer(
        examples=examples,
        model=base_model,
        data_spec=proto.DataSpec(example_splits=[TRAIN]),
        model_spec=proto.ModelSpec(model_signature_name=["serving_default"]),
    )
    record_gen = ForwardRecordGen(
        inference_result=bulk_inferrer.outputs["inference_result"],
        model_version=1,
        num_partitions=config.num_partitions,
    )
    sampler = OFBSampler(
        examples=examples,
        forward_records=record_gen.outputs["forward_records"],
        task=config.task,
        label_feature=config.label_feature,
        splits=[TRAIN],
        **config.sampling,
    )
    validator = SamplingValidator(
        sampling_statistics=sampler.outputs["sampling_statistics"], **config.validation
    )
    blessing = validator.outputs["blessing"]
    with tfx.dsl.Cond(blessing.future()[0].custom_property(artifacts.BLESSED) == 1):
        sampled = sampler.outputs["sampled_examples"]
        next_trainer = trainer(
            "ContinuedTrainer", sampled, TRAIN, config.training, base_model=base_model
        )
        comparison = ModelComparison(
            examples=examples,
            model=next_trainer.outputs["model"],
            baseline=base_model,
            task=config.task,
            label_feature=config.label_feature,
            split=EVAL,
        )
        destination = proto.PushDestination.Filesystem(base_directory=config.serving_directory)
        pusher = tfx.components.Pusher(
            model=next_trainer.outputs["model"],
            model_blessing=comparison.outputs["blessing"],
            push_destination=proto.PushDestination(filesystem=destination),
        )
    return [
        example_gen,
        statistics_gen,
        schema_gen,
        base_trainer,
        bulk_inferrer,
        record_gen,
        sampler,
        validator,
        next_trainer,
        comparison,
        pusher,
    ]

"""The ModelComparison component: candidate against baseline, on a split that nobody trained on."""

import json

import numpy as np
import tensorflow as tf
from tfx import v1 as tfx
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation
from tfx.utils import path_utils

from ofb_tf import constants
from ofb_tf.beam.examples import single_value
from ofb_tf.beam.reports import write_text
from ofb_tf.evaluation.tfrecords import match_examples, read_tfrecords
from ofb_tf.selection import scores
from tfx_components.artifacts import write_blessing
from tfx_components.component_utils import error_context

_BATCH = 1024


@tfx.dsl.components.component
def ModelComparison(
    examples: tfx.dsl.components.InputArtifact[Examples],
    model: tfx.dsl.components.InputArtifact[Model],
    baseline: tfx.dsl.components.InputArtifact[Model],
    evaluation: tfx.dsl.components.OutputArtifact[ModelEvaluation],
    blessing: tfx.dsl.components.OutputArtifact[ModelBlessing],
    task: tfx.dsl.components.Parameter[str],
    label_feature: tfx.dsl.components.Parameter[str] = constants.LABEL,
    split: tfx.dsl.components.Parameter[str] = "eval",
    max_loss_increase: tfx.dsl.components.Parameter[float] = 0.0,
) -> None:
    """Runs both models' served signatures over a split and blesses the candidate for Pusher.

    Use it in place of an Evaluator where TensorFlow Model Analysis cannot load the model: it takes
    any SavedModel with the recording signature.

    Args:
      examples: with an untouched split.
      model: the candidate.
      baseline: what serves now.
      evaluation: output: `{uri}/comparison.json`, per model the metrics of `evaluate`.
      blessing: output: for Pusher.
      task: "multiclass", "binary" or "regression".
      label_feature: one number per example.
      split: the split to evaluate on.
      max_loss_increase: by how much the candidate's mean loss may exceed the baseline's.

    Raises:
      ValueError: the split or the signature is missing; names the component.
    """
    with error_context("ModelComparison", [evaluation.uri, blessing.uri]):
        if split not in examples.splits:
            raise ValueError(f"split must be among {list(examples.splits)}. Received: {split!r}")
        files = match_examples(examples.path(split=split))
        metrics = {
            name: evaluate(path_utils.serving_model_path(artifact.uri), files, task, label_feature)
            for name, artifact in (("candidate", model), ("baseline", baseline))
        }
        write_text(evaluation.uri, "comparison.json", json.dumps(metrics, indent=1))
        increase = metrics["candidate"]["loss"] - metrics["baseline"]["loss"]
        write_blessing(blessing, increase <= max_loss_increase)


def evaluate(
    model_directory: str, files: list[str], task: str, label_feature: str
) -> dict[str, float]:
    """`num_examples`, the mean `loss` and, for a binary task, the `calibration` of a served model.

    Its signature `serving_default` maps `examples` to `logits`; the calibration is the sum of the
    predictions over the sum of the labels.
    """
    serve = tf.saved_model.load(model_directory).signatures["serving_default"]
    dtype = np.int64 if task == constants.MULTICLASS else np.float32
    losses, predicted, positive = [], 0.0, 0.0
    for batch in read_tfrecords(files).batch(_BATCH):
        logits = serve(examples=batch)[constants.LOGITS]
        labels = [single_value(one, "label_feature", label_feature) for one in batch.numpy()]
        label = tf.constant(np.array(labels, dtype))
        losses.append(scores.example_loss({constants.LOGITS: logits}, label, task).numpy())
        if task == constants.BINARY:
            predicted += tf.sigmoid(logits[:, 0]).numpy().sum(dtype=np.float64)
            positive += label.numpy().sum(dtype=np.float64)
    every = np.concatenate(losses).astype(np.float64)
    metrics = {"num_examples": len(every), "loss": float(every.mean())}
    if task == constants.BINARY:
        metrics["calibration"] = float(predicted / positive) if positive else float("nan")
    return metrics

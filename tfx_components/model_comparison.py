"""The ModelComparison component: candidate against baseline, on a split that nobody trained on."""

import json
import os

import numpy as np
import tensorflow as tf
from tfx import v1 as tfx
from tfx.utils import path_utils

from ofb_tf import constants
from ofb_tf.selection import scores
from tfx_components import artifacts
from tfx_components.component_utils import naming_errors
from tfx_components.example_files import compression_of, list_files

_NAME = "ModelComparison"
_BATCH = 1024


@tfx.dsl.components.component
def ModelComparison(
    examples: tfx.dsl.components.InputArtifact[tfx.types.standard_artifacts.Examples],
    model: tfx.dsl.components.InputArtifact[tfx.types.standard_artifacts.Model],
    baseline: tfx.dsl.components.InputArtifact[tfx.types.standard_artifacts.Model],
    evaluation: tfx.dsl.components.OutputArtifact[tfx.types.standard_artifacts.ModelEvaluation],
    blessing: tfx.dsl.components.OutputArtifact[tfx.types.standard_artifacts.ModelBlessing],
    task: tfx.dsl.components.Parameter[str],
    label_feature: tfx.dsl.components.Parameter[str] = constants.LABEL,
    split: tfx.dsl.components.Parameter[str] = "eval",
    max_loss_increase: tfx.dsl.components.Parameter[float] = 0.0,
) -> None:
    """Runs both models' served signatures over a split and blesses the candidate for Pusher.

    It stands where an Evaluator may: that one needs a model that TensorFlow Model Analysis can
    load, this one any SavedModel with the recording signature.

    Args:
      examples: with an untouched split.
      model: the candidate.
      baseline: what serves now.
      evaluation: output: `{uri}/comparison.json`, by model the figures of `evaluate`.
      blessing: output: for Pusher.
      task: "multiclass", "binary" or "regression".
      label_feature: one number an example.
      split: which one.
      max_loss_increase: by how much the candidate's mean loss may exceed the baseline's.

    Raises:
      ValueError: the split or the signature is not there; names the component.
    """
    with naming_errors(_NAME, [evaluation.uri, blessing.uri]):
        if split not in examples.splits:
            raise ValueError(f"split must be among {list(examples.splits)}. Received: {split!r}")
        files = list_files(os.path.join(examples.uri, f"Split-{split}"))
        figures = {
            name: evaluate(path_utils.serving_model_path(artifact.uri), files, task, label_feature)
            for name, artifact in (("candidate", model), ("baseline", baseline))
        }
        blessed = figures["candidate"]["loss"] <= figures["baseline"]["loss"] + max_loss_increase
        for uri, name, text in (
            (evaluation.uri, "comparison.json", json.dumps(figures, indent=1)),
            (blessing.uri, "BLESSED" if blessed else "NOT_BLESSED", ""),
        ):
            tf.io.gfile.makedirs(uri)
            with tf.io.gfile.GFile(os.path.join(uri, name), "w") as file:
                file.write(text)
        blessing.set_int_custom_property(artifacts.BLESSED, int(blessed))


def evaluate(
    model_directory: str, files: list[str], task: str, label_feature: str
) -> dict[str, float]:
    """Figures of a served model over files of tf.Examples.

    Args:
      model_directory: a SavedModel whose `serving_default` maps `examples` to `logits`.
      files: TFRecords.
      task: "multiclass", "binary" or "regression".
      label_feature: one int64 or float value an example.

    Returns:
      `num_examples`; `loss`, the mean; and where the task is binary `calibration`, the sum of the
      predictions over the sum of the labels.
    """
    serve = tf.saved_model.load(model_directory).signatures["serving_default"]
    losses, labels, predictions = [], [], []
    for batch in tf.data.TFRecordDataset(files, compression_of(files[0])).batch(_BATCH):
        logits = serve(examples=batch)[constants.LOGITS]
        label = tf.constant(_labels(batch, label_feature))
        if task == constants.MULTICLASS:
            label = tf.cast(label, tf.int64)
        losses.append(scores.example_loss(logits, label, task).numpy())
        if task == constants.BINARY:
            predictions.append(tf.sigmoid(logits[:, 0]).numpy())
            labels.append(label.numpy())
    every = np.concatenate(losses).astype(np.float64)
    figures = {"num_examples": len(every), "loss": float(every.mean())}
    if task == constants.BINARY:
        total = np.concatenate(labels).sum(dtype=np.float64)
        predicted = np.concatenate(predictions).sum(dtype=np.float64)
        figures["calibration"] = float(predicted / total) if total else float("nan")
    return figures


def _labels(batch: tf.Tensor, label_feature: str) -> np.ndarray:
    """The label of each example: float32 `[n]`."""
    values = []
    for serialized in batch.numpy():
        feature = tf.train.Example.FromString(serialized).features.feature[label_feature]
        numbers = feature.int64_list.value or feature.float_list.value
        if len(numbers) != 1:
            raise ValueError(
                f"an example of the split has {len(numbers)} values of {label_feature!r}, not "
                "one. Set label_feature."
            )
        values.append(numbers[0])
    return np.array(values, np.float32)

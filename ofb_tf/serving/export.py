"""A SavedModel whose answers can be recorded: predictions, logits and the example's id."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants, hashing

EXAMPLES = "examples"
PREDICTIONS = "predictions"
SIGNATURE = "serving_default"

_ACTIVATIONS = {
    constants.MULTICLASS: tf.nn.softmax,
    constants.BINARY: tf.sigmoid,
    constants.REGRESSION: tf.identity,
}


def export_recording_model(
    model: keras.Model,
    path: str | os.PathLike,
    feature_spec: Mapping[str, Any],
    *,
    id_key: str | None = constants.EXAMPLE_ID,
    task: str | None = None,
    preprocess: Callable[[dict[str, tf.Tensor]], Any] | None = None,
) -> None:
    """Writes a SavedModel that answers serialized tf.Examples with what a record needs.

    Its `serving_default` takes `examples`, string `[n]`, and returns `predictions` float32
    `[n, k]`, `logits` float32 `[n, k]` and `example_id` int64 `[n]`. It serves under TensorFlow
    Serving and TFX's BulkInferrer as any other model.

    Args:
      model: Keras model whose output is the logits `[n, k]` (for regression the prediction).
      path: directory of the SavedModel; TensorFlow Serving wants it to end in a version number.
      feature_spec: as for `tf.io.parse_example`: the model's inputs by name, and the id.
      id_key: feature with the id, int64 or string (by its 64-bit fingerprint), one an example.
        None: the id is the fingerprint of the serialized example, `hashing.fingerprint`, the same
        in the graph, in Python and in Beam. It is of the bytes: let clients serialize with
        `SerializeToString(deterministic=True)`, as `tfx_components` does.
      task: "multiclass" (predictions are the softmax), "binary" (the sigmoid) or "regression";
        None means multiclass, and needs more than one output.
      preprocess: from the parsed features to the model's input; by default the features that the
        model names as its inputs.

    Raises:
      ValueError: the id or an input is not in `feature_spec`, or the task does not fit.
    """
    if id_key is not None and id_key not in feature_spec:
        raise ValueError(
            f"id_key must be a feature of feature_spec, or None for a fingerprint of the whole "
            f"example. Received: id_key={id_key!r}, features {sorted(feature_spec)}"
        )
    num_outputs = model.output_shape[-1] if isinstance(model.output_shape, tuple) else None
    if num_outputs is None:
        raise ValueError(f"model must have one output [n, k]. Received: {model.output_shape}")
    if task is None and num_outputs > 1:
        task = constants.MULTICLASS
    if task not in constants.TASKS or (task != constants.MULTICLASS and num_outputs != 1):
        raise ValueError(
            f"task must be 'binary' or 'regression' for one output, 'multiclass' for more. "
            f"Received: {task!r} for {num_outputs} outputs"
        )
    prepare = preprocess or _input_selector(model, feature_spec)

    def serve(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        features = tf.io.parse_example(examples, dict(feature_spec))
        if id_key is None:
            example_ids = hashing.fingerprint(examples)
        else:
            example_ids = hashing.to_int64(tf.reshape(features[id_key], [-1]))
        logits = tf.cast(model(prepare(features), training=False), tf.float32)
        logits = tf.reshape(logits, [-1, num_outputs])
        return {
            PREDICTIONS: _ACTIVATIONS[task](logits),
            constants.LOGITS: logits,
            constants.EXAMPLE_ID: example_ids,
        }

    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec([None], tf.string, name=EXAMPLES)]
    archive.add_endpoint(SIGNATURE, serve, input_signature=signature)
    archive.write_out(os.fspath(path), verbose=False)


def _input_selector(
    model: keras.Model, feature_spec: Mapping[str, Any]
) -> Callable[[dict[str, tf.Tensor]], Any]:
    """Picks the model's inputs out of the parsed features, in the model's own structure."""
    names = (
        dict.fromkeys(model.input)
        if isinstance(model.input, dict)
        else [tensor.name for tensor in model.inputs]
    )
    missing = [name for name in names if name not in feature_spec]
    if missing:
        raise ValueError(
            f"The model's inputs {missing} must be features of feature_spec. Received: "
            f"{sorted(feature_spec)}. Name the inputs after features, or give preprocess."
        )

    def select(features: dict[str, tf.Tensor]) -> Any:
        if isinstance(names, dict):
            return {name: _with_rank(features[name], model.input[name]) for name in names}
        chosen = [_with_rank(features[t.name], t) for t in model.inputs]
        return chosen if isinstance(model.input, list) else chosen[0]

    return select


def _with_rank(feature: tf.Tensor, model_input: Any) -> tf.Tensor:
    """A scalar feature `[n]` as the `[n, 1]` that a Keras input of one number wants."""
    if len(model_input.shape) == 2 and feature.shape.rank == 1:
        return feature[:, None]
    return feature

"""A SavedModel whose responses can be recorded: predictions, logits and the example's id."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records.importers import EXAMPLES
from ofb_tf.records.outputs import activation_of_output
from ofb_tf.selection.heads import Head, Heads, side_by_side

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
    task: str | Mapping[str, Any] | None = None,
    from_logits: bool | None = None,
    preprocess: Callable[[dict[str, tf.Tensor]], Any] | None = None,
) -> None:
    """Writes a SavedModel that returns logits and ids together with its predictions.

    Its `serving_default` takes `examples`, string `[n]` of serialized tf.Examples, and returns
    `predictions` float32 `[n, k]`, `logits` float32 `[n, k]` and `example_id` int64 `[n]`. Of
    several heads, the predictions of each have its name, and `logits` are those of all side by
    side, in the order of their names. It runs under TensorFlow Serving and TFX's BulkInferrer like
    any other model.

    Args:
      model: Keras model whose output is logits or probabilities `[n, k]` (for regression the
        prediction), or a dict or list of such outputs, one for each
        head; those of a list have the names of their layers.
      path: directory of the SavedModel; TensorFlow Serving expects it to end in a version number.
      feature_spec: as for `tf.io.parse_example`: the model's inputs by name, and the id.
      id_key: feature with the id, int64 or string (by its 64-bit fingerprint), one per example.
        None: the id is `hashing.fingerprint` of the serialized example, the same in the graph, in
        Python and in Beam. It depends on the bytes: let clients serialize with
        `SerializeToString(deterministic=True)`, as `tfx_components` does.
      task: "multiclass" (predictions are the softmax), "binary" (the sigmoid) or "regression";
        None means multiclass, and needs more than one output. For several heads a dict, as for
        `ofb_sample`.
      from_logits: False where the model gives probabilities, which are then the predictions, and
        `logits` their logits; None takes it from the loss that the model is compiled with, or
        where it is not compiled from the activation of its last layer.
      preprocess: maps the parsed features to the model's input; by default, selects the features
        named like the model's inputs.

    Raises:
      ValueError: the id or an input is not in `feature_spec`, or the task does not fit.
    """
    if id_key is not None and id_key not in feature_spec:
        raise ValueError(
            "id_key must be a feature of feature_spec, or None for the example's fingerprint. "
            f"Received: id_key={id_key!r}, features {sorted(feature_spec)}"
        )
    heads = _heads_of(model, task)
    of_probabilities = {}
    for head in heads:
        given = from_logits
        if given is None:
            given = activation_of_output(model, head.name) is None
        of_probabilities[head.name] = not given and head.task != constants.REGRESSION
    prepare = preprocess or _input_selector(model, feature_spec)

    def serve(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        features = tf.io.parse_example(examples, dict(feature_spec))
        if id_key is None:
            example_ids = hashing.fingerprint(examples)
        else:
            example_ids = hashing.to_int64(tf.reshape(features[id_key], [-1]))
        outputs = _by_head(model, model(prepare(features), training=False))
        outputs = outputs if isinstance(outputs, Mapping) else {PREDICTIONS: outputs}
        answer = {constants.EXAMPLE_ID: example_ids}
        logits: dict[str, tf.Tensor] = {}
        for head in heads:
            values = tf.cast(outputs[head.name], tf.float32)
            values = tf.reshape(values, [-1, head.num_outputs])
            if of_probabilities[head.name]:
                answer[head.name], logits[head.name] = values, _logits_of(values)
            else:
                answer[head.name], logits[head.name] = _ACTIVATIONS[head.task](values), values
        return answer | {constants.LOGITS: side_by_side(logits)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec([None], tf.string, name=EXAMPLES)]
    archive.add_endpoint(SIGNATURE, serve, input_signature=signature)
    archive.write_out(os.fspath(path), verbose=False)


def _by_head(model: keras.Model, outputs: Any) -> Any:
    """A list of outputs as a dict, by the names of their layers."""
    if isinstance(outputs, list | tuple):
        return dict(zip(model.output_names, outputs, strict=True))
    return outputs


def _heads_of(model: keras.Model, task: Any) -> Sequence[Head]:
    """The heads that a task names; one head, called `predictions`, of a model with one output."""
    outputs = _by_head(model, model.output)
    if isinstance(outputs, Mapping):
        shape = {name: output.shape for name, output in outputs.items()}
        if not isinstance(task, Mapping) or set(task) != set(shape):
            raise ValueError(
                f"task must be a dict with a task for each of the outputs {sorted(shape)}. "
                f"Received: {task!r}"
            )
        heads = Heads.of(task, None)
        for head in heads:
            if shape[head.name][-1] != head.num_outputs:
                raise ValueError(
                    f"task[{head.name!r}] must be that of an output of {shape[head.name][-1]}, "
                    f"('multiclass', number of classes) for more than 1. Received: "
                    f"{task[head.name]!r}"
                )
            if head.name in (constants.LOGITS, constants.EXAMPLE_ID):
                raise ValueError(
                    "Outputs must have other names than what is added, logits and example_id. "
                    f"Received: {head.name!r}"
                )
        return heads
    num_outputs = outputs.shape[-1]
    if num_outputs is None:
        raise ValueError(f"model must have outputs [n, k]. Received: {outputs.shape}")
    if task is None and num_outputs > 1:
        task = constants.MULTICLASS
    if task not in constants.TASKS or (task != constants.MULTICLASS and num_outputs != 1):
        raise ValueError(
            f"task must be 'binary' or 'regression' for one output, 'multiclass' for more. "
            f"Received: {task!r} for {num_outputs} outputs"
        )
    return [Head(PREDICTIONS, task, num_outputs)]


def _logits_of(probabilities: tf.Tensor) -> tf.Tensor:
    """As `ofb_tf.records.outputs.logits_of`, in the graph."""
    epsilon = keras.config.epsilon()
    p = tf.clip_by_value(probabilities, epsilon, 1.0 - epsilon)
    log = tf.math.log(p)
    return log - tf.math.log1p(-p) if probabilities.shape[-1] == 1 else log


def _input_selector(
    model: keras.Model, feature_spec: Mapping[str, Any]
) -> Callable[[dict[str, tf.Tensor]], Any]:
    """Picks the model's inputs from the parsed features, in the model's own structure."""
    is_dict = isinstance(model.input, dict)
    inputs = model.input if is_dict else {tensor.name: tensor for tensor in model.inputs}
    missing = [name for name in inputs if name not in feature_spec]
    if missing:
        raise ValueError(
            f"The model's inputs {missing} must be features of feature_spec. Received: "
            f"{sorted(feature_spec)}. Name the inputs after features, or give preprocess."
        )

    def select(features: dict[str, tf.Tensor]) -> Any:
        chosen = {name: features[name] for name in inputs}
        for name, feature in chosen.items():
            # A scalar feature [n] is the [n, 1] that a Keras input of one number expects.
            if len(inputs[name].shape) == 2 and feature.shape.rank == 1:
                chosen[name] = feature[:, None]
        return chosen if is_dict else keras.tree.pack_sequence_as(model.input, [*chosen.values()])

    return select

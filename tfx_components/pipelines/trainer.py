"""`run_fn` for TFX's Trainer: an `OFBModel` on weighted examples, exported so that it records.

Settings come from Trainer's `custom_config`, by the names of `TrainingConfig`. The served
signature takes serialized tf.Examples and returns `predictions`, `logits` and `example_id`: what
BulkInferrer or TF Serving logs of it is what ForwardRecordGen reads, which closes the loop.
"""

import dataclasses
import math
import os
from typing import Any

import keras
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.utils import io_utils

import ofb_tf
from ofb_tf import constants, serving
from ofb_tf.checks import check_choice, check_ranges
from tfx_components.pipelines import features

_DTYPES = {schema_pb2.FLOAT: "float32", schema_pb2.INT: "int64", schema_pb2.BYTES: "string"}
_KERAS_FILE = "assets.extra/model.keras"  # in the directory of a SavedModel


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What is trained, and how.

    Attributes:
      label_feature: one number per example.
      id_feature: "" where the examples have none.
      task: "multiclass", "binary" or "regression".
      num_classes: for a multiclass task.
      exclude: further features that the model must not see.
      categorical: INT features that are codes, such as an hour.
      hidden_units: of the dense layers.
      embedding_size: for each categorical feature.
      epochs: over the training split.
      batch_size: at least 1.
      learning_rate: of Adam.
      seed: of initialisation and shuffling.

    Raises:
      ValueError: a setting is out of range.
    """

    label_feature: str
    task: str
    id_feature: str = ""
    num_classes: int = 2
    exclude: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    hidden_units: tuple[int, ...] = (64, 32)
    embedding_size: int = 8
    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("task", self.task, constants.TASKS)
        counts = ("num_classes", "embedding_size", "epochs", "batch_size")
        check_ranges(dict.fromkeys(counts, (1, math.inf)), vars(self))
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate must be positive. Received: {self.learning_rate}")

    @property
    def num_outputs(self) -> int:
        """Of the model, at least 1."""
        return self.num_classes if self.task == constants.MULTICLASS else 1

    @classmethod
    def from_custom_config(cls, settings: dict[str, Any]) -> "TrainingConfig":
        """The config from Trainer's `custom_config`; lists become tuples, others' entries go."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings.items()
            if name in cls.__dataclass_fields__
        }
        return cls(**given)


def run_fn(fn_args: Any) -> None:
    """Trains and exports; called by TFX with its `FnArgs`. A `base_model` is continued from.

    Raises:
      ValueError: a setting is out of range, or the files do not fit the schema.
    """
    config = TrainingConfig.from_custom_config(fn_args.custom_config or {})
    schema = read_schema(fn_args.schema_path)
    model = train(
        config,
        schema,
        train_files=_glob(fn_args.train_files),
        base_model=getattr(fn_args, "base_model", None),
        steps=fn_args.train_steps,
        log_dir=fn_args.model_run_dir,
    )
    export(model, config, schema, fn_args.serving_model_dir)


def read_schema(path: str) -> schema_pb2.Schema:
    """SchemaGen's `schema.pbtxt` at a path."""
    return io_utils.parse_pbtxt_file(path, schema_pb2.Schema())


def train(
    config: TrainingConfig,
    schema: schema_pb2.Schema,
    *,
    train_files: list[str],
    base_model: str | None = None,
    steps: int | None = None,
    log_dir: str | None = None,
) -> keras.Model:
    """Trains an `OFBModel` whose outputs are logits (regression: predictions), and returns it.

    Args:
      config: the settings.
      schema: of the examples, before sampling.
      train_files: TFRecords; `importance_weight` or `log_inclusion` is applied where the examples
        have it.
      base_model: directory of a served model that `export` wrote, to continue from.
      steps: at most so many batches; None for whole epochs.
      log_dir: for TensorBoard; None for none.

    Raises:
      ValueError: the files do not fit the schema.
      FileNotFoundError: `base_model` holds no Keras model to continue from.
    """
    keras.utils.set_random_seed(config.seed)
    spec = tabular_spec(config, schema)
    data = features.dataset(
        train_files,
        spec,
        config.label_feature,
        config.batch_size,
        config.seed,
        num_outputs=0 if config.task == constants.REGRESSION else config.num_outputs,
    )
    model = load_keras_model(base_model) if base_model else _build(config, spec, data)
    loss = {
        constants.MULTICLASS: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        constants.BINARY: keras.losses.BinaryCrossentropy(from_logits=True),
        constants.REGRESSION: keras.losses.MeanSquaredError(),
    }[config.task]
    model.compile(optimizer=keras.optimizers.Adam(config.learning_rate), loss=loss)
    data = data.repeat(config.epochs)
    if steps:
        data = data.take(steps)
    callbacks = [keras.callbacks.TensorBoard(log_dir)] if log_dir else []
    model.fit(data, verbose=2 if log_dir else 0, callbacks=callbacks)
    return model


def export(
    model: keras.Model, config: TrainingConfig, schema: schema_pb2.Schema, directory: str
) -> None:
    """Writes the SavedModel of what `train` returned, from which training can continue.

    The signature `serving_default` is `ofb_tf.serving.export_recording_model`'s: from `examples`,
    string `[n]`, to `predictions` and `logits`, float32 `[n, k]`, and `example_id`, int64 `[n]`.
    """
    spec = tabular_spec(config, schema)
    feature_spec = spec.feature_spec()
    if config.id_feature:
        dtype = tf.dtypes.as_dtype(spec.dtypes[config.id_feature])
        feature_spec[config.id_feature] = tf.io.FixedLenFeature([], dtype)
    serving.export_recording_model(
        model,
        directory,
        feature_spec,
        id_key=config.id_feature or None,
        task=config.task,
        preprocess=spec.inputs,
    )
    path = os.path.join(directory, _KERAS_FILE)
    tf.io.gfile.makedirs(os.path.dirname(path))
    model.save(path)


def load_keras_model(directory: str) -> keras.Model:
    """The compiled Keras model in a SavedModel that `export` wrote; FileNotFoundError for none."""
    path = os.path.join(directory, _KERAS_FILE)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"Trainer: {path} does not exist, so training cannot continue from {directory}. Pass a "
            f"base_model that {__name__} exported."
        )
    return keras.models.load_model(path)


def tabular_spec(config: TrainingConfig, schema: schema_pb2.Schema) -> features.TabularSpec:
    """The features that the model reads: all of the schema but label, id and `exclude`.

    Raises:
      ValueError: no feature is left, or a named one is not in the schema.
    """
    dtypes = {f.name: _DTYPES[f.type] for f in schema.feature if f.type in _DTYPES}
    exclude = {config.label_feature, *config.exclude, config.id_feature} - {""}
    unknown = sorted({*exclude, *config.categorical} - set(dtypes))
    if unknown:
        raise ValueError(f"features {unknown} are not in the schema, which has {sorted(dtypes)}.")
    names = sorted(set(dtypes) - exclude)
    if not names:
        raise ValueError(f"no feature is left besides {sorted(exclude)}.")
    hashed = tuple(n for n in names if dtypes[n] == "string" or n in config.categorical)
    numeric = tuple(name for name in names if name not in hashed)
    return features.TabularSpec(numeric, hashed, dtypes)


def _build(
    config: TrainingConfig, spec: features.TabularSpec, data: tf.data.Dataset
) -> keras.Model:
    inputs, parts = {}, []
    if spec.numeric:
        numbers = keras.Input((2 * len(spec.numeric),), name=features.NUMBERS)
        inputs[features.NUMBERS] = numbers
        scale = keras.layers.Normalization()
        scale.adapt(data.map(lambda x, y, w: x[features.NUMBERS]))
        parts.append(scale(numbers))
    if spec.categorical:
        count = len(spec.categorical)
        buckets = keras.Input((count,), dtype="int64", name=features.BUCKETS)
        inputs[features.BUCKETS] = buckets
        # One table, in which each feature has its own rows.
        offsets = [k * spec.num_buckets for k in range(count)]
        shift = keras.layers.Rescaling(1, offsets, dtype="int64")
        table = keras.layers.Embedding(spec.num_buckets * count, config.embedding_size)
        parts.append(keras.layers.Flatten()(table(shift(buckets))))
    x = keras.layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    for units in config.hidden_units:
        x = keras.layers.Dense(units, activation="relu")(x)
    outputs = keras.layers.Dense(config.num_outputs, name=constants.LOGITS)(x)
    return ofb_tf.OFBModel(inputs, outputs)


def _glob(patterns: list[str]) -> list[str]:
    files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
    if not files:
        raise ValueError(f"Trainer: no file matches {patterns}. Check the split's name.")
    return files

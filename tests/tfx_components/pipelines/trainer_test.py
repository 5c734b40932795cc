"""The trainer module without TFX around it: weights, warm start, the recording signature."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx_testing import write_tfrecords

from ofb_tf import constants
from tests.streams import serialized_example
from tfx_components.pipelines import features, trainer
from tfx_components.pipelines.comparison import evaluate
from tfx_components.pipelines.trainer import TrainingConfig

_CONFIG = TrainingConfig(
    label_feature="label", task="binary", id_feature="id", epochs=3, batch_size=32
)


@pytest.fixture
def schema():
    schema = schema_pb2.Schema()
    kinds = {"id": "INT", "label": "INT", "x": "FLOAT", "hour": "INT", "city": "BYTES"}
    for name, kind in kinds.items():
        schema.feature.add(name=name, type=getattr(schema_pb2, kind))
    return schema


def _rows(n, weight=None, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(n):
        x = float(rng.normal())
        row = {"id": i, "label": int(rng.random() < 1 / (1 + np.exp(-2 * x))), "x": x}
        row |= {"hour": int(rng.integers(24)), "city": b"north" if x > 0 else b"south"}
        yield row | ({} if weight is None else {constants.IMPORTANCE_WEIGHT: weight(row)})


def _files(path, rows):
    write_tfrecords(path, [serialized_example(**row) for row in rows])
    return [str(path)]


def test_a_weight_of_zero_is_an_example_left_out(tmp_path, schema):
    """Positives weighted 0: the model must learn that nothing is positive."""
    rows = _rows(600, weight=lambda row: 0.0 if row["label"] else 1.0)
    files = _files(tmp_path / "weighted.gz", rows)
    config = dataclasses.replace(_CONFIG, epochs=20)
    model = trainer.train(config, schema, train_files=files)
    trainer.export(model, config, schema, str(tmp_path / "model"))
    metrics = evaluate(str(tmp_path / "model"), files, "binary", "label")
    assert metrics["calibration"] < 0.2


def test_offsets_are_in_the_training_loss_alone(tmp_path, schema):
    """With offsets of 3 the model learns log-odds that are lower by 3, and that is served."""
    rows = list(_rows(600))
    files = _files(tmp_path / "plain", rows)
    with_offsets = [row | {constants.LOG_INCLUSION: 3.0} for row in rows]
    config = dataclasses.replace(_CONFIG, epochs=20, learning_rate=1e-2)
    mean_logits = []
    for name, train_files in (
        ("plain", files),
        ("corrected", _files(tmp_path / "offsets", with_offsets)),
    ):
        model = trainer.train(config, schema, train_files=train_files)
        directory = str(tmp_path / f"model-{name}")
        trainer.export(model, config, schema, directory)
        served = tf.saved_model.load(directory).signatures["serving_default"]
        serialized = tf.constant([serialized_example(**row) for row in rows])
        mean_logits.append(float(tf.reduce_mean(served(serialized)["logits"])))
    assert mean_logits[1] - mean_logits[0] == pytest.approx(-3.0, abs=0.75)


def test_same_seed_same_model_other_seed_another(tmp_path, schema):
    files = _files(tmp_path / "data", _rows(200))
    weights = []
    for seed in (1, 1, 2):
        config = dataclasses.replace(_CONFIG, seed=seed)
        model = trainer.train(config, schema, train_files=files)
        weights.append(np.concatenate([w.numpy().ravel() for w in model.trainable_variables]))
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_training_continues_from_the_served_model(tmp_path, schema):
    files = _files(tmp_path / "data", _rows(200))
    model = trainer.train(_CONFIG, schema, train_files=files)
    trainer.export(model, _CONFIG, schema, str(tmp_path / "model"))
    config = dataclasses.replace(_CONFIG, learning_rate=1e-12)
    again = trainer.train(config, schema, train_files=files, base_model=str(tmp_path / "model"))
    for before, after in zip(model.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_allclose(before.numpy(), after.numpy(), atol=1e-6)


def test_the_signature_echoes_ids_and_logits(tmp_path, schema):
    rows = list(_rows(50))
    model = trainer.train(_CONFIG, schema, train_files=_files(tmp_path / "data", rows), steps=2)
    trainer.export(model, _CONFIG, schema, str(tmp_path / "model"))
    serve = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    # A feature may be absent in what is served.
    examples = [serialized_example(**row) for row in rows] + [serialized_example(id=99)]
    answer = serve(examples=tf.constant(examples))
    assert answer["logits"].shape == (51, 1)
    assert answer["example_id"].numpy().tolist() == [*range(50), 99]
    assert np.isfinite(answer["logits"]).all()
    spec = trainer.tabular_spec(_CONFIG, schema)
    inputs = spec.inputs(tf.io.parse_example(examples, spec.feature_spec()))
    again = trainer.load_keras_model(str(tmp_path / "model"))(inputs, training=False)
    np.testing.assert_allclose(again, answer["logits"], rtol=1e-5)


def test_inputs_of_examples(schema):
    config = dataclasses.replace(_CONFIG, categorical=("hour",))
    spec = dataclasses.replace(trainer.tabular_spec(config, schema), num_buckets=8)
    assert (spec.numeric, spec.categorical) == (("x",), ("city", "hour"))
    serialized = [serialized_example(x=-3.0, city=b"a", hour=5), serialized_example(city=b"a")]
    inputs = spec.inputs(tf.io.parse_example(serialized, spec.feature_spec()))
    np.testing.assert_allclose(
        inputs[features.NUMBERS], [[-np.log(4.0), 0.0], [0.0, 1.0]], rtol=1e-6
    )
    buckets = inputs[features.BUCKETS].numpy()
    assert buckets.shape == (2, 2) and buckets[0, 0] == buckets[1, 0]
    assert ((buckets >= 0) & (buckets < 8)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "ranking"}, "task must be one of"),
        ({"epochs": 0}, "epochs must be at least 1. Received: 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive. Received: 0.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_custom_config({"label_feature": "y", "task": "binary"} | settings)


def test_settings_of_tfx_are_passed_over():
    config = TrainingConfig.from_custom_config(
        {"label_feature": "y", "task": "binary", "exclude": ["a"], "labels": {"tfx": "own"}}
    )
    assert config.exclude == ("a",)


def test_errors_say_what_is_missing(tmp_path, schema):
    with pytest.raises(FileNotFoundError, match="^Trainer: .*cannot continue from"):
        trainer.load_keras_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"features \['tips'\] are not in the schema"):
        trainer.tabular_spec(dataclasses.replace(_CONFIG, label_feature="tips"), schema)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_train_and_export(tmp_path, schema, task):
    files = _files(tmp_path / "data", _rows(100))
    config = dataclasses.replace(_CONFIG, task=task, num_classes=2, epochs=1)
    model = trainer.train(config, schema, train_files=files)
    trainer.export(model, config, schema, str(tmp_path / "model"))
    metrics = evaluate(str(tmp_path / "model"), files, task, "label")
    assert metrics["num_examples"] == 100 and 0.0 < metrics["loss"] < 3.0

import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import hashing
from ofb_tf.serving import export_recording_model
from tests.processes import python
from tests.serving.conftest import FEATURE_SPEC
from tests.streams import serialized_example


def serve(path, serialized):
    return tf.saved_model.load(str(path)).signatures["serving_default"](
        examples=tf.constant(serialized)
    )


def one_output_model():
    inputs = {"a": keras.Input([1], name="a"), "b": keras.Input([2], name="b")}
    hidden = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    return keras.Model(inputs, keras.layers.Dense(1)(hidden))


def test_the_signature_answers_predictions_logits_and_ids(exported, model, examples):
    ids, inputs, serialized = examples
    answer = serve(exported, serialized)
    assert set(answer) == {"predictions", "logits", "example_id"}
    np.testing.assert_array_equal(answer["example_id"], ids)
    np.testing.assert_allclose(answer["logits"], model(inputs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer["predictions"], tf.nn.softmax(model(inputs)), rtol=1e-5)
    empty = serve(exported, np.array([], object))
    assert empty["logits"].shape == [0, 4]


def test_without_an_id_column_the_fingerprint_of_the_example_is_the_id(model, examples, tmp_path):
    export_recording_model(model, tmp_path / "m", FEATURE_SPEC, id_key=None)
    answer = serve(tmp_path / "m", examples[2])
    np.testing.assert_array_equal(answer["example_id"], hashing.fingerprint(examples[2]))


@pytest.mark.parametrize(("task", "activation"), [("binary", tf.sigmoid), ("regression", None)])
def test_one_output_dict_inputs_and_string_ids(tmp_path, task, activation):
    spec = {
        "user": tf.io.FixedLenFeature([1], tf.string),
        "a": tf.io.FixedLenFeature([], tf.float32),
        "b": tf.io.FixedLenFeature([2], tf.float32),
    }
    model = one_output_model()
    export_recording_model(model, tmp_path / "m", spec, id_key="user", task=task)
    example = serialized_example(user=b"someone", a=0.5, b=[1.0, -1.0])
    answer = serve(tmp_path / "m", [example])
    np.testing.assert_array_equal(answer["example_id"], hashing.fingerprint(["someone"]))
    logits = model({"a": np.array([[0.5]]), "b": np.array([[1.0, -1.0]])})
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5)
    expected = activation(logits) if activation else logits
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id_key": "user"}, "id_key must be a feature of feature_spec.*'user'"),
        ({"task": "binary"}, "Received: 'binary' for 4 outputs"),
        ({"task": "ranking"}, "task must be"),
    ],
)
def test_arguments_that_do_not_fit(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_recording_model(model, tmp_path, FEATURE_SPEC, **arguments)
    with pytest.raises(ValueError, match="Received: None for 1 outputs"):
        export_recording_model(one_output_model(), tmp_path, FEATURE_SPEC)
    with pytest.raises(ValueError, match=r"inputs \['x'\] must be features"):
        export_recording_model(model, tmp_path, {"example_id": FEATURE_SPEC["example_id"]})


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(exported, examples, tmp_path):
    cli = pathlib.Path(sys.executable).with_name("saved_model_cli")
    flags = ["--dir", exported, "--tag_set", "serve", "--signature_def", "serving_default"]
    shown = python(cli, "show", *flags)
    for name in ("inputs['examples']", "outputs['example_id']", "outputs['logits']"):
        assert name in shown
    np.save(tmp_path / "input.npy", np.array(examples[2][:2]))
    flags += ["--inputs", f"examples={tmp_path}/input.npy", "--outdir", tmp_path]
    python(cli, "run", *flags)
    np.testing.assert_array_equal(np.load(tmp_path / "example_id.npy"), examples[0][:2])


def two_heads(as_list=False):
    keras.utils.set_random_seed(2)
    x = keras.Input([3], name="x")
    heads = {"topic": keras.layers.Dense(4, name="topic")(x)}
    heads["click"] = keras.layers.Dense(1, name="click", activation="sigmoid")(x)
    return keras.Model(x, list(heads.values()) if as_list else heads)


TASKS = {"topic": ("multiclass", 4), "click": "binary"}


@pytest.mark.parametrize("form", ["dict", "list", "compiled"])
def test_heads_answer_by_their_names_and_leave_logits_side_by_side(examples, tmp_path, form):
    ids, inputs, serialized = examples
    model = two_heads(as_list=form == "list")
    if form == "compiled":
        topic_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss={"topic": topic_loss, "click": "binary_crossentropy"})
    export_recording_model(model, tmp_path / "m", FEATURE_SPEC, task=TASKS)
    answer = serve(tmp_path / "m", serialized)
    assert set(answer) == {"topic", "click", "logits", "example_id"}
    outputs = two_heads()(inputs)
    np.testing.assert_array_equal(answer["example_id"], ids)
    np.testing.assert_allclose(answer["click"], outputs["click"], rtol=1e-5)
    np.testing.assert_allclose(answer["topic"], tf.nn.softmax(outputs["topic"]), rtol=1e-5)
    p = np.asarray(outputs["click"], np.float64)
    logits = np.concatenate([np.log(p / (1 - p)), outputs["topic"]], axis=1)
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("binary", r"a task for each of the outputs \['click', 'topic'\]. Received: 'binary'"),
        ({"click": "binary"}, r"a task for each of the outputs \['click', 'topic'\]"),
        (TASKS | {"topic": ("multiclass", 3)}, r"task\['topic'\] must be that of an output of 4"),
        (TASKS | {"click": "ranking"}, r"task\['click'\] must be 'binary'"),
    ],
)
def test_tasks_that_do_not_fit_the_heads(tmp_path, task, message):
    with pytest.raises(ValueError, match=message):
        export_recording_model(two_heads(), tmp_path, FEATURE_SPEC, task=task)

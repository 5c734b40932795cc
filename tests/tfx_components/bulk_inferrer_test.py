"""A model by `export_recording_model` in TFX's BulkInferrer, and its logs as forward records."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tfx.components.bulk_inferrer import executor
from tfx.dsl.components.base import base_beam_executor
from tfx.types import standard_artifacts
from tfx_testing import Data, generate, read_split

import ofb_tf
from ofb_tf.serving import export_recording_model
from tfx_components import artifacts
from tfx_components.component_utils import example_fingerprints

_SPEC = {
    "id": tf.io.FixedLenFeature([], tf.int64),
    "x": tf.io.FixedLenFeature([], tf.float32),
}
_IN_MEMORY = ["--direct_running_mode=in_memory"]


def _infer(tmp_path, examples, model, id_key) -> standard_artifacts.InferenceResult:
    """BulkInferrer's own executor on the split train."""
    served = standard_artifacts.Model()
    served.uri = str(tmp_path / "model")
    export_recording_model(
        model, f"{served.uri}/Format-Serving", _SPEC, id_key=id_key, task="binary"
    )
    inference = standard_artifacts.InferenceResult()
    inference.uri = str(tmp_path / "inference")
    context = base_beam_executor.BaseBeamExecutor.Context(
        beam_pipeline_args=_IN_MEMORY, tmp_dir=str(tmp_path / "tmp"), unique_id="1"
    )
    executor.Executor(context).Do(
        {"examples": [examples], "model": [served]},
        {"inference_result": [inference]},
        {
            "model_spec": '{"model_signature_name": ["serving_default"]}',
            "data_spec": '{"example_splits": ["train"]}',
        },
    )
    return inference


@pytest.mark.parametrize("id_feature", ["id", ""])
def test_its_logs_become_records_that_the_sampler_finds(
    tmp_path, data: Data, as_examples, sample, id_feature
):
    data = data.take(slice(500))
    examples = as_examples(data)
    inputs = keras.Input([1], name="x")
    model = keras.Model(inputs, keras.layers.Dense(1, bias_initializer="ones")(inputs))
    inference = _infer(tmp_path, examples, model, id_feature or None)

    records = generate(tmp_path / "records", inference_result=inference, id_feature=id_feature)
    loaded = ofb_tf.ForwardRecords.load(records.uri)
    serialized = [example.SerializeToString() for example in read_split(examples)]
    ids = data.ids if id_feature else example_fingerprints(serialized)
    order = np.argsort(ids)
    np.testing.assert_array_equal(loaded.example_ids, ids[order])
    expected = model(data.logits[order, None]).numpy()
    np.testing.assert_allclose(loaded.logits, expected, rtol=1e-5, atol=1e-6)

    _, found = sample(examples, records, id_feature=id_feature)
    total = artifacts.read_statistics(found.uri)[1]["train"].total
    assert (total.num_examples, total.num_scored) == (500, 500)
    assert json.loads((pathlib.Path(records.uri) / "manifest.json").read_text())["num_read"] == 500

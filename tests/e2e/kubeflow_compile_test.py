"""The loop compiled for Kubeflow Pipelines v2, validated by kfp's own loader."""

import json

import pytest
from kfp import components

from tfx_components.pipelines.graph import LoopConfig
from tfx_components.pipelines.kubeflow import compile_pipeline

pytestmark = [pytest.mark.e2e, pytest.mark.tfx]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kubeflow")
    config = LoopConfig(
        csv_directory="gs://bucket/trips",
        serving_directory="gs://bucket/serving",
        training={"label_feature": "label", "task": "binary"},
        task="binary",
        label_feature="label",
        sampling={"rate": 0.05, "slice_features": ["city"]},
    )
    compile_pipeline(config, "gs://bucket/root", "registry/ofb-tf:1", str(directory / "loop.json"))
    return directory


def test_kfp_loads_the_spec_and_training_is_conditioned_on_the_blessing(directory):
    component = components.load_component_from_file(str(directory / "loop.yaml"))
    tasks = component.pipeline_spec.root.dag.tasks
    assert len(tasks) == 11
    upstream = {name: set(task.dependent_tasks) for name, task in tasks.items()}
    assert upstream["OFBSampler"] == {"CsvExampleGen", "ForwardRecordGen"}
    assert upstream["SamplingValidator"] == {"OFBSampler"}
    assert {"OFBSampler", "BaseTrainer"} <= upstream["ContinuedTrainer"]
    for name in ("ContinuedTrainer", "ModelComparison", "Pusher"):
        assert "blessed" in tasks[name].trigger_policy.condition
    assert not tasks["OFBSampler"].trigger_policy.condition


def test_parameters_and_image_are_in_the_spec(directory):
    job = json.loads((directory / "loop.json").read_text())
    spec = job["pipelineSpec"]
    parameters = spec["root"]["dag"]["tasks"]["OFBSampler"]["inputs"]["parameters"]
    assert parameters["rate"]["runtimeValue"]["constantValue"]["doubleValue"] == 0.05
    executors = spec["deploymentSpec"]["executors"]
    images = {executor["container"]["image"] for executor in executors.values()}
    assert images == {"registry/ofb-tf:1"}

"""Import paths that saved pipelines and compiled specs name, before and after the move."""

import pytest
from tfx.utils import import_utils, name_utils

from tfx_components.forward_record_gen import ForwardRecordGen
from tfx_components.ofb_sampler import OFBSampler
from tfx_components.pipelines import trainer
from tfx_components.pipelines.comparison import ModelComparison
from tfx_components.sampling_validator import SamplingValidator


@pytest.mark.parametrize(
    ("component", "module"),
    [
        (ForwardRecordGen, "forward_record_gen"),
        (OFBSampler, "ofb_sampler"),
        (SamplingValidator, "sampling_validator"),
        (ModelComparison, "model_comparison"),
    ],
)
def test_executors(component, module):
    executor = component.EXECUTOR_SPEC.executor_class
    name = f"tfx_components.{module}.{component.__name__}_Executor"
    assert import_utils.import_class_by_path(name) is executor
    assert import_utils.import_class_by_path(name_utils.get_full_name(executor)) is executor


def test_run_fn():
    found = import_utils.import_func_from_module("tfx_components.trainer_module", "run_fn")
    assert found is trainer.run_fn

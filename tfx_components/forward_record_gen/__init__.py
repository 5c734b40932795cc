"""ForwardRecordGen: what serving left behind → an `ofb.ForwardRecords` artifact."""

from tfx_components.forward_record_gen import component
from tfx_components.forward_record_gen.component import ForwardRecordGen

# Compiled Kubeflow specs name the executor's class, which TFX makes, by this module.
ForwardRecordGen_Executor = component.ForwardRecordGen_Executor  # type: ignore[attr-defined]

__all__ = ["ForwardRecordGen", "ForwardRecordGen_Executor"]

"""ForwardRecordGen: what serving left behind → an `ofb.ForwardRecords` artifact."""

# Compiled Kubeflow specs name executor classes by this module.
from tfx_components.forward_record_gen.component import ForwardRecordGen, ForwardRecordGen_Executor

__all__ = ["ForwardRecordGen", "ForwardRecordGen_Executor"]

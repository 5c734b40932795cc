"""ForwardRecordGen: what serving left behind → an `ofb.ForwardRecords` artifact."""

# TFX's decorator makes the executor; compiled Kubeflow specs name it by this module.
from tfx_components.forward_record_gen.component import (  # type: ignore[attr-defined]
    ForwardRecordGen,
    ForwardRecordGen_Executor,
)

__all__ = ["ForwardRecordGen", "ForwardRecordGen_Executor"]

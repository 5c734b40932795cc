"""OFBSampler: examples and forward records → about one example in ten, with weights."""

# TFX's decorator makes the executor; compiled Kubeflow specs name it by this module.
from tfx_components.ofb_sampler.component import (  # type: ignore[attr-defined]
    OFBSampler,
    OFBSampler_Executor,
)

__all__ = ["OFBSampler", "OFBSampler_Executor"]

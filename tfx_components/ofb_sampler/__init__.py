"""OFBSampler: examples and forward records → about one example in ten, with weights."""

from tfx_components.ofb_sampler import component
from tfx_components.ofb_sampler.component import OFBSampler

# Compiled Kubeflow specs name the executor's class, which TFX makes, by this module.
OFBSampler_Executor = component.OFBSampler_Executor  # type: ignore[attr-defined]

__all__ = ["OFBSampler", "OFBSampler_Executor"]

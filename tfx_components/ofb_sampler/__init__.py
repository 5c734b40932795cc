"""OFBSampler: examples and forward records → about one example in ten, with weights."""

# Compiled Kubeflow specs name executor classes by this module.
from tfx_components.ofb_sampler.component import OFBSampler, OFBSampler_Executor

__all__ = ["OFBSampler", "OFBSampler_Executor"]

"""SamplingValidator: may this sample be trained on?"""

from tfx_components.sampling_validator import component
from tfx_components.sampling_validator.component import SamplingValidator

# Compiled Kubeflow specs name the executor's class, which TFX makes, by this module.
SamplingValidator_Executor = component.SamplingValidator_Executor  # type: ignore[attr-defined]

__all__ = ["SamplingValidator", "SamplingValidator_Executor"]

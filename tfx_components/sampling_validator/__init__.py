"""SamplingValidator: may this sample be trained on?"""

# Compiled Kubeflow specs name executor classes by this module.
from tfx_components.sampling_validator.component import (
    SamplingValidator,
    SamplingValidator_Executor,
)

__all__ = ["SamplingValidator", "SamplingValidator_Executor"]

"""SamplingValidator: may this sample be trained on?"""

# TFX's decorator makes the executor; compiled Kubeflow specs name it by this module.
from tfx_components.sampling_validator.component import (  # type: ignore[attr-defined]
    SamplingValidator,
    SamplingValidator_Executor,
)

__all__ = ["SamplingValidator", "SamplingValidator_Executor"]

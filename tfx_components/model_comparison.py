"""Compiled specs name the executor by this path; see `tfx_components.pipelines.comparison`."""

from tfx_components.pipelines.comparison import (  # type: ignore[attr-defined]
    ModelComparison,
    ModelComparison_Executor,
)

__all__ = ["ModelComparison", "ModelComparison_Executor"]

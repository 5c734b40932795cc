"""Compiled specs name the executor by this path; see `tfx_components.pipelines.comparison`."""

from tfx_components.pipelines.comparison import ModelComparison, ModelComparison_Executor

__all__ = ["ModelComparison", "ModelComparison_Executor"]

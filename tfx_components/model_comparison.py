"""Compiled specs name the executor by this path; see `tfx_components.pipelines.comparison`."""

from tfx_components.pipelines import comparison

ModelComparison = comparison.ModelComparison
ModelComparison_Executor = comparison.ModelComparison_Executor  # type: ignore[attr-defined]

"""Saved pipelines name `run_fn` by this path; the module is `tfx_components.pipelines.trainer`."""

from tfx_components.pipelines.trainer import TrainingConfig, run_fn

__all__ = ["TrainingConfig", "run_fn"]

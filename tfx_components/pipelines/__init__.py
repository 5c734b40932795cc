"""Pipelines that put the components together: local, and Kubeflow Pipelines v2."""

"""Simulations that compare the policies, also on your own stream: `ofb demo`, `ofb compare`."""

from ofb_tf.experiments.workload import ArrayWorkload, Workload

__all__ = ["ArrayWorkload", "Workload"]

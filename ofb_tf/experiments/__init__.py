"""The streaming simulation: serve → record → join → sample → train → measure, and its report."""

from ofb_tf.experiments.config import EVERYTHING, SimulationConfig
from ofb_tf.experiments.run import run_experiment

__all__ = ["EVERYTHING", "SimulationConfig", "run_experiment"]

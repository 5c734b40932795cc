"""The streaming simulation: serve → record → join → sample → train → measure, and its report."""

from ofb_tf.experiments.config import EVERYTHING, SimulationConfig
from ofb_tf.experiments.results import format_table, reading
from ofb_tf.experiments.runner import run_experiment, write_results

__all__ = [
    "EVERYTHING",
    "SimulationConfig",
    "format_table",
    "reading",
    "run_experiment",
    "write_results",
]

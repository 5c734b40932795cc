"""A training loop that goes on: does it keep its memory and its speed over many refreshes?"""

import tempfile

import numpy as np

from benchmarks import inputs
from benchmarks.clock import timed
from benchmarks.parts import Part, Row, Run, Settings, of
from ofb_tf import constants
from ofb_tf.experiments import config as configs
from ofb_tf.experiments import paths, workloads
from ofb_tf.records import ForwardRecordWriter

_REFRESHES, _EDGE, _EXAMPLES = 200, 10, 5120


def _loop(settings: Settings) -> Run:
    """New records into the pipeline, and training on what it selects, in one process.

    Serving, which is another process, leaves the files; here the model in training writes them.
    """
    number = max(settings.count(_REFRESHES), 2 * _EDGE)
    config = configs.SimulationConfig(num_examples=number * _EXAMPLES, test_examples=1000)
    workload = workloads.get_workload(config, 0)
    path = paths.ThroughFiles(config, configs.IMPORTANCE, 0, workload)

    def refresh(interval: int) -> tuple[float, int]:
        """CPU seconds of a refresh with its training, and the resident bytes after it."""
        examples = workload.examples(interval * _EXAMPLES, _EXAMPLES)
        with tempfile.TemporaryDirectory() as path.records:
            with ForwardRecordWriter(path.records) as writer:
                writer.write(examples[constants.EXAMPLE_ID], path.compiled.outputs(examples))
            figures, _ = timed(lambda: (path.refresh(0, examples), path.train()))
        return figures["cpu_seconds"], inputs.resident_bytes()

    def run() -> dict[str, float]:
        refresh(0)  # traces
        seconds, resident = np.transpose([refresh(interval) for interval in range(number)])
        return {
            "items": number,
            "time_ratio": float(np.median(seconds[-_EDGE:]) / np.median(seconds[:_EDGE])),
            "memory_ratio": float(np.median(resident[-_EDGE:]) / np.median(resident[:_EDGE])),
            "last_seconds": float(np.median(seconds[-_EDGE:])),
            "last_mebibytes": float(np.median(resident[-_EDGE:])) / 2**20,
        }

    return run


_PEER = "ofb_sample and fit"

PARTS = (
    Part(
        name="loop",
        title=f"{_REFRESHES} refreshes in one process, each with {_EXAMPLES:,} examples",
        item="refresh",
        repeats=1,
        peers={_PEER: _loop},
        rows=(
            Row(
                f"loop: CPU time of the last {_EDGE} of {_REFRESHES} refreshes over the first",
                of(_PEER, "time_ratio"),
                at_most=1.2,
            ),
            Row("loop: resident memory, the same", of(_PEER, "memory_ratio"), at_most=1.1),
            Row("loop: CPU seconds of a refresh with training", of(_PEER, "last_seconds")),
        ),
    ),
)

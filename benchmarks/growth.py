"""How the cost of a selection grows with the window and with the number of outputs."""

import numpy as np
import tensorflow as tf

from benchmarks import inputs
from benchmarks.parts import Curve, Part, Run, Settings

_WINDOWS = (256, 1024, 4096, 16_384, 65_536)
_OUTPUTS = (1, 10, 1000)


def _examples(count: int, num_outputs: int) -> tf.data.Dataset:
    """Windows of examples with logits only, so that little but selection is measured."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal([count, num_outputs], np.float32)
    return tf.data.Dataset.from_tensor_slices(
        {
            "example_id": np.arange(count),
            "label": rng.integers(max(num_outputs, 2), size=count),
            "logits": logits,
        }
    )


def _microseconds(count: int, num_outputs: int, window: int) -> float:
    """CPU time per example of selecting from windows that are cached in memory."""
    windows = _examples(count, num_outputs).batch(window).cache()
    inputs.consume(windows)
    sample = inputs.sample(window_size=window, batched_input=True)
    figures = inputs.steady(lambda times: windows.repeat(times).apply(sample), count, 3)
    return figures["cpu_seconds"] / figures["items"] * 1e6


def _build(settings: Settings) -> Run:
    def run() -> dict[str, float]:
        figures = {}
        count = settings.count(262_144)
        for window in _WINDOWS:
            figures[f"curve_window_{window}"] = _microseconds(count, 1, window)
        for outputs in _OUTPUTS:
            number = settings.count(65_536 if outputs < 1000 else 20_480)
            figures[f"curve_outputs_{outputs}"] = _microseconds(number, outputs, inputs.WINDOW)
        return {"items": 1} | figures

    return run


PARTS = (
    Part(
        name="growth",
        title="Growth of a selection with the window and the number of outputs",
        item="series",
        repeats=1,
        peers={"ofb_sample": _build},
        curves=(
            Curve("curve_window_", "window", "CPU µs per example"),
            Curve("curve_outputs_", "outputs", "CPU µs per example"),
        ),
    ),
)

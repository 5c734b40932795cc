"""README's code runs exactly as printed."""

import pathlib
import re

import keras
import numpy as np
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[1]


def test_the_example_runs_as_printed(tmp_path, monkeypatch):
    """What the text leaves to the reader (ids, logits, examples, layers) is given here."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    rng, n = np.random.default_rng(0), 8192
    example_ids, logits = np.arange(n), rng.normal(size=n).astype(np.float32)
    inputs = keras.Input((4,), name="x")
    fields = {
        "example_id": example_ids,
        "label": rng.integers(0, 2, n),
        "x": rng.normal(size=(n, 4)).astype(np.float32),
    }
    given = {
        "keras": keras,
        "example_ids": example_ids,
        "logits": logits,
        "examples": tf.data.Dataset.from_tensor_slices(fields),
        "inputs": inputs,
        "outputs": keras.layers.Dense(1)(inputs),
    }
    exec(code, given)  # noqa: S102
    batches = list(given["train"])
    sizes = {409, 410}  # a tenth of a window of 4096, rounded by chance to one of these
    assert sum(len(batch["label"]) for batch in batches) in {a + b for a in sizes for b in sizes}
    assert np.isfinite(given["model"].history.history["loss"]).all()

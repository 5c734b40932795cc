"""What a training step costs with weights, and with selection inside the step."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks.parts import Part, Row, Run, Settings, of, ratio

BATCH = 256
LARGE_BATCH = 1024
RATE = 0.1


def _network(cls: type, **settings: object) -> keras.Model:
    """A small convolutional network for images as MNIST's."""
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1), name="image")
    hidden = image
    for filters in (16, 32):
        hidden = keras.layers.Conv2D(filters, 3, activation="relu")(hidden)
        hidden = keras.layers.MaxPooling2D()(hidden)
    hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(hidden))
    model = cls(image, keras.layers.Dense(10)(hidden), **settings)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def _batch(size: int, weighted: bool) -> tuple[tf.Tensor, ...]:
    random = np.random.default_rng(0)
    images = random.uniform(size=(size, 28, 28, 1)).astype(np.float32)
    labels = random.integers(0, 10, size)
    weights = random.uniform(0.2, 5.0, size).astype(np.float32)
    parts = (images, labels, weights) if weighted else (images, labels)
    return tuple(tf.constant(part) for part in parts)


def _peer(
    cls: type, size: int, steps: int, weighted: bool = False, **model_settings: object
) -> Callable[[Settings], Run]:
    """Steps of `fit`, after a first fit that traces the step."""

    def build(settings: Settings) -> Run:
        model = _network(cls, **model_settings)
        number = max(settings.count(steps), 3)
        dataset = tf.data.Dataset.from_tensors(_batch(size, weighted)).repeat(number)

        def run() -> int:
            model.fit(dataset, shuffle=False, verbose=0)
            return number

        run()
        return run

    return build


_STOCK, _OURS = "keras.Model, sample_weight", "OFBModel, importance weights"
_EVERYTHING, _SELECTED = "keras.Model on everything", "OFBModel(backward_rate=0.1)"

PARTS = (
    Part(
        name="train-step",
        title=f"A training step on selected batches of {BATCH} (convolutional network, 28×28)",
        item="step",
        peers={
            _STOCK: _peer(keras.Model, BATCH, 60, weighted=True),
            _OURS: _peer(ofb_tf.OFBModel, BATCH, 60, weighted=True),
        },
        rows=(
            Row(
                "step of OFBModel against keras.Model with sample_weight, CPU time",
                ratio("cpu_us", _OURS, _STOCK),
                at_most=1.03,
            ),
            Row("step of OFBModel, CPU µs", of(_OURS, "cpu_us")),
        ),
        repeats=5,
    ),
    Part(
        name="backward-rate",
        title=f"Ten forward, one backward, on batches of {LARGE_BATCH} (the same network)",
        item="large batch",
        peers={
            _EVERYTHING: _peer(keras.Model, LARGE_BATCH, 12),
            _SELECTED: _peer(ofb_tf.OFBModel, LARGE_BATCH, 12, backward_rate=RATE),
        },
        rows=(
            Row(
                "ten forward, one backward against training on everything, CPU time (×)",
                ratio("cpu_us", _EVERYTHING, _SELECTED),
                at_least=1.8,
            ),
            Row(
                "the same, wall-clock (×)",
                ratio("wall_us", _EVERYTHING, _SELECTED),
            ),
        ),
    ),
)

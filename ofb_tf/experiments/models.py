"""The models of the workloads: small ones, for hundreds of trials, and deep ones, worth the name.

Of a deep model, training is most of the cost, as it is in the systems that selection is made for.
"""

from collections.abc import Sequence

import keras
import numpy as np

from ofb_tf.datasets import VOCABULARY_SIZES
from ofb_tf.datasets.click_stream import CATEGORICAL, DENSE

_TOP = (1024, 512, 256)
_CROSS_LAYERS, _CROSS_RANK = 3, 128


def click_inputs() -> dict[str, keras.KerasTensor]:
    """Inputs for the features of the click stream, named after fields."""
    return {
        DENSE: keras.Input((13,), name=DENSE),
        CATEGORICAL: keras.Input((26,), name=CATEGORICAL, dtype="int64"),
    }


def linear_click(inputs: dict[str, keras.KerasTensor]) -> keras.KerasTensor:
    """A weight for each value of a categorical field, and logarithms of the dense ones.

    With a dense layer of one unit on top, this is logistic regression.
    """
    weights = embeddings(inputs[CATEGORICAL], VOCABULARY_SIZES, 1)
    parts = [keras.layers.Flatten()(weights), keras.ops.log(inputs[DENSE])]
    return keras.layers.Concatenate()(parts)


def small_click(inputs: dict[str, keras.KerasTensor]) -> keras.KerasTensor:
    """Embeddings of the categorical fields and logarithms of the dense ones, into an MLP."""
    parts = [
        keras.layers.Flatten()(embeddings(inputs[CATEGORICAL], VOCABULARY_SIZES, 8)),
        keras.ops.log(inputs[DENSE]),
    ]
    return mlp(keras.layers.Concatenate()(parts), (64, 32))


def deep_click(inputs: dict[str, keras.KerasTensor]) -> keras.KerasTensor:
    """DCN-v2, stacked, in the proportions of DLRM-DCNv2: 2.1 million parameters, 1.4 in layers.

    A bottom MLP makes one more embedding of the dense fields; low-rank cross layers
    `x = x0 * (V U x + b) + x` and a wide MLP follow.

    Reference: Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for
    Web-scale Learning to Rank Systems", WWW 2021.
    """
    size, dense = 16, keras.ops.log(inputs[DENSE])
    parts = [
        keras.layers.Flatten()(embeddings(inputs[CATEGORICAL], VOCABULARY_SIZES, size)),
        mlp(dense, (64, size), "bottom"),
        dense,
    ]
    first = crossed = keras.layers.Concatenate()(parts)
    for number in range(_CROSS_LAYERS):
        down = keras.layers.Dense(_CROSS_RANK, use_bias=False, name=f"cross_down_{number}")
        up = keras.layers.Dense(first.shape[-1], name=f"cross_up_{number}")
        crossed = first * up(down(crossed)) + crossed
    return mlp(crossed)


def mlp(
    hidden: keras.KerasTensor, units: tuple[int, ...] = _TOP, name: str = "hidden"
) -> keras.KerasTensor:
    """Dense layers with ReLU, called `name` because Keras's own "dense" is the name of a field."""
    for number, width in enumerate(units, 1):
        hidden = keras.layers.Dense(width, activation="relu", name=f"{name}_{number}")(hidden)
    return hidden


def mlp_of(model: str, features: keras.KerasTensor, units: tuple[int, ...]) -> keras.KerasTensor:
    """Hidden layers over flat features: none if linear, `units` if small, wide ones if deep."""
    return mlp(features, {"linear": (), "small": units, "deep": _TOP}[model])


def convolutions(
    image: keras.KerasTensor, filters: tuple[int, ...] = (32, 64)
) -> keras.KerasTensor:
    """Convolutions of 3 × 3 with pooling, and a dense layer, for images `[n, h, w, channels]`."""
    for number in filters:
        image = keras.layers.Conv2D(number, 3, activation="relu")(image)
        image = keras.layers.MaxPooling2D()(image)
    return mlp(keras.layers.Flatten()(image), (64,))


CLICK = {"linear": linear_click, "small": small_click, "deep": deep_click}


def embeddings(
    categorical: keras.KerasTensor, vocabulary_sizes: Sequence[int], size: int
) -> keras.KerasTensor:
    """`[n, columns, size]` of int64 `[n, columns]`, from one table for all columns."""
    offsets = np.concatenate([[0], np.cumsum(vocabulary_sizes)[:-1]]).astype(np.int64)
    return keras.layers.Embedding(sum(vocabulary_sizes), size)(categorical + offsets)

"""`AddLogInclusion`: the offsets of `ofb_sample(estimator="log_odds")` in a model's outputs."""

from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants


@keras.saving.register_keras_serializable(package="ofb_tf")
class AddLogInclusion(keras.layers.Layer):
    """Adds `log_inclusion` to a classifier's outputs in training alone.

    `OFBModel` does this by itself, in its loss. With a stock `keras.Model`, train a model that
    ends in this layer; the model below it shares its weights, and is what is served:

    ```python
    import keras

    import ofb_tf
    from ofb_tf.testing import tiny_dataset

    feature = keras.Input((2,), name="feature")
    served = keras.Model(feature, keras.layers.Dense(1)(feature))
    offset = keras.Input((1,), name="log_inclusion")
    corrected = ofb_tf.AddLogInclusion()(served.output, offset)
    trained = keras.Model({"feature": feature, "log_inclusion": offset}, corrected)
    trained.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))

    sampler = ofb_tf.ofb_sample(estimator="log_odds", window_size=240, batch_size=24, seed=17)
    train = tiny_dataset(960).map(lambda x: (x, x["label"])).apply(sampler)
    inputs = ("feature", "log_inclusion")
    trained.fit(train.map(lambda x, y: ({name: x[name] for name in inputs}, y)), verbose=0)
    ```

    Args:
      from_logits: whether outputs are logits; otherwise they are probabilities, of which the
        corrected ones come out.
      **kwargs: as for `keras.layers.Layer`.
    """

    def __init__(self, *, from_logits: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def call(self, outputs: Any, log_inclusion: Any, training: bool | None = None) -> Any:
        """The outputs with the offsets, in training; otherwise the outputs.

        Args:
          outputs: floating `[n, num_classes]`; `[n, 1]` or `[n]` for binary.
          log_inclusion: float32 `[n, num_classes]`; `[n, 1]` for binary.
          training: whether to add.

        Returns:
          As `outputs`.
        """
        if not training:
            return outputs
        return add_log_inclusion(outputs, log_inclusion, from_logits=self.from_logits)

    def compute_output_spec(self, outputs: Any, log_inclusion: Any, training: Any = None) -> Any:
        """Shape and dtype of the outputs."""
        del log_inclusion, training
        return keras.KerasTensor(outputs.shape, outputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "from_logits": self.from_logits}


def add_log_inclusion(
    outputs: tf.Tensor, log_inclusion: tf.Tensor, *, from_logits: bool
) -> tf.Tensor:
    """Outputs of a model of the selected, from those of a model of the stream.

    Args:
      outputs: floating: logits, or probabilities that sum to 1, `[n, num_classes]`; one of label 1
        for binary, `[n, 1]` or `[n]`.
      log_inclusion: floating `[n, num_classes]`; `[n, 1]` for binary.
      from_logits: whether outputs are logits.

    Returns:
      As `outputs`.

    Raises:
      ValueError: the two do not fit.
    """
    if not tf.is_tensor(outputs):
        raise ValueError(
            f"{constants.LOG_INCLUSION!r} is for a model with one output. Received: "
            f"{type(outputs).__name__}. Sample with estimator='weights'."
        )
    width = 1 if outputs.shape.rank == 1 else outputs.shape[-1]
    if outputs.shape.rank not in (1, 2) or log_inclusion.shape[1:] != (width,):
        raise ValueError(
            f"{constants.LOG_INCLUSION!r} must be [n, {width}] for outputs {outputs.shape}. "
            f"Received: {log_inclusion.shape}. Train a model with the outputs of the one that "
            "served (with policy='uniform', set num_outputs), or sample with estimator='weights'."
        )
    offsets = tf.cast(log_inclusion, outputs.dtype)
    if outputs.shape.rank == 1:
        offsets = tf.squeeze(offsets, axis=-1)
    if from_logits:
        return outputs + offsets
    # In terms of probabilities: no logarithm, which would be infinite where one is 0.
    if width == 1:
        positive = outputs * tf.exp(offsets)
        return positive / (positive + (1.0 - outputs))
    unscaled = outputs * tf.exp(offsets)
    return unscaled / tf.reduce_sum(unscaled, axis=-1, keepdims=True)

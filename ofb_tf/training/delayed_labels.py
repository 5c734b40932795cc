"""Training on examples that leave as negatives before their labels can have come."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="ofb_tf")
class FakeNegativeWeighted(keras.losses.Loss):
    """Binary cross-entropy that undoes the bias of early negatives.

    Where every example leaves as a negative at once and again as a positive when its label comes
    (`ofb_tf.streaming.DelayedLabels(early_negatives=True)`), positives are also among the
    negatives. With p the model's own probability, not differentiated, a positive counts 1 + p and
    a negative (1 - p)(1 + p) times; the gradient is then zero in expectation exactly where p is
    the probability of a positive. Importance weights multiply this as any sample weight does.

    ```python
    import keras
    import numpy as np

    import ofb_tf

    loss = ofb_tf.FakeNegativeWeighted()
    halves = np.zeros([2, 1], np.float32)  # p = 1/2
    assert abs(float(loss([[0], [1]], halves)) - np.log(2) * (0.75 + 1.5) / 2) < 1e-6
    ```

    Args:
      from_logits: whether predictions are logits rather than probabilities.
      reduction: as for every Keras loss.
      name: of the loss.
      dtype: as for every Keras loss.

    Reference: Ktena et al., "Addressing Delayed Feedback for Continuous Training with Neural
    Networks in CTR prediction", RecSys 2019, section 4.3 (FNW).
    """

    def __init__(
        self,
        from_logits: bool = True,
        reduction: str = "sum_over_batch_size",
        name: str = "fake_negative_weighted",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Losses `[n]` of labels 0 or 1, `[n]` or `[n, 1]`, and predictions, `[n, 1]` or `[n]`."""
        y_true = keras.ops.reshape(keras.ops.cast(y_true, y_pred.dtype), keras.ops.shape(y_pred))
        p = keras.ops.sigmoid(y_pred) if self.from_logits else y_pred
        p = keras.ops.stop_gradient(p)
        losses = keras.ops.binary_crossentropy(y_true, y_pred, from_logits=self.from_logits)
        losses = losses * (y_true + (1.0 - y_true) * (1.0 - p)) * (1.0 + p)
        return keras.ops.mean(losses, axis=-1) if len(losses.shape) > 1 else losses

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return super().get_config() | {"from_logits": self.from_logits}

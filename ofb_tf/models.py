"""`OFBModel`: a `keras.Model` that trains on what `ofb_sample` emits."""

import warnings
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import metrics, types

# The class that keras.Model(inputs, outputs) gives; Keras exports it under no other name.
_Functional = type(keras.Model(_input := keras.Input((1,)), _input))


def _is_functional_call(args: tuple, kwargs: dict) -> bool:
    """Whether arguments are those of `keras.Model(inputs, outputs)`."""
    return (
        len(args) >= 2
        or (len(args) == 1 and "outputs" in kwargs)
        or {
            "inputs",
            "outputs",
        }
        <= set(kwargs)
    )


@keras.saving.register_keras_serializable(package="ofb_tf")
class OFBModel(keras.Model):
    """A `keras.Model` that applies importance weights, once, as Keras sample weights.

    Built as a `keras.Model` is: `OFBModel(inputs, outputs)` or by subclassing with `call`.
    `fit`, `evaluate`, `predict` and the `*_on_batch` methods take what `ofb_sample` emits:

    - `(x, y)`, `(x, y, weight)`: as Keras takes them.
    - dicts with the label under `label_key` and, where selected, `importance_weight`. A model
      with named inputs takes the fields of those names; a subclassed model takes all fields
      but label, weight, example id and record fields.

    With Keras's default reduction the loss of a batch of b is `(1/b) Σ w_i ℓ_i`: Keras divides by
    the number of examples, not by the sum of weights. That is the Horvitz-Thompson estimate that
    the weights are made for, unbiased for the window's mean loss. With every weight 1 the model
    trains bit for bit as `keras.Model`.

    `fit` reports `effective_sample_size`, `mean_weight` and `max_weight` of the epoch
    (see `ofb_tf.metrics.ImportanceWeightStatistics`). `ofb_sample` never emits a non-finite
    weight; one that comes from elsewhere makes these figures and the loss NaN, so that it shows.

    Args:
      *args: as of `keras.Model`.
      label_key: field of the label in dict elements.
      **kwargs: as of `keras.Model`.
    """

    def __new__(cls, *args, **kwargs):
        if cls is OFBModel and _is_functional_call(args, kwargs):
            return super().__new__(FunctionalOFBModel)
        return super().__new__(cls)

    def __init__(self, *args, label_key: str = types.LABEL, **kwargs):
        if not isinstance(label_key, str) or not label_key:
            raise ValueError(f"label_key must be a non-empty string. Received: {label_key!r}")
        if _is_functional_call(args, kwargs) and not isinstance(self, _Functional):
            _rebase(type(self))
        super().__init__(*args, **kwargs)
        self.label_key = label_key
        self.importance_weight_statistics = metrics.ImportanceWeightStatistics()
        self._testing = False

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras's metrics; those of the weights describe training and are left out of tests."""
        found = super().metrics
        if getattr(self, "_testing", False):
            return [m for m in found if m is not self.importance_weight_statistics]
        return found

    def unpack(self, data: Any) -> tuple[Any, Any, tf.Tensor | None]:
        """Splits one batch into inputs, labels and weights.

        Args:
          data: a dict with `label_key`, or a tuple `(x,)`, `(x, y)`, `(x, y, weight)`, or a tuple
            whose only entry is such a dict.

        Returns:
          `(x, y, weight)` as Keras takes them; what is absent is None.

        Raises:
          ValueError: an input that the model names is not among the fields.
        """
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(x, dict):
            return x, y, weight
        fields = dict(x)
        if y is None:
            y = fields.pop(self.label_key, None)
        importance = fields.pop(types.IMPORTANCE_WEIGHT, None)
        if importance is not None:
            weight = importance if weight is None else weight * tf.cast(importance, weight.dtype)
        return self._select_inputs(fields), y, weight

    def _select_inputs(self, fields: dict[str, Any]) -> Any:
        """The fields that the model reads, in the structure that it was built with."""
        if not isinstance(self, _Functional):
            unused = metrics.RECORD_FIELDS | {types.EXAMPLE_ID}
            return {name: value for name, value in fields.items() if name not in unused}
        names = [tensor.name for tensor in self.inputs]
        if isinstance(self.input, dict):
            names = list(self.input)
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(
                f"OFBModel: inputs {missing} are not among the element's fields "
                f"{sorted(fields)}. Name each keras.Input(..., name=) after its field, "
                "or map the dataset to (x, y, weight)."
            )
        if isinstance(self.input, dict):
            return {name: fields[name] for name in names}
        values = [fields[name] for name in names]
        return values if len(values) > 1 else values[0]

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of `keras.Model` on the unpacked batch, with the weights counted."""
        x, y, weight = self.unpack(data)
        counted = weight
        if weight is None:
            counted = tf.ones([tf.shape(keras.tree.flatten(x)[0])[0]])
        self.importance_weight_statistics.update_state(counted)
        return super().train_step((x, y, weight))

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """`keras.Model.test_step` on the unpacked batch."""
        outside, self._testing = self._testing, True
        try:
            return super().test_step(self.unpack(data))
        finally:
            self._testing = outside

    def predict_step(self, data: Any) -> Any:
        """`keras.Model.predict_step` on the inputs among the fields."""
        return super().predict_step((self.unpack(data)[0],))

    def fit(self, x=None, y=None, **kwargs) -> keras.callbacks.History:
        """As `keras.Model.fit`; a dataset of dicts may come with `class_weight`."""
        self._check_reduction()
        if isinstance(x, tf.data.Dataset):
            x = self._as_tuples(x, kwargs.pop("class_weight", None))
        validation = self._as_tuples(kwargs.pop("validation_data", None))
        return super().fit(x, y, validation_data=validation, **kwargs)

    def evaluate(self, x=None, y=None, **kwargs) -> Any:
        """As `keras.Model.evaluate`."""
        outside, self._testing = self._testing, True
        try:
            return super().evaluate(self._as_tuples(x), y, **kwargs)
        finally:
            self._testing = outside

    def predict(self, x, **kwargs) -> Any:
        """As `keras.Model.predict`; a dataset of dicts may carry labels, weights and ids."""
        if isinstance(x, dict):
            x = self.unpack(x)[0]
        return super().predict(self._as_tuples(x), **kwargs)

    def _check_reduction(self) -> None:
        """Warns of a loss that divides by the sum of weights."""
        for loss in keras.tree.flatten(getattr(self, "loss", None)):
            if getattr(loss, "reduction", None) == "mean_with_sample_weight":
                warnings.warn(
                    "OFBModel: the loss has reduction='mean_with_sample_weight', which divides by "
                    "the sum of weights: the gradient is then biased. Use the default, "
                    "'sum_over_batch_size'.",
                    stacklevel=3,
                )

    def _as_tuples(self, data: Any, class_weight: dict[int, float] | None = None) -> Any:
        """Maps a dataset of dicts to `(x, y, weight)`, which all of Keras understands.

        Class weights are multiplied in here, because Keras refuses them beside sample weights.
        """
        if not isinstance(data, tf.data.Dataset):
            return data
        if class_weight is None and not isinstance(data.element_spec, dict):
            return data
        table = None if class_weight is None else _class_weight_table(class_weight)

        @tf.autograph.experimental.do_not_convert
        def unpack(*element):
            x, y, weight = self.unpack(element if len(element) > 1 else element[0])
            if table is not None:
                factor = _class_weights(table, y)
                weight = factor if weight is None else factor * tf.cast(weight, factor.dtype)
            return tuple(part for part in (x, y, weight) if part is not None)

        return data.map(unpack, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


@keras.saving.register_keras_serializable(package="ofb_tf")
class FunctionalOFBModel(OFBModel, _Functional):
    """What `OFBModel(inputs, outputs)` gives: an `OFBModel` that is a Keras functional model."""

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs, outputs, name=name, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The functional model's configuration and `label_key`."""
        return {**super().get_config(), "label_key": self.label_key}


def _rebase(cls: type) -> None:
    """Makes a user's subclass functional without touching `OFBModel` itself.

    Keras would replace `keras.Model` among the bases of `OFBModel`, for every other subclass too.
    """
    cls.__bases__ = tuple(
        FunctionalOFBModel if base is OFBModel else base for base in cls.__bases__
    )


def _class_weight_table(class_weight: dict[int, float]) -> tf.Tensor:
    """A vector of weights from `class_weight`; a class without an entry gets 1, as in Keras."""
    table = [1.0] * (max(class_weight) + 1)
    for index, value in class_weight.items():
        table[index] = float(value)
    return tf.constant(table)


def _class_weights(table: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Weights `[n]` of integer labels `[n]` or `[n, 1]`, or one-hot labels `[n, k]`."""
    if labels.shape.rank == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else tf.argmax(labels, 1)
    labels = tf.cast(labels, tf.int64)
    inside = labels < tf.size(table, tf.int64)
    return tf.where(inside, tf.gather(table, tf.where(inside, labels, 0)), 1.0)

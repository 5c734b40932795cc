"""A `keras.Model` that takes batches as dicts: it finds inputs, label and weight by name."""

from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.training import class_weights

# The class that keras.Model(inputs, outputs) gives; Keras exports it under no other name.
Functional: Any = type(keras.Model(_input := keras.Input((1,)), _input))
NO_INPUT = frozenset({*constants.RECORD_FIELDS, constants.EXAMPLE_ID, "uniform_holdout"})


class FieldsModel(keras.Model):
    """What `OFBModel` knows of elements; weights and selection are `OFBModel`'s own.

    Attributes:
      label_key: field of the label in dict elements.
    """

    label_key: str = constants.LABEL
    _testing = False

    def unpack(self, data: Any) -> tuple[Any, Any, tf.Tensor | None]:
        """Splits one batch into inputs, labels and weights.

        Args:
          data: a dict with `label_key`, or a tuple `(x,)`, `(x, y)`, `(x, y, weight)`, or a tuple
            whose first entry is such a dict.

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
        importance = fields.pop(constants.IMPORTANCE_WEIGHT, None)
        if importance is not None:
            weight = importance if weight is None else weight * tf.cast(importance, weight.dtype)
        return self._select_inputs(fields), y, weight

    def _select_inputs(self, fields: dict[str, Any]) -> Any:
        """The fields that the model reads, in the structure that it was built with."""
        if not isinstance(self, Functional):
            return {name: value for name, value in fields.items() if name not in NO_INPUT}
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

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """`keras.Model.test_step` on the unpacked batch.

        Args:
          data: one batch, as for `unpack`.

        Returns:
          The metrics' results by name, without those of the weights.
        """
        outside, self._testing = self._testing, True
        try:
            return super().test_step(self.unpack(data))
        finally:
            self._testing = outside

    def predict_step(self, data: Any) -> Any:
        """`keras.Model.predict_step` on the inputs among the fields.

        Args:
          data: one batch, as for `unpack`; label and weight are not looked at.

        Returns:
          The model's outputs.
        """
        return super().predict_step((self.unpack(data)[0],))

    def evaluate(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; weights that come with the data are applied.

        Args:
          x: a dataset as for `fit`, or as of `keras.Model.evaluate`.
          y: as of `keras.Model.evaluate`.
          **kwargs: as of `keras.Model.evaluate`.

        Returns:
          As of `keras.Model.evaluate`, without the figures of the weights.
        """
        outside, self._testing = self._testing, True
        try:
            return super().evaluate(self._as_tuples(x), y, **kwargs)
        finally:
            self._testing = outside

    def predict(self, x: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`; a dataset of dicts may carry labels, weights and ids.

        Args:
          x: a dict of fields, a dataset, or as of `keras.Model.predict`.
          **kwargs: as of `keras.Model.predict`.

        Returns:
          The outputs as numpy arrays.
        """
        if isinstance(x, dict):
            x = self.unpack(x)[0]
        return super().predict(x, **kwargs)

    def _as_tuples(self, data: Any, class_weight: dict[int, float] | None = None) -> Any:
        """Maps a dataset of dicts to `(x, y, weight)` where Keras itself looks into elements.

        It does so for class weights, which are multiplied in here because Keras refuses them
        beside sample weights, and to build a model under a distribution strategy.
        """
        if not isinstance(data, tf.data.Dataset):
            return data
        is_distributed = self.distribute_strategy.num_replicas_in_sync > 1
        if class_weight is None and not (is_distributed and isinstance(data.element_spec, dict)):
            return data
        table = None if class_weight is None else class_weights.class_weight_table(class_weight)

        @tf.autograph.experimental.do_not_convert
        def unpack(*element: Any) -> tuple:
            x, y, weight = self.unpack(element if len(element) > 1 else element[0])
            if table is not None:
                factor = class_weights.class_weights_of(table, y)
                weight = factor if weight is None else factor * tf.cast(weight, factor.dtype)
            return tuple(part for part in (x, y, weight) if part is not None)

        return data.map(unpack, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

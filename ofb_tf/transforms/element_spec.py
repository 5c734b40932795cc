"""What an element of the stream looks like, and where its id, label and record fields are.

An element is a dict, `(x, y)`, `(x, y, sample_weight)` or a serialized tf.Example. Checks happen
when a transformation is applied to a dataset; messages name the field, what was expected and
what was received.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ofb_tf import constants

DatasetTransform = Callable[[tf.data.Dataset], tf.data.Dataset]
"""A function from a dataset to a dataset, for `tf.data.Dataset.apply`."""

ID_DTYPES = (tf.int64, tf.int32, tf.string)


@dataclasses.dataclass(frozen=True)
class ElementSpec:
    """Where things are in the elements of one dataset.

    Attributes:
      stage: the transformation's name, for errors.
      spec: the dataset's `element_spec`.
      id_key: the field with the id.
      label_key: the field with the label, for dicts and serialized tf.Examples.
      batched: whether elements are batches.
      feature_spec: how id and label are parsed from serialized tf.Examples, else None.
    """

    stage: str
    spec: Any
    id_key: str
    label_key: str = constants.LABEL
    batched: bool = False
    feature_spec: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not (self.serialized or isinstance(self.spec, dict) or self._is_tuple()):
            raise ValueError(
                f"{self.stage}: elements must be dicts, (x, y), (x, y, sample_weight) or "
                f"serialized tf.Examples (string scalars), got {self.spec}"
            )
        if any(isinstance(part, tf.SparseTensorSpec) for part in tf.nest.flatten(self.spec)):
            raise ValueError(
                f"{self.stage}: elements must hold dense or ragged tensors, got {self.spec}. "
                "Pass serialized tf.Examples with parse_fn, which may return sparse tensors."
            )

    @property
    def serialized(self) -> bool:
        """Whether elements are serialized tf.Examples."""
        return isinstance(self.spec, tf.TensorSpec) and self.spec.dtype == tf.string

    def _is_tuple(self) -> bool:
        return isinstance(self.spec, tuple) and len(self.spec) in (2, 3)

    def fields(self, element: Any) -> dict[str, Any]:
        """The dict that may hold the id and record fields; empty where there is none."""
        fields = element[0] if self._is_tuple() else element
        return fields if isinstance(fields, dict) else {}

    def with_fields(self, element: Any, fields: dict[str, Any]) -> Any:
        """The element with that dict replaced."""
        return (fields, *element[1:]) if self._is_tuple() else fields

    def keys(self, batch: Any) -> dict[str, tf.Tensor]:
        """The fields that selection looks at: id, label and record fields, as far as present."""
        if self.serialized:
            return tf.io.parse_example(batch, self.feature_spec)
        fields = self.fields(batch)
        wanted = {self.id_key, *constants.RECORD_FIELDS}
        if self._is_tuple():
            return {k: v for k, v in fields.items() if k in wanted} | {self.label_key: batch[1]}
        return {k: v for k, v in fields.items() if k in wanted | {self.label_key}}

    def keys_spec(self) -> dict[str, tf.TensorSpec]:
        """Specs of what `keys` returns, of single examples."""
        if self.serialized:
            parsed = self.feature_spec or {}
            return {k: tf.TensorSpec(v.shape, v.dtype) for k, v in parsed.items()}
        spec = self.keys(self.spec)
        if not self.batched:
            return spec
        for name, field in spec.items():
            if not field.shape.rank:
                raise ValueError(
                    f"{self.stage}: with batched_input=True {name!r} must have a leading batch "
                    f"dimension, got {field}. Batch the dataset, or leave batched_input out."
                )
        return {k: tf.TensorSpec(v.shape[1:], v.dtype) for k, v in spec.items()}

    def has_id(self) -> bool:
        """Whether elements carry the id field."""
        return self.id_key in self.keys_spec()

    def check_id(self) -> None:
        """Raises ValueError unless there is a scalar id of an id dtype."""
        keys = self.keys_spec()
        if self.id_key not in keys:
            raise ValueError(
                f"{self.stage}: field {self.id_key!r} is missing from the elements, which have "
                f"{sorted(self.fields(self.spec)) or self.spec}. Set id_key to the field that "
                "holds the example's id."
            )
        self._check_scalar(self.id_key, keys[self.id_key], ID_DTYPES)

    def check_label(self) -> None:
        """Raises ValueError unless there is a scalar numeric label."""
        keys = self.keys_spec()
        if self.label_key not in keys:
            raise ValueError(
                f"{self.stage}: field {self.label_key!r} is missing from the elements, which "
                f"have {sorted(self.fields(self.spec))}. Set label_key to the field with the label."
            )
        label = keys[self.label_key]
        if not isinstance(label, tf.TensorSpec):
            raise ValueError(
                f"{self.stage}: label {self.label_key!r} must be one scalar tensor, got {label}"
            )
        self._check_scalar(self.label_key, label, None)

    def _check_scalar(self, name: str, spec: tf.TensorSpec, dtypes: tuple | None) -> None:
        hint = ""
        if spec.shape.rank and not self.batched:
            hint = (
                " Elements look batched: sample single examples (unbatch() first), or set "
                "batched_input=True."
            )
        if spec.shape.rank not in (0, None):
            raise ValueError(f"{self.stage}: {name!r} must be a scalar, got {spec}.{hint}")
        if dtypes is not None and spec.dtype not in dtypes:
            allowed = ", ".join(dtype.name for dtype in dtypes)
            raise ValueError(f"{self.stage}: {name!r} must be one of {allowed}, got {spec}.")
        numeric = spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype == tf.bool
        if dtypes is None and not numeric:
            raise ValueError(f"{self.stage}: {name!r} must be numeric, got {spec}.")


def attach(
    stage: str, element: Any, extras: dict[str, tf.Tensor], drop: tuple[str, ...] = ()
) -> Any:
    """An element with its importance weight or log inclusion, and record fields if kept.

    A weight that the element has already, from a selection upstream or as a sample weight, is
    multiplied: the product stays unbiased; a log inclusion is added to the earlier one. All but
    weights join x, which must be a dict then; the fields in `drop` are removed. `stage` names the
    transformation in errors.
    """
    extras = dict(extras)
    weight = extras.get(constants.IMPORTANCE_WEIGHT)
    fields = element if isinstance(element, dict) else element[0]
    if constants.LOG_INCLUSION in extras and isinstance(fields, dict):
        extras[constants.LOG_INCLUSION] += fields.get(constants.LOG_INCLUSION, 0.0)
    if isinstance(element, dict):
        if weight is not None and constants.IMPORTANCE_WEIGHT in element:
            earlier = element[constants.IMPORTANCE_WEIGHT]
            extras[constants.IMPORTANCE_WEIGHT] = times(weight, earlier)
        return {k: v for k, v in element.items() if k not in drop} | extras
    if not isinstance(element, tuple) or len(element) not in (2, 3):
        raise ValueError(
            f"{stage}: parse_fn or decode_fn must return a dict, (x, y) or "
            f"(x, y, sample_weight). Received: {element}"
        )
    extras.pop(constants.IMPORTANCE_WEIGHT, None)
    features = element[0]
    if isinstance(features, dict):
        features = {k: v for k, v in features.items() if k not in drop} | extras
    elif extras:
        raise ValueError(
            f"{stage}: x must be a dict that can hold {sorted(extras)}, got {features}. Make x a "
            "dict, or leave out keep_record, uniform_probe and estimator='log_odds'."
        )
    if weight is None:
        return (features, *element[1:])
    if len(element) == 3:
        weight = times(weight, element[2])
    return features, element[1], weight


def times(weight: tf.Tensor, sample_weight: tf.Tensor) -> tf.Tensor:
    """Weights `[n]` or `[]` times sample weights `[n, ...]` or `[...]`, in the shape of these."""
    sample_weight = tf.convert_to_tensor(sample_weight)
    further = (sample_weight.shape.rank or 0) - (weight.shape.rank or 0)
    if further > 0:
        weight = tf.reshape(weight, tf.concat([tf.shape(weight), [1] * further], axis=0))
    return weight * tf.cast(sample_weight, weight.dtype)

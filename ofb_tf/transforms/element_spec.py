"""What an element of the stream looks like, and where its id, label and record fields are.

An element is a dict, `(x, y)`, `(x, y, sample_weight)`, a serialized tf.Example, or
`(example_id, (x, y))` with the id next to a tuple. x and y may be nested dicts, into which a key
with slashes reaches: `"user/id"`. Checks happen when a transformation is applied to a dataset;
messages name the field, what was expected and what was received.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.selection import heads
from ofb_tf.selection.heads import Heads

DatasetTransform = Callable[[tf.data.Dataset], tf.data.Dataset]
"""A function from a dataset to a dataset, for `tf.data.Dataset.apply`."""

ID_DTYPES = (tf.int64, tf.int32, tf.string)
IdKey = str | Sequence[str]
LabelKey = str | Mapping[str, str] | None
_SCORES = (constants.LOGITS, constants.LOSS)
_TOP_K = (
    constants.CLASS_IDS,
    constants.LOGSUMEXP,
    constants.SUM_SQUARED_PROBABILITIES,
    constants.NUM_OUTPUTS,
)


def scores_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The names among an element's fields that a selection reads as its forward record.

    All names of a record where `has_record` is there, which the join adds; otherwise `logits`,
    `loss` and the top-k columns. A `timestamp` or `model_version` is then the user's own.
    """
    names: tuple[str, ...] = _SCORES + (_TOP_K if constants.CLASS_IDS in fields else ())
    if constants.HAS_RECORD in fields:
        names = constants.RECORD_FIELDS
    return tuple(name for name in names if name in fields)


@dataclasses.dataclass(frozen=True)
class ElementSpec:
    """Where things are in the elements of one dataset.

    Attributes:
      stage: the transformation's name, for errors.
      spec: the dataset's `element_spec`.
      id_key: the field with the id, or the fields that it is made of.
      label_key: the field with the label, in dicts, serialized tf.Examples and a y that is a dict;
        a field for each head, by its name; None where selection looks at no label.
      batched: whether elements are batches.
      feature_spec: how id and label are parsed from serialized tf.Examples, else None.
    """

    stage: str
    spec: Any
    id_key: IdKey
    label_key: LabelKey = constants.LABEL
    batched: bool = False
    feature_spec: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id_key, str):
            object.__setattr__(self, "id_key", tuple(self.id_key))
        if not (self.serialized or isinstance(self.spec, dict) or self._is_tuple()):
            raise ValueError(
                f"{self.stage}: elements must be dicts, (x, y), (x, y, sample_weight), "
                f"(example_id, (x, y)) or serialized tf.Examples (string scalars), got {self.spec}"
            )

    @property
    def serialized(self) -> bool:
        """Whether elements are serialized tf.Examples."""
        return isinstance(self.spec, tf.TensorSpec) and self.spec.dtype == tf.string

    @property
    def paired(self) -> bool:
        """Whether elements are `(example_id, (x, y))` or `(example_id, (x, y, sample_weight))`."""
        if not (isinstance(self.spec, tuple) and len(self.spec) == 2):
            return False
        first, second = self.spec
        return (
            isinstance(first, tf.TensorSpec)
            and first.dtype in ID_DTYPES
            and first.shape.rank == int(self.batched)
            and isinstance(second, tuple)
            and len(second) in (2, 3)
        )

    def without_id(self, element: Any) -> Any:
        """The element without an id next to it: `(x, y)` of `(example_id, (x, y))`."""
        return element[1] if self.paired else element

    def _is_tuple(self) -> bool:
        inner = self.without_id(self.spec)
        return isinstance(inner, tuple) and len(inner) in (2, 3)

    def fields(self, element: Any) -> dict[str, Any]:
        """The dict that may hold the id and record fields; empty where there is none."""
        inner = self.without_id(element)
        fields = inner[0] if self._is_tuple() else inner
        return fields if isinstance(fields, dict) else {}

    def with_fields(self, element: Any, fields: dict[str, Any]) -> Any:
        """The element with that dict replaced."""
        inner = self.without_id(element)
        inner = (fields, *inner[1:]) if self._is_tuple() else fields
        return (element[0], inner) if self.paired else inner

    def ids(self, element: Any) -> Any:
        """The ids, or their spec; None where there are none."""
        return element[0] if self.paired else self._id_in(self.fields(element))

    def _id_in(self, fields: dict[str, Any]) -> Any:
        """The id in a dict, or made of its columns, or its spec; None if it is not there."""
        if isinstance(self.id_key, str):
            return _reach(fields, self.id_key)
        columns = [_reach(fields, key) for key in self.id_key]
        if not columns or any(column is None for column in columns):
            return None
        if not isinstance(columns[0], tf.TypeSpec):
            return hashing.example_id_of(*columns)
        ranks = [getattr(column, "shape", tf.TensorShape(None)).rank for column in columns]
        odd = (column for column, rank in zip(columns, ranks, strict=True) if rank != ranks[0])
        return next(odd, tf.TensorSpec(columns[0].shape, tf.int64))

    def keys(self, batch: Any) -> dict[str, Any]:
        """What selection looks at: id and record fields, as far as present, and `label`.

        The label is what `label_key` names: a tensor, for heads a dict of tensors by their name,
        and zeros where `label_key` is None.
        """
        parsed = tf.io.parse_example(batch, self.feature_spec) if self.serialized else None
        keys = self._keys(batch, parsed)
        if self.label_key is None:
            keys[constants.LABEL] = tf.zeros([num_examples(batch)], tf.int64)
        return keys

    def keys_spec(self) -> dict[str, Any]:
        """Specs of what `keys` returns, of single examples."""
        parsed = None
        if self.serialized:
            features = (self.feature_spec or {}).items()
            parsed = {name: tf.TensorSpec(each.shape, each.dtype) for name, each in features}
        spec = self._keys(self.spec, parsed)
        if self.batched and not self.serialized:
            spec = {name: self._without_batch(name, part) for name, part in spec.items()}
        if self.label_key is None:
            spec[constants.LABEL] = tf.TensorSpec([], tf.int64)
        return spec

    def _keys(self, element: Any, parsed: dict[str, Any] | None) -> dict[str, Any]:
        keys: dict[Any, Any]
        if parsed is not None:
            keys, holder, ids = dict(parsed), parsed, self._id_in(parsed)
        else:
            fields = self.fields(element)
            keys = {name: fields[name] for name in scores_of(fields)}
            ids = self.ids(element)
            holder = self.without_id(element)[1] if self._is_tuple() else fields
        if ids is not None:
            keys[self.id_key] = ids
        label = None if self.label_key is None else self._label(holder)
        if label is not None:
            keys[constants.LABEL] = label
        return keys

    def _label(self, holder: Any) -> Any:
        """What `label_key` names in a y or a dict of fields; None where it is not there."""
        if isinstance(self.label_key, Mapping):
            return {head: _reach(holder, key) for head, key in self.label_key.items()}
        if not isinstance(holder, dict):
            return holder
        label = _reach(holder, str(self.label_key))
        if label is None and self._is_tuple() and len(holder) == 1:
            (label,) = holder.values()
        return label

    def _without_batch(self, name: str, spec: Any) -> Any:
        if isinstance(spec, dict):
            return {key: self._without_batch(key, part) for key, part in spec.items()}
        if not isinstance(spec, tf.TensorSpec):
            return spec
        if not spec.shape.rank:
            raise ValueError(
                f"{self.stage}: with batched_input=True {name!r} must have a leading batch "
                f"dimension, got {spec}. Batch the dataset, or leave batched_input out."
            )
        return tf.TensorSpec(spec.shape[1:], spec.dtype)

    def has_id(self) -> bool:
        """Whether elements carry the id field."""
        return self.id_key in self.keys_spec()

    def check_id(self) -> None:
        """Raises ValueError unless there is a scalar id of an id dtype."""
        keys = self.keys_spec()
        if self.id_key not in keys:
            remedy = "Set id_key to the field that holds the example's id."
            if self._is_tuple() and not self.fields(self.spec):
                remedy = (
                    "Put the id next to the tuple, (example_id, (x, y)): "
                    "tf.data.Dataset.zip(ids, dataset); or make x a dict that holds it."
                )
            raise ValueError(
                f"{self.stage}: field {self.id_key!r} is missing from the elements, which have "
                f"{sorted(self.fields(self.spec)) or self.spec}. {remedy}"
            )
        spec = keys[self.id_key]
        if not isinstance(spec, tf.TensorSpec) or spec.shape.rank not in (0, None):
            raise ValueError(
                f"{self.stage}: {self.id_key!r} must be a scalar, got {spec}.{self._batch_hint()}"
            )
        if spec.dtype not in ID_DTYPES:
            allowed = ", ".join(dtype.name for dtype in ID_DTYPES)
            raise ValueError(f"{self.stage}: {self.id_key!r} must be one of {allowed}, got {spec}.")

    def check_label(self, task: str | Heads | None) -> Any:
        """The label's spec in the form that `labels` gives it.

        Returns:
          The spec of a scalar; a vector's where it is several binary labels; for heads a dict.

        Raises:
          ValueError: there is no numeric label, or none of a form that the task has.
        """
        label = self.keys_spec().get(constants.LABEL)
        if isinstance(task, Heads) and isinstance(label, dict):
            keys: Any = self.label_key
            return {h.name: self._check_form(keys[h.name], label[h.name], h.task) for h in task}
        return self._check_form(self.label_key, label, task)

    def _check_form(self, key: Any, spec: Any, task: Any) -> tf.TensorSpec:
        stage = self.stage
        if spec is None or isinstance(spec, dict):
            holder = self.without_id(self.spec)[1] if self._is_tuple() else None
            names = sorted(holder if isinstance(holder, dict) else self.fields(self.spec))
            raise ValueError(
                f"{stage}: field {key!r} is missing from the elements, which have {names}. Set "
                "label_key to the field with the label, or to None where records hold the loss."
            )
        if not isinstance(spec, tf.TensorSpec):
            raise ValueError(
                f"{stage}: label {key!r} must be one scalar tensor, got {spec}. Set label_key to "
                "the part of y that selection looks at (make a dict of a tuple first), or to None "
                "where records hold the loss."
            )
        if not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype == tf.bool):
            raise ValueError(f"{stage}: {key!r} must be numeric, got {spec}.")
        if spec.shape.rank in (0, None):
            return spec
        if spec.shape.rank == 1 and spec.shape[0] is not None:
            if spec.shape[0] == 1:
                return tf.TensorSpec([], spec.dtype)
            if task == constants.MULTICLASS:
                return tf.TensorSpec([], tf.int64)
            if task == constants.BINARY:
                return spec
        hint = self._batch_hint() if spec.shape[0] is None else ""
        raise ValueError(
            f"{stage}: {key!r} must be a scalar, got {spec}.{hint} For one-hot rows set "
            "task='multiclass', for several binary labels task='binary'; for any other label "
            "record the loss of each example and set label_key=None."
        )

    def _batch_hint(self) -> str:
        if self.batched:
            return ""
        return (
            " Elements look batched: sample single examples (unbatch() first), or set "
            "batched_input=True."
        )

    def labels(self, keys: dict[str, Any], task: str | Heads) -> Any:
        """The labels of a window's `keys`: `[n]`; for heads a list of them, in their order."""
        label = keys[constants.LABEL]
        if not isinstance(task, Heads):
            return _as_scalar(label, task)
        if isinstance(label, dict):
            return [_as_scalar(label[head.name], head.task) for head in task]
        label = tf.cast(label, tf.int64) if label.dtype == tf.bool else label
        # Keras has no weight for each label of a vector: one that is not known is out of range.
        label = tf.where(heads.present(label, constants.BINARY), label, tf.constant(2, label.dtype))
        return tf.unstack(label, len(task), axis=1)

    def label_columns(self, keys: dict[str, Any], task: Heads) -> tf.Tensor:
        """The labels of heads as they came, for messages: float32 `[n, T]`."""
        label = keys[constants.LABEL]
        if not isinstance(label, dict):
            return tf.cast(label, tf.float32)
        columns = [_as_scalar(label[head.name], head.task) for head in task]
        return tf.stack([tf.cast(column, tf.float32) for column in columns], axis=1)


def _as_scalar(label: tf.Tensor, task: str) -> tf.Tensor:
    """Labels `[n]` of `[n]`, `[n, 1]` or one-hot rows; a row of zeros is no class, -1."""
    if label.shape.rank == 2 and label.shape[1] == 1:
        label = label[:, 0]
    elif label.shape.rank == 2 and task == constants.MULTICLASS:
        label = tf.cast(label, tf.float32)
        label = tf.where(tf.reduce_any(label > 0, axis=1), tf.argmax(label, axis=1), -1)
    if label.dtype.is_integer or label.dtype == tf.bool:
        label = tf.cast(label, tf.int64)
    return label


def _reach(holder: Any, key: str) -> Any:
    """The value under a key, or under a path with slashes in nested dicts; None if not there."""
    if not isinstance(holder, Mapping):
        return None
    if key in holder:
        return holder[key]
    first, _, rest = key.partition("/")
    return _reach(holder.get(first), rest) if rest else None


def num_examples(batch: Any) -> tf.Tensor:
    """How many examples a batch of any structure has: int scalar."""
    first = tf.nest.flatten(batch)[0]
    if isinstance(first, tf.RaggedTensor):
        return first.nrows()
    return first.dense_shape[0] if isinstance(first, tf.SparseTensor) else tf.shape(first)[0]


def gather(batch: Any, indices: tf.Tensor) -> Any:
    """The examples of a batch at these places, of dense, ragged and sparse parts."""
    return tf.nest.map_structure(
        lambda part: (
            _gather_sparse(part, indices)
            if isinstance(part, tf.SparseTensor)
            else tf.gather(part, indices)
        ),
        batch,
    )


def _gather_sparse(part: tf.SparseTensor, indices: tf.Tensor) -> tf.SparseTensor:
    rows = tf.RaggedTensor.from_value_rowids(
        tf.range(tf.size(part.values)), part.indices[:, 0], part.dense_shape[0]
    )
    rows = tf.gather(rows, indices)
    places = tf.concat(
        [
            tf.cast(rows.value_rowids(), tf.int64)[:, None],
            tf.gather(part.indices[:, 1:], rows.flat_values),
        ],
        axis=1,
    )
    shape = tf.concat([tf.shape(indices, tf.int64), part.dense_shape[1:]], axis=0)
    taken = tf.SparseTensor(places, tf.gather(part.values, rows.flat_values), shape)
    taken.set_shape(tf.TensorShape([None]).concatenate(part.shape[1:]))
    return taken


def attach(
    stage: str,
    element: Any,
    extras: dict[str, tf.Tensor],
    drop: tuple[str, ...] = (),
    label_key: LabelKey = constants.LABEL,
    task: Any = None,
) -> Any:
    """An element with its importance weight or log inclusion, and record fields if kept.

    A weight that the element has already, from a selection upstream or as a sample weight, is
    multiplied: the product stays unbiased; a log inclusion is added to the earlier one. All but
    weights join x, which must be a dict then; the fields in `drop` are removed. `stage` names the
    transformation in errors. For what `label_key` and `task` do to y and its weights see `weigh`.
    """
    if isinstance(element, dict):
        return _join(stage, element, extras, drop)
    if not isinstance(element, tuple) or len(element) not in (2, 3):
        raise ValueError(
            f"{stage}: parse_fn or decode_fn must return a dict, (x, y) or "
            f"(x, y, sample_weight). Received: {element}"
        )
    extras = dict(extras)
    weight = extras.pop(constants.IMPORTANCE_WEIGHT, None)
    features = element[0]
    if isinstance(features, dict):
        features = _join(stage, features, extras, drop)
    elif extras:
        raise ValueError(
            f"{stage}: x must be a dict that can hold {sorted(extras)}, got {features}. Make x a "
            "dict, or leave out keep_record, uniform_probe and estimator='log_odds'."
        )
    if weight is None:
        return (features, *element[1:])
    label, weight = weigh(element[1], weight, label_key, task)
    if len(element) == 3:
        weight = times(weight, element[2])
    return features, label, weight


def _join(
    stage: str, fields: dict[str, Any], extras: dict[str, tf.Tensor], drop: tuple[str, ...]
) -> dict[str, Any]:
    """Fields with extras added, and those in `drop` removed."""
    fields = {name: value for name, value in fields.items() if name not in drop}
    extras = dict(extras)
    for name, combine in ((constants.IMPORTANCE_WEIGHT, times), (constants.LOG_INCLUSION, tf.add)):
        if name in extras and name in fields:
            extras[name] = combine(extras[name], fields.pop(name))
    check_free(stage, fields, extras)
    return fields | extras


def check_free(stage: str, fields: Mapping[str, Any], added: Mapping[str, Any]) -> None:
    """Raises ValueError where fields that are to be added have the names of others."""
    taken = sorted(set(fields) & set(added))
    if taken:
        raise ValueError(
            f"{stage}: the elements have fields {taken}, which are names of what is added: "
            f"{sorted(added)}. Rename these fields of the elements first."
        )


def weigh(y: Any, weight: tf.Tensor, label_key: LabelKey, task: Any = None) -> tuple[Any, Any]:
    """Labels and their weights, as Keras takes them.

    One label has the importance weight. For heads every label has one, which is 0 where the label
    is not known; such a label becomes 0, so that its loss is finite. Where no label was looked at,
    y may be a sequence, or several: each label has the weight in as many dimensions as it has
    itself, so that it multiplies example by example whatever the shape of the losses.

    Args:
      y: labels, a tensor or a dict, of one example or of n.
      weight: float32 `[]` or `[n]`.
      label_key: as for `ofb_sample`.
      task: of each head by its name, or `Heads`; what is not in it is known unless it is a NaN.

    Returns:
      y and the weights.
    """
    if label_key is None:
        return y, tf.nest.map_structure(lambda label: _of_rank(weight, label), y)
    if not isinstance(label_key, Mapping) or not isinstance(y, dict):
        return y, weight
    tasks = {h.name: h.task for h in task} if isinstance(task, Heads) else dict(task or {})
    task_of = {label_key[head]: each for head, each in tasks.items()}
    labels, weights = {}, {}
    for key, label in y.items():
        known = _known(label, weight.shape.rank, task_of.get(key))
        labels[key] = tf.where(_of_rank(known, label), label, tf.zeros_like(label))
        weights[key] = times(weight, known)
    return labels, weights


def _known(label: tf.Tensor, rank: int, task: str | None) -> tf.Tensor:
    """Where the labels of a head are known, in `rank` dimensions, or one more of size 1."""
    known = heads.present(label, task)
    if label.shape.rank > rank and label.shape[-1] != 1:  # one row for each example
        known = tf.reduce_all(known, axis=range(rank, label.shape.rank))
        if task == constants.MULTICLASS:
            known &= tf.reduce_any(label > 0, axis=-1)
    return known


def times(weight: Any, sample_weight: Any) -> Any:
    """Weights `[n]` or `[]` times sample weights `[n, ...]` or `[...]`, in the shape of these.

    Where either is a dict, one for each head, so is the product.
    """
    for nested in (weight, sample_weight):
        if isinstance(nested, dict):
            return {
                name: times(
                    *(w[name] if isinstance(w, dict) else w for w in (weight, sample_weight))
                )
                for name in nested
            }
    sample_weight = tf.convert_to_tensor(sample_weight)
    weight = _of_rank(weight, sample_weight)
    return weight * tf.cast(sample_weight, weight.dtype)


def _of_rank(weight: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Weights `[n]` or `[]` with further dimensions of size 1, as many as `like` has more."""
    further = (like.shape.rank or 0) - (weight.shape.rank or 0)
    if further > 0:
        weight = tf.reshape(weight, tf.concat([tf.shape(weight), [1] * further], axis=0))
    return weight

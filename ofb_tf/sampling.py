"""`ofb_sample`: window → scores → policy → weighted examples, inside a tf.data pipeline."""

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ofb_tf import hashing, types, window
from ofb_tf.elements import RECORD_FIELDS, Layout, attach
from ofb_tf.join import RecordLookup, assert_joined
from ofb_tf.policies import Policy, get_policy
from ofb_tf.records import ForwardRecords

_STAGE = "ofb_sample"


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """The arguments of `ofb_sample`, checked. See there."""

    rate: float
    policy: Policy
    task: str | None
    num_outputs: int | None
    id_key: str
    label_key: str
    window_size: int
    batch_size: int | None
    drop_remainder: bool
    seed: int
    missing: str
    parse_fn: Callable | None
    feature_spec: dict[str, Any] | None
    decode_fn: Callable | None
    batched_input: bool
    keep_record: bool
    redraw_each_iteration: bool

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate must be in (0, 1]. Received: {self.rate!r}")
        _check_positive("window_size", self.window_size)
        if self.batch_size is not None:
            _check_positive("batch_size", self.batch_size)
        if self.window_size * self.rate < 1.0:
            raise ValueError(
                "window_size * rate must be at least 1, or most windows select nothing. "
                f"Received: window_size={self.window_size}, rate={self.rate}"
            )
        if not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer in [-2^63, 2^63). Received: {self.seed!r}")
        if self.task is not None and self.task not in types.TASKS:
            raise ValueError(f"task must be one of {types.TASKS} or None. Received: {self.task!r}")
        if self.missing not in window.MISSING:
            raise ValueError(f"missing must be one of {window.MISSING}. Received: {self.missing!r}")
        for name in ("parse_fn", "decode_fn"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function. Received: {getattr(self, name)!r}")


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1. Received: {value!r}")


def ofb_sample(
    *,
    records: ForwardRecords | str | Sequence[str] | None = None,
    rate: float = 0.1,
    policy: str | Policy = "importance",
    task: str | None = None,
    num_outputs: int | None = None,
    id_key: str = types.EXAMPLE_ID,
    label_key: str = types.LABEL,
    window_size: int = 4096,
    batch_size: int | None = None,
    drop_remainder: bool = False,
    seed: int | None = None,
    missing: str = window.UNIFORM,
    max_age: float | None = None,
    as_of: int | None = None,
    parse_fn: Callable | None = None,
    feature_spec: dict[str, Any] | None = None,
    decode_fn: Callable | None = None,
    batched_input: bool = False,
    keep_record: bool = False,
    redraw_each_iteration: bool = True,
) -> types.DatasetTransform:
    """Lets about `rate` of the stream through, chosen by what serving recorded, with weights.

    ```python
    train = examples.apply(ofb_tf.ofb_sample(records="records/*", batch_size=256, seed=17))
    ```

    Consecutive examples form windows. In each, the policy turns recorded logits (or losses) and
    labels into inclusion probabilities p, a design selects by them, and each selected example
    leaves with the importance weight rate / p: the weighted mean over the selection estimates
    the window's mean loss, and its gradient, without bias, and uniform sampling has weights of
    exactly 1. Selection is a function of `seed`, the epoch and the ids.

    Args:
      records: `ForwardRecords`, or a pattern, directory, file or list of them to load and join;
        None where elements already carry `logits` or `loss`.
      rate: in (0, 1]: the fraction that goes on to training.
      policy: "importance", "uniform", or a `Policy` with settings of your own.
      task: "multiclass", "binary" or "regression"; None infers it from the logits' width and
        the label's dtype where they leave no doubt.
      num_outputs: how many logits a record must have; None accepts what the records have.
      id_key: field with the example's id: scalar int64, int32 or string. Needed with `records`.
      label_key: field with the label, a number (class id, 0 / 1, or target); for `(x, y)`
        elements y is the label.
      window_size: how many examples are decided on together, at least 1 / rate.
      batch_size: size of the batches that come out; None for single examples. With it, the
        selection is never unbatched, which is the fast path.
      drop_remainder: whether a last, smaller batch is dropped, for a static batch size.
      seed: fixes the selection; None draws one now.
      missing: an example without a usable record (none, too old, or a non-finite logit, loss,
        score, or label out of range) is sampled with p = rate and weight 1 ("uniform"); always
        kept, with weight `rate`, at the cost of the others' budget ("keep"; where they exceed
        it, the others keep a fifth of their rate and the realised rate rises); excluded
        ("drop": the estimate then covers only examples with a record); or an error ("error").
      max_age: in seconds; an older record counts as missing. None for no limit.
      as_of: microseconds since 1970: records written later are left out, ages count from here.
      parse_fn: for serialized tf.Examples: a function from a vector of serialized examples to
        batched features (a dict, `(x, y)` or `(x, y, sample_weight)`), as
        `tf.io.parse_example` works. It sees only what was selected.
      feature_spec: for serialized tf.Examples: how id and label are parsed; None for an int64
        id and an int64 (regression: float32) label, both of shape `[]`.
      decode_fn: a function of one element, called after selection on what was selected alone.
      batched_input: whether elements are batches (of any size) instead of single examples.
      keep_record: whether `has_record`, `logits`, `loss`, `model_version` and `timestamp` stay
        in the elements that come out.
      redraw_each_iteration: whether every iteration over the dataset draws anew.

    Returns:
      A function for `dataset.apply`. Dicts come out with `importance_weight` (float32) added,
      `(x, y)` as `(x, y, importance_weight)`, and `(x, y, sample_weight)` with the product.

    Raises:
      ValueError: an argument out of range, no record file matches, or, at application,
        elements that lack a field or have it in another shape or dtype; the message names the
        field, what was expected, what came and the remedy.
    """
    config = SamplingConfig(
        rate=rate,
        policy=get_policy(policy),
        task=task,
        num_outputs=num_outputs,
        id_key=id_key,
        label_key=label_key,
        window_size=window_size,
        batch_size=batch_size,
        drop_remainder=drop_remainder,
        seed=secrets.randbits(62) if seed is None else seed,
        missing=missing,
        parse_fn=parse_fn,
        feature_spec=feature_spec,
        decode_fn=decode_fn,
        batched_input=batched_input,
        keep_record=keep_record,
        redraw_each_iteration=redraw_each_iteration,
    )
    lookup = None
    if records is not None:
        lookup = RecordLookup(records, max_age=max_age, as_of=as_of)

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        layout = _layout(dataset.element_spec, config)
        resolved_task = _check_fields(layout, lookup, config)
        if config.batched_input:
            windows = dataset.rebatch(config.window_size)
        else:
            windows = dataset.batch(config.window_size)

        def select_in_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            key = hashing.fold_in(tf.constant(config.seed, tf.int64), epoch)
            return windows.map(
                lambda *batch: _select(_element(batch), layout, lookup, resolved_task, config, key),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )

        return _leave(_epochs(config).flat_map(select_in_epoch), config, layout, lookup)

    return transform


def _epochs(config: SamplingConfig) -> tf.data.Dataset:
    """One int64 a pass over the dataset, another in each pass: it survives a checkpoint."""
    if not config.redraw_each_iteration:
        return tf.data.Dataset.from_tensors(tf.constant(0, tf.int64))
    return tf.data.Dataset.random(seed=config.seed, rerandomize_each_iteration=True).take(1)


def _element(parts: tuple) -> Any:
    # Dataset.map unpacks tuples into arguments; everything else arrives as one.
    return parts[0] if len(parts) == 1 else parts


def _layout(spec: Any, config: SamplingConfig) -> Layout:
    feature_spec = config.feature_spec
    if feature_spec is None:
        label_dtype = tf.float32 if config.task == types.REGRESSION else tf.int64
        feature_spec = {
            config.id_key: tf.io.FixedLenFeature([], tf.int64),
            config.label_key: tf.io.FixedLenFeature([], label_dtype),
        }
    layout = Layout(
        stage=_STAGE,
        spec=spec,
        id_key=config.id_key,
        label_key=config.label_key,
        batched=config.batched_input,
        feature_spec=feature_spec,
    )
    if layout.serialized and spec.shape.rank != (1 if config.batched_input else 0):
        raise ValueError(
            f"{_STAGE}: serialized tf.Examples must be string scalars, got {spec}. Sample before "
            "batch(), or set batched_input=True for batches."
        )
    if layout.serialized and config.parse_fn is None and config.decode_fn is None:
        raise ValueError(
            f"{_STAGE}: elements are serialized tf.Examples, so parse_fn (a function from "
            "serialized examples to features) is needed."
        )
    if not layout.serialized and (config.parse_fn or config.feature_spec):
        raise ValueError(
            f"{_STAGE}: parse_fn and feature_spec are for serialized tf.Examples, got elements "
            f"{spec}. Use decode_fn for other elements."
        )
    return layout


def _check_fields(layout: Layout, lookup: RecordLookup | None, config: SamplingConfig) -> str:
    """Checks id, label and record fields; returns the task."""
    layout.check_label()
    if lookup is not None or layout.has_id():
        layout.check_id("Set id_key to the field that holds the example's id.")
    if not config.policy.needs_records:
        return config.task or types.REGRESSION
    keys = layout.keys_spec()
    if lookup is not None:
        width = lookup.records.num_outputs or None
        source = f"records hold num_outputs={lookup.records.num_outputs}"
    else:
        if types.LOGITS not in keys and types.LOSS not in keys:
            raise ValueError(
                f"{_STAGE}: neither {types.LOGITS!r} nor {types.LOSS!r} is in the elements. Pass "
                "records=, apply join_forward_records first, or use policy='uniform'."
            )
        width, source = None, f"elements have {keys.get(types.LOGITS)}"
        if types.LOGITS in keys:
            width = _logits_width(keys[types.LOGITS])
        if types.LOSS in keys and keys[types.LOSS].shape.rank != 0:
            raise ValueError(
                f"{_STAGE}: {types.LOSS!r} must be a scalar float, got {keys[types.LOSS]}."
            )
    if config.num_outputs is not None and width != config.num_outputs:
        raise ValueError(
            f"{_STAGE}: {types.LOGITS!r} must be [{config.num_outputs}], got [{width}] ({source}). "
            "Write records with the model that serves this stream."
        )
    task = config.task or _infer_task(width, keys[config.label_key], source)
    if width is not None and (task == types.MULTICLASS) != (width > 1):
        expected = "[num_classes], at least 2" if task == types.MULTICLASS else "[1]"
        raise ValueError(
            f"{_STAGE}: {types.LOGITS!r} must be {expected} for task={task!r}, got [{width}] "
            f"({source}). Write records with the model that serves this stream, or set task."
        )
    if task == types.MULTICLASS and not keys[config.label_key].dtype.is_integer:
        raise ValueError(
            f"{_STAGE}: {config.label_key!r} must be an integer class id for task='multiclass', "
            f"got {keys[config.label_key]}. Cast it, or set task."
        )
    return task


def _logits_width(spec: tf.TensorSpec) -> int | None:
    if not spec.dtype.is_floating or spec.shape.rank not in (0, 1):
        raise ValueError(
            f"{_STAGE}: {types.LOGITS!r} must be a float scalar or vector, got {spec}."
        )
    return 1 if spec.shape.rank == 0 else spec.shape[0]


def _infer_task(width: int | None, label: tf.TensorSpec, source: str) -> str:
    if width is None:
        # Only the loss counts, and the label merely orders the window.
        return types.MULTICLASS if label.dtype.is_integer else types.REGRESSION
    if width > 1:
        return types.MULTICLASS
    if label.dtype.is_integer or label.dtype == tf.bool:
        return types.BINARY
    raise ValueError(
        f"{_STAGE}: one output ({source}) with a {label.dtype.name} label may be binary or "
        "regression. Set task='binary' or task='regression'."
    )


def _select(
    batch: Any,
    layout: Layout,
    lookup: RecordLookup | None,
    task: str,
    config: SamplingConfig,
    key: tf.Tensor,
) -> tuple[Any, dict[str, tf.Tensor]]:
    """A window → what was selected of it, and its weights (and record fields, where kept)."""
    keys = layout.keys(batch)
    example_ids = None
    if layout.id_key in keys:
        example_ids = hashing.as_example_ids(keys[layout.id_key])
    if lookup is not None:
        record = lookup.fields(example_ids)
    else:
        record = {name: keys[name] for name in RECORD_FIELDS if name in keys}
    labels = keys[layout.label_key]
    labels = tf.cast(labels, tf.int64) if labels.dtype == tf.bool else labels
    sample = window.sample_window(
        policy=config.policy,
        rate=config.rate,
        task=task,
        missing=config.missing,
        example_ids=example_ids,
        labels=labels,
        record=record,
        key=key,
        batch_size=config.batch_size,
    )
    indices = sample.indices
    if config.missing == window.ERROR:
        ids = tf.range(tf.size(labels, tf.int64)) if example_ids is None else example_ids
        with tf.control_dependencies([assert_joined(sample.has_score, ids)]):
            indices = tf.identity(indices)
    extras = {types.IMPORTANCE_WEIGHT: sample.weights}
    if config.keep_record:
        record = {types.HAS_RECORD: sample.has_score} | record
        extras |= {name: tf.gather(value, indices) for name, value in record.items()}
    return tf.nest.map_structure(lambda part: tf.gather(part, indices), batch), extras


def _leave(
    selected: tf.data.Dataset, config: SamplingConfig, layout: Layout, lookup: RecordLookup | None
) -> tf.data.Dataset:
    """Windows of selected examples → decoded, weighted examples or batches."""
    # Fields that the join made are only in extras; those that came with the element are dropped.
    drop = RECORD_FIELDS if lookup is None and not layout.serialized else ()
    parallel = tf.data.AUTOTUNE
    rebatch = config.batch_size is not None and config.decode_fn is None
    if rebatch:
        selected = selected.rebatch(config.batch_size, drop_remainder=config.drop_remainder)

    def decode_batch(batch: Any, extras: dict) -> Any:
        parsed = config.parse_fn(batch) if config.parse_fn else batch
        return (parsed, extras) if config.decode_fn else attach(_STAGE, parsed, extras, drop)

    def decode_one(element: Any, extras: dict) -> Any:
        return attach(_STAGE, config.decode_fn(element), extras, drop)

    decoded = selected.map(decode_batch, num_parallel_calls=parallel, deterministic=True)
    if rebatch:
        return decoded
    decoded = decoded.unbatch()
    if config.decode_fn is not None:
        decoded = decoded.map(decode_one, num_parallel_calls=parallel, deterministic=True)
    if config.batch_size is not None:
        decoded = decoded.batch(config.batch_size, drop_remainder=config.drop_remainder)
    return decoded

"""The arguments of `ofb_sample`, checked at construction and against the elements' spec."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ofb_tf import constants
from ofb_tf.selection import Policy, window
from ofb_tf.transforms.element_spec import Layout

STAGE = "ofb_sample"


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """The arguments of `ofb_sample`, checked. See there for what each is."""

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
    uniform_holdout: float
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
        if self.task is not None and self.task not in constants.TASKS:
            raise ValueError(
                f"task must be one of {constants.TASKS} or None. Received: {self.task!r}"
            )
        if self.missing not in window.MISSING:
            raise ValueError(f"missing must be one of {window.MISSING}. Received: {self.missing!r}")
        mix = getattr(self.policy, "uniform_mix", 1.0)
        if not 0.0 <= self.uniform_holdout <= self.rate * mix:
            raise ValueError(
                "uniform_holdout must be in [0, rate * uniform_mix], the least inclusion "
                f"probability, which is {self.rate * mix:.4g}. Received: {self.uniform_holdout!r}"
            )
        for name in ("parse_fn", "decode_fn"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function. Received: {getattr(self, name)!r}")


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1. Received: {value!r}")


def element_layout(spec: Any, config: SamplingConfig) -> Layout:
    """Where id and label are in elements of this spec; raises ValueError where they do not fit."""
    feature_spec = config.feature_spec
    if feature_spec is None:
        label_dtype = tf.float32 if config.task == constants.REGRESSION else tf.int64
        feature_spec = {
            config.id_key: tf.io.FixedLenFeature([], tf.int64),
            config.label_key: tf.io.FixedLenFeature([], label_dtype),
        }
    layout = Layout(
        stage=STAGE,
        spec=spec,
        id_key=config.id_key,
        label_key=config.label_key,
        batched=config.batched_input,
        feature_spec=feature_spec,
    )
    if layout.serialized and spec.shape.rank != (1 if config.batched_input else 0):
        raise ValueError(
            f"{STAGE}: serialized tf.Examples must be string scalars, got {spec}. Sample before "
            "batch(), or set batched_input=True for batches."
        )
    if layout.serialized and config.parse_fn is None and config.decode_fn is None:
        raise ValueError(
            f"{STAGE}: elements are serialized tf.Examples, so parse_fn (a function from "
            "serialized examples to features) is needed."
        )
    if not layout.serialized and (config.parse_fn or config.feature_spec):
        raise ValueError(
            f"{STAGE}: parse_fn and feature_spec are for serialized tf.Examples, got elements "
            f"{spec}. Use decode_fn for other elements."
        )
    return layout


def check_fields(layout: Layout, num_outputs: int | None, config: SamplingConfig) -> str:
    """Checks id, label and record fields.

    Args:
      layout: where the fields are.
      num_outputs: outputs of the records to join (0: only losses); None where elements carry
        the record fields.
      config: the arguments of `ofb_sample`.

    Returns:
      The task.

    Raises:
      ValueError: a field is missing or misshapen.
    """
    layout.check_label()
    if num_outputs is not None or layout.has_id():
        layout.check_id("Set id_key to the field that holds the example's id.")
    if not config.policy.needs_records:
        return config.task or constants.REGRESSION
    keys = layout.keys_spec()
    if num_outputs is not None:
        width = num_outputs or None
        source = f"records hold num_outputs={num_outputs}"
    else:
        if constants.LOGITS not in keys and constants.LOSS not in keys:
            raise ValueError(
                f"{STAGE}: neither {constants.LOGITS!r} nor {constants.LOSS!r} is in the "
                "elements. Pass records=, apply join_forward_records first, or use "
                "policy='uniform'."
            )
        width, source = None, f"elements have {keys.get(constants.LOGITS)}"
        if constants.LOGITS in keys:
            width = _logits_width(keys[constants.LOGITS])
        if constants.LOSS in keys and keys[constants.LOSS].shape.rank != 0:
            raise ValueError(
                f"{STAGE}: {constants.LOSS!r} must be a scalar float, got {keys[constants.LOSS]}."
            )
    if config.num_outputs is not None and width != config.num_outputs:
        raise ValueError(
            f"{STAGE}: {constants.LOGITS!r} must be [{config.num_outputs}], got [{width}] "
            f"({source}). Write records with the model that serves this stream."
        )
    task = config.task or _infer_task(width, keys[config.label_key], source)
    if width is not None and (task == constants.MULTICLASS) != (width > 1):
        expected = "[num_classes], at least 2" if task == constants.MULTICLASS else "[1]"
        raise ValueError(
            f"{STAGE}: {constants.LOGITS!r} must be {expected} for task={task!r}, got [{width}] "
            f"({source}). Write records with the model that serves this stream, or set task."
        )
    if task == constants.MULTICLASS and not keys[config.label_key].dtype.is_integer:
        raise ValueError(
            f"{STAGE}: {config.label_key!r} must be an integer class id for task='multiclass', "
            f"got {keys[config.label_key]}. Cast it, or set task."
        )
    return task


def _logits_width(spec: tf.TensorSpec) -> int | None:
    if not spec.dtype.is_floating or spec.shape.rank not in (0, 1):
        raise ValueError(
            f"{STAGE}: {constants.LOGITS!r} must be a float scalar or vector, got {spec}."
        )
    return 1 if spec.shape.rank == 0 else spec.shape[0]


def _infer_task(width: int | None, label: tf.TensorSpec, source: str) -> str:
    if width is None:
        # Only the loss counts, and the label merely orders the window.
        return constants.MULTICLASS if label.dtype.is_integer else constants.REGRESSION
    if width > 1:
        return constants.MULTICLASS
    if label.dtype.is_integer or label.dtype == tf.bool:
        return constants.BINARY
    raise ValueError(
        f"{STAGE}: one output ({source}) with a {label.dtype.name} label may be binary or "
        "regression. Set task='binary' or task='regression'."
    )

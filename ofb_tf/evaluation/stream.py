"""Records and a labelled stream → an evaluation of the model that served."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.evaluation.accumulator import TIME, Evaluation
from ofb_tf.evaluation.heads import HeadsEvaluation, measure_heads
from ofb_tf.evaluation.quality import measure
from ofb_tf.evaluation.shadow import SHADOW, ShadowEvaluation
from ofb_tf.records import ForwardRecords
from ofb_tf.selection import heads
from ofb_tf.selection.heads import Heads
from ofb_tf.transforms.element_spec import ElementSpec
from ofb_tf.transforms.join import load_records, lookup_in_memory

STAGE = "evaluate"
_BATCH = 4096  # also the window in which `confident_error` takes the most confident quarter
_MEASURED, _SLICES = "measured", "slices"


def evaluate(
    records: ForwardRecords | str | Sequence[str],
    examples: tf.data.Dataset | Mapping[str, Any],
    *,
    task: str | Mapping[str, Any],
    loss_weights: Mapping[str, float] | None = None,
    id_key: str = constants.EXAMPLE_ID,
    label_key: str | Mapping[str, str] = constants.LABEL,
    timestamp_key: str | None = None,
    slice_keys: Sequence[str] = (),
    as_of: int | None = None,
    uniform_mix: float = 0.2,
    batched_input: bool = False,
    shadow_records: ForwardRecords | str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluates the model that served by its records, and predicts what selection will gain.

    Every example of the stream that has a record and a label is a prediction and what came of it:
    no forward pass is made and no model is needed. It is progressive validation, since the model
    that served an example had not been trained on it.

    ```python
    import numpy as np

    import ofb_tf

    rng = np.random.default_rng(0)
    ids, logits = np.arange(10_000), rng.normal(-3, 1.5, 10_000)
    labels = rng.random(10_000) < 1 / (1 + np.exp(-logits))  # the model is right
    with ofb_tf.ForwardRecordWriter("records") as writer:
        writer.write(ids, logits, model_version=7)
    examples = {"example_id": ids, "label": labels, "country": np.where(ids % 3, "DE", "FR")}
    found = ofb_tf.evaluate("records", examples, task="binary", slice_keys=["country"])
    assert abs(found["total"]["calibration"] - 1) < 0.1
    assert found["total"]["normalized_entropy"] < 0.9
    assert found["slices"]["country"]["FR"]["examples"] == 3334
    assert [each["rate"] for each in found["gain"]] == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    print(found["advice"])
    ```

    Args:
      records: `ForwardRecords`, or a pattern, directory, file or list of them to load. Of several
        records of an id the newest counts.
      examples: a finite dataset of dicts, `(x, y)` or `(example_id, (x, y))`, as for
        `ofb_sample`; or a dict of arrays with one row per example.
      task: "multiclass", "binary" or "regression". For several heads a dict, as for `ofb_sample`:
        by the name of each, one of these, or ("multiclass", number of classes).
      loss_weights: of the heads, as for `ofb_sample`; None for ones.
      id_key: the field with the example's id: int64, int32 or string (by its fingerprint).
      label_key: the field with the label. One that is not known (NaN, a negative class) is
        counted. For several heads, a field for each by its name, by default the names themselves.
      timestamp_key: the field with the example's time, int64 microseconds since 1970, from which
        the age of its record counts; None for the time of its record, and ages from `as_of`.
      slice_keys: scalar features, for each value of which the metrics are also given.
      as_of: microseconds since 1970: later records are left out. None for all records, and for
        ages from the newest of them.
      uniform_mix: of the `Importance` whose gain is predicted, in [0, 1].
      batched_input: whether the elements of the dataset are batches.
      shadow_records: of another model that answered the same requests; see `ShadowEvaluation`.
        Not with several heads.

    Returns:
      What `ofb_tf.evaluation.accumulator.Evaluation.result` gives, and with `shadow_records` what
      `ofb_tf.evaluation.shadow.ShadowEvaluation.result` gives as `shadow`; for several heads what
      `ofb_tf.evaluation.heads.HeadsEvaluation.result` gives. `json.dumps` takes it.

    Raises:
      ValueError: an argument out of range; elements without id, label or a feature; records of
        another width than the task needs; a feature with more than 10,000 values.
      FileNotFoundError: no record file matches.
      CorruptRecordsError: a record file is damaged.
    """
    heads_or_task, label_key = heads.of_arguments(task, loss_weights, label_key)
    if isinstance(heads_or_task, Heads) and shadow_records is not None:
        raise ValueError(
            f"{STAGE}: shadow_records must be None with several heads. Evaluate the records of "
            "each model by themselves."
        )
    records = load_records(records, as_of)
    newest = int(tf.reduce_max(records.timestamps)) if as_of is None else as_of
    evaluation: Evaluation | HeadsEvaluation
    measure_task: Callable = measure
    if isinstance(heads_or_task, Heads):
        evaluation = HeadsEvaluation(heads_or_task, records.num_outputs, newest, uniform_mix)
        measure_task = measure_heads
    else:
        evaluation = Evaluation(heads_or_task, records.num_outputs, newest, uniform_mix)
    other, other_lookup = None, None
    if shadow_records is not None:
        shadow_records = load_records(shadow_records, as_of)
        widths = records.num_outputs, shadow_records.num_outputs
        other = ShadowEvaluation(heads_or_task, widths, uniform_mix)
        other_lookup = lookup_in_memory(shadow_records, oldest=None)
    if isinstance(examples, Mapping):
        examples = tf.data.Dataset.from_tensor_slices(
            {name: np.asarray(values) for name, values in examples.items()}
        )
    spec = examples.element_spec
    elements = ElementSpec(STAGE, spec, id_key, label_key, batched_input)
    elements.check_id()
    specs = tf.nest.flatten(elements.check_label(heads_or_task))
    for key, each in zip(tf.nest.flatten(label_key), specs, strict=True):
        if each.shape.rank:
            raise ValueError(
                f"{STAGE}: {key!r} must be one label for task={task!r}, got {each}. Evaluate "
                "several labels as heads, with a field for each."
            )
    for name in slice_keys:
        _scalar(elements, name)
    if timestamp_key is not None and _scalar(elements, timestamp_key).dtype != tf.int64:
        raise ValueError(
            f"{STAGE}: {timestamp_key!r} must be int64 microseconds since 1970, got "
            f"{_scalar(elements, timestamp_key)}."
        )
    lookup = lookup_in_memory(records, oldest=None)

    @tf.autograph.experimental.do_not_convert
    def join(*parts: Any) -> dict[str, Any]:
        batch = parts[0] if len(parts) == 1 else parts
        keys, given = elements.keys(batch), elements.fields(batch)
        ids, labels = hashing.to_int64(keys[id_key]), elements.labels(keys, heads_or_task)
        record = lookup.fields(ids)
        joined = {
            _MEASURED: measure_task(record, labels, heads_or_task),
            constants.MODEL_VERSION: record[constants.MODEL_VERSION],
            constants.TIMESTAMP: record[constants.TIMESTAMP],
            _SLICES: {name: given[name] for name in slice_keys},
        }
        if other_lookup is not None:
            joined[SHADOW] = measure(other_lookup.fields(ids), labels, heads_or_task)
        return joined if timestamp_key is None else joined | {TIME: given[timestamp_key]}

    batches = examples if batched_input else examples.batch(_BATCH)
    for batch in batches.map(join, num_parallel_calls=tf.data.AUTOTUNE).as_numpy_iterator():
        evaluation.add(
            batch[_MEASURED],
            model_versions=batch[constants.MODEL_VERSION],
            timestamps=batch[constants.TIMESTAMP],
            times=batch.get(TIME),
            slices=batch[_SLICES],
        )
        if other is not None:
            other.add(batch[_MEASURED], batch[SHADOW])
    return evaluation.result() | ({} if other is None else {SHADOW: other.result()})


def _scalar(elements: ElementSpec, name: str) -> tf.TensorSpec:
    """The spec of a feature of single elements."""
    fields = elements.fields(elements.spec)
    found = fields.get(name)
    rank = int(elements.batched)
    if not isinstance(found, tf.TensorSpec) or found.shape.rank not in (rank, None):
        raise ValueError(
            f"{STAGE}: {name!r} must be a scalar feature, got {found}; the elements have "
            f"{sorted(fields)}. Name one of these, or flatten it first."
        )
    return found

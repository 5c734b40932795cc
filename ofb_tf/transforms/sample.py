"""`ofb_sample`: window → scores → policy → weighted examples, inside a tf.data pipeline."""

import dataclasses
import operator
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import ForwardRecords, PartitionedRecords
from ofb_tf.records.outputs import look_like_probabilities
from ofb_tf.selection import Policy, get_policy, heads, scores, window
from ofb_tf.selection.heads import Heads
from ofb_tf.transforms import statistics
from ofb_tf.transforms.element_spec import ElementSpec, LabelKey, attach, gather, scores_of
from ofb_tf.transforms.join import (
    RecordLookup,
    assert_joined,
    load_records,
    lookup_in_columns,
    lookup_in_memory,
    oldest_timestamp,
)

STAGE = "ofb_sample"
_BATCH_SIZE = 256
_MAX_WRONG_LABELS = 0.05  # of a window, before a warning


def ofb_sample(
    *,
    records: ForwardRecords | PartitionedRecords | str | Sequence[str] | None = None,
    rate: float = 0.1,
    policy: str | Policy = "importance",
    task: str | Mapping[str, Any] | None = None,
    loss_weights: Mapping[str, float] | None = None,
    num_outputs: int | None = None,
    id_key: str = constants.EXAMPLE_ID,
    label_key: LabelKey = constants.LABEL,
    window_size: int = 4096,
    batch_size: int | None = None,
    drop_remainder: bool = False,
    seed: int | None = None,
    missing: str = constants.MISSING_UNIFORM,
    uniform_probe: float = 0.0,
    max_age: float | None = None,
    as_of: int | None = None,
    parse_fn: Callable | None = None,
    feature_spec: dict[str, Any] | None = None,
    decode_fn: Callable | None = None,
    batched_input: bool = False,
    keep_record: bool = False,
    redraw_each_iteration: bool = True,
    uniform_holdout: float | None = None,
) -> "OFBSampler":
    """Subsamples the stream to about `rate` by recorded serving outputs, with importance weights.

    ```python
    import ofb_tf
    from ofb_tf.testing import tiny_dataset

    examples = tiny_dataset(4800)  # dicts with example_id, label, feature and recorded logits
    sampler = ofb_tf.ofb_sample(rate=0.1, window_size=480, batch_size=48, seed=17)
    train = examples.apply(sampler)
    assert sum(len(batch["label"]) for batch in train) == 480  # a tenth, exactly
    assert sampler.statistics(examples)["coverage"] == 1.0
    ```

    With `records="records/*"` the logits come from record files and join by id.

    Consecutive examples form windows. In each, the policy turns recorded logits (or losses) and
    labels into inclusion probabilities p, a design selects by them, and each selected example
    leaves with the importance weight rate / p: the weighted mean over the selection estimates
    the window's mean loss, and its gradient, without bias, and uniform sampling has weights of
    exactly 1. Selection is a function of `seed`, the epoch and the ids. Sample first and
    repeat afterwards: then every repetition draws again. Where the dataset repeats, is infinite
    or has no ids, a window's number also enters the draw.

    Args:
      records: `ForwardRecords`, or a pattern, directory, file or list of them to load and join;
        `PartitionedRecords` where they are larger than memory, see `OFBSampler.partitions`;
        None where elements already carry `logits` or `loss`.
      rate: in (0, 1]: the fraction that goes on to training.
      policy: "importance", "uniform", or a `Policy` with settings of your own.
      task: "multiclass", "binary" or "regression"; None infers it from the logits' width and
        the label's dtype where they leave no doubt. For several heads a dict: by the name of
        each, one of these, or ("multiclass", number of classes). Records then hold the heads'
        logits side by side, in the order of their names. "binary" with a vector of labels is a
        head for each.
      loss_weights: of the heads, as for `keras.Model.compile`; None for ones.
      num_outputs: how many logits a record must have; None accepts what the records have.
      id_key: field with the example's id: scalar int64, int32 or string. Needed with `records`.
        Where x is no dict, the id goes next to the tuple: `(example_id, (x, y))`.
      label_key: field with the label: a number (class id, 0 / 1, or target), `[1]`, or a one-hot
        row with task="multiclass". For `(x, y)` elements y is the label, or a dict with this
        field. For several heads, a field for each by its name, by default the names themselves; a
        NaN, and for a classification a negative number, is a label that is not known. None where
        records hold the loss, and y is anything.
      window_size: how many examples are decided on together, at least 1 / rate.
      batch_size: size of the batches that come out; None for single examples. With it, the
        selection is never unbatched, which is the fast path.
      drop_remainder: whether a last, smaller batch is dropped, for a static batch size.
      seed: fixes the selection; None draws one now.
      missing: what happens to an example without a usable record (none, too old, a non-finite
        logit, loss or score, or a label out of range). "uniform": sampled with p = rate and
        weight 1. "keep": always selected, with weight `rate`; this uses up budget, but the other
        examples keep at least a fifth of their rate. "drop": left out; the estimate then covers
        only examples with a record. "error": raises.
      uniform_probe: in [0, rate * uniform_mix]: the fraction of the stream that is flagged, in a
        bool field `uniform_probe`, as a uniform sample for unbiased monitoring. Each selected
        example is flagged with probability uniform_probe / p, so that selection, weights and
        budget stay as they are; with `missing="drop"` it covers examples with a record.
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
      redraw_each_iteration: whether every iteration over the dataset makes new draws.
      uniform_holdout: deprecated name of `uniform_probe`; the field then has this name too.

    Returns:
      A function for `dataset.apply`, with the methods `statistics` and `partitions`. Dicts come
      out with `importance_weight` (float32) added, `(x, y)` as `(x, y, importance_weight)`; a
      sample weight or an importance weight that was there is multiplied. With several heads and
      a y that is a dict, the weights are a dict too, 0 where a label is not known.

    Raises:
      ValueError: an argument out of range, no record file matches, or, at application,
        elements that lack a field or have it in another shape or dtype; the message names the
        field, what was expected, what came and the remedy.
    """
    probe_field = constants.UNIFORM_PROBE
    if uniform_holdout is not None:
        probe_field, uniform_probe = constants.UNIFORM_HOLDOUT, uniform_holdout
        warnings.warn(
            "ofb_sample: uniform_holdout is deprecated, use uniform_probe.",
            DeprecationWarning,
            stacklevel=2,
        )
    heads_or_task: str | Heads | None
    if isinstance(task, Mapping):
        heads_or_task = Heads.of(task, loss_weights)
        label_key = _label_keys(heads_or_task, label_key)
    elif loss_weights is not None:
        raise ValueError("loss_weights is for several heads: give task as a dict by their names.")
    else:
        heads_or_task = task
    config = SamplingConfig(
        rate=rate,
        policy=get_policy(policy),
        task=heads_or_task,
        num_outputs=num_outputs,
        id_key=id_key,
        label_key=label_key,
        window_size=window_size,
        batch_size=batch_size,
        drop_remainder=drop_remainder,
        seed=secrets.randbits(62) if seed is None else seed,
        missing=missing,
        uniform_probe=uniform_probe,
        probe_field=probe_field,
        parse_fn=parse_fn,
        feature_spec=feature_spec,
        decode_fn=decode_fn,
        batched_input=batched_input,
        keep_record=keep_record,
        redraw_each_iteration=redraw_each_iteration,
    )
    oldest = oldest_timestamp(max_age, as_of)
    if records is None or isinstance(records, PartitionedRecords):
        return OFBSampler(config, records, oldest)
    return OFBSampler(config, load_records(records, as_of), oldest)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """The arguments of `ofb_sample`, checked. See there for what each is."""

    rate: float
    policy: Policy
    task: str | Heads | None
    num_outputs: int | None
    id_key: str
    label_key: LabelKey
    window_size: int
    batch_size: int | None
    drop_remainder: bool
    seed: int
    missing: str
    uniform_probe: float
    probe_field: str
    parse_fn: Callable | None
    feature_spec: dict[str, Any] | None
    decode_fn: Callable | None
    batched_input: bool
    keep_record: bool
    redraw_each_iteration: bool

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate must be in (0, 1]. Received: {self.rate!r}")
        for name, least in (("window_size", 1), ("batch_size", 1), ("seed", -(2**63))):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _integer(name, getattr(self, name), least))
        if self.window_size * self.rate < 1.0 - 1e-9:  # 49 * (1 / 49) is below 1 in floats
            raise ValueError(
                "window_size * rate must be at least 1, or most windows select nothing. "
                f"Received: window_size={self.window_size}, rate={self.rate}"
            )
        is_one_task = not isinstance(self.task, Heads)
        if is_one_task and self.task is not None and self.task not in constants.TASKS:
            raise ValueError(
                f"task must be one of {constants.TASKS} or None. Received: {self.task!r}"
            )
        if self.missing not in constants.MISSING:
            raise ValueError(
                f"missing must be one of {constants.MISSING}. Received: {self.missing!r}"
            )
        mix = getattr(self.policy, "uniform_mix", 1.0)
        if not 0.0 <= self.uniform_probe <= self.rate * mix:
            raise ValueError(
                f"{self.probe_field} must be in [0, rate * uniform_mix], the least inclusion "
                f"probability, which is {self.rate * mix:.4g}. Received: {self.uniform_probe!r}"
            )
        for name in ("parse_fn", "decode_fn"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function. Received: {getattr(self, name)!r}")


def _label_keys(task: Heads, label_key: Any) -> dict[str, str]:
    """The label's field of each head; by default it has the head's name."""
    names = [head.name for head in task]
    keys = dict(zip(names, names, strict=True)) if label_key == constants.LABEL else label_key
    if not isinstance(keys, Mapping) or sorted(keys) != names:
        raise ValueError(
            f"label_key must name a field for each of the heads {names}. Received: {label_key!r}"
        )
    return dict(keys)


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number < 2**63:
        raise ValueError(
            f"{name} must be an integer of at least {least} and below 2^63. Received: {value!r}"
        )
    return number


class OFBSampler:
    """What `ofb_sample` returns: a function for `dataset.apply`, with statistics.

    Args:
      config: the arguments of `ofb_sample`.
      records: what to join, or None where elements carry logits or losses.
      oldest: microseconds since 1970: an older record counts as missing. None for no limit.
    """

    def __init__(
        self,
        config: SamplingConfig,
        records: ForwardRecords | PartitionedRecords | None,
        oldest: int | None,
    ) -> None:
        self._config = config
        self._records = records
        self._oldest = oldest
        self._lookup = None
        if isinstance(records, ForwardRecords):
            self._lookup = lookup_in_memory(records, oldest)

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The sampled dataset. See `ofb_sample`.

        Args:
          dataset: elements as `ofb_sample` takes them; may be infinite.

        Returns:
          Single examples, or batches with `batch_size`, with `importance_weight` (float32).

        Raises:
          ValueError: the elements do not fit, or the records are partitioned.
        """
        if isinstance(self._records, PartitionedRecords):
            raise ValueError(
                f"{STAGE}: the records are partitioned, so the examples must be too: call "
                "sampler.partitions(examples), where examples(k) is the dataset of partition k."
            )
        return self._sampled(dataset, self._select_windows(dataset, self._gather))

    def partitions(self, examples: Callable[[tf.Tensor], tf.data.Dataset]) -> tf.data.Dataset:
        """The sampled dataset, where neither records nor examples fit into memory.

        Partitions follow each other; only one partition's records are in memory at a time.
        Windows do not reach over the end of a partition. A checkpoint of the iterator holds the
        records of the partition in which it stands.

        ```python
        import ofb_tf
        from ofb_tf.records import maintenance, partition_of
        from ofb_tf.testing import tiny_dataset

        with ofb_tf.ForwardRecordWriter("records") as writer:
            for example in tiny_dataset(1000).batch(100):
                writer.write(example["example_id"], example["logits"])
        maintenance.partition("records", "by-id", 4)  # as `ofb records partition` does


        def examples(k):  # in production: the file with partition k of the stream
            return tiny_dataset(1000).filter(lambda x: partition_of(x["example_id"], 4) == k)


        sampler = ofb_tf.ofb_sample(records=ofb_tf.PartitionedRecords("by-id"), window_size=64)
        train = sampler.partitions(examples)
        assert 80 <= len(list(train)) <= 120
        ```

        Args:
          examples: from a partition's number, an int64 scalar, to its examples: those with
            `ofb_tf.records.partition_of(example_id, num_partitions)` equal to it.

        Returns:
          As `dataset.apply(ofb_sample(...))`.

        Raises:
          ValueError: the elements do not fit, or the records are not partitioned.
        """
        if not isinstance(self._records, PartitionedRecords):
            raise ValueError(
                f"{STAGE}: partitions() needs records=PartitionedRecords(directory). "
                f"Received: {type(self._records).__name__}"
            )
        one = examples(tf.constant(0, tf.int64))
        return self._sampled(one, self._select_partitions(examples, self._gather))

    def statistics(
        self, examples: tf.data.Dataset | Callable[[tf.Tensor], tf.data.Dataset]
    ) -> dict[str, float]:
        """Reports coverage, realised rate and weight statistics in one pass over the examples.

        A tf.data pipeline that can be checkpointed holds no counters, so this is a separate pass:
        over a part of the stream (`take`), or over all of it where every example matters.

        Args:
          examples: what would be sampled, finite: a dataset, or as for `partitions`.

        Returns:
          `examples`, `selected`; `without_record` (none, or too old), `unusable` (a record, but
          a non-finite logit, loss or score, or a label out of range); `coverage`, the fraction
          with a usable record; `realized_rate`; `mean_weight`, `max_weight` and
          `effective_sample_size` (sum(w)^2 / (selected * sum(w^2)), in (0, 1]) of the selected.
          Ratios are not-a-number where nothing was counted.

        Raises:
          ValueError: the elements do not fit; see `ofb_sample`.
        """

        def count(batch: Any, record: dict, selection: window.Selection, key: tf.Tensor) -> dict:
            return statistics.count(record, selection)

        partitioned = isinstance(self._records, PartitionedRecords)
        select: Callable = self._select_partitions if partitioned else self._select_windows
        total = None
        for counts in select(examples, count).as_numpy_iterator():
            total = counts if total is None else statistics.add(total, counts)
        return statistics.summarize(total)

    def _select_windows(self, dataset: tf.data.Dataset, then: Callable) -> tf.data.Dataset:
        """Samples each window; `then` makes the elements of what is returned."""
        select = self._selector(dataset.element_spec, self._lookup, then)
        keyed = tf.data.Dataset.zip(self._batch(dataset), self._keys())
        return self._map_windows(keyed, select, self._is_numbered(dataset))

    def _select_partitions(self, examples: Callable, then: Callable) -> tf.data.Dataset:
        """The same, partition by partition, each with its records."""
        assert isinstance(self._records, PartitionedRecords)
        records = self._records
        is_numbered = self._is_numbered(examples(tf.constant(0, tf.int64)))

        def in_partition(partition: tf.Tensor, key: tf.Tensor) -> tf.data.Dataset:
            dataset = examples(partition)

            def with_records(columns: dict[str, tf.Tensor]) -> tf.data.Dataset:
                lookup = lookup_in_columns(columns, self._oldest)
                select = self._selector(dataset.element_spec, lookup, then)
                keyed = self._batch(dataset).map(lambda *batch: (_element(batch), key))
                return self._map_windows(keyed, select, is_numbered)

            return records.dataset(partition).flat_map(with_records)

        numbers = tf.data.Dataset.range(records.num_partitions)
        return tf.data.Dataset.zip(numbers, self._keys()).flat_map(in_partition)

    def _map_windows(
        self, keyed: tf.data.Dataset, select: Callable, is_numbered: bool
    ) -> tf.data.Dataset:
        if is_numbered:
            keyed = tf.data.Dataset.zip(keyed, tf.data.Dataset.counter(dtype=tf.int64)).map(
                lambda pair, number: (pair[0], hashing.fold_in(pair[1], number))
            )
        return keyed.map(select, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _is_numbered(self, dataset: tf.data.Dataset) -> bool:
        """Whether a window's number must enter its draws, because ids alone would repeat them."""
        return not self._resolve(dataset.element_spec)[0].has_id() or _repeats(dataset)

    def _batch(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        size = self._config.window_size
        if self._config.batched_input:
            return dataset.rebatch(size)
        dense = all(
            isinstance(part, tf.TensorSpec) for part in tf.nest.flatten(dataset.element_spec)
        )
        if not dense or size <= _BATCH_SIZE:
            return dataset.batch(size)
        # In two steps, single examples are copied while they are in the processor's cache.
        return dataset.batch(_BATCH_SIZE).rebatch(size)

    def _keys(self) -> tf.data.Dataset:
        """The key of all draws of a pass, int64, from the seed and an epoch; without end.

        It is zipped to windows, whose source stays what the tf.data service's dynamic sharding
        splits: a flat_map over epochs would give every worker all windows.
        """
        config = self._config
        # One draw per pass, which survives a checkpoint. Its source is endless also where nothing
        # is redrawn, so that under dynamic sharding no worker is left without an epoch.
        epochs = _draws(config.seed).take(1)

        def repeated(epoch: tf.Tensor) -> tf.data.Dataset:
            epoch = epoch if config.redraw_each_iteration else tf.zeros_like(epoch)
            key = hashing.fold_in(tf.constant(config.seed, tf.int64), epoch)
            return tf.data.Dataset.from_tensors(key).repeat()

        return epochs.flat_map(repeated)

    def _selector(self, spec: Any, lookup: RecordLookup | None, then: Callable) -> Callable:
        """The function of one window and its key; raises where the elements do not fit."""
        config = self._config
        elements, task = self._resolve(spec)

        # AutoGraph finds nothing to convert here, and would double the time of tracing.
        @tf.autograph.experimental.do_not_convert
        def select(batch: Any, key: tf.Tensor) -> Any:
            keys = elements.keys(batch)
            example_ids = None
            if elements.id_key in keys:
                example_ids = hashing.to_int64(keys[elements.id_key])
            if lookup is not None:
                record = lookup.fields(example_ids)
            else:
                record = {name: keys[name] for name in constants.RECORD_FIELDS if name in keys}
            labels, scored = elements.labels(keys, task), record
            one_task = constants.MULTICLASS if isinstance(task, Heads) else task
            if config.label_key is None and config.policy.needs_records:
                scored = _losses_alone(record)
            elif isinstance(task, Heads):
                scored, labels = heads.combine(task, record, labels, config.policy.score)
            elif config.policy.needs_records:
                with tf.control_dependencies([_warn_of_labels(labels, record, task)]):
                    labels = tf.identity(labels)
            selection = window.select(
                config.policy,
                rate=config.rate,
                task=one_task,
                missing=config.missing,
                example_ids=example_ids,
                labels=labels,
                record=scored,
                key=key,
                batch_size=config.batch_size,
            )
            return then(batch, record, selection, key)

        return select

    def _resolve(self, spec: Any) -> tuple[ElementSpec, str | Heads]:
        elements = _element_spec(spec, self._config)
        num_outputs = None if self._records is None else self._records.num_outputs
        return elements, _check_fields(elements, num_outputs, self._config)

    def _gather(
        self, batch: Any, record: dict, selection: window.Selection, key: tf.Tensor
    ) -> tuple[Any, dict[str, tf.Tensor]]:
        """What was selected of a window, and its weights (and flags and record fields)."""
        config, indices = self._config, selection.indices
        if config.missing == constants.MISSING_ERROR:
            with tf.control_dependencies([assert_joined(selection.usable, selection.example_ids)]):
                indices = tf.identity(indices)
        extras = {constants.IMPORTANCE_WEIGHT: selection.weights}
        if config.uniform_probe:
            extras[config.probe_field] = window.uniform_probe(selection, config.uniform_probe, key)
        if config.keep_record:
            record = {constants.HAS_RECORD: selection.usable} | record
            extras |= {name: tf.gather(value, indices) for name, value in record.items()}
        return gather(batch, indices), extras

    def _sampled(self, dataset: tf.data.Dataset, selected: tf.data.Dataset) -> tf.data.Dataset:
        spec = dataset.element_spec
        elements, task = self._resolve(spec)
        if isinstance(self._records, ForwardRecords):
            _warn_of_probabilities(self._records, task)
        # Fields that the join made are only in extras; those that came with the element go.
        drop: tuple[str, ...] = ()
        if self._records is None:
            parsed = self._config.feature_spec if self._config.keep_record else None
            drop = scores_of((parsed if elements.serialized else elements.fields(spec)) or {})
        if elements.paired:
            selected = selected.map(lambda batch, extras: (batch[1], extras))
        return _leave(selected, self._config, drop)


def _draws(seed: int) -> tf.data.Dataset:
    """`tf.data.Dataset.random(seed, rerandomize_each_iteration=True)`, but of this seed alone.

    The public function mixes in TensorFlow's global seed, so that `tf.random.set_seed` elsewhere
    in a program would change the selection.
    """
    variant = tf.raw_ops.RandomDatasetV2(
        seed=seed,
        seed2=1,
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        output_types=[tf.int64],
        output_shapes=[[]],
        rerandomize_each_iteration=True,
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.int64))


def _repeats(dataset: tf.data.Dataset) -> bool:
    """Whether examples may come more than once: the dataset is infinite or repeats upstream."""
    if tf.get_static_value(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        return True
    parts = [dataset]
    while parts:
        part = parts.pop()
        if type(part).__name__ == "_RepeatDataset":
            return True
        parts += part._inputs()
    return False


def _element(parts: tuple) -> Any:
    # Dataset.map unpacks tuples into arguments; everything else arrives as one.
    return parts[0] if len(parts) == 1 else parts


def _leave(
    selected: tf.data.Dataset, config: SamplingConfig, drop: tuple[str, ...]
) -> tf.data.Dataset:
    """Windows of selected examples → decoded, weighted examples or batches."""
    parallel = tf.data.AUTOTUNE
    rebatch = config.batch_size is not None and config.decode_fn is None
    if rebatch:
        selected = selected.rebatch(config.batch_size, drop_remainder=config.drop_remainder)

    def weighted(element: Any, extras: dict) -> Any:
        return attach(STAGE, element, extras, drop, config.label_key, config.task)

    def decode_batch(batch: Any, extras: dict) -> Any:
        parsed = config.parse_fn(batch) if config.parse_fn else batch
        return (parsed, extras) if config.decode_fn else weighted(parsed, extras)

    def decode_one(element: Any, extras: dict) -> Any:
        decoded = config.decode_fn(element) if config.decode_fn else element
        return weighted(decoded, extras)

    decoded = selected.map(decode_batch, num_parallel_calls=parallel, deterministic=True)
    if rebatch:
        return decoded
    decoded = decoded.unbatch()
    if config.decode_fn is not None:
        decoded = decoded.map(decode_one, num_parallel_calls=parallel, deterministic=True)
    if config.batch_size is not None:
        decoded = decoded.batch(config.batch_size, drop_remainder=config.drop_remainder)
    return decoded


def _element_spec(spec: Any, config: SamplingConfig) -> ElementSpec:
    """Where id and label are in elements of this spec; raises ValueError where they do not fit."""
    feature_spec = config.feature_spec
    if feature_spec is None:
        feature_spec = {config.id_key: tf.io.FixedLenFeature([], tf.int64)}
        if isinstance(config.task, Heads) and isinstance(config.label_key, Mapping):
            for head in config.task:
                feature_spec[config.label_key[head.name]] = _label_feature(head.task, -1)
        elif isinstance(config.label_key, str):
            task = None if isinstance(config.task, Heads) else config.task
            feature_spec[config.label_key] = _label_feature(task, None)
    elements = ElementSpec(
        stage=STAGE,
        spec=spec,
        id_key=config.id_key,
        label_key=config.label_key,
        batched=config.batched_input,
        feature_spec=feature_spec,
    )
    if elements.serialized and spec.shape.rank != (1 if config.batched_input else 0):
        raise ValueError(
            f"{STAGE}: serialized tf.Examples must be string scalars, got {spec}. Sample before "
            "batch(), or set batched_input=True for batches."
        )
    if elements.serialized and config.parse_fn is None and config.decode_fn is None:
        raise ValueError(
            f"{STAGE}: elements are serialized tf.Examples, so parse_fn (a function from "
            "serialized examples to features) is needed."
        )
    if not elements.serialized and (config.parse_fn or config.feature_spec):
        raise ValueError(
            f"{STAGE}: parse_fn and feature_spec are for serialized tf.Examples, got elements "
            f"{spec}. Use decode_fn for other elements."
        )
    return elements


def _label_feature(task: str | None, unknown: int | None) -> tf.io.FixedLenFeature:
    """How a label is parsed; `unknown` stands for one that is not there, None where all are."""
    if task == constants.REGRESSION:
        default = None if unknown is None else float("nan")
        return tf.io.FixedLenFeature([], tf.float32, default)
    return tf.io.FixedLenFeature([], tf.int64, unknown)


def _warn_of_probabilities(records: ForwardRecords, task: str | Heads) -> None:
    columns = records.columns
    if task not in (constants.BINARY, constants.MULTICLASS) or constants.CLASS_IDS in columns:
        return
    logits = columns.get(constants.LOGITS)
    if logits is not None and look_like_probabilities(logits[:4096].numpy()):
        warnings.warn(
            f"{STAGE}: the recorded logits lie in [0, 1], as probabilities do; they make the "
            "selection nearly uniform. Write them with probabilities=.",
            stacklevel=4,
        )


def _losses_alone(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """What of a record counts where no label is looked at."""
    if constants.LOSS not in record:
        raise ValueError(
            f"{STAGE}: label_key=None needs records that hold the loss, these have "
            f"{sorted(record)}. Set label_key, or write records with loss=."
        )
    return {name: record[name] for name in (constants.HAS_RECORD, constants.LOSS) if name in record}


def _warn_of_labels(labels: tf.Tensor, record: dict, task: str) -> tf.Operation:
    """Says on stderr that labels do not fit the task, once a window has more than a few of them."""
    wrong = tf.boolean_mask(labels, ~scores.valid_labels(record, labels, task))
    share = tf.size(wrong) / tf.maximum(tf.size(labels), 1)
    return tf.cond(
        share > _MAX_WRONG_LABELS,
        lambda: tf.print(
            f"WARNING: {STAGE}:",
            tf.size(wrong),
            "of",
            tf.size(labels),
            f"labels of this window are out of range for task={task!r}, among them",
            wrong[:3],
            "; these examples count as examples without a record. Check label_key and task, or "
            "filter them out.",
        ),
        tf.no_op,
    )


def _check_fields(
    elements: ElementSpec, num_outputs: int | None, config: SamplingConfig
) -> str | Heads:
    """Checks id, label and record fields."""
    label = elements.check_label(config.task)
    if num_outputs is not None or elements.has_id():
        elements.check_id()
    if not config.policy.needs_records:
        return config.task or constants.REGRESSION
    keys = elements.keys_spec()
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
    if config.label_key is None:
        return constants.REGRESSION
    task = config.task
    if task == constants.BINARY and label.shape.rank == 1:
        task = Heads.of({f"{i:06d}": task for i in range(label.shape[0])}, None)
    if isinstance(task, Heads):
        if width != task.num_outputs:
            raise ValueError(
                f"{STAGE}: {constants.LOGITS!r} must be [{task.num_outputs}] for the heads "
                f"{[tuple(head[:3]) for head in task]}, got [{width}] ({source}). Write the "
                "logits of all heads side by side, in the order of their names."
            )
        return task
    task = task or _infer_task(width, label, source)
    if width is not None and (task == constants.MULTICLASS) != (width > 1):
        expected = "[num_classes], at least 2" if task == constants.MULTICLASS else "[1]"
        raise ValueError(
            f"{STAGE}: {constants.LOGITS!r} must be {expected} for task={task!r}, got [{width}] "
            f"({source}). Write records with the model that serves this stream, or set task."
        )
    if task == constants.MULTICLASS and not label.dtype.is_integer:
        raise ValueError(
            f"{STAGE}: {config.label_key!r} must be an integer class id for task='multiclass', "
            f"got {label}. Cast it, or set task."
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

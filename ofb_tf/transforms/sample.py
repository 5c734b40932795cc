"""`ofb_sample`: window → scores → policy → weighted examples, inside a tf.data pipeline."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import ForwardRecords, PartitionedRecords
from ofb_tf.selection import Policy, get_policy, window
from ofb_tf.transforms.element_spec import Layout, attach
from ofb_tf.transforms.join import assert_joined
from ofb_tf.transforms.lookup import (
    RecordLookup,
    load_records,
    lookup_in_columns,
    lookup_in_memory,
    oldest_timestamp,
)
from ofb_tf.transforms.sampling_config import STAGE, SamplingConfig, check_fields, element_layout


def ofb_sample(
    *,
    records: ForwardRecords | PartitionedRecords | str | Sequence[str] | None = None,
    rate: float = 0.1,
    policy: str | Policy = "importance",
    task: str | None = None,
    num_outputs: int | None = None,
    id_key: str = constants.EXAMPLE_ID,
    label_key: str = constants.LABEL,
    window_size: int = 4096,
    batch_size: int | None = None,
    drop_remainder: bool = False,
    seed: int | None = None,
    missing: str = window.UNIFORM,
    uniform_holdout: float = 0.0,
    max_age: float | None = None,
    as_of: int | None = None,
    parse_fn: Callable | None = None,
    feature_spec: dict[str, Any] | None = None,
    decode_fn: Callable | None = None,
    batched_input: bool = False,
    keep_record: bool = False,
    redraw_each_iteration: bool = True,
) -> "OFBSampler":
    """Lets about `rate` of the stream through, chosen by what serving recorded, with weights.

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
    exactly 1. Selection is a function of `seed`, the epoch and the ids.

    Args:
      records: `ForwardRecords`, or a pattern, directory, file or list of them to load and join;
        `PartitionedRecords` where they are larger than memory, see `OFBSampler.partitions`;
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
      uniform_holdout: in [0, rate * uniform_mix]: the fraction of the stream that is flagged, in
        a bool field `uniform_holdout`, as a uniform sample for unbiased monitoring. Each
        selected example is flagged with probability uniform_holdout / p, so that selection,
        weights and budget stay as they are.
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
      A function for `dataset.apply`, with the methods `statistics` and `partitions`. Dicts come
      out with `importance_weight` (float32) added, `(x, y)` as `(x, y, importance_weight)`, and
      `(x, y, sample_weight)` with the product.

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
        uniform_holdout=uniform_holdout,
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


_BATCH_SIZE = 256


class OFBSampler:
    """What `ofb_sample` returns: a function for `dataset.apply`, which can also count.

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
        """Counts what sampling these examples meets and does; takes one pass over them.

        A tf.data pipeline that can be checkpointed holds no counters, so this is a pass of its
        own: over a part of the stream (`take`), or over all of it where every example matters.

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

        def count(batch: Any, record: dict, sample: window.WindowSample, key: tf.Tensor) -> dict:
            return window.count(record, sample)

        partitioned = isinstance(self._records, PartitionedRecords)
        select: Callable = self._select_partitions if partitioned else self._select_windows
        total = None
        for counts in select(examples, count).as_numpy_iterator():
            total = counts if total is None else window.add_counts(total, counts)
        return window.summarize(total)

    def _select_windows(self, dataset: tf.data.Dataset, then: Callable) -> tf.data.Dataset:
        """Samples each window; `then` makes the elements of what is returned."""
        sample = self._sampler(dataset.element_spec, self._lookup, then)
        windows = self._with_epoch(self._batch(dataset))
        return windows.map(sample, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _select_partitions(self, examples: Callable, then: Callable) -> tf.data.Dataset:
        """The same, partition by partition, each with its records."""
        assert isinstance(self._records, PartitionedRecords)
        records = self._records

        def in_partition(partition: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
            dataset = examples(partition)

            def with_records(columns: dict[str, tf.Tensor]) -> tf.data.Dataset:
                lookup = lookup_in_columns(columns, self._oldest)
                sample = self._sampler(dataset.element_spec, lookup, then)
                return self._batch(dataset).map(
                    lambda *batch: sample(_element(batch), epoch),
                    num_parallel_calls=tf.data.AUTOTUNE,
                    deterministic=True,
                )

            return records.dataset(partition).flat_map(with_records)

        numbers = tf.data.Dataset.range(records.num_partitions)
        return self._with_epoch(numbers).flat_map(in_partition)

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

    def _with_epoch(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Pairs elements with an int64 that differs from pass to pass.

        The dataset's source stays what the tf.data service's dynamic sharding splits: a flat_map
        over epochs would give every worker all windows.
        """
        config = self._config
        # One draw a pass, which survives a checkpoint. Its source is endless also where nothing
        # is drawn anew, so that under dynamic sharding no worker is left without an epoch.
        epochs = _draws(config.seed).take(1)

        def repeated(epoch: tf.Tensor) -> tf.data.Dataset:
            epoch = epoch if config.redraw_each_iteration else tf.zeros_like(epoch)
            return tf.data.Dataset.from_tensors(epoch).repeat()

        epochs = epochs.flat_map(repeated)
        return tf.data.Dataset.zip(dataset, epochs)

    def _sampler(self, spec: Any, lookup: RecordLookup | None, then: Callable) -> Callable:
        """The function of one window and the epoch; raises where the elements do not fit."""
        config = self._config
        layout, task = self._resolve(spec)

        # AutoGraph finds nothing to convert here, and would double the time of tracing.
        @tf.autograph.experimental.do_not_convert
        def sample(batch: Any, epoch: tf.Tensor) -> Any:
            key = hashing.fold_in(tf.constant(config.seed, tf.int64), epoch)
            keys = layout.keys(batch)
            example_ids = None
            if layout.id_key in keys:
                example_ids = hashing.to_int64(keys[layout.id_key])
            if lookup is not None:
                record = lookup.fields(example_ids)
            else:
                record = {name: keys[name] for name in constants.RECORD_FIELDS if name in keys}
            labels = keys[layout.label_key]
            sampled = window.sample_window(
                policy=config.policy,
                rate=config.rate,
                task=task,
                missing=config.missing,
                example_ids=example_ids,
                labels=tf.cast(labels, tf.int64) if labels.dtype == tf.bool else labels,
                record=record,
                key=key,
                batch_size=config.batch_size,
            )
            return then(batch, record, sampled, key)

        return sample

    def _resolve(self, spec: Any) -> tuple[Layout, str]:
        layout = element_layout(spec, self._config)
        num_outputs = None if self._records is None else self._records.num_outputs
        return layout, check_fields(layout, num_outputs, self._config)

    def _gather(
        self, batch: Any, record: dict, sample: window.WindowSample, key: tf.Tensor
    ) -> tuple[Any, dict[str, tf.Tensor]]:
        """What was selected of a window, and its weights (and flags and record fields)."""
        config, indices = self._config, sample.indices
        if config.missing == window.ERROR:
            with tf.control_dependencies([assert_joined(sample.has_score, sample.example_ids)]):
                indices = tf.identity(indices)
        extras = {constants.IMPORTANCE_WEIGHT: sample.weights}
        if config.uniform_holdout:
            extras["uniform_holdout"] = window.uniform_holdout(sample, config.uniform_holdout, key)
        if config.keep_record:
            record = {constants.HAS_RECORD: sample.has_score} | record
            extras |= {name: tf.gather(value, indices) for name, value in record.items()}
        return tf.nest.map_structure(lambda part: tf.gather(part, indices), batch), extras

    def _sampled(self, dataset: tf.data.Dataset, selected: tf.data.Dataset) -> tf.data.Dataset:
        layout, _ = self._resolve(dataset.element_spec)
        # Fields that the join made are only in extras; those that came with the element go.
        drop = constants.RECORD_FIELDS if self._records is None and not layout.serialized else ()
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

    def decode_batch(batch: Any, extras: dict) -> Any:
        parsed = config.parse_fn(batch) if config.parse_fn else batch
        return (parsed, extras) if config.decode_fn else attach(STAGE, parsed, extras, drop)

    def decode_one(element: Any, extras: dict) -> Any:
        decoded = config.decode_fn(element) if config.decode_fn else element
        return attach(STAGE, decoded, extras, drop)

    decoded = selected.map(decode_batch, num_parallel_calls=parallel, deterministic=True)
    if rebatch:
        return decoded
    decoded = decoded.unbatch()
    if config.decode_fn is not None:
        decoded = decoded.map(decode_one, num_parallel_calls=parallel, deterministic=True)
    if config.batch_size is not None:
        decoded = decoded.batch(config.batch_size, drop_remainder=config.drop_remainder)
    return decoded

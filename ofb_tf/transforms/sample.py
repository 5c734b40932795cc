"""`ofb_sample`: window → scores → policy → weighted examples, inside a tf.data pipeline."""

import copy
import dataclasses
import operator
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.checks import check_choice
from ofb_tf.records import ForwardRecords, PartitionedRecords
from ofb_tf.records.outputs import look_like_probabilities
from ofb_tf.selection import Policy, get_policy, heads, stream_budget, window
from ofb_tf.selection.heads import Head, Heads
from ofb_tf.selection.log_odds import check_log_odds
from ofb_tf.transforms import dense, statistics
from ofb_tf.transforms.element_spec import (
    DatasetTransform,
    ElementSpec,
    IdKey,
    LabelKey,
    attach,
    gather,
    scores_of,
)
from ofb_tf.transforms.join import (
    RecordLookup,
    UpdatableRecords,
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
    id_key: IdKey = constants.EXAMPLE_ID,
    label_key: LabelKey = constants.LABEL,
    window_size: int = 4096,
    batch_size: int | None = None,
    drop_remainder: bool = False,
    seed: int | None = None,
    missing: str = constants.MISSING_UNIFORM,
    estimator: str = constants.WEIGHTS,
    budget: str = constants.BUDGET_WINDOW,
    uniform_probe: float = 0.0,
    max_age: float | None = None,
    as_of: int | None = None,
    parse_fn: Callable | None = None,
    feature_spec: dict[str, Any] | None = None,
    decode_fn: Callable | None = None,
    batched_input: bool = False,
    keep_record: bool = False,
    redraw_each_iteration: bool = True,
    updatable: bool = False,
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
        Where x is no dict, the id goes next to the tuple: `(example_id, (x, y))`. A list of fields
        that together tell examples apart: the id is `example_id_of` them.
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
      estimator: how the selected stand for the stream. "weights": by importance weights, unbiased
        for any loss. "log_odds": elements leave without weights, but with `log_inclusion`, which
        `OFBModel` adds to its logits in the training loss: log of the probability of being
        selected under each class, float32 `[num_classes]`, and for binary log(pi_1 / pi_0),
        `[1]`; 0 where there was no usable record. For classification by cross-entropy with hard
        labels that are right, and a policy that is `affine`; see docs/METHOD.md.
      budget: "window": each window takes its share, exactly with the systematic design.
        "stream": a window may take more or less than others, the rate is right over many; for
        events that cluster in time. Windows are then selected from one after the other.
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
      updatable: whether `OFBSampler.update` can replace the records while datasets are in use.
      uniform_holdout: deprecated name of `uniform_probe`; the field then has this name too.

    Returns:
      An `OFBSampler`: a function for `dataset.apply`, with the methods `update`, `statistics` and
      `partitions`. Dicts come
      out with `importance_weight` (float32) added, `(x, y)` as `(x, y, importance_weight)`; a
      sample weight or an importance weight that was there is multiplied. With several heads and
      a y that is a dict, the weights are a dict too, 0 where a label is not known. With
      "log_odds", dicts and the x of tuples, which must be a dict, come out with `log_inclusion`
      instead; weights that were there stay as they are.

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
    heads_or_task, label_key = heads.of_arguments(task, loss_weights, label_key)
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
        estimator=estimator,
        budget=budget,
        uniform_probe=uniform_probe,
        probe_field=probe_field,
        parse_fn=parse_fn,
        feature_spec=feature_spec,
        decode_fn=decode_fn,
        batched_input=batched_input,
        keep_record=keep_record,
        redraw_each_iteration=redraw_each_iteration,
        max_age=max_age,
        updatable=updatable,
    )
    return OFBSampler(config, records, as_of)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """The arguments of `ofb_sample`, checked. See there for what each is."""

    rate: float
    policy: Policy
    task: str | Heads | None
    num_outputs: int | None
    id_key: IdKey
    label_key: LabelKey
    window_size: int
    batch_size: int | None
    drop_remainder: bool
    seed: int
    missing: str
    estimator: str
    budget: str
    uniform_probe: float
    probe_field: str
    parse_fn: Callable | None
    feature_spec: dict[str, Any] | None
    decode_fn: Callable | None
    batched_input: bool
    keep_record: bool
    redraw_each_iteration: bool
    max_age: float | None
    updatable: bool

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
        check_choice("estimator", self.estimator, constants.ESTIMATORS)
        check_choice("budget", self.budget, constants.BUDGETS)
        mix = getattr(self.policy, "uniform_mix", 1.0)
        if self.estimator == constants.LOG_ODDS:
            check_log_odds(self.policy, self.task)
        if self.budget == constants.BUDGET_STREAM and not self.policy.affine:
            raise ValueError(
                "budget='stream' needs a policy whose probabilities are a function of the score "
                f"(Policy.affine). Received: {type(self.policy).__name__}. Use Importance, or "
                "budget='window'."
            )
        if not 0.0 <= self.uniform_probe <= self.rate * mix:
            raise ValueError(
                f"{self.probe_field} must be in [0, rate * uniform_mix], the least inclusion "
                f"probability, which is {self.rate * mix:.4g}. Received: {self.uniform_probe!r}"
            )
        for name in ("parse_fn", "decode_fn"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function. Received: {getattr(self, name)!r}")

    @property
    def follows_stream(self) -> bool:
        """Whether a state goes from window to window."""
        return self.budget == constants.BUDGET_STREAM and self.policy.needs_records


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
      records: as for `ofb_sample`.
      as_of: as for `ofb_sample`.
    """

    def __init__(
        self,
        config: SamplingConfig,
        records: ForwardRecords | PartitionedRecords | str | Sequence[str] | None,
        as_of: int | None,
    ) -> None:
        self._config = config
        self._oldest = oldest_timestamp(config.max_age, as_of)
        self._functions: dict[Any, Callable] = {}
        self._task: str | Heads | None = None  # of the dataset that it was applied to last
        self._lookup: RecordLookup | UpdatableRecords | None = None
        if config.updatable and (records is None or isinstance(records, PartitionedRecords)):
            raise ValueError(
                f"{STAGE}: updatable=True needs records that are loaded into memory. "
                f"Received: records={records!r}"
            )
        if records is not None and not isinstance(records, PartitionedRecords):
            records = load_records(records, as_of)
            make = UpdatableRecords if config.updatable else lookup_in_memory
            self._lookup = make(records, self._oldest)
        self._records = records
        self._num_outputs = None if records is None else records.num_outputs

    @property
    def config(self) -> SamplingConfig:
        """The arguments of `ofb_sample`."""
        return self._config

    def steps(self, spec: Any, num_outputs: int) -> "Steps":
        """What is done with a window, step by step, for a source that joins records on its own.

        Args:
          spec: the `element_spec` of the examples.
          num_outputs: of the records; 0 where they hold losses alone.

        Raises:
          ValueError: the sampler has records, or the elements do not fit; see `ofb_sample`.
        """
        if self._records is not None:
            raise ValueError(
                f"{STAGE}: a stream joins its own records, so the sampler must have records=None. "
                "Received: a sampler with records"
            )
        sampler = copy.copy(self)
        sampler._num_outputs = num_outputs
        elements, task = sampler._resolve(spec)
        elements.check_id()
        config = self._config

        def then(*arguments: Any) -> tuple:
            return sampler._gather(*arguments), sampler._count(*arguments)

        decide = sampler._decider(elements, task, then)

        def keys_of(window: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            keys: dict[Any, tf.Tensor] = dict(elements.keys(window))
            return keys, hashing.to_int64(keys.pop(elements.id_key))

        def select(window: Any, keys: dict, ids: tf.Tensor, record: dict, state: Any) -> tuple:
            key = hashing.fold_in(np.int64(config.seed), np.int64(0))
            (selected, counts), state, joined, seen = decide(window, keys, ids, record, key, state)
            _check(config, task, joined, seen)
            return selected, counts, state

        def leave(selected: tf.data.Dataset) -> tf.data.Dataset:
            return sampler._sampled(selected, ())

        return Steps(
            config=config,
            keys=keys_of,
            select=select,
            state=stream_budget.initial_state() if config.follows_stream else None,
            leave=leave,
        )

    def update(
        self, records: ForwardRecords | str | Sequence[str], *, as_of: int | None = None
    ) -> None:
        """Replaces the records; needs `updatable=True`.

        Datasets and iterators that exist use the new records from their next window on; windows
        that wait in their buffers were selected with the old ones. Nothing is traced again, and
        no place in the stream is lost. A checkpoint of an iterator does not hold the records:
        after a restart it goes on with those that the sampler has then.

        ```python
        import ofb_tf
        from ofb_tf.testing import tiny_dataset

        with ofb_tf.ForwardRecordWriter("records") as writer:
            for example in tiny_dataset(1000).batch(100):
                writer.write(example["example_id"], example["logits"])
        sampler = ofb_tf.ofb_sample(records="records", updatable=True, window_size=100)
        train = tiny_dataset(1000).apply(sampler)
        for hour in range(3):
            assert len(list(train)) == 100
            sampler.update("records")  # what serving has recorded meanwhile
        ```

        Args:
          records: as for `ofb_sample`, of the same columns and number of outputs as before.
          as_of: as for `ofb_sample`.

        Raises:
          ValueError: the sampler is not updatable, or the records do not fit.
        """
        if not isinstance(self._lookup, UpdatableRecords):
            raise ValueError(
                f"{STAGE}: update() needs a sampler made with updatable=True. Received: a sampler "
                "whose records are constants of its graph"
            )
        oldest = oldest_timestamp(self._config.max_age, as_of)
        loaded = load_records(records, as_of)
        self._lookup.update(loaded, oldest)
        if self._task is not None:
            _warn_of_probabilities(loaded, self._task)

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
        elements, self._task = self._resolve(dataset.element_spec)
        if self._records is not None:
            _warn_of_probabilities(self._records, self._task)
        return self._sampled(self._select_windows(dataset, self._gather), self._drop(elements))

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
        return self._sampled(self._select_partitions(examples, self._gather), ())

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
          `confident_error`, the share of labels that contradict the served model in the quarter
          of each window where it is most confident, and `expected_confident_error`, what the
          model itself expects there; see `ofb_tf.selection.label_noise`.
          Ratios are not-a-number where nothing was counted.

        Warns where the estimator is "log_odds" and `confident_error` is above 2% beyond doubt:
        labels look noisy, and weights are the safer estimator.

        Raises:
          ValueError: the elements do not fit; see `ofb_sample`.
        """
        partitioned = isinstance(self._records, PartitionedRecords)
        select: Callable = self._select_partitions if partitioned else self._select_windows
        total = None
        for counts in select(examples, self._count).as_numpy_iterator():
            total = counts if total is None else statistics.add(total, counts)
        figures = statistics.summarize(total)
        if self._config.estimator == constants.LOG_ODDS and statistics.looks_noisy(total):
            warnings.warn(
                f"{STAGE}: labels look noisy: {figures[constants.CONFIDENT_ERROR]:.1%} of them "
                "contradict the served model where it is most confident, and it expects "
                f"{figures[constants.EXPECTED_CONFIDENT_ERROR]:.1%}. Use estimator='weights' "
                "unless the served model is not trained yet.",
                stacklevel=2,
            )
        return figures

    def _select_windows(self, dataset: tf.data.Dataset, then: Callable) -> tf.data.Dataset:
        """Samples each window; `then` makes the elements of what is returned."""
        windows = self._windows(dataset, self._epochs())
        # One traced function for every dataset of these elements.
        kind = (then.__name__, repr(windows.element_spec))
        if kind not in self._functions:
            select = self._selector(dataset.element_spec, self._lookup, then)
            task = self._resolve(dataset.element_spec)[1]
            self._functions[kind] = self._mapping(select, windows.element_spec, task)
        return self._functions[kind](windows)

    def _select_partitions(self, examples: Callable, then: Callable) -> tf.data.Dataset:
        """The same, partition by partition, each with its records."""
        assert isinstance(self._records, PartitionedRecords)
        records = self._records

        def in_partition(partition: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
            dataset = examples(partition)

            def with_records(columns: dict[str, tf.Tensor]) -> tf.data.Dataset:
                lookup = lookup_in_columns(columns, self._oldest)
                select = self._selector(dataset.element_spec, lookup, then)
                epochs = tf.data.Dataset.from_tensors(epoch).repeat()
                windows = self._windows(dataset, epochs)
                task = self._resolve(dataset.element_spec)[1]
                return self._mapping(select, windows.element_spec, task)(windows)

            return records.dataset(partition).flat_map(with_records)

        partitions = tf.data.Dataset.range(records.num_partitions)
        return tf.data.Dataset.zip(partitions, self._epochs()).flat_map(in_partition)

    def _windows(self, dataset: tf.data.Dataset, epochs: tf.data.Dataset) -> tf.data.Dataset:
        """Windows with their epoch and, where ids alone would repeat their draws, their number."""
        parts = [self._batch(dataset), epochs]
        if not self._resolve(dataset.element_spec)[0].has_id() or _repeats(dataset):
            parts.append(tf.data.Dataset.counter(dtype=tf.int64))
        return tf.data.Dataset.zip(*parts)

    def _mapping(self, select: Callable, spec: Any, task: str | Heads) -> DatasetTransform:
        """From windows of this spec to what `select` makes of each."""
        config = self._config
        traced_once = dense.is_dense(spec) and not config.follows_stream
        function = select if traced_once else tf.function(select, autograph=False)

        @tf.autograph.experimental.do_not_convert
        def sample(state: Any, parts: tuple) -> tuple:
            selected, state, joined, seen = function(*parts, state=state)
            _check(config, task, joined, seen)
            return state, selected

        @tf.autograph.experimental.do_not_convert
        def sample_alone(*parts: Any) -> Any:
            return sample(None, parts)[1]

        if config.follows_stream:
            return lambda windows: windows.scan(stream_budget.initial_state(), sample)
        if traced_once:
            return dense.Traced(sample_alone, spec).map
        return lambda windows: windows.map(sample_alone, tf.data.AUTOTUNE, deterministic=True)

    def _batch(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        size = self._config.window_size
        if self._config.batched_input:
            return dense.rebatch(dataset, size)
        if size <= _BATCH_SIZE or not dense.is_dense(dataset.element_spec):
            return dataset.batch(size)
        # In two steps, single examples are copied while they are in the processor's cache.
        return dense.rebatch(dataset.batch(_BATCH_SIZE), size)

    def _epochs(self) -> tf.data.Dataset:
        """One int64 draw per pass, repeated without end.

        It is zipped to windows, whose source stays what the tf.data service's dynamic sharding
        splits: a flat_map over epochs would give every worker all windows.
        """
        # The draw survives a checkpoint. Its source is endless also where nothing is redrawn, so
        # that under dynamic sharding no worker is left without an epoch.
        return _draws(self._config.seed).take(1).flat_map(_repeated)

    def _selector(
        self, spec: Any, lookup: RecordLookup | UpdatableRecords | None, then: Callable
    ) -> Callable:
        """The function of one window, its epoch and number; raises if the elements do not fit.

        It returns what `then` makes, the state that follows under `budget="stream"`, and what
        `_check` takes.
        """
        config = self._config
        elements, task = self._resolve(spec)
        leave_out = () if config.keep_record else (constants.MODEL_VERSION, constants.TIMESTAMP)
        decide = self._decider(elements, task, then)

        # AutoGraph finds nothing to convert here, and would double the time of tracing.
        @tf.autograph.experimental.do_not_convert
        def select(batch: Any, epoch: tf.Tensor, *number: tf.Tensor, state: Any = None) -> Any:
            epoch = epoch if config.redraw_each_iteration else tf.zeros_like(epoch)
            key = hashing.fold_in(np.int64(config.seed), epoch)
            for numbered in number:
                key = hashing.fold_in(key, numbered)
            keys = elements.keys(batch)
            example_ids = None
            if elements.id_key in keys:
                example_ids = hashing.to_int64(keys[elements.id_key])
            if lookup is not None:
                record = lookup.fields(example_ids, leave_out)
            else:
                record = {name: keys[name] for name in constants.RECORD_FIELDS if name in keys}
            return decide(batch, keys, example_ids, record, key, state)

        return select

    def _decider(self, elements: ElementSpec, task: str | Heads, then: Callable) -> Callable:
        """The function of one window with its keys and records; returns what `_selector`'s does."""
        config = self._config
        num_outputs = config.num_outputs if self._num_outputs is None else self._num_outputs
        asserts_joined = config.missing == constants.MISSING_ERROR
        sees_labels = config.policy.needs_records and config.label_key is not None

        @tf.autograph.experimental.do_not_convert
        def decide(
            batch: Any,
            keys: dict[str, Any],
            example_ids: tf.Tensor | None,
            record: dict[str, tf.Tensor],
            key: tf.Tensor,
            state: Any,
        ) -> tuple:
            labels, scored, joint = elements.labels(keys, task), record, None
            if isinstance(task, Heads):
                joint = heads.combine(task, record, labels, config.policy.score)
                labels, scored = joint.strata, joint.record
            elif config.label_key is None and config.policy.needs_records:
                scored = _losses_alone(record)
            selection = window.select(
                config.policy,
                rate=config.rate,
                task=task if isinstance(task, str) else constants.MULTICLASS,
                missing=config.missing,
                example_ids=example_ids,
                labels=labels,
                record=scored,
                key=key,
                batch_size=config.batch_size,
                estimator=config.estimator,
                num_outputs=num_outputs,
                state=state,
            )
            batch = elements.without_id(batch)
            selected = then(elements, task, batch, labels, record, selection, key)
            joined = (selection.usable, selection.example_ids) if asserts_joined else ()
            seen: tuple = ()
            if sees_labels:
                seen = (labels, selection.valid_labels)
                if joint is not None and isinstance(task, Heads):
                    seen = (elements.label_columns(keys, task), joint.valid_labels)
            return selected, selection.state, joined, seen

        return decide

    def _resolve(self, spec: Any) -> tuple[ElementSpec, str | Heads]:
        elements = _element_spec(spec, self._config)
        return elements, _check_fields(elements, self._num_outputs, self._config)

    def _gather(
        self,
        elements: ElementSpec,
        task: str | Heads,
        batch: Any,
        labels: tf.Tensor,
        record: dict,
        selection: window.Selection,
        key: tf.Tensor,
    ) -> Any:
        """What was selected of a window with its weights (and flags and record fields).

        They are apart, `(batch, extras)`, where what was selected is still to be decoded.
        """
        config, indices = self._config, selection.indices
        if config.estimator == constants.LOG_ODDS:
            extras = {constants.LOG_INCLUSION: selection.log_inclusion}
        else:
            extras = {constants.IMPORTANCE_WEIGHT: selection.weights}
        if config.uniform_probe:
            extras[config.probe_field] = window.uniform_probe(selection, config.uniform_probe, key)
        if config.keep_record:
            record = {constants.HAS_RECORD: selection.usable} | record
            extras |= {name: tf.gather(value, indices) for name, value in record.items()}
        selected = gather(batch, indices)
        if config.parse_fn or config.decode_fn:
            return selected, extras
        return _weighted(config, selected, extras, self._drop(elements))

    def _count(
        self,
        elements: ElementSpec,
        task: str | Heads,
        batch: Any,
        labels: tf.Tensor,
        record: dict,
        selection: window.Selection,
        key: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        return statistics.count(record, labels, selection, task)

    def _drop(self, elements: ElementSpec) -> tuple[str, ...]:
        """The record fields that elements came with: what is kept of them is in extras."""
        if self._num_outputs is not None:
            return ()
        if not elements.serialized:
            return scores_of(elements.fields(elements.spec))
        # A serialized example had no fields: what it has when parsed is its own, unless it is
        # among the extras too.
        return scores_of(self._config.feature_spec or {}) if self._config.keep_record else ()

    def _sampled(self, selected: tf.data.Dataset, drop: tuple[str, ...]) -> tf.data.Dataset:
        sampled = _leave(selected, self._config, drop)
        if self._config.updatable:
            # A checkpoint of an iterator leaves the variable with the records out.
            options = tf.data.Options()
            options.experimental_external_state_policy = (
                tf.data.experimental.ExternalStatePolicy.IGNORE
            )
            sampled = sampled.with_options(options)
        return sampled


class Steps(NamedTuple):
    """What `ofb_sample` does with a window, in the order of use; see `OFBSampler.steps`.

    Attributes:
      config: the arguments of `ofb_sample`.
      keys: from a window to the fields that selection looks at but for ids, and int64 ids `[n]`.
      select: from a window, its keys, ids, record fields and the state of `budget="stream"` to
        what was selected, counts as `statistics.count` gives them, and the next state.
      state: the state before the first window, None for `budget="window"`.
      leave: from a dataset of what was selected of each window to the dataset that comes out.
    """

    config: SamplingConfig
    keys: Callable
    select: Callable
    state: stream_budget.StreamState | None
    leave: Callable[[tf.data.Dataset], tf.data.Dataset]


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


@tf.autograph.experimental.do_not_convert
def _repeated(value: tf.Tensor) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(value).repeat()


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


def _weighted(
    config: SamplingConfig, element: Any, extras: dict[str, tf.Tensor], drop: tuple[str, ...]
) -> Any:
    return attach(STAGE, element, extras, drop, config.label_key, config.task)


def _leave(
    selected: tf.data.Dataset, config: SamplingConfig, drop: tuple[str, ...]
) -> tf.data.Dataset:
    """Windows of selected examples → decoded, weighted examples or batches."""
    parallel = tf.data.AUTOTUNE
    parse_fn, decode_fn = config.parse_fn, config.decode_fn
    batch_size = config.batch_size if decode_fn is None else None
    if batch_size is not None:
        selected = dense.rebatch(selected, batch_size, config.drop_remainder)

    if parse_fn is not None:

        @tf.autograph.experimental.do_not_convert
        def parse(batch: Any, extras: dict) -> Any:
            parsed = parse_fn(batch)
            return (parsed, extras) if decode_fn else _weighted(config, parsed, extras, drop)

        selected = selected.map(parse, num_parallel_calls=parallel, deterministic=True)
    if batch_size is not None:
        return selected
    selected = selected.unbatch()
    if decode_fn is not None:

        def decode(element: Any, extras: dict) -> Any:
            return _weighted(config, decode_fn(element), extras, drop)

        selected = selected.map(decode, num_parallel_calls=parallel, deterministic=True)
    if config.batch_size is not None:
        selected = selected.batch(config.batch_size, drop_remainder=config.drop_remainder)
    return selected


def _element_spec(spec: Any, config: SamplingConfig) -> ElementSpec:
    """Where id and label are in elements of this spec; raises ValueError where they do not fit."""
    feature_spec = config.feature_spec
    if feature_spec is None:
        names = [config.id_key] if isinstance(config.id_key, str) else config.id_key
        feature_spec = dict.fromkeys(names, tf.io.FixedLenFeature([], tf.int64))
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
    logits = records.columns.get(constants.LOGITS)
    if logits is None or constants.CLASS_IDS in records.columns:
        return
    own = task if isinstance(task, Heads) else Heads([Head("", task, logits.shape[1])])
    for head, part in zip(own, own.split(logits[:4096].numpy()), strict=True):
        if head.task != constants.REGRESSION and look_like_probabilities(part):
            warnings.warn(
                f"{STAGE}: the recorded logits lie in [0, 1], as probabilities do; they make the "
                "selection nearly uniform. Write them with probabilities=.",
                stacklevel=4,
            )
            return


def _losses_alone(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """What of a record counts where no label is looked at."""
    if constants.LOSS not in record:
        raise ValueError(
            f"{STAGE}: label_key=None needs records that hold the loss, these have "
            f"{sorted(record)}. Set label_key, or write records with loss=."
        )
    return {name: record[name] for name in (constants.HAS_RECORD, constants.LOSS) if name in record}


def _check(config: SamplingConfig, task: str | Heads, joined: tuple, seen: tuple) -> None:
    """Errors and a warning that a window causes when it is run.

    Outside of the window's own function, as an iterator with stateful calls cannot be saved.

    Args:
      config: the arguments of `ofb_sample`.
      task: the task.
      joined: `usable` and `example_ids` where all must be usable.
      seen: labels and whether they are valid, `[n]` or for heads `[n, T]`, where they matter.
    """
    if joined:
        assert_joined(*joined)
    if seen:
        labels, valid = seen
        if config.estimator == constants.LOG_ODDS and labels.dtype.is_floating:
            _assert_hard(labels, config.label_key)
        shown: Any = config.task or task
        if isinstance(shown, Heads):
            shown = {head.name: head.task for head in shown}
        _warn_of_labels(labels, valid, shown)


def _assert_hard(labels: tf.Tensor, label_key: Any) -> None:
    """An error when run if a label is neither 0 nor 1 (nor missing)."""
    is_soft = (labels > 0.0) & (labels < 1.0)
    message = (
        f"{STAGE}: {label_key!r} holds soft labels. estimator='log_odds' needs 0 or 1: use "
        "estimator='weights'."
    )
    tf.debugging.Assert(~tf.reduce_any(is_soft), [message])


def _warn_of_labels(labels: tf.Tensor, valid: tf.Tensor, task: Any) -> None:
    """Says on stderr that labels do not fit the task, once a window has more than a few of them."""

    # Iterators start more slowly with every operation: these are the fewest that say it.
    def warn() -> None:
        wrong = tf.gather_nd(labels, tf.where(~valid))
        text = tf.strings.format(
            f"WARNING: {STAGE}: {{}} of {{}} labels of this window are out of range for "
            f"task={task!r}, among them {{}}; these examples count as examples without a record. "
            "Check label_key and task, or filter them out.\n",
            (tf.size(wrong), tf.size(labels), wrong),
        )
        tf.raw_ops.PrintV2(input=text, output_stream="stderr", end="")

    share = tf.reduce_mean(tf.cast(valid, tf.float32), axis=0)
    share = share if share.shape.rank == 0 else tf.reduce_min(share)
    tf.cond(share < 1.0 - _MAX_WRONG_LABELS, warn, lambda: None)


def _check_fields(
    elements: ElementSpec, num_outputs: int | None, config: SamplingConfig
) -> str | Heads:
    """Checks id, label and record fields."""
    label = elements.check_label(config.task)
    if config.estimator == constants.LOG_ODDS:
        _check_fits_log_odds(elements)
    if num_outputs is not None or elements.has_id():
        elements.check_id()
    task = constants.REGRESSION if config.label_key is None else config.task
    if task == constants.BINARY and label.shape.rank == 1:
        task = Heads.of({f"{i:06d}": task for i in range(label.shape[0])}, None)
    if not config.policy.needs_records:
        return task or constants.REGRESSION
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
    if config.estimator == constants.LOG_ODDS:
        check_log_odds(config.policy, task)
        if width is None or (num_outputs is None and constants.CLASS_IDS in keys):
            raise ValueError(
                f"{STAGE}: estimator='log_odds' needs the recorded logits of all classes, or "
                f"records= in the top-k form, got {source}. Record logits, pass the records "
                "instead of joining them first, or use estimator='weights'."
            )
    return task


def _check_fits_log_odds(elements: ElementSpec) -> None:
    label = elements.keys_spec()[constants.LABEL]
    width = label.shape[0] if label.shape.rank else 1
    if elements.label_key is None or width != 1:
        received = "label_key=None" if elements.label_key is None else label
        raise ValueError(
            f"{STAGE}: estimator='log_odds' needs one label, a number or [1], got {received}. "
            "Make class ids of one-hot rows by tf.argmax, or use estimator='weights'."
        )
    if not elements.serialized and not elements.fields(elements.spec):
        raise ValueError(
            f"{STAGE}: with estimator='log_odds' elements must be dicts, or tuples whose x is a "
            f"dict that can hold {constants.LOG_INCLUSION!r}, got {elements.spec}. Make x a dict, "
            "or use estimator='weights'."
        )


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

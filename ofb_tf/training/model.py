"""`OFBModel`: a `keras.Model` that trains on what `ofb_sample` emits."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.checks import check_choice
from ofb_tf.selection import Policy, get_policy, window
from ofb_tf.selection.heads import Heads, combine
from ofb_tf.selection.log_odds import check_log_odds
from ofb_tf.selection.policy import SYSTEMATIC
from ofb_tf.training import metrics, step
from ofb_tf.training.log_odds import add_log_inclusion
from ofb_tf.transforms.element_spec import scores_of, times, weigh

# The class that keras.Model(inputs, outputs) gives; Keras exports it under no other name.
Functional: Any = type(keras.Model(_input := keras.Input((1,)), _input))
_FLAGS = {constants.HAS_RECORD, constants.UNIFORM_PROBE, constants.UNIFORM_HOLDOUT}
_NO_INPUT = (
    constants.EXAMPLE_ID,
    constants.LOG_INCLUSION,
    constants.UNIFORM_PROBE,
    constants.UNIFORM_HOLDOUT,
)
# What a model does in training and evaluation, and another model's step would not call.
_STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def no_input(fields: Mapping[str, Any]) -> set[str]:
    """The names among an element's fields that are no features: id, offsets, probe, record.

    A record's names count only where `has_record` is there; otherwise they are the user's own.
    """
    record = scores_of(fields) if constants.HAS_RECORD in fields else ()
    return {name for name in (*_NO_INPUT, *record) if name in fields}


def _is_functional_call(args: tuple, kwargs: dict) -> bool:
    """Whether arguments are those of `keras.Model(inputs, outputs)`."""
    if len(args) == 1:
        return "outputs" in kwargs
    return len(args) >= 2 or {"inputs", "outputs"} <= set(kwargs)


@keras.saving.register_keras_serializable(package="ofb_tf")
class OFBModel(keras.Model):
    """A `keras.Model` that applies importance weights, once, as Keras sample weights.

    Built as a `keras.Model` is: `OFBModel(inputs, outputs)` or by subclassing with `call`;
    `OFBModel.wrap(model)` makes one of a model that exists. `fit`, `evaluate`, `predict` and the
    `*_on_batch` methods take what `ofb_sample` emits:

    - `(x, y)`, `(x, y, weight)`: as Keras takes them.
    - dicts with the label under `label_key` and, where selected, `importance_weight` or
      `log_inclusion`. A model with named inputs takes the fields of those names; a subclassed
      model takes all fields but label, weight, log inclusion, example id and record fields.

    With Keras's default reduction the loss of a batch of b is `(1/b) Σ w_i ℓ_i`: Keras divides by
    the number of examples, not by the sum of weights. That is the Horvitz-Thompson estimate that
    the weights are made for, unbiased for the window's mean loss. With every weight 1 the model
    trains bit for bit as `keras.Model`.

    `log_inclusion`, which `ofb_sample(estimator="log_odds")` emits, is added to the logits (or to
    the logarithm of the probabilities) in the training loss alone: metrics, `evaluate`, `predict`
    and exports see the model's own outputs. The loss must be a cross-entropy.

    Where there are no records, `backward_rate` selects inside the step: each batch of n goes
    forward once in inference mode, `backward_rate * n` of it are selected by `selection_policy`
    and go forward and backward with their weights. Give it batches ten times as large. Several
    heads are scored by their joint score, with the `loss_weights` of `compile`.

    `fit` reports, for each epoch:

    - `effective_sample_size`, `mean_weight`, `max_weight`: see `ofb_tf.training.metrics`.
    - `realized_rate`, with `backward_rate`: selected over seen.
    - `record_coverage`, `score_correlation`, where elements keep their record fields
      (`ofb_sample(keep_record=True)`).
    - `variance_ratio`, where elements have the field `uniform_probe`, and
      `selected_variance_ratio`, the same from the selected examples alone, with either.

    `ofb_sample` never emits a non-finite weight; one that comes from elsewhere makes these
    figures and the loss NaN, so that it shows. Metrics given as `metrics=` describe the selected
    examples, those given as `weighted_metrics=` the stream.

    ```python
    import keras

    import ofb_tf
    from ofb_tf.testing import tiny_dataset

    feature = keras.Input((2,), name="feature")  # named after the field that it reads
    model = ofb_tf.OFBModel(feature, keras.layers.Dense(1)(feature))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    train = tiny_dataset(960).apply(ofb_tf.ofb_sample(window_size=240, batch_size=24, seed=17))
    history = model.fit(train, verbose=0).history
    assert 0.0 < history["effective_sample_size"][0] <= 1.0
    ```

    Args:
      *args: as for `keras.Model`.
      label_key: field of the label in dict elements; for several heads, a field for each by the
        name of its output. A label of a head, here or in a y that is a dict, that is not known
        (NaN, or negative for a classification) has no part in its loss.
      backward_rate: in (0, 1): the fraction of a batch that is selected in the step; None for
        batches that are selected already.
      selection_policy: "importance", or another name or `Policy`, for `backward_rate`. A model
        that is to be saved needs a name.
      estimator: "weights" or "log_odds", for `backward_rate`; see `ofb_sample`.
      task: "multiclass", "binary" or "regression", or one of them for each head by its name;
        None takes it from the compiled loss.
      selection_seed: int64, of the draws in the step, with the optimiser's step count.
      **kwargs: as for `keras.Model`.

    Raises:
      ValueError: an argument is out of range, or the policy's design selects no fixed number.
      RuntimeError: Keras runs on another backend than TensorFlow.

    Reference: Horvitz & Thompson, "A generalization of sampling without replacement from a finite
    universe", Journal of the American Statistical Association 47, 1952.
    """

    _testing = False

    def __new__(cls, *args: Any, **kwargs: Any) -> "OFBModel":
        """A functional model where the arguments are those of `keras.Model(inputs, outputs)`."""
        if cls is OFBModel and _is_functional_call(args, kwargs):
            return super().__new__(FunctionalOFBModel)
        return super().__new__(cls)

    def __init__(
        self,
        *args: Any,
        label_key: str | Mapping[str, str] = constants.LABEL,
        backward_rate: float | None = None,
        selection_policy: str | Policy = "importance",
        estimator: str = constants.WEIGHTS,
        task: str | Mapping[str, str] | None = None,
        selection_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        keys = label_key.values() if isinstance(label_key, Mapping) else [label_key]
        if not keys or not all(isinstance(key, str) and key for key in keys):
            raise ValueError(
                f"label_key must be a non-empty string. Received: {label_key!r}. For several "
                "heads give a dict, a field by the name of each."
            )
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"OFBModel needs Keras's TensorFlow backend. Received: {keras.backend.backend()}. "
                "Train a keras.Model on the (x, y, importance_weight) that ofb_sample gives."
            )
        if backward_rate is not None and not 0.0 < backward_rate < 1.0:
            raise ValueError(f"backward_rate must be in (0, 1) or None. Received: {backward_rate}")
        tasks = task.values() if isinstance(task, Mapping) else [task]
        if task is not None and not set(tasks) <= set(constants.TASKS):
            raise ValueError(
                f"task must be one of {constants.TASKS}, a dict of them by the heads' names, or "
                f"None. Received: {task!r}"
            )
        check_choice("estimator", estimator, constants.ESTIMATORS)
        policy = get_policy(selection_policy)
        if estimator == constants.LOG_ODDS:
            check_log_odds(policy, label_key if isinstance(label_key, Mapping) else task)
        if backward_rate is not None and policy.design != SYSTEMATIC:
            raise ValueError(
                "selection_policy must have design='systematic', which selects a fixed number. "
                f"Received: {policy.design!r}"
            )
        if _is_functional_call(args, kwargs) and not isinstance(self, Functional):
            _rebase(type(self))
        super().__init__(*args, **kwargs)
        self.label_key = label_key
        self.backward_rate = backward_rate
        self.selection_policy = selection_policy
        self.estimator = estimator
        self.selection_seed = selection_seed
        self.task = task
        self._policy = policy
        self.importance_weight_statistics = metrics.ImportanceWeightStatistics()
        self.realized_rate = metrics.Ratio(name=constants.REALIZED_RATE)
        self.record_statistics = metrics.RecordStatistics()
        self.variance_ratio = metrics.VarianceRatio()
        self.selected_variance_ratio = metrics.VarianceRatio(metrics.SELECTED_VARIANCE_RATIO)
        self._shown = {self.importance_weight_statistics.name}
        self._observers: list[Any] = []  # see observe()
        self._step: dict[str, Any] | None = None
        self._log_inclusion: tf.Tensor | None = None  # of the step's batch

    @classmethod
    def wrap(cls, model: keras.Model, **kwargs: Any) -> "OFBModel":
        """An `OFBModel` that shares layers and weights with a model that exists.

        Args:
          model: any built `keras.Model`. Its `compile` settings are not taken over.
          **kwargs: `label_key`, `backward_rate` and the others of `OFBModel`.

        Returns:
          A functional `OFBModel` of a functional or sequential model; otherwise a model with
          `model` as its one layer.

        Raises:
          ValueError: `model` is not a `keras.Model`, or has a training step or a loss of its own,
            which would not be called.
        """
        if not isinstance(model, keras.Model):
            raise ValueError(f"model must be a keras.Model. Received: {type(model).__name__}")
        base = OFBModel if isinstance(model, OFBModel) else keras.Model
        own = [name for name in _STEPS if getattr(type(model), name) is not getattr(base, name)]
        if own:
            raise ValueError(
                f"model must leave {own} to Keras, or training would not call them. Received: "
                f"{type(model).__name__}, which defines them. Derive it from ofb_tf.OFBModel "
                "instead of keras.Model, or train it as it is on (x, y, importance_weight)."
            )
        if type(model) is Functional:
            return cls(model.input, model.output, name=model.name, **kwargs)
        if type(model) is keras.Sequential and model.built:
            return cls(model.inputs, model.outputs[0], name=model.name, **kwargs)
        return WrappedOFBModel(model, **kwargs)

    def to_keras(self) -> keras.Model:
        """A `keras.Model` with the same layers and weights, which needs no ofb-tf.

        It can be saved and loaded where ofb-tf is not installed. It is not compiled.

        ```python
        import keras

        import ofb_tf

        x = keras.Input((2,))
        model = ofb_tf.OFBModel(x, keras.layers.Dense(1)(x))
        model.to_keras().save("model.keras")
        ```

        Returns:
          The functional model, or the model that `wrap` was given.

        Raises:
          ValueError: the class has a `call` of its own; the message says what to do.
        """
        if isinstance(self, Functional):
            return keras.Model(self.input, self.output, name=self.name)
        raise ValueError(
            f"to_keras() needs a functional or wrapped model. Received: {type(self).__name__}, "
            "which derives from OFBModel. Save its weights, or export() it."
        )

    def observe(self, observer: Any) -> None:
        """Has `observer.update(fields)` called in every training step, in the graph.

        Callbacks use it; `fields` has the step's tensors by name: `importance_weight` float32
        `[n]`, and where they are known `example_id` `[n]`, `timestamp` int64 `[n]`,
        `forward_logits` float32 (of the whole batch, with `backward_rate`).

        Args:
          observer: an object with the method `update`; the train function is traced again.
        """
        if observer not in self._observers:
            self._observers.append(observer)
            self.train_function = None  # traced again, with the observer

    def stop_observing(self, observer: Any) -> None:
        """Undoes `observe`."""
        self._observers.remove(observer)
        self.train_function = None

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras's metrics; those of the weights describe training and are left out of tests."""
        shown: set[str] = getattr(self, "_shown", set())
        if self._testing:
            shown = set()
        return [m for m in super().metrics if m.name in shown or not isinstance(m, metrics.OWN)]

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
        if isinstance(x, dict):
            fields = dict(x)
            if y is None:
                y = self._pop_labels(fields)
            importance = fields.pop(constants.IMPORTANCE_WEIGHT, None)
            if importance is not None:
                weight = importance if weight is None else times(importance, weight)
            x = self._select_inputs(fields)
        of_heads = isinstance(y, dict) and all(isinstance(label, tf.Tensor) for label in y.values())
        if of_heads and not isinstance(weight, dict):
            if weight is None:
                weight = tf.ones([tf.shape(keras.tree.flatten(y)[0])[0]])
            y, weight = weigh(y, weight, {name: name for name in y}, self._tasks(y))
        if of_heads and self._has_list():
            # No lists, which tf.data would stack.
            y, weight = (tuple(of[name] for name in self.output_names) for of in (y, weight))
        return x, y, weight

    def _pop_labels(self, fields: dict[str, Any]) -> Any:
        """Takes the label out of the fields, or those of all heads; None where there is none."""
        if not isinstance(self.label_key, Mapping):
            return fields.pop(self.label_key, None)
        labels = {head: fields[key] for head, key in self.label_key.items() if key in fields}
        for key in self.label_key.values():
            fields.pop(key, None)
        return labels or None

    def _tasks(self, y: dict[str, Any]) -> dict[str, str]:
        """The tasks of heads with a label for each example, by their names, as far as known."""
        loss = self._by_head(getattr(self, "loss", None), sorted(y))
        found = {
            head: step.part(self.task, head) or step.task_of_loss(step.part(loss, head))
            for head, label in y.items()
            # A row of integers holds the classes of tokens, of which -1 may be a padding.
            if (label.shape.rank or 1) < 2 or label.shape[-1] == 1 or label.dtype.is_floating
        }
        return {head: task for head, task in found.items() if task is not None}

    def _select_inputs(self, fields: dict[str, Any]) -> Any:
        """The fields that the model reads, in the structure that it was built with."""
        excluded = no_input(fields)
        features = {name: value for name, value in fields.items() if name not in excluded}
        if not isinstance(self, Functional):
            return features
        names = [tensor.name for tensor in self.inputs]
        if isinstance(self.input, dict):
            names = list(self.input)
        if constants.LOG_INCLUSION in names:
            raise ValueError(
                f"OFBModel adds {constants.LOG_INCLUSION!r} to its logits by itself: leave this "
                "input out, or use keras.Model with AddLogInclusion."
            )
        missing = [name for name in names if name not in fields]
        if len(features) == 1 and missing == names and len(names) == 1 and _is_unnamed(names[0]):
            (fields,) = ({names[0]: value} for value in features.values())
        elif missing:
            raise ValueError(
                f"OFBModel: inputs {missing} are not among the element's fields "
                f"{sorted(fields)}. Name each keras.Input(..., name=) after its field, "
                "or map the dataset to (x, y, weight)."
            )
        if isinstance(self.input, dict):
            return {name: fields[name] for name in names}
        values = [fields[name] for name in names]
        return values if len(values) > 1 else values[0]

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As of a `keras.Model`; of the fields of an element, takes those that it reads."""
        if isinstance(inputs, dict) and no_input(inputs):
            inputs = self._select_inputs(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of `keras.Model` on the unpacked (and selected) batch, weights counted."""
        # At the end of data of unknown length the step's graph runs on a batch that does not come.
        # Whatever does not read the batch must wait for it too, or the optimizer counts that step.
        batch = tf.nest.flatten(data, expand_composites=True)
        with (
            tf.variable_creator_scope(_create_outside),
            tf.control_dependencies([part for part in batch if tf.is_tensor(part)]),
        ):
            return self._train_on(data)

    def _train_on(self, data: Any) -> dict[str, tf.Tensor]:
        fields = keras.utils.unpack_x_y_sample_weight(data)[0]
        fields = fields if isinstance(fields, dict) else {}
        log_inclusion = fields.get(constants.LOG_INCLUSION)
        x, y, weight = self.unpack(data)
        seen = {name: fields[name] for name in no_input(fields)}
        for name in _FLAGS & seen.keys():
            seen[name] = tf.cast(seen[name], tf.bool)
        if self.backward_rate is not None:
            x, y, weight, log_inclusion = self._select(
                self.backward_rate, x, y, weight, log_inclusion, seen
            )
        counted = weight
        if isinstance(weight, dict | list | tuple):
            counted = step.largest(weight)
        if weight is None:
            counted = tf.ones([tf.shape(keras.tree.flatten(x)[0])[0]])
        self.importance_weight_statistics.update_state(counted)
        for observer in self._observers:
            observer.update({**seen, constants.IMPORTANCE_WEIGHT: counted})
        self._step = seen if self.backward_rate is None else None
        self._log_inclusion = log_inclusion
        try:
            return super().train_step((x, y, weight))
        finally:
            self._step = self._log_inclusion = None

    def _select(
        self,
        rate: float,
        x: Any,
        y: Any,
        weight: tf.Tensor | None,
        log_inclusion: tf.Tensor | None,
        seen: dict[str, Any],
    ) -> tuple:
        """One forward pass over all, and what of the batch goes on, with weights or offsets."""
        if "training" in inspect.signature(self.call).parameters:
            outputs = self(x, training=False)
        else:
            outputs = self(x)
        task, logits, labels = self._read(y, outputs, weight)
        record = {constants.LOGITS: logits}
        if isinstance(task, Heads):
            if self.estimator == constants.LOG_ODDS:
                check_log_odds(self._policy, task)
            record, labels, _ = combine(task, record, labels, self._policy.score)
            task = constants.MULTICLASS
        n, count = step.sizes(logits, rate)
        indices, correction = window.select_count(
            self._policy,
            count,
            task,
            labels,
            record,
            step.step_key(self.selection_seed, self.optimizer.iterations),
            self.estimator,
        )
        self.realized_rate.update_state(count, n)
        self._shown.add(self.realized_rate.name)
        seen[constants.FORWARD_LOGITS] = logits
        x, y, weight, log_inclusion = keras.tree.map_structure(
            lambda part: None if part is None else tf.gather(part, indices),
            (x, y, weight, log_inclusion),
        )
        if self.estimator == constants.LOG_ODDS:
            return x, y, weight, correction + (0.0 if log_inclusion is None else log_inclusion)
        if weight is None:
            return x, y, correction, log_inclusion
        weight = keras.tree.map_structure(lambda each: times(correction, each), weight)
        return x, y, weight, log_inclusion

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Keras's loss, in training of the outputs with the step's log inclusion.

        The step's records are compared with what the model says now.
        """
        if training and self._step:
            self._compare_records(self._step, y, y_pred, sample_weight)
        weight = step.align_weights(self.loss, y, y_pred, sample_weight)
        if training and self._log_inclusion is not None:
            outputs_of = step.read_cross_entropy(self.loss)
            y_pred = add_log_inclusion(
                y_pred, self._log_inclusion, from_logits=outputs_of.from_logits
            )
        return super().compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=weight, training=training
        )

    def _compare_records(
        self, seen: dict[str, Any], y: Any, y_pred: Any, weight: tf.Tensor | None
    ) -> None:
        probe = seen.get(constants.UNIFORM_PROBE, seen.get(constants.UNIFORM_HOLDOUT))
        has_scores = constants.LOGITS in seen or constants.LOSS in seen
        if not has_scores and probe is None:
            return
        norms: tf.Tensor | None = None
        if tf.is_tensor(y_pred) and (y_pred.shape.rank or 0) > 2:  # a loss for each token
            recorded = seen.get(constants.LOSS)
            losses = step.of_examples(step.unreduced(self.loss, y, tf.stop_gradient(y_pred)))
        else:
            recorded, losses, norms = step.figures(self._read(y, y_pred, weight), seen)
        if isinstance(weight, dict | list | tuple):
            weight = step.largest(weight)
        elif weight is not None:
            weight = step.of_examples(weight)
        if has_scores and recorded is not None:
            if constants.HAS_RECORD in seen:
                recorded = tf.where(seen[constants.HAS_RECORD], recorded, float("nan"))
            self.record_statistics.update_state(recorded, losses, weight)
            self._shown.add(self.record_statistics.name)
        if weight is None or norms is None:
            return
        self.selected_variance_ratio.update_state(norms, weight, weight)
        self._shown.add(self.selected_variance_ratio.name)
        if probe is not None:
            self.variance_ratio.update_state(norms, weight, probe)
            self._shown.add(self.variance_ratio.name)

    def _read(self, y: Any, outputs: Any, weight: Any) -> tuple[str | Heads, tf.Tensor, Any]:
        """`step.read_step` with what the model was made and compiled with."""
        # Keras keeps these where it has them for saving; there is no public attribute.
        settings = getattr(getattr(self, "_compile_config", None), "config", {})
        weights = settings.get("loss_weights")
        names = sorted(outputs) if isinstance(outputs, dict) else []
        given = (self.loss, self.task, weights, y, outputs, weight)
        given = tuple(self._by_head(each, names) for each in given)
        return step.read_step(*given)

    def _by_head(self, value: Any, names: list[str]) -> Any:
        """A list of what belongs to outputs as a dict; `names` are those of a dict of outputs."""
        if not isinstance(value, list | tuple):
            return value
        return dict(zip(self.output_names if self._has_list() else names, value, strict=True))

    def _has_list(self) -> bool:
        """Whether the outputs are a list, whose names are those of their layers."""
        return isinstance(self, Functional) and isinstance(self.output, list | tuple)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; a dataset of dicts may come with `class_weight`.

        Args:
          x: a dataset of what `ofb_sample` emits, or as for `keras.Model.fit`.
          y: as for `keras.Model.fit`; None with a dataset.
          *args: as for `keras.Model.fit`.
          **kwargs: as for `keras.Model.fit`; `class_weight` multiplies the importance weights.

        Returns:
          Keras's `History`, with what `OFBModel` reports next to the metrics.
        """
        step.warn_of_biased_reduction(getattr(self, "loss", None))
        bound = inspect.signature(keras.Model.fit).bind(self, x, y, *args, **kwargs)
        arguments = dict(bound.arguments)
        if isinstance(x, tf.data.Dataset):
            arguments["x"] = self._as_tuples(x, arguments.pop("class_weight", None))
        arguments["validation_data"] = self._as_tuples(arguments.get("validation_data"))
        del arguments["self"]
        return super().fit(**arguments)

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

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`; weights that come with the data are applied.

        Args:
          x: a dataset as for `fit`, or as for `keras.Model.evaluate`.
          y: as for `keras.Model.evaluate`.
          *args: as for `keras.Model.evaluate`.
          **kwargs: as for `keras.Model.evaluate`.

        Returns:
          As `keras.Model.evaluate`, without the statistics of the weights.
        """
        outside, self._testing = self._testing, True
        try:
            return super().evaluate(self._as_tuples(x), y, *args, **kwargs)
        finally:
            self._testing = outside

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`; a dataset of dicts may carry labels, weights and ids.

        Args:
          x: a dict of fields, a dataset, or as for `keras.Model.predict`.
          *args: as for `keras.Model.predict`.
          **kwargs: as for `keras.Model.predict`.

        Returns:
          The outputs as numpy arrays.
        """
        if isinstance(x, dict):
            x = self.unpack(x)[0]
        return super().predict(x, *args, **kwargs)

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
        table = None if class_weight is None else _class_weight_table(class_weight)

        @tf.autograph.experimental.do_not_convert
        def unpack(*element: Any) -> tuple:
            whole = element if len(element) > 1 else element[0]
            x, y, weight = self.unpack(whole)
            if table is not None:
                if isinstance(y, dict):
                    raise ValueError(
                        "class_weight is for one label. Received: the labels "
                        f"{sorted(y)}. Give the heads loss_weights, or elements a weight each."
                    )
                factor = _class_weights_of(table, y)
                weight = factor if weight is None else times(factor, weight)
            x = self._with_record(x, whole)
            return tuple(part for part in (x, y, weight) if part is not None)

        return data.map(unpack, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _with_record(self, x: Any, element: Any) -> Any:
        """The model's inputs, and next to them what of the element is reported of."""
        fields = keras.utils.unpack_x_y_sample_weight(element)[0]
        seen = {name: fields[name] for name in no_input(fields)} if isinstance(fields, dict) else {}
        if not seen:
            return x
        if not isinstance(x, dict):
            names = [tensor.name for tensor in self.inputs]
            x = dict(zip(names, keras.tree.flatten(x), strict=True))
        # Keras adds batches up over replicas to build a model, which it can of numbers alone.
        for name in _FLAGS & seen.keys():
            seen[name] = tf.cast(seen[name], tf.uint8)
        if constants.EXAMPLE_ID in seen:
            seen[constants.EXAMPLE_ID] = hashing.to_int64(seen[constants.EXAMPLE_ID])
        return {**x, **seen}

    def _own_config(self) -> dict[str, Any]:
        if not isinstance(self.selection_policy, str):
            raise ValueError(
                "selection_policy must be a name for a model that is saved with its "
                f"configuration. Received: {self.selection_policy!r}. Save the weights instead."
            )
        return {
            "label_key": _plain(self.label_key),
            "backward_rate": self.backward_rate,
            "selection_policy": self.selection_policy,
            "estimator": self.estimator,
            "task": _plain(self.task),
            "selection_seed": self.selection_seed,
        }


@keras.saving.register_keras_serializable(package="ofb_tf")
class FunctionalOFBModel(OFBModel, Functional):
    """What `OFBModel(inputs, outputs)` gives: an `OFBModel` that is a Keras functional model."""

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(inputs, outputs, name=name, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The functional model's configuration and the arguments of `OFBModel`."""
        return {**super().get_config(), **self._own_config()}


@keras.saving.register_keras_serializable(package="ofb_tf")
class WrappedOFBModel(OFBModel):
    """What `OFBModel.wrap` makes of a model with a `call` of its own."""

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The wrapped model's outputs."""
        has_training = "training" in inspect.signature(self.model.call).parameters
        try:
            return self.model(inputs, **({"training": training} if has_training else {}))
        except (TypeError, AttributeError, ValueError) as error:
            if not isinstance(inputs, dict):
                raise
            raise ValueError(
                f"OFBModel: {type(self.model).__name__} fails on a dict of the fields "
                f"{sorted(inputs)}. If it takes a tensor, map the dataset to (x, y, weight): "
                ".map(lambda e: (e['x'], e['label'], e['importance_weight'])). The error was: "
                f"{error}"
            ) from error

    def to_keras(self) -> keras.Model:
        """The wrapped model."""
        return self.model

    def get_config(self) -> dict[str, Any]:
        """The wrapped model and the arguments of `OFBModel`."""
        model = keras.saving.serialize_keras_object(self.model)
        return {"name": self.name, "model": model, **self._own_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "WrappedOFBModel":
        """The model that `get_config` describes."""
        model = keras.saving.deserialize_keras_object(config.pop("model"), custom_objects)
        return cls(model, **config)


def _is_unnamed(name: str) -> bool:
    """Whether Keras made up an input's name."""
    return name.startswith(("keras_tensor", "input_layer"))


def _plain(value: Any) -> Any:
    """What a configuration holds of a mapping that Keras tracks."""
    return dict(value) if isinstance(value, Mapping) else value


def _create_outside(create: Callable, **kwargs: Any) -> Any:
    """Creates a variable that waits for no batch: tf.function makes it before the first one."""
    with tf.control_dependencies(None):
        return create(**kwargs)


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


def _class_weights_of(table: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Weights `[n]` of integer labels `[n]` or `[n, 1]`, or one-hot labels `[n, k]`."""
    if labels.shape.rank == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else tf.argmax(labels, 1)
    labels = tf.cast(labels, tf.int64)
    inside = labels < tf.size(table, tf.int64)
    return tf.where(inside, tf.gather(table, tf.where(inside, labels, 0)), 1.0)

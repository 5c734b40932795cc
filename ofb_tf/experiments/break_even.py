"""Whether selection pays: what a rate costs against everything, from costs and records.

An example of the stream costs everything `input + step`. At the rate r it costs
`key + selection + refresh / examples between refreshes + r * (input - key + step)`, where `key` is
what must be read of every example: all of it, or id and label alone with late decode.

Selection also adds noise. With V the variance ratio (of the weighted estimate to that of uniform
sampling at the rate; the metric `variance_ratio`), the noise of a gradient is V / r times that of
everything, so that to first order it takes V / r as many examples of the stream for the same
quality. Records that say nothing have V = 1 / ESS, ESS the effective sample size of the weights.
docs/break-even.md derives both.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.experiments import models
from ofb_tf.records import ForwardRecords, ForwardRecordWriter
from ofb_tf.selection import Importance, window
from ofb_tf.transforms.sample import ofb_sample

_WINDOW = 4096
_ROUNDS = 5
_LABEL_KEY = 21  # of the labels drawn from recorded probabilities


@dataclasses.dataclass(frozen=True)
class Costs:
    """Microseconds per example, where not said otherwise; all at least 0."""

    rate: float  # in (0, 1]
    step_us: float  # forward and backward pass and optimiser
    input_us: float  # reading and parsing an example
    key_us: float  # the part of `input_us` that is paid for examples that are not selected
    select_us: float
    refresh_seconds: float
    refresh_examples: float  # of the stream, between two refreshes

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} must be finite and at least 0. Received: {value}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be in (0, 1]. Received: {self.rate}")
        for name in ("refresh_examples", "everything_us"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be above 0. Received: 0")
        if self.key_us > self.input_us:
            raise ValueError(
                f"key_us must be at most input_us={self.input_us}. Received: {self.key_us}"
            )

    @property
    def everything_us(self) -> float:
        """Of training on everything."""
        return self.input_us + self.step_us

    @property
    def overhead_us(self) -> float:
        """What an example of the stream costs at the rate, without refreshes and steps."""
        return self.key_us + self.select_us + self.rate * (self.input_us - self.key_us)

    @property
    def selected_us(self) -> float:
        """Of an example of the stream, at the rate."""
        refresh_us = 1e6 * self.refresh_seconds / self.refresh_examples
        return self.overhead_us + refresh_us + self.rate * self.step_us


def compare(costs: Costs, variance_ratio: float | None = None) -> dict[str, float | None]:
    """Selection against everything, over one pass or, with a variance ratio, at equal quality.

    Returns:
      `time`: selection's over everything's, below 1 where it pays. `least_step_us` and
      `least_refresh_examples`: from where on it pays, the rest as given; None for never.

    Raises:
      ValueError: the variance ratio is not above 0.
    """
    if variance_ratio is not None and not 0 < variance_ratio < float("inf"):
        raise ValueError(f"variance_ratio must be above 0. Received: {variance_ratio}")
    # A selection is at best as good as everything, although an estimate may say otherwise.
    more = 1.0 if variance_ratio is None else max(variance_ratio / costs.rate, 1.0)
    fixed = costs.selected_us - costs.rate * costs.step_us
    gain = 1.0 - costs.rate * more  # of a microsecond of step time
    left = costs.everything_us / more - costs.overhead_us - costs.rate * costs.step_us
    return {
        "time": more * costs.selected_us / costs.everything_us,
        "least_step_us": max(more * fixed - costs.input_us, 0.0) / gain if gain > 0 else None,
        "least_refresh_examples": 1e6 * costs.refresh_seconds / left if left > 0 else None,
    }


def analyze(
    given: Mapping[str, float | None],
    *,
    model: str,
    batch_size: int,
    records: str | None = None,
    variance_ratio: float | None = None,
    effective_sample_size: float | None = None,
) -> dict[str, Any]:
    """What `ofb break-even` prints: costs, measured here where not given, and comparisons.

    Args:
      given: the fields of `Costs`; None for a step, selection or refresh that is to be measured,
        and for a `key_us` that is `input_us`.
      model: whose step is measured, see `measure_step`.
      batch_size: of the measured step.
      records: files to compute the last two from, where those are not given.
      variance_ratio: above 0, as `OFBModel.fit` reports it with `uniform_probe`.
      effective_sample_size: in (0, 1], of the weights.

    Raises:
      ValueError: an argument is out of range.
    """
    ess = effective_sample_size
    if ess is not None and not 0 < ess <= 1:
        raise ValueError(f"effective_sample_size must be in (0, 1]. Received: {ess}")
    given = dict(given)
    if given["key_us"] is None:
        given["key_us"] = given["input_us"]
    measured = [name for name, value in given.items() if value is None]
    # Checked before anything is measured.
    Costs(**{name: 1.0 if value is None else value for name, value in given.items()})
    if records is not None:
        found = statistics(ForwardRecords.load(records), given["rate"])
        if variance_ratio is None:
            variance_ratio = found["variance_ratio"]
        ess = found["effective_sample_size"] if ess is None else ess
    if "step_us" in measured:
        given["step_us"] = measure_step(model, batch_size)
    if {"select_us", "refresh_seconds"} & set(measured):
        here = measure_selection(given["rate"], int(given["refresh_examples"]))
        given |= {name: here[name] for name in measured if name in here}
    costs = Costs(**given)
    stale = None if ess is None else 1.0 / ess
    ratios = {"same_quality": variance_ratio, "same_quality_if_records_say_nothing": stale}
    return {
        "costs": given,
        "measured": measured,
        "variance_ratio": variance_ratio,
        "effective_sample_size": ess,
        "everything_us": costs.everything_us,
        "selected_us": costs.selected_us,
        "one_pass": compare(costs),
        **{n: None if ratio is None else compare(costs, ratio) for n, ratio in ratios.items()},
    }


def table_rows(content: dict[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """The costs and the comparisons of `analyze` as tables."""
    costs = content["costs"]
    share, key = costs["rate"], costs["key_us"]
    parts = {
        "input": (costs["input_us"], key + share * (costs["input_us"] - key)),
        "selection": (0.0, costs["select_us"]),
        "refresh": (0.0, 1e6 * costs["refresh_seconds"] / costs["refresh_examples"]),
        "step": (costs["step_us"], share * costs["step_us"]),
        "sum": (content["everything_us"], content["selected_us"]),
    }
    first = [["microseconds per example of the stream", "everything", f"rate {share:g}"]]
    first += [[name, *(f"{value:,.2f}" for value in pair)] for name, pair in parts.items()]
    head = ["against everything", "time", "pays from a step of", "and from a refresh every"]
    second, names = (
        [head],
        {
            "one_pass": "one pass over the stream",
            "same_quality": "the same quality",
            "same_quality_if_records_say_nothing": "the same, if records said nothing",
        },
    )
    for name, text in names.items():
        if shown := content[name]:
            step, every = shown["least_step_us"], shown["least_refresh_examples"]
            step = "never" if step is None else f"{step:,.2f} µs per example"
            every = "never" if every is None else f"{every:,.0f} examples"
            second.append([text, f"{shown['time']:.2f}", step, every])
    return first, second


def statistics(records: ForwardRecords, rate: float) -> dict[str, float]:
    """`variance_ratio` and `effective_sample_size` that records promise for importance sampling.

    Records hold no labels: they are drawn from the recorded probabilities, as they are of a
    calibrated model, once per record. One output is taken for that of a binary classification.

    Raises:
      ValueError: the records have no logits, or only the largest.
    """
    if constants.LOGITS not in records.columns or records.schema.top_k:
        raise ValueError(
            "records must hold all logits of a classification, for labels are drawn from them. "
            "Pass variance_ratio, as OFBModel.fit reports it, instead."
        )
    ids, logits = records.example_ids, tf.cast(records.columns[constants.LOGITS], tf.float32)
    binary = records.num_outputs == 1
    filled = tf.concat([tf.zeros_like(logits), logits], 1) if binary else logits
    below = tf.cumsum(tf.nn.softmax(filled), axis=1)
    draws = tf.cast(hashing.hash01(ids, tf.constant(_LABEL_KEY, tf.int64)), tf.float32)
    labels = tf.reduce_sum(tf.cast(below[:, :-1] < draws[:, None], tf.int64), 1)
    settings = (Importance(), constants.BINARY if binary else constants.MULTICLASS)
    sums = np.zeros(4)  # of w, of squared scores with and without w, and of examples
    order = np.argsort(hashing.hash01(ids.numpy(), np.int64(0)))
    for rows in np.array_split(order, max(len(order) // _WINDOW, 1)):
        part, record = tf.gather(labels, rows), {constants.LOGITS: tf.gather(logits, rows)}
        selection = window.select(
            settings[0],
            rate=rate,
            task=settings[1],
            missing=constants.MISSING_DROP,
            example_ids=tf.gather(ids, rows),
            labels=part,
            record=record,
            key=tf.constant(0, tf.int64),
            batch_size=None,
        )
        usable = selection.usable.numpy()
        squares = window.score(*settings, part, record).scores.numpy()[usable].astype(float) ** 2
        weights = rate / selection.probabilities.numpy()[usable]
        sums += weights.sum(), (squares * weights).sum(), squares.sum(), usable.sum()
    weights, weighted, unweighted, count = sums.tolist()
    return {"variance_ratio": weighted / unweighted, "effective_sample_size": count / weights}


def measure_step(model: str, batch_size: int) -> float:
    """Microseconds per example of a training step on this machine, with Adam.

    Args:
      model: "small" or "deep", see `ofb_tf.experiments.models`, or a path for
        `keras.models.load_model`. It reads zeros; its loss is replaced by the squared output.
      batch_size: of the step.
    """
    if model in models.CLICK:
        fields = models.click_inputs()
        output = keras.layers.Dense(1, name="logit")(models.CLICK[model](fields))
        timed = keras.Model(fields, output)
    else:
        timed = keras.models.load_model(os.path.expanduser(model), compile=False)
    timed.compile("adam", "mse", jit_compile=False)

    def of(tensor: Any, make: Callable) -> Any:
        return make([batch_size, *(size or 1 for size in tensor.shape[1:])], tensor.dtype)

    inputs = tf.nest.map_structure(lambda tensor: of(tensor, tf.ones), timed.input)
    targets = tf.nest.map_structure(lambda tensor: of(tensor, tf.zeros), timed.output)
    data = tf.data.Dataset.from_tensors((inputs, targets))

    def steps(number: int) -> None:
        timed.fit(data.repeat(number), verbose=0)

    return _per_item(steps, 10) / batch_size * 1e6


def measure_selection(rate: float, refresh_examples: int) -> dict[str, float]:
    """`select_us` and `refresh_seconds` on this machine, join included, with one output.

    A refresh loads a file of as many records as there are examples between two, and gives them
    to the pipeline until the first batch comes.
    """
    size = min(refresh_examples, 40 * _WINDOW)
    ids = np.arange(size)
    fields = {constants.EXAMPLE_ID: ids, constants.LABEL: (ids % 100 == 0).astype(np.int64)}
    windows = tf.data.Dataset.from_tensor_slices(fields).batch(_WINDOW).cache()
    _consume(windows)
    with tempfile.TemporaryDirectory() as directory:
        with ForwardRecordWriter(directory) as writer:
            writer.write(ids, np.random.default_rng(0).normal(-4, 1, size))

        def selected(passes: int) -> tf.data.Dataset:
            sampler = ofb_sample(
                records=directory, rate=rate, task=constants.BINARY, seed=0, batch_size=256,
                window_size=_WINDOW, batched_input=True,
            )  # fmt: skip
            return windows.repeat(passes).apply(sampler)

        refresh = min(_seconds(lambda: _consume(selected(1).take(1))) for _ in range(_ROUNDS))
        both = {passes: selected(passes) for passes in (1, 11)}
        select = _per_item(lambda number: _consume(both[number]), 10) / size
    return {"select_us": 1e6 * select, "refresh_seconds": refresh}


def _consume(dataset: tf.data.Dataset) -> None:
    dataset.reduce(tf.constant(0), lambda total, _: total + 1)


def _per_item(work: Callable[[int], Any], number: int) -> float:
    """Seconds of one of `number` items of work, without the time that starting takes."""
    work(1), work(1 + number)
    times = [
        (_seconds(lambda: work(1 + number)), _seconds(lambda: work(1))) for _ in range(_ROUNDS)
    ]
    long, short = np.min(times, axis=0)
    return max(long - short, 0.0) / number


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

"""Whether selection pays: from costs and records, what a rate takes against everything.

docs/break-even.md explains the figures and their limits.
"""

import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.evaluation import gain
from ofb_tf.experiments import models
from ofb_tf.records import ForwardRecords, ForwardRecordWriter
from ofb_tf.selection import Importance, window
from ofb_tf.selection.score_summary import ScoreSummary
from ofb_tf.transforms.sample import ofb_sample

_WINDOW, _BATCH, _ROUNDS = 4096, 256, 5
_FEWEST_ITEMS = 5  # of work, to measure one by
_MAX_RECORDS = 2**17  # that statistics are computed of
_LABEL_KEY = 21  # of the labels drawn from recorded probabilities


@dataclasses.dataclass(frozen=True)
class Costs:
    """Microseconds per example, where not said otherwise; all at least 0."""

    rate: float  # in (0, 1]
    step_us: float  # forward pass, backward pass and optimiser
    input_us: float  # reading and parsing
    key_us: float  # the part of `input_us` that is paid for examples that are not selected, too
    select_us: float  # join and selection
    refresh_seconds: float
    refresh_examples: float  # of the stream, between two refreshes

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0. Received: {value}")
        for name in ("rate", "refresh_examples", "everything_us"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be above 0. Received: 0")
        for name, most in (("rate", 1.0), ("key_us", self.input_us)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}. Received: {getattr(self, name)}")

    @property
    def everything_us(self) -> float:
        """Of training on everything."""
        return self.input_us + self.step_us

    def parts_us(self) -> dict[str, float]:
        """Of selection, per example of the stream, by what is paid for."""
        return {
            "input": self.key_us + self.rate * (self.input_us - self.key_us),
            "selection": self.select_us,
            "refresh": 1e6 * self.refresh_seconds / self.refresh_examples,
            "step": self.rate * self.step_us,
        }


def compare(costs: Costs, variance_ratio: float | None = None) -> dict[str, float | None]:
    """Selection against everything: for one pass or, given a variance ratio, for equal quality.

    Returns:
      `time`: selection's over everything's, below 1 where it pays. `least_step_us` and
      `least_refresh_examples`: from where on it pays, the rest as given; None for never.

    Raises:
      ValueError: the variance ratio is not above 0.
    """
    if variance_ratio is not None and not 0 < variance_ratio < float("inf"):
        raise ValueError(f"variance_ratio must be above 0. Received: {variance_ratio}")
    # As much of the stream as everything, at least, although an estimate may say otherwise.
    stream = 1.0 if variance_ratio is None else max(variance_ratio / costs.rate, 1.0)
    parts = costs.parts_us()
    total = sum(parts.values())
    short = stream * (total - parts["step"]) - costs.input_us  # what steps have to make up for
    left = costs.everything_us / stream - (total - parts["refresh"])  # for refreshes
    gain = 1.0 - costs.rate * stream  # of a microsecond of `step_us`
    return {
        "time": stream * total / costs.everything_us,
        "least_step_us": max(short, 0.0) / gain if gain > 0 else None,
        "least_refresh_examples": 1e6 * costs.refresh_seconds / left if left > 0 else None,
    }


def statistics(records: ForwardRecords, rate: float) -> dict[str, float | None]:
    """`variance_ratio` and `effective_sample_size` that records promise for importance sampling.

    Records hold no labels: they are drawn from the recorded probabilities, as if the model were
    calibrated. One output is taken for that of a binary classification.

    Raises:
      ValueError: the records have no logits, or only the largest.
    """
    if constants.LOGITS not in records.columns or records.schema.top_k:
        raise ValueError(
            "records must hold all logits of a classification, for labels are drawn from them. "
            "Pass variance_ratio, as OFBModel.fit reports it, instead."
        )
    chosen = np.argsort(hashing.hash01(records.example_ids.numpy(), np.int64(0)))[:_MAX_RECORDS]
    ids, logits = (tf.gather(c, chosen) for c in (records.example_ids, records.columns["logits"]))
    logits = tf.cast(logits, tf.float32)
    task = constants.BINARY if records.num_outputs == 1 else constants.MULTICLASS
    of_classes = tf.pad(logits, [[0, 0], [1, 0]]) if task == constants.BINARY else logits
    below = tf.cumsum(tf.nn.softmax(of_classes), axis=1)[:, :-1].numpy()
    draws = hashing.hash01(ids.numpy(), np.int64(_LABEL_KEY))
    labels = tf.constant((below < draws[:, None]).sum(1))
    policy = Importance()
    scored = window.score(policy, task, labels, {constants.LOGITS: logits})
    summary = ScoreSummary.of(scored.scores.numpy()[scored.usable.numpy()])
    found = gain.predict(summary, rate, policy.uniform_mix)
    return {name: found[name] for name in ("variance_ratio", constants.EFFECTIVE_SAMPLE_SIZE)}


def measure_step(model: str, batch_size: int) -> float:
    """Microseconds per example of a training step on this machine.

    Args:
      model: a key of `ofb_tf.experiments.models.CLICK`, or a path for `keras.models.load_model`.
        It reads ones; optimiser and loss are Adam and the mean squared output.
      batch_size: of the step.

    Raises:
      RuntimeError: a step is too short to tell its time from the machine's noise.
    """
    if model in models.CLICK:
        fields = models.click_inputs()
        timed = keras.Model(
            fields, keras.layers.Dense(1, name="logit")(models.CLICK[model](fields))
        )
    else:
        timed = keras.models.load_model(os.path.expanduser(model), compile=False)
    timed.compile("adam", "mse", jit_compile=False)
    data = tf.data.Dataset.from_tensors(
        tf.nest.map_structure(
            lambda t: tf.ones([batch_size, *(size or 1 for size in t.shape[1:])], t.dtype),
            (timed.input, timed.output),
        )
    )
    return (
        _per_item(lambda steps: timed.fit(data.repeat(steps), shuffle=False, verbose=0))
        / batch_size
        * 1e6
    )


def measure_selection(rate: float, refresh_examples: int) -> dict[str, float]:
    """`select_us` and `refresh_seconds` on this machine, of records with one output.

    A refresh loads a file of as many records as there are examples between two, gives them to the
    running pipeline and begins a new iteration.
    """
    ids = np.arange(refresh_examples)
    fields = {constants.EXAMPLE_ID: ids, constants.LABEL: ids % 2}
    windows = tf.data.Dataset.from_tensor_slices(fields).batch(_WINDOW).cache()
    _consume(windows)
    with tempfile.TemporaryDirectory() as directory:
        with ForwardRecordWriter(directory) as writer:
            writer.write(ids, np.random.default_rng(0).normal(-4, 1, len(ids)))
        sampler = ofb_sample(
            records=directory, updatable=True, rate=rate, task=constants.BINARY, seed=0,
            batch_size=_BATCH, window_size=_WINDOW, batched_input=True,
        )  # fmt: skip
        first = windows.take(1).apply(sampler)

        def refreshed() -> None:
            sampler.update(directory)
            _consume(first)

        refresh = _seconds(refreshed)
        passes = functools.cache(lambda number: windows.repeat(number).apply(sampler))
        select = _per_item(lambda number: _consume(passes(number)))
    return {"select_us": 1e6 * select / len(ids), "refresh_seconds": refresh}


def _consume(dataset: tf.data.Dataset) -> None:
    dataset.reduce(tf.constant(0), lambda total, _: total + 1)


def _per_item(work: Callable[[int], Any]) -> float:
    """Seconds of one item of work, without the time that starting takes.

    Of as many items as make starting the smaller part, or a busy machine's noise would be all that
    is seen.
    """
    short = _seconds(lambda: work(1))
    for more in (_FEWEST_ITEMS * 4**i for i in range(6)):
        long = _seconds(functools.partial(work, 1 + more))
        if long > 2 * short:
            return (long - short) / more
    raise RuntimeError(
        f"{1 + more} items of work took {long:.3g} seconds and one {short:.3g}, so that the time "
        "of one cannot be told. Pass it, or measure on a machine with less other work."
    )


def _seconds(work: Callable[[], Any]) -> float:
    """The least of several times, after one that may trace."""
    times = []
    for _ in range(1 + _ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])


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
      effective_sample_size: above 0, of the weights.

    Raises:
      ValueError: an argument is out of range.
      RuntimeError: what is to be measured is too short to tell its time from the machine's noise.
    """
    known: dict[str, Any] = dict(given)
    if known["key_us"] is None:
        known["key_us"] = known["input_us"]
    measured = [name for name, value in known.items() if value is None]
    Costs(**{name: value or 0.0 for name, value in (known | {"step_us": 1.0}).items()})  # checks
    found = {"variance_ratio": variance_ratio, "effective_sample_size": effective_sample_size}
    if records is not None:
        promised = statistics(ForwardRecords.load(records), known["rate"])
        found = {n: promised[n] if value is None else value for n, value in found.items()}
    if "step_us" in measured:
        known["step_us"] = measure_step(model, batch_size)
    if {"select_us", "refresh_seconds"} & set(measured):
        here = measure_selection(known["rate"], int(known["refresh_examples"]))
        known |= {name: here[name] for name in measured if name in here}
    costs = Costs(**known)
    ratio, ess = found.values()
    return {
        "costs": known,
        "measured": measured,
        **found,
        "everything_us": {"input": costs.input_us, "step": costs.step_us},
        "selected_us": costs.parts_us(),
        "one_pass": compare(costs),
        "same_quality": None if ratio is None else compare(costs, ratio),
        # Where scores have nothing to do with gradients, the variance ratio is 1 / ESS.
        "same_quality_if_records_say_nothing": None if ess is None else compare(costs, 1 / ess),
    }


def table_rows(content: dict[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """The costs and the comparisons of `analyze` as tables."""
    whole, selected = content["everything_us"], content["selected_us"]
    costs = [["µs per example of the stream", "everything", f"rate {content['costs']['rate']:g}"]]
    costs += [[n, f"{whole.get(n, 0):,.2f}", f"{value:,.2f}"] for n, value in selected.items()]
    costs += [["sum", *(f"{sum(parts.values()):,.2f}" for parts in (whole, selected))]]
    rows = [["against everything", "time", "pays from a step of", "and from a refresh every"]]
    for name in ("one_pass", "same_quality", "same_quality_if_records_say_nothing"):
        if shown := content[name]:
            step, every = shown["least_step_us"], shown["least_refresh_examples"]
            step = "never" if step is None else f"{step:,.2f} µs per example"
            every = "never" if every is None else f"{every:,.0f} examples"
            rows.append([name.replace("_", " "), f"{shown['time']:.2f}", step, every])
    return costs, rows

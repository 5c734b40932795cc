"""The cost of selecting one in ten examples, from examples in memory."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.parts import Medians, Part, Row, Run, Settings, of, ratio
from ofb_tf import constants, hashing
from ofb_tf.datasets.click_stream import CLICK_PROBABILITY
from ofb_tf.selection import scores


def _slices(count: int) -> tf.data.Dataset:
    """Single examples of the click stream, with logits as serving would record them."""
    examples = inputs.click_stream().generate(np.arange(count))
    logits = inputs.click_logits(examples).astype(np.float32)[:, None]
    del examples[CLICK_PROBABILITY]
    examples = {name: value.numpy() for name, value in examples.items()}
    return tf.data.Dataset.from_tensor_slices(examples | {constants.LOGITS: logits})


def _probability(example: dict[str, tf.Tensor]) -> tf.Tensor:
    """An inclusion probability from the example's score alone, without a window to normalise by."""
    record = {constants.LOGITS: example[constants.LOGITS][None]}
    score = scores.gradient_norm_bound(record, example[constants.LABEL][None], constants.BINARY)[0]
    return tf.clip_by_value(0.02 + 4.0 * score, 0.0, 1.0)


def _draw(example: dict[str, tf.Tensor]) -> tf.Tensor:
    key = tf.constant(inputs.SEED, tf.int64)
    return tf.cast(hashing.hash01(example[constants.EXAMPLE_ID], key), tf.float32)


def _everything(examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples.batch(inputs.BATCH)


def _small_windows(examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples.apply(inputs.sample(window_size=320, batch_size=32))


def _sampled(design: str) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    policy = ofb_tf.Importance(design=design)
    return lambda examples: examples.apply(inputs.sample(policy=policy))


def _map_filter_map(examples: tf.data.Dataset) -> tf.data.Dataset:
    parallel = tf.data.AUTOTUNE
    return (
        examples.map(lambda e: e | {"probability": _probability(e)}, num_parallel_calls=parallel)
        .filter(lambda e: _draw(e) < e["probability"])
        .map(
            lambda e: e | {constants.IMPORTANCE_WEIGHT: inputs.RATE / e["probability"]},
            num_parallel_calls=parallel,
        )
        .batch(inputs.BATCH)
    )


def _rejection_resample(examples: tf.data.Dataset) -> tf.data.Dataset:
    resampled = examples.rejection_resample(
        class_func=lambda e: tf.cast(e[constants.LABEL], tf.int32),
        initial_dist=[0.99, 0.01],
        target_dist=[0.9, 0.1],
        seed=inputs.SEED,
    )
    return resampled.map(lambda label, e: e).batch(inputs.BATCH)


def _uniform_filter(examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples.filter(lambda e: _draw(e) < inputs.RATE).batch(inputs.BATCH)


def _peer(
    transform: Callable[[tf.data.Dataset], tf.data.Dataset], count: int, passes: int = 1
) -> Callable[[Settings], Run]:
    def build(settings: Settings) -> Run:
        # A per-element peer needs this many for its time to exceed the start of its iterator.
        number = max(settings.count(count), 20_000)
        examples = _slices(number)

        def run() -> dict[str, float]:
            return inputs.steady(lambda times: transform(examples.repeat(times)), number, passes)

        return run

    return build


def _added(peer: str) -> Callable[[dict[str, Medians]], float]:
    return lambda medians: medians[peer]["cpu_us"] - medians["no sampling"]["cpu_us"]


PARTS = (
    Part(
        name="selection",
        title="Selecting one in ten examples in memory (39 features, window 4096, batch 256)",
        item="input example",
        peers={
            "no sampling": _peer(_everything, 200_000, 5),
            "ofb_sample, systematic": _peer(_sampled("systematic"), 200_000, 5),
            "ofb_sample, Poisson": _peer(_sampled("poisson"), 200_000, 5),
            "ofb_sample, window 320": _peer(_small_windows, 200_000, 5),
            "uniform Dataset.filter": _peer(_uniform_filter, 40_000),
            "map/filter/map importance": _peer(_map_filter_map, 20_000),
            "rejection_resample": _peer(_rejection_resample, 20_000),
        },
        rows=(
            Row(
                "window selection against rejection_resample, examples per CPU second (×)",
                ratio("cpu_us", "rejection_resample", "ofb_sample, systematic"),
                at_least=40,
            ),
            Row(
                "window selection against no sampling, examples per CPU second (×)",
                ratio("cpu_us", "no sampling", "ofb_sample, systematic"),
                at_least=0.8,
            ),
            Row(
                "window selection against map/filter/map importance sampling (×)",
                ratio("cpu_us", "map/filter/map importance", "ofb_sample, systematic"),
            ),
            Row(
                "window selection against uniform Dataset.filter (×)",
                ratio("cpu_us", "uniform Dataset.filter", "ofb_sample, systematic"),
            ),
            Row("ofb_sample, CPU µs per input example", of("ofb_sample, systematic", "cpu_us")),
            Row(
                "CPU µs per example that selection at window 4096 adds to no sampling",
                _added("ofb_sample, systematic"),
                at_most=1.2,
            ),
            Row(
                "CPU µs per example that selection at window 320 adds to no sampling",
                _added("ofb_sample, window 320"),
                at_most=2.5,
            ),
        ),
    ),
)

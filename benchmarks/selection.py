"""What choosing one example in ten costs, over examples that lie in memory."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.parts import Part, Row, Run, Settings, of
from ofb_tf import constants, hashing
from ofb_tf.selection import scores

_KEY = 17


def _slices(count: int) -> tf.data.Dataset:
    """Single examples of the click stream with the logits that serving recorded."""
    examples = {
        name: value.numpy()
        for name, value in inputs.click_stream().generate(np.arange(count)).items()
    }
    probability = examples.pop("click_probability").astype(np.float64)
    examples[constants.LOGITS] = np.log(probability / (1 - probability)).astype(np.float32)[:, None]
    return tf.data.Dataset.from_tensor_slices(examples)


def _probability(example: dict[str, tf.Tensor]) -> tf.Tensor:
    """An inclusion probability that one example's own score gives: no window to normalise by."""
    score = scores.gradient_norm_bound(
        example[constants.LOGITS][None], example[constants.LABEL][None], constants.BINARY
    )[0]
    return tf.clip_by_value(0.02 + 4.0 * score, 0.0, 1.0)


def _draw(example: dict[str, tf.Tensor]) -> tf.Tensor:
    key = tf.constant(_KEY, tf.int64)
    return tf.cast(hashing.hash01(example[constants.EXAMPLE_ID], key), tf.float32)


def _everything(examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples.batch(inputs.BATCH)


def _sampled(design: str) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    return ofb_tf.ofb_sample(
        rate=inputs.RATE,
        policy=ofb_tf.Importance(design=design),
        window_size=inputs.WINDOW,
        batch_size=inputs.BATCH,
        seed=_KEY,
    )


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
        seed=_KEY,
    )
    return resampled.map(lambda label, e: e).batch(inputs.BATCH)


def _uniform_filter(examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples.filter(lambda e: _draw(e) < inputs.RATE).batch(inputs.BATCH)


def _peer(
    transform: Callable[[tf.data.Dataset], tf.data.Dataset], count: int, passes: int = 1
) -> Callable[[Settings], Run]:
    def build(settings: Settings) -> Run:
        # A per-element peer needs this many to stand out from the start of its iterator.
        number = max(settings.count(count), 20_000)
        examples = _slices(number)

        def run() -> dict[str, float]:
            return inputs.steady(lambda times: transform(examples.repeat(times)), number, passes)

        return run

    return build


def _speed(peer: str, other: str) -> Callable[..., float]:
    """Examples in per CPU second, against another peer."""
    return lambda medians: medians[other]["cpu_us"] / medians[peer]["cpu_us"]


PARTS = (
    Part(
        name="selection",
        title="Selecting one in ten of examples in memory (39 features, window 4096, batch 256)",
        item="example in",
        peers={
            "no sampling": _peer(_everything, 200_000, 5),
            "ofb_sample, systematic": _peer(lambda d: d.apply(_sampled("systematic")), 200_000, 5),
            "ofb_sample, Poisson": _peer(lambda d: d.apply(_sampled("poisson")), 200_000, 5),
            "uniform Dataset.filter": _peer(_uniform_filter, 40_000),
            "map/filter/map importance": _peer(_map_filter_map, 20_000),
            "rejection_resample": _peer(_rejection_resample, 20_000),
        },
        rows=(
            Row(
                "window selection against rejection_resample, examples per CPU second (×)",
                _speed("ofb_sample, systematic", "rejection_resample"),
                at_least=40,
            ),
            Row(
                "window selection against no sampling, examples per CPU second (×)",
                _speed("ofb_sample, systematic", "no sampling"),
                at_least=0.8,
            ),
            Row(
                "window selection against map/filter/map importance sampling (×)",
                _speed("ofb_sample, systematic", "map/filter/map importance"),
            ),
            Row(
                "window selection against uniform Dataset.filter (×)",
                _speed("ofb_sample, systematic", "uniform Dataset.filter"),
            ),
            Row("ofb_sample, CPU µs an example in", of("ofb_sample, systematic", "cpu_us")),
        ),
    ),
)

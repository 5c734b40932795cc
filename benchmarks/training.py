"""The cost of a training step with weights, and with selection inside the step."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.clock import timed
from benchmarks.parts import Part, Row, Run, Settings, of, ratio
from ofb_tf.experiments import config as configs
from ofb_tf.experiments import models, summary, trial, workloads

LARGE_BATCH = 1024


def _network(cls: type, **settings: object) -> keras.Model:
    """A small convolutional network for images like MNIST's."""
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1), name="image")
    model = cls(image, keras.layers.Dense(10)(models.convolutions(image, (16, 32))), **settings)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def _batch(size: int, weighted: bool) -> tuple[tf.Tensor, ...]:
    random = np.random.default_rng(0)
    images = random.uniform(size=(size, 28, 28, 1)).astype(np.float32)
    labels = random.integers(0, 10, size)
    weights = random.uniform(0.2, 5.0, size).astype(np.float32)
    parts = (images, labels, weights) if weighted else (images, labels)
    return tuple(tf.constant(part) for part in parts)


def _peer(cls: type, size: int, steps: int, **model_settings: object) -> Callable[[Settings], Run]:
    """Steps of `fit`, after a first fit that traces the step."""

    def build(settings: Settings) -> Run:
        model = _network(cls, **model_settings)
        number = max(settings.count(steps), 3)
        dataset = tf.data.Dataset.from_tensors(_batch(size, weighted=False)).repeat(number)

        def run() -> int:
            model.fit(dataset, shuffle=False, verbose=0)
            return number

        run()
        return run

    return build


def _paired_steps(settings: Settings) -> Run:
    """Short fits of both models in turn, in one process.

    Two processes differ by more than the steps do, because of their memory layout.
    """
    steps, turns = 20, max(settings.count(20), 3)
    batches = tf.data.Dataset.from_tensors(_batch(inputs.BATCH, weighted=True)).repeat(steps)
    models = {name: _network(cls) for name, cls in _STEP_MODELS.items()}
    for model in models.values():
        model.fit(batches, shuffle=False, verbose=0)

    def run() -> dict[str, float]:
        seconds = {name: [] for name in models}
        for turn in range(turns):
            for name in list(models)[:: 1 if turn % 2 else -1]:
                fit = functools.partial(models[name].fit, batches, shuffle=False, verbose=0)
                seconds[name].append(timed(fit)[0]["cpu_seconds"])
        ours, stock = (np.array(seconds[name]) for name in ("OFBModel", "keras.Model"))
        return {
            "items": 2 * steps * turns,
            "keras.Model_us": float(np.median(stock)) / steps * 1e6,
            "OFBModel_us": float(np.median(ours)) / steps * 1e6,
            "ratio": float(np.median(ours / stock)),
        }

    return run


def _time_to_loss(dataset: str) -> Callable[[Settings], Run]:
    """The streaming simulation of `ofb compare` with deep models, the three policies in turn.

    Time is CPU time of selection and training; serving's forward passes happen anyway and are
    reported separately. Uniform and importance see the stream twice as often as everything, which
    costs them two tenths of its backward passes: after as many examples as everything sees, a
    tenth of them has hardly taught the click model anything yet. The curves are means over seeds.
    """

    def build(settings: Settings) -> Run:
        once = configs.SimulationConfig.for_dataset(
            dataset,
            model=configs.DEEP,
            data_dir=None if dataset == configs.CLICK_STREAM else str(inputs.tfds_directory()),
            num_examples=60_000 if settings.quick else None,
            test_examples=10_000,
        )
        twice = dataclasses.replace(once, passes=2 * once.passes)
        seeds = range(1 if settings.quick else _SEEDS[dataset])

        def run() -> dict[str, float]:
            results = {policy: [] for policy in once.policies}
            for seed in seeds:
                workload = workloads.get_workload(twice, seed, in_memory=True)
                for policy in results:
                    config = once if policy == configs.EVERYTHING else twice
                    results[policy].append(trial.run(config, policy, seed, workload=workload))
            curves = {policy: [one.curve for one in of_it] for policy, of_it in results.items()}
            figures = {
                "serving_seconds": float(
                    np.mean([one.serving_seconds for one in results[configs.IMPORTANCE]])
                )
            }
            for end in (configs.UNIFORM, configs.EVERYTHING):
                goal = summary.mean_curve(curves[end], workload.metric)[0][-1]
                for field in ("train_seconds", "stream_examples"):
                    ours, its = (
                        summary.first_reached(curves[policy], workload.metric, goal, field)
                        for policy in (configs.IMPORTANCE, end)
                    )
                    figures[f"{field}_to_{end}"] = float("nan") if ours is None else ours / its
                figures[f"{end}_seconds"] = float(
                    np.mean([one.train_seconds for one in results[end]])
                )
            items = sum(one.stream_examples for of_it in results.values() for one in of_it)
            return {"items": items} | figures

        return run

    return build


_SEEDS = {configs.CLICK_STREAM: 3, "mnist": 1}
_STEP_MODELS = {"keras.Model": keras.Model, "OFBModel": ofb_tf.OFBModel}
_IN_TURN = "both in turn"
_EVERYTHING, _SELECTED = "keras.Model on everything", "OFBModel(backward_rate=0.1)"

PARTS = (
    Part(
        name="train-step",
        title=f"A training step on selected batches of {inputs.BATCH} (convolutions, 28×28)",
        item="step",
        peers={_IN_TURN: _paired_steps},
        rows=(
            Row(
                "step of OFBModel against keras.Model with sample_weight, CPU time",
                of(_IN_TURN, "ratio"),
                at_most=1.03,
            ),
            Row("step of keras.Model, CPU µs", of(_IN_TURN, "keras.Model_us")),
            Row("step of OFBModel, CPU µs", of(_IN_TURN, "OFBModel_us")),
        ),
    ),
    Part(
        name="backward-rate",
        title=f"Ten forward, one backward, on batches of {LARGE_BATCH} (the same network)",
        item="large batch",
        peers={
            _EVERYTHING: _peer(keras.Model, LARGE_BATCH, 12),
            _SELECTED: _peer(ofb_tf.OFBModel, LARGE_BATCH, 12, backward_rate=inputs.RATE),
        },
        rows=(
            Row(
                "ten forward, one backward against training on everything, CPU time (×)",
                ratio("cpu_us", _EVERYTHING, _SELECTED),
                at_least=1.8,
            ),
            Row(
                "the same, wall-clock (×)",
                ratio("wall_us", _EVERYTHING, _SELECTED),
            ),
        ),
    ),
    *(
        Part(
            name=f"time-to-loss-{dataset.replace('_', '-')}",
            title=f"Time to the final test loss of others, {dataset}, one in ten examples",
            item="stream example",
            peers={_IN_TURN: _time_to_loss(dataset)},
            rows=(
                Row(
                    f"{dataset}: CPU time to everything's final loss, importance over everything",
                    of(_IN_TURN, "train_seconds_to_everything"),
                    at_most=0.3,
                ),
                Row(
                    f"{dataset}: CPU time to uniform's final loss, importance over uniform",
                    of(_IN_TURN, "train_seconds_to_uniform"),
                    at_most=0.6,
                ),
                *(
                    Row(f"{dataset}: {text}", of(_IN_TURN, figure))
                    for figure, text in (
                        ("stream_examples_to_everything", "to everything's loss, in examples"),
                        ("stream_examples_to_uniform", "to uniform's loss, in examples"),
                        ("everything_seconds", "CPU seconds of everything"),
                        ("uniform_seconds", "CPU seconds of uniform"),
                        ("serving_seconds", "CPU seconds of serving, not included"),
                    )
                ),
            ),
            repeats=1,
        )
        for dataset in (configs.CLICK_STREAM, "mnist")
        if dataset == configs.CLICK_STREAM or (inputs.tfds_directory() / dataset).is_dir()
    ),
)

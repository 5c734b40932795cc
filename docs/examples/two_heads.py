"""Click and conversion: one record, one selection and a weight for each of two heads.

A conversion is known after a click alone, as in Ma et al., "Entire Space Multi-Task Model", SIGIR
2018. The generated click stream has a second hidden function here, the probability that a click
converts. The same two-headed model trains on a tenth of the stream, selected uniformly and by the
joint score, and on everything. Printed is, for each head, the mean KL divergence from the hidden
probability to the predicted one, in nats, for conversions weighted by the click probability; and
the share of the gap between uniform and everything that selection closes.

    python docs/examples/two_heads.py --num_examples=307200 --conversion_weight=3
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from ofb_tf.datasets import VOCABULARY_SIZES, ClickStream

WINDOW, WINDOWS_PER_REFRESH, BATCH, TEST = 1280, 10, 128, 40_960
HEADS = ("click", "conversion")
TASK = dict.fromkeys(HEADS, "binary")


def with_conversions(fields: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Adds the second hidden function, and its draws where there is a click, -1 elsewhere."""
    rng = np.random.default_rng(seed)
    log_dense = np.log(fields["dense"])
    logit = -0.5 + log_dense @ rng.normal(scale=0.6, size=log_dense.shape[1])
    for column in range(8):
        effects = rng.normal(scale=0.4, size=VOCABULARY_SIZES[column])
        logit += effects[fields["categorical"][:, column]]
    probability = 1 / (1 + np.exp(-logit))
    converts = np.random.default_rng([seed, 1]).random(len(logit)) < probability
    conversion = np.where(fields["label"] == 1, converts, -1)
    return fields | {"conversion": conversion, "conversion_probability": probability}


def build_model(positive_rate: float) -> keras.Model:
    """Embeddings and logarithms into a shared layer, and two heads."""
    dense, categorical = keras.Input((13,), name="dense"), keras.Input((26,), dtype="int64")
    offsets = np.concatenate([[0], np.cumsum(VOCABULARY_SIZES)[:-1]])
    rows = keras.layers.Embedding(sum(VOCABULARY_SIZES), 8)(categorical + offsets)
    hidden = keras.layers.Concatenate()([keras.layers.Flatten()(rows), keras.ops.log(dense)])
    hidden = keras.layers.Dense(64, activation="relu", name="shared")(hidden)
    bias = keras.initializers.Constant(np.log(positive_rate / (1 - positive_rate)))
    outputs = {
        "click": keras.layers.Dense(1, bias_initializer=bias, name="click")(hidden),
        "conversion": keras.layers.Dense(1, name="conversion")(hidden),
    }
    model = keras.Model({"dense": dense, "categorical": categorical}, outputs)
    losses = dict.fromkeys(HEADS, keras.losses.BinaryCrossentropy(from_logits=True))
    model.compile("adam", losses)
    return model


def divergence(truth: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL divergence `[n]` from probabilities to predictions."""
    of_one = np.log(truth) + np.logaddexp(0, -logits)
    of_zero = np.log1p(-truth) + np.logaddexp(0, logits)
    return truth * of_one + (1 - truth) * of_zero


def train(
    fields: dict, test: dict, policy: str, rate: float, conversion_weight: float, seed: int
) -> dict[str, float]:
    """One pass over the stream, in intervals that begin with a refresh of the serving model."""
    keras.utils.set_random_seed(seed)
    model = build_model(float(fields["click_probability"].mean()))
    for start in range(0, len(fields["label"]), WINDOW * WINDOWS_PER_REFRESH):
        part = slice(start, start + WINDOW * WINDOWS_PER_REFRESH)
        x = {name: fields[name][part] for name in ("dense", "categorical")}
        labels = {"click": fields["label"][part], "conversion": fields["conversion"][part]}
        ids = fields["example_id"][part]
        examples = tf.data.Dataset.from_tensor_slices((ids, (x, labels)))
        settings = {"rate": 1.0, "policy": "uniform"}
        if policy != "everything":
            settings = {"rate": rate, "policy": policy}
        if policy == "importance":
            outputs = model.predict(x, batch_size=4096, verbose=0)
            logits = np.concatenate([outputs[name] for name in HEADS], axis=1)
            settings["records"] = ofb_tf.ForwardRecords.from_columns(ids, logits)
        sampler = ofb_tf.ofb_sample(
            task=TASK,
            loss_weights={"conversion": conversion_weight},  # of the score; unbiased whatever it is
            window_size=WINDOW,
            batch_size=BATCH,
            seed=seed,
            **settings,
        )
        model.fit(examples.apply(sampler), verbose=0)
    x = {name: test[name] for name in ("dense", "categorical")}
    outputs = model.predict(x, batch_size=4096, verbose=0)
    click, conversion = (
        divergence(test[f"{name}_probability"].astype(np.float64), outputs[name][:, 0])
        for name in HEADS
    )
    return {
        "click": float(click.mean()),
        "conversion": float(np.average(conversion, weights=test["click_probability"])),
    }


def main() -> None:
    """Runs the three conditions and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num_examples", type=int, default=204_800)
    parser.add_argument("--positive_rate", type=float, default=0.03)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--conversion_weight", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    results: dict[str, list] = {name: [] for name in ("uniform", "importance", "everything")}
    for seed in range(arguments.seeds):
        stream = ClickStream(
            num_examples=arguments.num_examples + TEST,
            positive_rate=arguments.positive_rate,
            seed=seed,
        )
        windows = list(stream.dataset(batched=True).as_numpy_iterator())
        fields = {name: np.concatenate([w[name] for w in windows]) for name in windows[0]}
        fields = with_conversions(fields, seed)
        past, test = ({n: v[part] for n, v in fields.items()} for part in (
            slice(arguments.num_examples), slice(arguments.num_examples, None)))  # fmt: skip
        for policy, values in results.items():
            values.append(
                train(past, test, policy, arguments.rate, arguments.conversion_weight, seed)
            )
            print(f"seed {seed}, {policy}: {values[-1]}", flush=True)
    for head in HEADS:
        mean = {policy: np.mean([v[head] for v in values]) for policy, values in results.items()}
        gap = (mean["uniform"] - mean["importance"]) / (mean["uniform"] - mean["everything"])
        print(f"{head}: gap closure {gap:.2f}, excess KL {mean}")


if __name__ == "__main__":
    main()

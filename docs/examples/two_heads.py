"""Click and conversion: one record, one selection and a weight for each of two heads.

A conversion is known after a click alone, as in Ma et al., "Entire Space Multi-Task Model", SIGIR
2018. A stock `keras.Model` with two outputs serves the stream, leaves its logits as records, and
trains on a tenth of the stream, selected by the joint score of both heads. Printed is, for each
head, the mean KL divergence from the hidden probability to the predicted one, in nats, for
conversions over clicks, before and after training.

    python docs/examples/two_heads.py --num_examples=300000 --rate=0.1

`ofb compare --datasets=click_conversion` compares this with uniform sampling and with training on
everything, over several seeds.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from ofb_tf.datasets import VOCABULARY_SIZES, ClickStream

HEADS = ("click", "conversion")
TEST, WINDOW, WINDOWS_PER_REFRESH = 40_960, 1280, 20


def build_model() -> keras.Model:
    """Embeddings and logarithms into a shared layer, and two heads."""
    dense, categorical = keras.Input((13,), name="dense"), keras.Input((26,), dtype="int64")
    offsets = np.concatenate([[0], np.cumsum(VOCABULARY_SIZES)[:-1]])
    rows = keras.layers.Embedding(sum(VOCABULARY_SIZES), 8)(categorical + offsets)
    hidden = keras.layers.Concatenate()([keras.layers.Flatten()(rows), keras.ops.log(dense)])
    hidden = keras.layers.Dense(64, activation="relu", name="shared")(hidden)
    outputs = {name: keras.layers.Dense(1, name=name)(hidden) for name in HEADS}
    model = keras.Model({"dense": dense, "categorical": categorical}, outputs)
    losses = dict.fromkeys(HEADS, keras.losses.BinaryCrossentropy(from_logits=True))
    model.compile(keras.optimizers.Adam(0.003), losses)
    return model


def features(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model reads."""
    return {name: fields[name] for name in ("dense", "categorical")}


def excess_kl(model: keras.Model, test: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean divergence from truth to prediction by head, of conversions weighted by clicks."""
    outputs = model.predict(features(test), batch_size=4096, verbose=0)
    found = {}
    for head in HEADS:
        p, z = test[f"{head}_probability"].astype(np.float64), outputs[head][:, 0]
        one, zero = np.log(p) + np.logaddexp(0, -z), np.log1p(-p) + np.logaddexp(0, z)
        weights = None if head == "click" else test["click_probability"]
        found[head] = float(np.average(p * one + (1 - p) * zero, weights=weights))
    return found


def main() -> None:
    """Serves, records, samples and trains, interval by interval."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num_examples", type=int, default=300_000)
    parser.add_argument("--positive_rate", type=float, default=0.03)
    parser.add_argument("--rate", type=float, default=0.1)
    arguments = parser.parse_args()
    stream = ClickStream(
        num_examples=arguments.num_examples + TEST,
        positive_rate=arguments.positive_rate,
        conversion_rate=0.2,
    )
    windows = stream.dataset(start=arguments.num_examples, batched=True).as_numpy_iterator()
    test = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *windows)
    keras.utils.set_random_seed(0)
    model = build_model()
    print("before:", excess_kl(model, test))
    step = WINDOW * WINDOWS_PER_REFRESH
    for start in range(0, arguments.num_examples, step):
        count = min(step, arguments.num_examples - start)
        fields = next(stream.dataset(start=start, count=count, window_size=count, batched=True)
                      .as_numpy_iterator())  # fmt: skip
        x, ids = features(fields), fields["example_id"]
        # Serving: the logits of both heads, side by side in the order of their names.
        outputs = model.predict(x, batch_size=4096, verbose=0)
        logits = np.concatenate([outputs[name] for name in HEADS], axis=1)
        records = ofb_tf.ForwardRecords.from_columns(ids, logits)
        # Training, once the labels are there; -1 is a conversion that is not known.
        labels = {"click": fields["label"], "conversion": fields["conversion"]}
        examples = tf.data.Dataset.from_tensor_slices((ids, (x, labels)))
        sampler = ofb_tf.ofb_sample(
            records=records,
            task=dict.fromkeys(HEADS, "binary"),
            rate=arguments.rate,
            window_size=WINDOW,
            batch_size=round(arguments.rate * WINDOW),
            seed=0,
        )
        model.fit(examples.apply(sampler), verbose=0)  # (x, {head: label}, {head: weight})
    print("after:", excess_kl(model, test))


if __name__ == "__main__":
    main()

"""Payments, one in thirty a fraud that is reported days later: a workload for `ofb compare`.

Run it in this directory, with `--learning_rates`, since it is a short stream:

ofb compare --workload=own_stream:workload --policies=importance --learning_rates=0.003,0.01,0.03
"""

import keras
import numpy as np

from ofb_tf.experiments import ArrayWorkload

COUNT, FEATURES, DAYS = 60_000, 12, 100


def workload() -> ArrayWorkload:
    """The last fifth of the payments is held out."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(COUNT, FEATURES)).astype(np.float32)
    paid = np.sort(rng.uniform(0, DAYS, COUNT))  # days, when the model scored the payment
    logits = features @ np.linspace(-1, 1, FEATURES) + features[:, 0] * features[:, 1] - 6
    label = rng.random(COUNT) < 1 / (1 + np.exp(-logits))
    known = paid + np.where(label, rng.exponential(3, COUNT), 7)  # reported, or taken for good
    fields = {"features": features, "label": label, "paid": paid, "known": known}
    past, last = paid < 0.8 * DAYS, paid >= 0.8 * DAYS
    return ArrayWorkload(
        {name: values[past & (known < 0.8 * DAYS)] for name, values in fields.items()},
        {name: values[last] for name, values in fields.items()},
        task="binary",
        build=build,
        serving_time="paid",
        label_time="known",
    )


def build() -> keras.Model:
    """A functional model, uncompiled; its input is named after a field."""
    features = keras.Input((FEATURES,), name="features")
    hidden = keras.layers.Dense(32, activation="relu")(features)
    return keras.Model(features, keras.layers.Dense(1)(hidden))

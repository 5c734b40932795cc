# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPO/blob/main/colab/quickstart.ipynb)
#
# # Quickstart: train on one in ten examples
#
# A click model serves a stream of ad impressions and runs a forward pass for each of them. Later
# the label arrives: clicked or not. Training on every impression costs too much, so you train on a
# sample, usually a uniform one.
#
# The serving-time forward pass already tells how large each example's gradient will be. This
# notebook records it, joins it to the labels, uses it to select one in ten examples, and trains a
# Keras model with importance weights that keep the gradient unbiased. At the end it compares three
# models: trained on a **uniform** tenth, on a tenth selected by **importance**, and on
# **everything**.
#
# It runs on a CPU in about two minutes and downloads only the package.

# %%
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("ofb_tf") is None:  # as on a fresh Colab
    get_ipython().run_line_magic(
        "pip", "install --quiet 'ofb-tf[report] @ git+https://github.com/OWNER/REPO'"
    )

# %%
import logging
import math
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import ofb_tf
from ofb_tf.datasets import VOCABULARY_SIZES, ClickStream

logging.getLogger("tensorflow").setLevel(logging.ERROR)
SEED = 1
keras.utils.set_random_seed(SEED)
print("ofb-tf", ofb_tf.__version__, "on TensorFlow", tf.__version__, "and Keras", keras.__version__)

# %% [markdown]
# ## 1. A stream of impressions
#
# `ClickStream` generates impressions: 13 numeric and 26 categorical features (the largest has
# 10,000 values), a rare click, and an id. The distribution drifts slowly. Unlike a real log, the
# stream also contains the true click probability. The model never sees it; we use it to evaluate.

# %%
NUM_EXAMPLES = 12 * 20_480
POSITIVE_RATE = 0.01
stream = ClickStream(num_examples=NUM_EXAMPLES + 40_000, positive_rate=POSITIVE_RATE, seed=SEED)
generate = tf.function(stream.generate, [tf.TensorSpec([None], tf.int64)], autograph=False)

held_out = generate(tf.range(NUM_EXAMPLES, NUM_EXAMPLES + 40_000, dtype=tf.int64))
for name, tensor in held_out.items():
    print(f"{name:18}{tensor.dtype.name:9}{tensor.shape}")
print(f"clicks in the held-out part: {held_out['label'].numpy().mean():.2%}")

# %% [markdown]
# ## 2. A model
#
# A small ranking model: embeddings of the categories, logarithms of the numbers, two hidden layers,
# one logit. `OFBModel` is a `keras.Model` whose `train_step` applies the importance weights. It
# reads the element fields that have the names of its inputs.


# %%
def build_model():
    keras.utils.set_random_seed(SEED)  # the same first weights for every policy
    numbers = keras.Input([13], name="dense")
    categories = keras.Input([26], name="categorical", dtype="int64")
    offsets = np.concatenate([[0], np.cumsum(VOCABULARY_SIZES)[:-1]]).astype(np.int64)
    embedded = keras.layers.Embedding(sum(VOCABULARY_SIZES), 8)(categories + offsets)
    hidden = keras.layers.Concatenate()([keras.layers.Flatten()(embedded), keras.ops.log(numbers)])
    for units in (64, 32):
        hidden = keras.layers.Dense(units, activation="relu", name=f"hidden_{units}")(hidden)
    # With the base rate as the initial bias, the model need not learn that clicks are rare.
    base_rate = keras.initializers.Constant(math.log(POSITIVE_RATE / (1 - POSITIVE_RATE)))
    logit = keras.layers.Dense(1, bias_initializer=base_rate, name="logit")(hidden)
    model = ofb_tf.OFBModel({"dense": numbers, "categorical": categories}, logit)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    return model


model = build_model()
print(f"{model.count_params():,} parameters")

# %% [markdown]
# ## 3. Serve, and record every forward pass
#
# This function stands in for the serving job. The model answers requests of 1,024 impressions, and
# `ForwardRecordWriter` stores the id and the logit of each. In production, `record_stub` (gRPC) or
# the Keras callback in `ofb_tf.serving` does the same without changes to the server.

# %%
REQUEST = 1024


def serve(model, impressions, directory, version):
    answer = tf.function(lambda inputs: model(inputs, training=False), reduce_retracing=True)
    with ofb_tf.ForwardRecordWriter(directory, num_outputs=1) as writer:
        for start in range(0, len(impressions["example_id"]), REQUEST):
            request = {name: field[start : start + REQUEST] for name, field in impressions.items()}
            logits = answer({name: request[name] for name in ("dense", "categorical")})
            writer.write(request["example_id"], logits, model_version=version)


INTERVAL = 20_480  # impressions between two snapshots of the serving model
scratch = tempfile.mkdtemp()
first = generate(tf.range(INTERVAL, dtype=tf.int64))
serve(model, first, f"{scratch}/first", version=0)

size = sum(entry.stat().st_size for entry in os.scandir(f"{scratch}/first"))
records = ofb_tf.ForwardRecords.load(f"{scratch}/first")
print(f"{len(records):,} records, {size / len(records):.1f} bytes each")

# %% [markdown]
# A record takes about 12 bytes; an impression of this stream has 39 features.
#
# ## 4. Join the records to the labels
#
# Labels arrive later. `join_forward_records` looks up each example's record by its id. You rarely
# call it directly: `ofb_sample(records=...)` does.

# %%
labelled = tf.data.Dataset.from_tensor_slices(
    {name: field for name, field in first.items() if name != "click_probability"}
)
joined = labelled.apply(ofb_tf.join_forward_records(records))
for element in joined.take(3).as_numpy_iterator():
    print({name: element[name] for name in ("example_id", "label", "logits", "has_record")})

# %% [markdown]
# ## 5. Select one in ten, with weights
#
# `ofb_sample` processes a window of 1,280 examples at a time. From logit and label it computes a
# bound on each example's gradient norm and selects 128 examples: the larger the bound, the
# likelier. The **importance weight** corrects for that: the likelier the selection, the smaller the
# weight.

# %%
WINDOW, RATE = 1280, 0.1


def sampler(policy, records, seed=SEED):
    return ofb_tf.ofb_sample(
        records=records,
        rate=RATE,
        policy=policy,
        task="binary",
        window_size=WINDOW,
        batch_size=round(RATE * WINDOW),
        seed=seed,
    )


sample = sampler("importance", records)
for name, value in sample.statistics(labelled).items():
    print(f"{name:24}{value:,.5g}")
selected = labelled.apply(sample)
clicks = sum(batch["label"].sum() for batch in selected.as_numpy_iterator())
print(f"\nclicks in the interval: {first['label'].numpy().sum()}, in the selection: {clicks}")

# %% [markdown]
# Every example had a record (`coverage` 1), one in ten was selected, and the weights are about 1 on
# average. The selection contains most clicks: the rare positives have the largest gradients. Their
# weights are small, so the model does not learn that clicks are common.
#
# ## 6. Train
#
# `fit` takes the selection directly and reports statistics of the weights. They differ slightly
# from those above because every pass over the data makes a new draw.

# %%
history = model.fit(selected, steps_per_epoch=INTERVAL // WINDOW, shuffle=False, verbose=0).history
for name, values in history.items():
    print(f"{name:24}{values[0]:.4f}")

# %% [markdown]
# ## 7. Run the whole loop three times
#
# Now run the stream from beginning to end. After every interval, the newly trained model becomes
# the serving model, so records are never older than one interval. All three models start from the
# same weights, see the same stream and take the same number of optimiser steps. Only the batches
# differ: 128 examples per window for `uniform` and `importance`, all 1,280 for `everything`.
#
# The metric is the excess loss on held-out impressions that follow the stream: the log loss minus
# that of the true click probability. 0 is perfect.


# %%
def excess_loss(model):
    inputs = {name: held_out[name] for name in ("dense", "categorical")}
    logits = model.predict(inputs, batch_size=8192, verbose=0)[:, 0].astype(np.float64)
    p = held_out["click_probability"].numpy().astype(np.float64)
    predicted = 1 / (1 + np.exp(-logits))
    loss = -(p * np.log(predicted) + (1 - p) * np.log1p(-predicted))
    best = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return float(np.mean(loss - best)), float(predicted.mean() / p.mean())


def run(policy):
    model, curve, backward = build_model(), [], 0
    for version, start in enumerate(range(0, NUM_EXAMPLES, INTERVAL)):
        impressions = generate(tf.range(start, start + INTERVAL, dtype=tf.int64))
        impressions.pop("click_probability")
        records = None
        if policy == "importance":
            records = f"{scratch}/{version}"
            serve(model, impressions, records, version)
        examples = tf.data.Dataset.from_tensor_slices(impressions)
        if policy == "everything":
            batches = examples.batch(WINDOW)
        else:
            batches = examples.apply(sampler(policy, records, seed=SEED + version))
        model.fit(batches, steps_per_epoch=INTERVAL // WINDOW, shuffle=False, verbose=0)
        backward += INTERVAL if policy == "everything" else round(RATE * INTERVAL)
        curve.append((backward, excess_loss(model)[0]))
    loss, calibration = excess_loss(model)
    return {"curve": curve, "loss": loss, "calibration": calibration}


results = {policy: run(policy) for policy in ("uniform", "importance", "everything")}

# %%
gap = results["uniform"]["loss"] - results["everything"]["loss"]
print(f"{'trained on':14}{'excess loss':>13}{'gap closed':>12}{'calibration':>13}{'backward':>11}")
for policy, result in results.items():
    result["gap_closed"] = (results["uniform"]["loss"] - result["loss"]) / gap
    print(
        f"{policy:14}{result['loss']:13.5f}{result['gap_closed']:12.2f}"
        f"{result['calibration']:13.2f}{result['curve'][-1][0]:11,}"
    )

# %% [markdown]
# - **Gap closed**: 0 is as good as a uniform tenth, 1 as good as training on everything.
# - **Calibration**: mean predicted over mean true click probability on the held-out impressions. On
#   a drifting stream, `everything` is not at 1 either. `importance` is close to `everything`
#   because of the weights.
# - **Backward**: number of examples in the backward pass.
#
# The plot shows the loss against this cost, on a logarithmic scale.

# %%
LOOKS = {
    "uniform": ("#6b6b6b", "o"),
    "importance": ("#0b6bcb", "s"),
    "everything": ("#1d8a4e", "D"),
}
figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
for policy, (colour, marker) in LOOKS.items():
    backward, loss = np.transpose(results[policy]["curve"])
    axis.plot(backward, loss, color=colour, marker=marker, markersize=5)
    axis.annotate(
        policy, (backward[-1], loss[-1]), (8, 0), textcoords="offset points", color=colour,
        va="center",
    )  # fmt: skip
axis.set_xscale("log")
axis.set_xlim(right=1e6)
axis.set_xticks([2_000, 10_000, 50_000, 250_000])
axis.xaxis.set_major_formatter("{x:,.0f}")
axis.minorticks_off()
axis.set_xlabel("examples in the backward pass")
axis.set_ylabel("excess loss, held-out")
axis.set_title("Loss against training cost", loc="left")
axis.grid(color="#e5e5e5")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
assert results["importance"]["gap_closed"] > 0.5, "importance must close at least half of the gap"
assert results["importance"]["curve"][-1][0] * 10 == results["everything"]["curve"][-1][0]
assert gap > 0, "everything must be better than a uniform tenth"

# %% [markdown]
# One seed is an example, not a measurement. `make demo` runs the same loop with several seeds and a
# SavedModel instead of `serve`; README and `docs/RESULTS.md` report five seeds on many tasks.
#
# ## Next steps
#
# - On your own data: `choosing_a_policy.ipynb`.
# - In a TFX pipeline: `tfx_pipeline.ipynb`.
# - Recording from a real server: `docs/examples/serve_and_record.py`, `docs/RECORDS.md`.

"""A ranking model with two heads: a watch (binary) and, after it alone, a rating."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf  # ofb

rng = np.random.default_rng(0)
features = rng.normal(size=(6000, 8)).astype("float32")
watched = (features[:, 0] + rng.normal(size=6000) > 0.5).astype("int64")
rating = (features[:, 1] + 0.1 * rng.normal(size=6000)).astype("float32")
labels = {"watched": watched, "rating": np.where(watched == 1, rating, np.nan).astype("float32")}
rows = tf.data.Dataset.from_tensor_slices((features, labels)).take(5000)

inputs = keras.Input((8,))
shared = keras.layers.Dense(16, activation="relu")(inputs)
heads = {name: keras.layers.Dense(1, name=name)(shared) for name in ("watched", "rating")}
model = keras.Model(inputs, heads)
model.compile(
    keras.optimizers.Adam(0.01),
    {"watched": keras.losses.BinaryCrossentropy(from_logits=True), "rating": "mse"},
    loss_weights={"watched": 1.0, "rating": 0.5},
)

with ofb_tf.ForwardRecordWriter("records") as writer:  # ofb
    recorder = ofb_tf.serving.RecordPredictions(writer, range(5000), logits_output=heads)  # ofb
    model.predict(features[:5000], callbacks=[recorder], verbose=0)  # ofb
task = {"watched": "binary", "rating": "regression"}  # ofb
rows = rows.enumerate().apply(ofb_tf.ofb_sample(records="records", task=task, batch_size=64))  # ofb
model.fit(rows, epochs=20, verbose=0)
outputs = model.predict(features[5000:], verbose=0)
seen = watched[5000:] == 1
correct = (outputs["watched"][:, 0] > 0) == seen
figures = {
    "watched_accuracy": float(correct.mean()),
    "rating_rmse": float(np.sqrt(np.mean((outputs["rating"][:, 0] - rating[5000:])[seen] ** 2))),
}

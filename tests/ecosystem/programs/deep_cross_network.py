"""Ratings by a deep and cross network: a model of its own class that takes a dict of features."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf  # ofb

rng = np.random.default_rng(0)
sizes = {"user": 60, "film": 40, "timestamp": 24}  # a feature that is named as a record's field
table = {name: rng.integers(0, size, 6000) for name, size in sizes.items()}
effects = [rng.normal(size=size)[table[name]] for name, size in sizes.items()]
rating = (3 + effects[0] * effects[1] + 0.3 * effects[2]).astype("float32")
train = tf.data.Dataset.from_tensor_slices((table, rating)).take(5000)


class CrossNetwork(keras.Model):
    def __init__(self):
        super().__init__()
        self.embeddings = {name: keras.layers.Embedding(size, 4) for name, size in sizes.items()}
        self.cross = [keras.layers.Dense(12), keras.layers.Dense(12)]
        self.deep = keras.layers.Dense(16, activation="relu")
        self.top = keras.layers.Dense(1)

    def call(self, features):
        parts = [layer(features[name]) for name, layer in self.embeddings.items()]
        first = hidden = keras.ops.concatenate(parts, axis=-1)
        for layer in self.cross:  # Wang et al., "DCN V2", WWW 2021
            hidden = first * layer(hidden) + hidden
        return self.top(self.deep(hidden))


model = CrossNetwork()
model.compile(keras.optimizers.Adam(0.01), "mse", weighted_metrics=["mae"])
model.fit(train.batch(64), epochs=2, verbose=0)

with ofb_tf.ForwardRecordWriter("records") as writer:  # ofb
    recorder = ofb_tf.serving.RecordPredictions(writer, range(5000))  # ofb
    model.predict(train.batch(64), callbacks=[recorder], verbose=0)  # ofb
sampler = ofb_tf.ofb_sample(records="records", task="regression", batch_size=64, seed=0)  # ofb
train = train.enumerate().apply(sampler)  # ofb
model.fit(train, epochs=10, verbose=0)
test = {name: column[5000:] for name, column in table.items()}
loss, error = model.evaluate(test, rating[5000:], verbose=0)
figures = {"loss": loss, "mean_absolute_error": error}

"""Ratings of films: embeddings of users and films in a model of its own class, soft labels."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf  # ofb

rng = np.random.default_rng(0)
pairs = np.stack([rng.integers(0, 50, 6000), rng.integers(0, 40, 6000)], axis=1)
tastes, kinds = rng.normal(size=(50, 2)), rng.normal(size=(40, 2))
ratings = 1 / (1 + np.exp(-(tastes[pairs[:, 0]] * kinds[pairs[:, 1]]).sum(1)))
ratings = ratings.astype("float32")
train = tf.data.Dataset.from_tensor_slices((pairs[:5000], ratings[:5000]))


class Recommender(keras.Model):
    def __init__(self):
        super().__init__()
        self.users, self.films = keras.layers.Embedding(50, 4), keras.layers.Embedding(40, 4)

    def call(self, inputs):
        match = self.users(inputs[:, 0]) * self.films(inputs[:, 1])
        return keras.ops.sigmoid(keras.ops.sum(match, axis=1, keepdims=True))


model = Recommender()
model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", weighted_metrics=["mae"])
model.fit(train.batch(64), epochs=3, verbose=0)

with ofb_tf.ForwardRecordWriter("records") as writer:  # ofb
    recorder = ofb_tf.serving.RecordPredictions(writer, range(5000))  # ofb
    model.predict(pairs[:5000], callbacks=[recorder], verbose=0)  # ofb
sampler = ofb_tf.ofb_sample(records="records", task="binary", batch_size=64, seed=0)  # ofb
train = train.enumerate().apply(sampler)  # ofb
model.fit(train, epochs=10, verbose=0)
loss, error = model.evaluate(pairs[5000:], ratings[5000:], verbose=0)
figures = {"loss": loss, "mean_absolute_error": error}

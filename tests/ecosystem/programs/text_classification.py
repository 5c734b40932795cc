"""Reviews of films: raw text, a vectorizer in the pipeline, convolutions over embeddings."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf  # ofb

rng = np.random.default_rng(0)
words = np.array(["fine", "great", "dull", "bad", "film", "plot", "star", "scene", "the", "a"])
likes = rng.integers(0, 2, 2500)
shares = np.array([[0.02, 0.02, 0.1, 0.1], [0.1, 0.1, 0.02, 0.02]])
reviews = [" ".join(rng.choice(words, 20, p=[*shares[y], *[0.76 / 6] * 6])) for y in likes]
raw = tf.data.Dataset.from_tensor_slices((reviews, likes))
vectorize = keras.layers.TextVectorization(output_sequence_length=20, vocabulary=words.tolist())
train, test = raw.take(2000), raw.skip(2000).batch(100).map(lambda x, y: (vectorize(x), y))

tokens = keras.Input((20,), dtype="int64")
hidden = keras.layers.Embedding(12, 8)(tokens)
hidden = keras.layers.Conv1D(16, 3, activation="relu")(hidden)
hidden = keras.layers.GlobalAveragePooling1D()(hidden)
model = keras.Model(tokens, keras.layers.Dense(1, activation="sigmoid")(hidden))
model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", weighted_metrics=["accuracy"])
batches = train.batch(32).map(lambda x, y: (vectorize(x), y))
model.fit(batches, verbose=0)

with ofb_tf.ForwardRecordWriter("records") as writer:  # ofb
    recorder = ofb_tf.serving.RecordPredictions(writer, range(2000))  # ofb
    model.predict(batches, callbacks=[recorder], verbose=0)  # ofb
train = train.enumerate().apply(ofb_tf.ofb_sample(records="records", batch_size=32))  # ofb
batches = train.map(lambda x, y, w: (vectorize(x), y, w))  # ofb
model.fit(batches, epochs=5, verbose=0)
loss, accuracy = model.evaluate(test, verbose=0)
figures = {"loss": loss, "accuracy": accuracy}

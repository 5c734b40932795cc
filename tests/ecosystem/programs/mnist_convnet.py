"""Digits: a convolutional network with one-hot labels and a softmax."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf  # ofb

rng = np.random.default_rng(0)
digits = rng.integers(0, 10, 3000)
images = rng.normal(scale=0.5, size=(3000, 14, 14, 1)).astype("float32")
images[np.arange(3000), digits, 2:12] += 1.0  # a bar in the digit's row
one_hot = keras.utils.to_categorical(digits, 10)
train = tf.data.Dataset.from_tensor_slices((images[:2000], one_hot[:2000]))

model = keras.Sequential(
    [
        keras.Input((14, 14, 1)),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "categorical_crossentropy", weighted_metrics=["accuracy"])
model.fit(train.batch(32), verbose=0)

with ofb_tf.ForwardRecordWriter("records") as writer:  # ofb
    recorder = ofb_tf.serving.RecordPredictions(writer, range(2000))  # ofb
    model.predict(images[:2000], callbacks=[recorder], verbose=0)  # ofb
sampler = ofb_tf.ofb_sample(records="records", task="multiclass", batch_size=32, seed=0)  # ofb
train = train.enumerate().apply(sampler)  # ofb
model.fit(train, epochs=20, verbose=0)
loss, accuracy = model.evaluate(images[2000:], one_hot[2000:], verbose=0)
figures = {"loss": loss, "accuracy": accuracy}

"""Fraud in card transactions: few positives, class weights, labels of one column, a sigmoid."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf  # ofb

rng = np.random.default_rng(0)
features = rng.normal(size=(8000, 29)).astype("float32")
fraud = features[:, :4].sum(1) + rng.normal(size=8000) > 5
targets = fraud.astype("uint8")[:, None]
train = tf.data.Dataset.from_tensor_slices((features[:6000], targets[:6000]))
class_weight = {0: 1.0 / np.sum(~fraud), 1: 1.0 / np.sum(fraud)}

model = keras.Sequential(
    [
        keras.Input((29,)),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model = ofb_tf.OFBModel.wrap(model)  # ofb
model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", weighted_metrics=["AUC"])
model.fit(train.batch(256), class_weight=class_weight, verbose=0)

with ofb_tf.ForwardRecordWriter("records") as writer:  # ofb
    recorder = ofb_tf.serving.RecordPredictions(writer, range(6000))  # ofb
    model.predict(features[:6000], callbacks=[recorder], verbose=0)  # ofb
train = train.enumerate().apply(ofb_tf.ofb_sample(records="records", batch_size=256))  # ofb
model.fit(train, epochs=5, class_weight=class_weight, verbose=0)
loss, auc = model.evaluate(features[6000:], targets[6000:], verbose=0)
figures = {"loss": loss, "auc": auc}

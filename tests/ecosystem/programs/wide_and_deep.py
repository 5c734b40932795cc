"""Forest cover types: a CSV table of numbers and strings, wide and deep parts, a softmax."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf  # ofb

rng = np.random.default_rng(0)
names = np.array(["Rawah", "Neota", "Comanche", "Poudre"])
height, area = rng.normal(size=4000), rng.integers(0, 4, 4000)
kind = (area + (height > 0) + (rng.random(4000) < 0.1)) % 3
rows = [f"{names[a]},{h:.3f},{k}" for a, h, k in zip(area, height, kind, strict=True)]
with open("cover.csv", "w", encoding="utf-8") as file:
    file.write("\n".join(["area,height,kind", *rows]))


train = tf.data.experimental.make_csv_dataset(
    "cover.csv", 64, label_name="kind", num_epochs=1, shuffle=False
)
inputs = {"height": keras.Input(()), "area": keras.Input((), dtype="string")}
one_hot = keras.layers.StringLookup(vocabulary=names.tolist(), output_mode="one_hot")
wide = keras.layers.Concatenate()([inputs["height"][:, None], one_hot(inputs["area"])])
deep = keras.layers.Dense(16, activation="relu")(wide)
merged = keras.layers.Concatenate()([wide, deep])
model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(merged))
adam = keras.optimizers.Adam(0.01)
model.compile(adam, "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
model.fit(train, verbose=0)

with ofb_tf.ForwardRecordWriter("records") as writer:  # ofb
    for x, _ in train:  # ofb
        writer.write(ofb_tf.example_id_of(x["area"], x["height"]), probabilities=model(x))  # ofb
sample = ofb_tf.ofb_sample(records="records", id_key=["area", "height"], batch_size=64)  # ofb
model.fit(train.unbatch().apply(sample), epochs=10, verbose=0)  # ofb
loss, accuracy = model.evaluate(train, verbose=0)
figures = {"loss": loss, "accuracy": accuracy}

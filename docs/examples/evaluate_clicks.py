r"""A click stream that two versions of a model served: the input of docs/evaluate.md.

Version 1 is trained on the first third of the stream and serves the second; version 2 is trained on
that and serves the last. Of the predictions 95% are recorded. Labels arrive after two minutes,
half an hour or three hours, and what is clicked changes all the time.

    python docs/examples/evaluate_clicks.py out/evaluate
    ofb evaluate --records=out/evaluate/records --examples=out/evaluate/examples \
        --timestamp_key=labelled_at --slice_keys=device
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from ofb_tf.datasets import VOCABULARY_SIZES, ClickStream

THIRD, START, SECOND = 80_000, 1_700_000_000_000_000, 1_000_000
DEVICES = np.array([b"phone", b"desktop", b"tablet"])
DELAYS = np.array([120, 1800, 10_800]) * SECOND


def build() -> keras.Model:
    dense, categorical = keras.Input((13,), name="dense"), keras.Input((26,), dtype="int64")
    offsets = np.concatenate([[0], np.cumsum(VOCABULARY_SIZES)[:-1]])
    rows = keras.layers.Embedding(sum(VOCABULARY_SIZES), 4)(categorical + offsets)
    hidden = keras.layers.Concatenate()([keras.layers.Flatten()(rows), keras.ops.log(dense)])
    hidden = keras.layers.Dense(32, activation="relu", name="hidden")(hidden)
    bias = keras.initializers.Constant(-3.5)
    outputs = keras.layers.Dense(1, bias_initializer=bias, name="click")(hidden)
    model = keras.Model([dense, categorical], outputs)
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    return model


def serialize(**features) -> bytes:
    example = tf.train.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        kind = feature.bytes_list if isinstance(value, bytes) else feature.int64_list
        kind.value.append(value)
    return example.SerializeToString()


def main(directory: pathlib.Path) -> None:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    stream = ClickStream(num_examples=3 * THIRD, positive_rate=0.03, drift=1.0)
    model = build()
    (directory / "examples").mkdir(parents=True)
    with ofb_tf.ForwardRecordWriter(directory / "records") as writer:
        for version in range(3):
            ids = np.arange(THIRD) + version * THIRD
            fields = {name: v.numpy() for name, v in stream.generate(tf.constant(ids)).items()}
            inputs = [fields["dense"], fields["categorical"]]
            served = START + ids * SECOND
            if version:
                kept = rng.random(THIRD) < 0.95
                logits = model.predict(inputs, batch_size=4096, verbose=0)
                writer.write(ids[kept], logits[kept], timestamp=served[kept], model_version=version)
                columns = {
                    "example_id": ids,
                    "label": fields["label"],
                    "labelled_at": served + rng.choice(DELAYS, THIRD),
                    "device": DEVICES[fields["categorical"][:, 0] % 3],
                }
                with tf.io.TFRecordWriter(f"{directory}/examples/{version}.tfrecord") as file:
                    for row in zip(*(c.tolist() for c in columns.values()), strict=True):
                        file.write(serialize(**dict(zip(columns, row, strict=True))))
            model.fit(inputs, fields["label"], batch_size=256, epochs=2, verbose=0)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

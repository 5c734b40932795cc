"""Serves a model by gRPC, records what every call computed, and trains from the records.

The exported model returns logits and ids with its predictions; a separate process serves it over
TensorFlow Serving's protocol. The client calls it as usual, through a stub that records. Labels
arrive later: the records are joined to the stream, one in ten examples is selected, and the model
trains on those.

    pip install 'ofb-tf[serving]'
    python docs/examples/serve_and_record.py
    python docs/examples/serve_and_record.py --num_windows=64 --records_dir=/tmp/records

With TensorFlow Serving instead of the local server, only the address changes.
"""

import argparse
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import keras
import local_server
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc

import ofb_tf
from ofb_tf.datasets import ClickStream
from ofb_tf.serving import PredictionRecorder, export_recording_model, record_stub

WINDOW = 1024
REQUEST = 64
FEATURES = {
    "example_id": tf.io.FixedLenFeature([], tf.int64),
    "dense": tf.io.FixedLenFeature([13], tf.float32),
}


def build_model() -> ofb_tf.OFBModel:
    """A small click model: 13 dense features to one logit."""
    dense = keras.Input([13], name="dense")
    normalized = keras.layers.BatchNormalization()(dense)
    hidden = keras.layers.Dense(32, "relu", name="hidden")(normalized)
    model = ofb_tf.OFBModel(dense, keras.layers.Dense(1, name="logit")(hidden))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("adam", loss, weighted_metrics=[])
    return model


def serialize(examples: dict[str, tf.Tensor]) -> list[bytes]:
    """What the client sends: tf.Examples with id and features; the label is not known yet."""
    serialized = []
    for example_id, dense in zip(
        examples["example_id"].numpy(), examples["dense"].numpy(), strict=True
    ):
        example = tf.train.Example()
        example.features.feature["example_id"].int64_list.value.append(example_id)
        example.features.feature["dense"].float_list.value.extend(dense)
        serialized.append(example.SerializeToString())
    return serialized


def call_and_record(address: str, stream: ClickStream, num_examples: int, records: str) -> None:
    """The client: predicts for every example through a stub that records the responses."""
    writer = ofb_tf.ForwardRecordWriter(records, on_error="drop")
    with PredictionRecorder(writer) as recorder, grpc.insecure_channel(address) as channel:
        stub = record_stub(prediction_service_pb2_grpc.PredictionServiceStub(channel), recorder)
        for start in range(0, num_examples, REQUEST):
            examples = stream.generate(tf.range(start, start + REQUEST, dtype=tf.int64))
            stub.Predict(local_server.predict_request(serialize(examples)))
    counts = recorder.counts
    lost = counts.num_full + counts.num_unusable + counts.num_write_errors
    print(f"recorded {counts.num_recorded} examples of {counts.num_responses} calls, lost {lost}")


def main() -> None:
    """Serves, records, joins, samples, trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_windows", type=int, default=16, help="windows of 1024 examples")
    parser.add_argument("--records_dir", help="where records go; a temporary directory by default")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    stream = ClickStream(num_examples=arguments.num_windows * WINDOW, positive_rate=0.1)
    with tempfile.TemporaryDirectory() as scratch:
        records = arguments.records_dir or os.path.join(scratch, "records")
        model = build_model()
        export_recording_model(model, os.path.join(scratch, "model", "1"), FEATURES, task="binary")
        with local_server.served(os.path.join(scratch, "model", "1")) as address:
            call_and_record(address, stream, stream.num_examples, records)

        examples = stream.dataset().map(
            lambda x: {k: x[k] for k in ("example_id", "dense", "label")}
        )
        selected = examples.apply(
            ofb_tf.ofb_sample(
                records=records, task="binary", window_size=WINDOW, batch_size=32, seed=17
            )
        )
        batches = selected.map(lambda x: (x["dense"], x["label"], x["importance_weight"]))
        before = evaluate(model, stream)
        model.fit(batches.repeat(3), verbose=0)
        num_selected = sum(len(weight) for _, _, weight in batches.as_numpy_iterator())
        print(f"selected {num_selected} of {stream.num_examples} examples")
        print(f"loss before training {before:.4f}, after {evaluate(model, stream):.4f}")


def evaluate(model: keras.Model, stream: ClickStream) -> float:
    """Mean cross-entropy over the whole stream."""
    examples = stream.generate(tf.range(stream.num_examples, dtype=tf.int64))
    labels = np.asarray(examples["label"])[:, None]
    logits = model(examples["dense"], training=False)
    return float(np.mean(keras.losses.binary_crossentropy(labels, logits, from_logits=True)))


if __name__ == "__main__":
    main()

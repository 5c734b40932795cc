"""Records from logs that others write: BulkInferrer's results, and KServe's events.

Serving does not change. TFX's BulkInferrer writes PredictionLogs, one for each example; KServe's
payload logger posts an event for each request and each response, and a sink appends them to a file.
Both files are written here as those programs write them, and imported by `ofb records import`.

    pip install 'ofb-tf[serving]'
    python docs/examples/import_logs.py out/import
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from ofb_tf import cli

NUM_EXAMPLES = 1000


def write_inference_result(path: str) -> None:
    """As BulkInferrer: the serialized example, and the outputs of the model for it."""
    with tf.io.TFRecordWriter(path, "GZIP") as file:
        for number in range(NUM_EXAMPLES):
            example = tf.train.Example()
            example.features.feature["example_id"].int64_list.value.append(number)
            log = prediction_log_pb2.PredictionLog()
            call = log.predict_log
            call.request.inputs["examples"].CopyFrom(
                tf.make_tensor_proto([example.SerializeToString()])
            )
            call.response.model_spec.version.value = 3
            outputs = {"example_id": [number], "logits": [[number / NUM_EXAMPLES]]}
            for name, value in outputs.items():
                dtype = tf.int64 if name == "example_id" else tf.float32
                call.response.outputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
            file.write(log.SerializeToString())


def write_events(path: str) -> None:
    """As KServe's logger: a request with ids and features, a response with logits."""
    with open(path, "w") as file:
        for number in range(0, NUM_EXAMPLES, 2):
            ids = [NUM_EXAMPLES + number, NUM_EXAMPLES + number + 1]
            instances = [{"example_id": example_id, "x": [0.5]} for example_id in ids]
            logits = [[example_id / NUM_EXAMPLES] for example_id in ids]
            for kind, data in (
                ("request", {"instances": instances}),
                ("response", {"predictions": logits}),
            ):
                event = {
                    "specversion": "1.0",
                    "id": f"call-{number}",
                    "type": f"org.kubeflow.serving.inference.{kind}",
                    "time": "2026-05-01T12:00:00Z",
                    "data": data,
                }
                file.write(json.dumps(event) + "\n")


def main(directory: str) -> int:
    """Writes both logs and imports them into one directory."""
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    records = f"{directory}/records"
    write_inference_result(f"{directory}/inference_result.gz")
    write_events(f"{directory}/events.jsonl")
    for path, log_format in (
        (f"{directory}/inference_result.gz", "prediction_log"),
        (f"{directory}/events.jsonl", "cloudevents"),
    ):
        command = ["records", "import", path, f"--format={log_format}", f"--output_dir={records}"]
        if code := cli.main(command):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

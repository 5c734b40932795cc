"""Where forward records come from: record files and PredictionLogs, as batches of columns."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from ofb_tf import hashing, types
from ofb_tf.records import reader
from tfx_components.example_files import compression_of, fingerprints

_BATCH = 8192

Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PredictionLogSpec:
    """How a PredictionLog is read.

    Attributes:
      id_feature: feature of the request's serialized examples that holds the id, "" for their
        fingerprint. A response that echoes `example_id` needs neither.
      logits_output: name of the response's output with the logits.
      model_version: for responses that do not say.
      timestamp: microseconds since 1970, for all.
    """

    id_feature: str
    logits_output: str
    model_version: int
    timestamp: int


def read_record_file(path: str) -> Iterator[Columns]:
    """Reads a `*.ofbr` file: columns by the field names of `ofb_tf.types`.

    Raises:
      CorruptRecordsError: the file is damaged; names file and offset.
      ValueError: records in the top-k form.
    """
    for block in reader.read_blocks(path):
        if block.schema.top_k:
            raise ValueError(
                f"{path} holds records in the top-k form, which ForwardRecordGen does not take. "
                "Write every logit."
            )
        yield {
            name: data if isinstance(data, np.ndarray) else data.expand()
            for name, data in block.columns.items()
        }


def read_prediction_logs(path: str, spec: PredictionLogSpec) -> Iterator[Columns]:
    """Reads TFRecords of `tensorflow.serving.PredictionLog`, as BulkInferrer or TF Serving write.

    Raises:
      ValueError: the file is damaged, or a log lacks the logits or the ids; names the file.
    """
    batches = iter(tf.data.TFRecordDataset(path, compression_of(path)).batch(_BATCH))
    position = 0
    while True:
        try:
            batch = next(batches, None)
        except tf.errors.OpError as error:
            raise ValueError(
                f"{path} is damaged after log {position}: {error.message}. Write it anew."
            ) from error
        if batch is None:
            return
        logs = []
        for serialized in batch.numpy():
            try:
                logs.append(prediction_log_pb2.PredictionLog.FromString(serialized).predict_log)
            except Exception as error:  # the parser's class differs between protobuf releases
                raise ValueError(f"{path} does not hold PredictionLogs.") from error
        yield _columns(logs, spec, f"{path}, logs {position} and following")
        position += len(logs)


def _columns(logs: list, spec: PredictionLogSpec, where: str) -> Columns:
    logits = []
    for log in logs:
        if spec.logits_output not in log.response.outputs:
            raise ValueError(
                f"{where}: there is no output {spec.logits_output!r} among "
                f"{sorted(log.response.outputs)}. Serve by the recording signature, or set "
                "logits_output."
            )
        output = tf.make_ndarray(log.response.outputs[spec.logits_output])
        logits.append(output.reshape(-1, output.shape[-1] if output.ndim > 1 else 1))
    widths = sorted({output.shape[1] for output in logits})
    if len(widths) > 1:
        raise ValueError(
            f"{where}: outputs {spec.logits_output!r} have widths {widths}: they come from "
            "different models. Generate records from each on its own."
        )
    sizes = [len(output) for output in logits]
    versions = [log.response.model_spec.version.value or spec.model_version for log in logs]
    return {
        types.EXAMPLE_ID: _ids(logs, sizes, spec, where),
        types.LOGITS: np.concatenate(logits).astype(np.float32),
        types.MODEL_VERSION: np.repeat(np.array(versions, np.int64), sizes),
        types.TIMESTAMP: np.full(sum(sizes), spec.timestamp, np.int64),
    }


def _ids(logs: list, sizes: list[int], spec: PredictionLogSpec, where: str) -> np.ndarray:
    requests = [
        [text for tensor in log.request.inputs.values() for text in tensor.string_val]
        for log in logs
    ]
    whole = [len(request) for request in requests] == sizes
    # An echoed fingerprint is that of the bytes as they came, not of the example; see fingerprints.
    if not spec.id_feature and whole:
        return fingerprints([example for request in requests for example in request])
    if all(types.EXAMPLE_ID in log.response.outputs for log in logs):
        echoed = [tf.make_ndarray(log.response.outputs[types.EXAMPLE_ID]).ravel() for log in logs]
        return hashing.as_example_ids(tf.constant(np.concatenate(echoed))).numpy()
    if not whole:
        raise ValueError(
            f"{where}: requests hold {[len(request) for request in requests[:3]]}... serialized "
            f"examples for {sizes[:3]}... rows of logits, and no output {types.EXAMPLE_ID!r} "
            "echoes the ids. Serve by the recording signature."
        )
    ids = [
        _id(tf.train.Example.FromString(example), spec, where)
        for request in requests
        for example in request
    ]
    return hashing.as_example_ids(tf.constant(ids)).numpy()


def _id(example: tf.train.Example, spec: PredictionLogSpec, where: str) -> int | bytes:
    feature = example.features.feature[spec.id_feature]
    values = feature.int64_list.value or feature.bytes_list.value
    if len(values) != 1:
        raise ValueError(
            f"{where}: id feature {spec.id_feature!r} must be one int64 or bytes value in every "
            f"example. Received: {len(values)} values; the features are "
            f"{sorted(example.features.feature)}. Set id_feature."
        )
    return values[0]

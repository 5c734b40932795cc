"""Where forward records come from: record files and PredictionLogs, as batches of columns.

Ids of PredictionLogs, so that they meet OFBSampler's:

* `id_feature=""`: the fingerprint of the request's example, serialized anew with its features
  sorted (`example_files.fingerprints`). A model that `export_recording_model` wrote with
  `id_key=None` says the fingerprint of the bytes that it got, and BulkInferrer and clients each
  serialize in an order of their own; so what it says counts only where the log holds no request.
* `id_feature="…"`: what the model says as `example_id`, unless that is the fingerprint of the
  bytes; the request's feature then, and where the model says nothing.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import importers, reader
from tfx_components.example_files import fingerprints

_BATCH = 8192

Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PredictionLogSpec:
    """How a PredictionLog is read.

    Attributes:
      id_feature: feature of the request's serialized examples that holds the id, "" for their
        fingerprint.
      logits_output: name of the response's output with the logits.
      model_version: for responses that do not say.
      timestamp: microseconds since 1970, for logs that do not say.
    """

    id_feature: str
    logits_output: str
    model_version: int
    timestamp: int


def read_record_file(path: str) -> Iterator[Columns]:
    """Reads a `*.ofbr` file: columns by the field names of `ofb_tf.constants`.

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
      ValueError: the file is damaged, or a log lacks the logits or the ids; names file and offset.
    """
    fields = importers.PredictFields(logits_output=spec.logits_output)
    logs: list[Any] = []
    logits: list[Any] = []
    start = 0
    for offset, log, reason in importers.read_messages(path):
        if log is None:
            raise ValueError(
                f"{path} at byte {offset}: {reason}. Every TFRecord must be a PredictionLog of a "
                "Predict call: write the file anew."
            )
        try:
            output = fields.logits(log.predict_log.response)
        except importers.UnusableError as error:
            raise ValueError(
                f"{path} at byte {offset}: {error}. Serve by the recording signature, or set "
                "logits_output."
            ) from error
        start = start if logs else offset
        logs.append(log)
        logits.append(output)
        if len(logs) == _BATCH:
            yield _columns(logs, logits, spec, f"{path} at byte {start}")
            logs, logits = [], []
    if logs:
        yield _columns(logs, logits, spec, f"{path} at byte {start}")


def _columns(logs: list, logits: list[np.ndarray], spec: PredictionLogSpec, where: str) -> Columns:
    widths = sorted({output.shape[1] for output in logits})
    if len(widths) > 1:
        raise ValueError(
            f"{where}: outputs {spec.logits_output!r} have widths {widths}: they come from "
            "different models. Generate records from each on its own."
        )
    sizes = [len(output) for output in logits]
    calls = [log.predict_log for log in logs]
    versions = [call.response.model_spec.version.value or spec.model_version for call in calls]
    times = [importers.timestamp_of(log) or spec.timestamp for log in logs]
    return {
        constants.EXAMPLE_ID: _ids(calls, sizes, spec, where),
        constants.LOGITS: np.concatenate(logits),
        constants.MODEL_VERSION: np.repeat(np.array(versions, np.int64), sizes),
        constants.TIMESTAMP: np.repeat(np.array(times, np.int64), sizes),
    }


def _ids(calls: list, sizes: list[int], spec: PredictionLogSpec, where: str) -> np.ndarray:
    requests = [
        [text for tensor in call.request.inputs.values() for text in tensor.string_val]
        for call in calls
    ]
    whole = [len(request) for request in requests] == sizes
    examples = [example for request in requests for example in request] if whole else None
    if examples and not spec.id_feature:
        return fingerprints(examples)
    echoed = _echoed(calls)
    if echoed is None and examples is None:
        raise ValueError(
            f"{where}: requests hold {[len(request) for request in requests[:3]]}... serialized "
            f"examples for {sizes[:3]}... rows of logits, and no output {constants.EXAMPLE_ID!r} "
            "echoes the ids. Serve by the recording signature."
        )
    if echoed is not None and len(echoed) != sum(sizes):
        raise ValueError(
            f"{where}: the output {constants.EXAMPLE_ID!r} has {len(echoed)} ids for {sum(sizes)} "
            "rows of logits. Serve by the recording signature."
        )
    if examples and (echoed is None or _are_of_bytes(echoed, examples)):
        return hashing.to_int64(
            tf.constant([_id(tf.train.Example.FromString(e), spec, where) for e in examples])
        ).numpy()
    return np.zeros(0, np.int64) if echoed is None else echoed


def _echoed(calls: list) -> np.ndarray | None:
    """The ids that the responses say, int64 `[n]`; None unless all do."""
    if not all(constants.EXAMPLE_ID in call.response.outputs for call in calls):
        return None
    ids = [tf.make_ndarray(call.response.outputs[constants.EXAMPLE_ID]).ravel() for call in calls]
    return hashing.to_int64(tf.constant(np.concatenate(ids))).numpy()


def _are_of_bytes(echoed: np.ndarray, examples: list[bytes]) -> bool:
    """Whether the model has no id feature, and said the fingerprints of the bytes that it got."""
    return np.array_equal(echoed, hashing.fingerprint(tf.constant(examples, tf.string)).numpy())


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

"""Where forward records come from: record files and PredictionLogs, as batches of columns.

How ids of PredictionLogs are found, so that they match OFBSampler's:

* `id_feature=""`: the fingerprint of the request's example (`component_utils.example_fingerprints`,
  which does not depend on who serialized it). A model that `export_recording_model` wrote with
  `id_key=None` returns the fingerprint of the bytes it received, which does; it counts only where
  the log holds no request.
* `id_feature="…"`: the model's output `example_id`, unless that is the fingerprint of the bytes or
  there is none; then the feature of the request's example.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import importers, reader
from tfx_components.component_utils import example_fingerprints

_BATCH = 8192

Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PredictionLogSpec:
    """How a PredictionLog is read.

    Attributes:
      id_feature: feature of the request's serialized examples that holds the id, "" for their
        fingerprint.
      logits_output: name of the response's output with the logits.
      model_version: for responses that do not name one.
      timestamp: microseconds since 1970, for logs that do not have one.
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
                "Predict call: write the file again."
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
            "different models. Generate records from each separately."
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
    if not sum(sizes):
        return np.zeros(0, np.int64)
    requests = [
        [text for tensor in call.request.inputs.values() for text in tensor.string_val]
        for call in calls
    ]
    whole = [len(request) for request in requests] == sizes
    examples = [example for request in requests for example in request] if whole else []
    if examples and not spec.id_feature:
        return example_fingerprints(examples)
    echoed = _echoed(calls, where)
    if examples and (echoed is None or _are_fingerprints(echoed, examples)):
        return hashing.to_int64([_id(example, spec, where) for example in examples])
    if echoed is None:
        raise ValueError(
            f"{where}: requests hold {[len(request) for request in requests[:3]]}... serialized "
            f"examples for {sizes[:3]}... rows of logits, and no output {constants.EXAMPLE_ID!r} "
            "echoes the ids. Serve by the recording signature."
        )
    if len(echoed) != sum(sizes):
        raise ValueError(
            f"{where}: the output {constants.EXAMPLE_ID!r} has {len(echoed)} ids for {sum(sizes)} "
            "rows of logits. Serve by the recording signature."
        )
    return echoed


def _echoed(calls: list, where: str) -> np.ndarray | None:
    """The ids that the responses hold, int64 `[n]`; None unless all do."""
    fields = importers.PredictFields(id_output=constants.EXAMPLE_ID)
    if not all(constants.EXAMPLE_ID in call.response.outputs for call in calls):
        return None
    try:
        return np.concatenate([fields.ids(call.request, call.response) for call in calls])
    except importers.UnusableError as error:
        raise ValueError(f"{where}: {error}. Serve by the recording signature.") from error


def _are_fingerprints(echoed: np.ndarray, examples: list[bytes]) -> bool:
    """Whether the model has no id feature, and returned fingerprints of the bytes it received."""
    return np.array_equal(echoed, hashing.fingerprint(tf.constant(examples, tf.string)))


def _id(serialized: bytes, spec: PredictionLogSpec, where: str) -> int | bytes:
    features = tf.train.Example.FromString(serialized).features.feature
    values = features[spec.id_feature].int64_list.value or (
        features[spec.id_feature].bytes_list.value
    )
    if len(values) != 1:
        raise ValueError(
            f"{where}: id feature {spec.id_feature!r} must be one int64 or bytes value in every "
            f"example. Received: {len(values)} values; the features are {sorted(features)}. Set "
            "id_feature."
        )
    return values[0]

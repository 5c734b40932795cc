"""Where forward records come from: record files and PredictionLogs, as batches of columns.

How ids of PredictionLogs are found, so that they match OFBSampler's:

* `id_feature=""`: the fingerprint of the request's example (`component_utils.example_fingerprints`,
  which does not depend on who serialized it). A model that `export_recording_model` wrote with
  `id_key=None` returns the fingerprint of the bytes it received, which does; it counts only where
  the log holds no request.
* `id_feature="…"`: the model's output `example_id`, unless that is the fingerprint of the bytes or
  there is none; then the feature of the request's example.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import importers, reader
from tfx_components.component_utils import example_fingerprints

_BATCH = 8192

Columns = dict[str, np.ndarray]


def read_record_file(path: str) -> Iterator[Columns]:
    """Reads a `*.ofbr` file: columns by the field names of `ofb_tf.constants`; no top-k form."""
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


def read_prediction_logs(
    path: str, *, id_feature: str, logits_output: str, model_version: int, timestamp: int
) -> Iterator[Columns]:
    """Reads TFRecords of `tensorflow.serving.PredictionLog`, as BulkInferrer or TF Serving write.

    `model_version` and `timestamp` (microseconds since 1970) are for logs that do not have one;
    `id_feature` may be "". Errors name file and offset.
    """
    fields = importers.PredictFields(id_output=constants.EXAMPLE_ID, logits_output=logits_output)
    logs: list[tuple[Any, np.ndarray, int, int]] = []
    start = 0

    def columns() -> Columns:
        where = f"{path} at byte {start}"
        calls, logits, versions, times = zip(*logs, strict=True)
        widths = sorted({output.shape[1] for output in logits})
        if len(widths) > 1:
            raise ValueError(
                f"{where}: outputs {logits_output!r} have widths {widths}: they come from "
                "different models. Generate records from each separately."
            )
        sizes = [len(output) for output in logits]
        return {
            constants.EXAMPLE_ID: _ids(calls, sizes, fields, id_feature, where),
            constants.LOGITS: np.concatenate(logits),
            constants.MODEL_VERSION: np.repeat(np.array(versions, np.int64), sizes),
            constants.TIMESTAMP: np.repeat(np.array(times, np.int64), sizes),
        }

    for offset, log, reason in importers.read_messages(path):
        if log is None:
            raise ValueError(
                f"{path} at byte {offset}: {reason}. Every TFRecord must be a PredictionLog of a "
                "Predict call: write the file again."
            )
        call = log.predict_log
        try:
            logits = fields.logits(call.response)
        except importers.UnusableError as error:
            raise ValueError(
                f"{path} at byte {offset}: {error}. Serve by the recording signature, or set "
                "logits_output."
            ) from error
        start = start if logs else offset
        version = call.response.model_spec.version.value or model_version
        logs.append((call, logits, version, importers.timestamp_of(log) or timestamp))
        if len(logs) == _BATCH:
            yield columns()
            logs.clear()
    if logs:
        yield columns()


def _ids(
    calls: Sequence[Any],
    sizes: list[int],
    fields: importers.PredictFields,
    id_feature: str,
    where: str,
) -> np.ndarray:
    if not sum(sizes):
        return np.zeros(0, np.int64)
    requests = [
        [text for tensor in call.request.inputs.values() for text in tensor.string_val]
        for call in calls
    ]
    whole = [len(request) for request in requests] == sizes
    examples = [example for request in requests for example in request] if whole else []
    if examples and not id_feature:
        return example_fingerprints(examples)
    echoed = _echoed(calls, fields, where)
    # A model without an id feature returns fingerprints of the bytes that it receives.
    if examples and (
        echoed is None
        or np.array_equal(echoed, hashing.fingerprint(tf.constant(examples, tf.string)))
    ):
        return hashing.to_int64([_id(example, id_feature, where) for example in examples])
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


def _echoed(calls: Sequence[Any], fields: importers.PredictFields, where: str) -> np.ndarray | None:
    """The ids that the responses hold, int64 `[n]`; None unless all do."""
    if not all(constants.EXAMPLE_ID in call.response.outputs for call in calls):
        return None
    try:
        ids = [fields.ids(call.request, call.response) for call in calls]
    except importers.UnusableError as error:
        raise ValueError(f"{where}: {error}. Serve by the recording signature.") from error
    return hashing.to_int64(np.concatenate(ids))


def _id(serialized: bytes, id_feature: str, where: str) -> int | bytes:
    features = tf.train.Example.FromString(serialized).features.feature
    values = features[id_feature].int64_list.value or features[id_feature].bytes_list.value
    if len(values) != 1:
        raise ValueError(
            f"{where}: id feature {id_feature!r} must be one int64 or bytes value in every "
            f"example. Received: {len(values)} values; the features are {sorted(features)}. Set "
            "id_feature."
        )
    return values[0]

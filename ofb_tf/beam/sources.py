"""Where forward records come from: record files and PredictionLogs, as batches of columns.

How ids of PredictionLogs are found, so that they match those of `SampleExamples`:

* `id_feature=""`: the fingerprint of the request's example (`example_fingerprints`, which does not
  depend on who serialized it). A model that `export_recording_model` wrote with
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
from ofb_tf.beam.columns import Columns, check_schemas
from ofb_tf.beam.examples import example_fingerprints, single_value
from ofb_tf.records import importers, reader
from ofb_tf.records.schema import Schema, expand

_BATCH = 8192


def read_record_file(path: str) -> Iterator[Columns]:
    """Reads a `*.ofbr` file: columns by the field names of `ofb_tf.constants`; no top-k form."""
    for block in reader.read_blocks(path):
        if block.schema.top_k:
            raise ValueError(
                f"{path} holds records in the top-k form, which PartitionRecords does not take. "
                "Write every logit."
            )
        yield {name: expand(data) for name, data in block.columns.items()}


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
        calls, logits, versions, times = zip(*logs, strict=True)
        sizes = [len(output) for output in logits]
        try:
            check_schemas(Schema.of([constants.LOGITS], output.shape[1]) for output in logits)
            ids = _ids(calls, sizes, fields, id_feature)
        except Exception as error:  # the parser's class differs between protobuf releases
            raise ValueError(f"{path} at byte {start}: {error}") from error
        return {
            constants.EXAMPLE_ID: ids,
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
        response = log.predict_log.response
        try:
            logits = fields.logits(response)
        except importers.UnusableError as error:
            raise ValueError(
                f"{path} at byte {offset}: {error}. Serve by the recording signature, or set "
                "logits_output."
            ) from error
        start = start if logs else offset
        version = response.model_spec.version.value or model_version
        logs.append((log.predict_log, logits, version, importers.timestamp_of(log) or timestamp))
        if len(logs) == _BATCH:
            yield columns()
            logs.clear()
    if logs:
        yield columns()


def _ids(
    calls: Sequence[Any], sizes: list[int], fields: importers.PredictFields, id_feature: str
) -> np.ndarray:
    """The id of each row of logits: int64 `[n]`."""
    if not sum(sizes):
        return np.zeros(0, np.int64)
    requests = [
        [text for tensor in call.request.inputs.values() for text in tensor.string_val]
        for call in calls
    ]
    num_examples = [len(request) for request in requests]
    whole = num_examples == sizes
    examples = [example for request in requests for example in request] if whole else []
    if examples and not id_feature:
        return example_fingerprints(examples)
    echoed = None
    if all(constants.EXAMPLE_ID in call.response.outputs for call in calls):
        returned = [fields.ids(call.request, call.response) for call in calls]
        echoed = hashing.to_int64(np.concatenate(returned))
    # A model without an id feature returns fingerprints of the bytes that it receives.
    if examples and (
        echoed is None
        or np.array_equal(echoed, hashing.fingerprint(tf.constant(examples, tf.string)))
    ):
        return hashing.to_int64(
            [single_value(example, "id_feature", id_feature) for example in examples]
        )
    if echoed is None or len(echoed) != sum(sizes):
        raise ValueError(
            f"requests hold {num_examples[:3]} serialized examples for {sizes[:3]} rows of logits "
            f"(of the first calls), and the output {constants.EXAMPLE_ID!r} "
            f"{'no' if echoed is None else len(echoed)} ids for {sum(sizes)} rows. Serve by the "
            "recording signature."
        )
    return echoed

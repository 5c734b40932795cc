"""TFRecord files of `tensorflow.serving.PredictionLog`.

One example per entry, as TFX's BulkInferrer writes it, or one request with its whole batch, as a
server logs it. The messages come from `tensorflow-serving-api` (extra `serving`); grpc is not
imported.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import files
from ofb_tf.records.importers.batches import Batch, UnusableError

EXAMPLES = "examples"
_MAX_ELEMENTS = 1 << 26


@dataclasses.dataclass(frozen=True)
class PredictFields:
    """Where a Predict call holds ids and logits."""

    # Output, or else input, with the ids: integers or strings, one per example. None: the
    # fingerprints of the serialized examples in the input "examples".
    id_output: str | None = constants.EXAMPLE_ID
    logits_output: str = constants.LOGITS  # of the logits `[n, k]`, or `[n]` for one output

    def extract(self, request: Any, response: Any) -> dict[str, Any]:
        """The columns of a `PredictRequest` and its `PredictResponse`, or UnusableError.

        Ids as of `ids`, logits as of `logits`, and the model version, 0 where there is none.
        """
        logits = self.logits(response)
        ids = self.ids(request, response)
        if not len(ids) or len(ids) != len(logits):
            raise UnusableError(
                f"ids and logits must be of one batch. Received: {len(ids)} ids, logits "
                f"{list(logits.shape)}"
            )
        return {
            constants.EXAMPLE_ID: ids,
            constants.LOGITS: logits,
            constants.MODEL_VERSION: response.model_spec.version.value,
        }

    def logits(self, response: Any) -> np.ndarray:
        """float32 `[n, k]` of a `PredictResponse` alone, or UnusableError."""
        logits = _array(response.outputs, self.logits_output, "output")
        if logits.dtype.kind not in "fiu":
            raise UnusableError(f"output {self.logits_output!r} must be floats: {logits.dtype}")
        if not logits.ndim:
            raise UnusableError(f"output {self.logits_output!r} must be [n, k]. Received: a scalar")
        return logits.reshape(len(logits), -1).astype(np.float32) if logits.size else logits

    def ids(self, request: Any, response: Any) -> np.ndarray:
        """Ids of a call alone: `[n]`, integers or, where not yet hashed, text as bytes."""
        if self.id_output is None:
            ids = _array(request.inputs, EXAMPLES, "input").reshape(-1)
            if ids.dtype.kind == "O":
                return hashing.to_int64(ids)  # the id is the fingerprint, under a secret too
        else:
            echoed = self.id_output in response.outputs
            tensors = response.outputs if echoed else request.inputs
            ids = _array(tensors, self.id_output, "output or input").reshape(-1)
        if ids.dtype.kind not in ("O" if self.id_output is None else "iuO"):
            raise UnusableError(f"ids must be integers or strings. Received: {ids.dtype}")
        return ids


def read_messages(path: str) -> Iterator[tuple[int, Any, str]]:
    """Reads a TFRecord file of `PredictionLog`, GZIP or plain, up to any damage.

    Yields `(offset, PredictionLog, "")` for every Predict call, `(offset, None, why)` for every
    other TFRecord, and for the damage, which is the last.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "Reading prediction logs needs tensorflow-serving-api: pip install 'ofb-tf[serving]'"
        ) from error
    try:
        for offset, data in files.read_frames(path):
            try:
                log = prediction_log_pb2.PredictionLog.FromString(data)
            except Exception:  # the parser's class differs between protobuf releases
                yield offset, None, "not a PredictionLog"
                continue
            kind = log.WhichOneof("log_type")
            if kind == "predict_log":
                yield offset, log, ""
            else:
                yield offset, None, f"a {kind or 'PredictionLog without content'}"
    except files.CorruptRecordsError as error:
        yield error.damage.offset, None, error.damage.reason


def read_prediction_log(path: str, fields: PredictFields) -> Iterator[Batch]:
    """Reads a log's records: a batch, or what is wrong, for every TFRecord of `read_messages`."""
    for offset, log, reason in read_messages(path):
        if log is None:
            yield Batch([offset], reason)
            continue
        rate = log.log_metadata.sampling_config.sampling_rate
        rate = rate if 0.0 < rate <= 1.0 else 1.0
        try:
            columns = fields.extract(log.predict_log.request, log.predict_log.response)
        except UnusableError as error:
            yield Batch([offset], str(error), sampling_rate=rate)
        else:
            columns[constants.TIMESTAMP] = timestamp_of(log)
            yield Batch([offset], columns=columns, sampling_rate=rate)


def timestamp_of(log: Any) -> int | None:
    """Microseconds since 1970 at which the server answered, or None where the log does not say."""
    # Older releases of the protocol do not have the field; its type has changed too.
    seconds = getattr(log.log_metadata, "timestamp_secs", 0)
    seconds = seconds if isinstance(seconds, int) else getattr(seconds, "seconds", 0)
    return seconds * constants.MICROSECONDS if seconds else None


def _array(tensors: Any, name: str, kind: str) -> np.ndarray:
    if name not in tensors:
        raise UnusableError(f"{kind} {name!r} is missing. Received: {sorted(tensors)}")
    # One value may stand for a whole tensor: a few malformed bytes must not fill the memory.
    num_elements = math.prod(dim.size for dim in tensors[name].tensor_shape.dim)
    if not 0 <= num_elements <= _MAX_ELEMENTS:
        raise UnusableError(f"{kind} {name!r} claims {num_elements} elements")
    try:
        return tf.make_ndarray(tensors[name])
    except Exception as error:  # whatever a malformed tensor raises
        raise UnusableError(f"{kind} {name!r} is not a tensor: {error}") from error

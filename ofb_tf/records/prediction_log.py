"""Forward records out of TensorFlow Serving's protocol: Predict calls and their logs.

A log is a TFRecord file of `tensorflow.serving.PredictionLog`: one example an entry, as TFX's
BulkInferrer writes it, or one request with its whole batch, as a server logs it. The messages
come from `tensorflow-serving-api` (extra `serving`); grpc is not imported.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records import tfrecord

EXAMPLES = "examples"
_MAX_ELEMENTS = 1 << 26


class UnusableError(ValueError):
    """A call that holds no forward record; the message says why."""


@dataclasses.dataclass(frozen=True)
class PredictBatch:
    """What one Predict call leaves behind.

    Attributes:
      example_ids: int64 `[n]`.
      logits: float32 `[n, k]`.
      model_version: the version that answered, 0 where the response does not say.
    """

    example_ids: np.ndarray
    logits: np.ndarray
    model_version: int


@dataclasses.dataclass(frozen=True)
class PredictFields:
    """Where ids and logits stand in a Predict call.

    Attributes:
      id_output: output, or else input, with the ids: integers or strings, one an instance. None:
        the fingerprints of the request's serialized examples.
      logits_output: output with the logits `[n, k]`, or `[n]` for one output.
      examples_input: input with the serialized examples.
    """

    id_output: str | None = "example_id"
    logits_output: str = "logits"
    examples_input: str = EXAMPLES

    def extract(self, request: Any, response: Any) -> PredictBatch:
        """Ids and logits of a call.

        Args:
          request: `PredictRequest`.
          response: `PredictResponse`.

        Raises:
          UnusableError: they are not there, or their shapes do not go together.
        """
        logits = self.logits(response)
        ids = self.ids(request, response)
        if not len(ids) or len(ids) != len(logits):
            raise UnusableError(
                f"ids and logits must be of one batch. Received: {len(ids)} ids, logits "
                f"{list(logits.shape)}"
            )
        return PredictBatch(ids, logits, int(response.model_spec.version.value))

    def logits(self, response: Any) -> np.ndarray:
        """Logits of a response alone: float32 `[n, k]`.

        Args:
          response: `PredictResponse`.

        Raises:
          UnusableError: they are not there, or are no logits.
        """
        logits = _array(response.outputs, self.logits_output, "output")
        if logits.dtype.kind not in "fiu":
            raise UnusableError(f"output {self.logits_output!r} must be floats: {logits.dtype}")
        if not logits.ndim:
            raise UnusableError(f"output {self.logits_output!r} must be [n, k]. Received: a scalar")
        return logits.reshape(len(logits), -1).astype(np.float32) if logits.size else logits

    def ids(self, request: Any, response: Any) -> np.ndarray:
        """Ids of a call alone: int64 `[n]`.

        Args:
          request: `PredictRequest`.
          response: `PredictResponse`.

        Raises:
          UnusableError: they are not there, or are neither integers nor strings.
        """
        if self.id_output is None:
            values = _array(request.inputs, self.examples_input, "input")
        elif self.id_output in response.outputs:
            values = _array(response.outputs, self.id_output, "output")
        else:
            values = _array(request.inputs, self.id_output, "output or input")
        values = values.reshape(-1)
        if values.dtype.kind == "O":
            return hashing.fingerprint(tf.constant(values, tf.string)).numpy()
        if self.id_output is None or values.dtype.kind not in "iu":
            raise UnusableError(f"ids must be integers or strings. Received: {values.dtype}")
        return values.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class LogEntry:
    """One entry of a log.

    Attributes:
      offset: bytes from the file's start.
      batch: its records, or None.
      error: why there are none.
      sampling_rate: the share of requests that the server logged, 1 where it does not say.
      timestamp: microseconds since 1970 at which the server answered, or None.
    """

    offset: int
    batch: PredictBatch | None
    error: str = ""
    sampling_rate: float = 1.0
    timestamp: int | None = None


def read_messages(path: str) -> Iterator[tuple[int, Any, str]]:
    """Reads a log's messages, GZIP or plain, over any damage.

    Args:
      path: TFRecord file of `PredictionLog`.

    Yields:
      `(offset, PredictionLog, "")` for every log of a Predict call, `(offset, None, why)` for
      every other TFRecord and every damaged place.

    Raises:
      ImportError: `tensorflow-serving-api` is not installed.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "Reading prediction logs needs tensorflow-serving-api: pip install 'ofb-tf[serving]'"
        ) from error
    for item in tfrecord.read_records(path):
        if isinstance(item, tfrecord.Damage):
            yield item.offset, None, item.reason
            continue
        offset, data = item
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


def read_prediction_log(path: str, fields: PredictFields) -> Iterator[LogEntry]:
    """Reads a log's records, GZIP or plain, over any damage.

    Args:
      path: TFRecord file of `PredictionLog`.
      fields: where ids and logits stand.

    Yields:
      An entry for every TFRecord, and one for every damaged place.

    Raises:
      ImportError: `tensorflow-serving-api` is not installed.
    """
    for offset, log, reason in read_messages(path):
        if log is None:
            yield LogEntry(offset, None, reason)
            continue
        rate = log.log_metadata.sampling_config.sampling_rate
        rate = rate if 0.0 < rate <= 1.0 else 1.0
        try:
            batch = fields.extract(log.predict_log.request, log.predict_log.response)
        except UnusableError as error:
            yield LogEntry(offset, None, str(error), rate)
            continue
        yield LogEntry(offset, batch, "", rate, timestamp_of(log))


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

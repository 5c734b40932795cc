"""Logs of calls: CloudEvents, the v2 protocol's JSON, Vertex AI and MLflow.

The rows of a log are JSON lines, or rows of a Parquet or Arrow file. A row holds a whole call, or
its request or response alone, which join by the call's id, across files and in either order.
"""

import base64
import binascii
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ofb_tf import constants
from ofb_tf.records import arrow
from ofb_tf.records.importers import payloads, tables, text, values
from ofb_tf.records.importers.batches import Batch, UnusableError
from ofb_tf.records.importers.prediction_log import PredictFields

# Of the halves of calls that wait for the other half; the oldest goes when there are more.
_MAX_WAITING_BYTES = 1 << 28
_BYTES_PER_HALF = 1 << 10
_BYTES_PER_TEXT = 1 << 7
_REQUEST, _RESPONSE = "request", "response"
_MISSING = object()


@dataclasses.dataclass
class Event:
    """A row of a log: a call, or one half of it. Bodies are as the log holds them."""

    call_id: Any = None
    request: Any = _MISSING
    response: Any = _MISSING
    version: Any = None
    time: Any = None
    time_unit: str = values.AUTO
    sampling_rate: float = 1.0


def cloud_event(row: Mapping[str, Any]) -> Event:
    """A CloudEvent of KServe's or Seldon's payload logger.

    Attributes may be named as in JSON (`type`), in HTTP headers (`Ce-Type`), or as KServe writes
    them to blob storage (`ReqType`, `req_type`). KServe's calls are identified by `id`, Seldon's by
    `requestid`. Sources: https://github.com/cloudevents/spec (formats/json-format.md), KServe's
    pkg/logger/worker.go and pkg/logger/types.go, Seldon Core's executor/logger/worker.go and
    components/seldon-request-logger/app/log_helper.py.
    """
    event = {
        str(name).lower().replace("_", "").replace("-", "").removeprefix("ce"): value
        for name, value in row.items()
    }
    kind = str(event.get("type") or event.get("reqtype")).rpartition(".")[2].lower()
    if kind not in (_REQUEST, _RESPONSE):
        raise UnusableError(f"a CloudEvent of a type that is no call. Received: {kind[:60]}")
    body = event.get("data")
    encoded = event.get("database64", event.get("bytes"))
    if body is None and encoded is not None:
        try:
            body = (
                encoded if isinstance(encoded, bytes) else base64.b64decode(encoded, validate=True)
            )
        except (TypeError, ValueError, binascii.Error) as error:
            raise UnusableError("data_base64 is not base64") from error
    found = Event(event.get("requestid") or event.get("id"), time=event.get("time"))
    setattr(found, kind, body)
    return found


def v2_json(row: Mapping[str, Any]) -> Event:
    """A body of the v2 protocol, or `request` and `response` in one row.

    The halves join by the body's `id`, which Triton returns as the client sent it. Source:
    https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md).
    """
    found = Event(row.get("id"), time=row.get(constants.TIMESTAMP))
    if _REQUEST in row or _RESPONSE in row:
        for kind in (_REQUEST, _RESPONSE):
            if row.get(kind) is not None:
                body = payloads.decode(row[kind])
                setattr(found, kind, body)
                if found.call_id is None and isinstance(body, Mapping):
                    found.call_id = body.get("id")
    elif "inputs" in row:  # a request may say which outputs it wants
        found.request = row
    elif "outputs" in row or "error" in row:
        found.response = row
    else:
        raise UnusableError(f"neither inputs nor outputs. Received: {str(sorted(row))[:60]}")
    return found


def vertex(row: Mapping[str, Any]) -> Event:
    """A row of the request-response log of a Vertex AI endpoint, as exported from BigQuery.

    `request_payload` and `response_payload` are repeated strings: an element per instance, as
    JSON, or one with the whole body, as JSON or base64. Source:
    https://cloud.google.com/vertex-ai/docs/predictions/online-prediction-logging.
    """
    return Event(
        row.get("request_id"),
        _payload(row.get("request_payload"), "instances"),
        _payload(row.get("response_payload"), "predictions"),
        row.get("deployed_model_id"),
        row.get("logging_time"),
    )


def mlflow(row: Mapping[str, Any]) -> Event:
    """A row of an inference table of MLflow models on Databricks.

    Both schemas are read: `timestamp_ms`, `request_metadata.model_version`, and that of AI
    Gateway with `request_time`. Sources:
    https://docs.databricks.com/en/machine-learning/model-serving/inference-tables.html and
    https://docs.databricks.com/en/ai-gateway/inference-tables.html.
    """
    status = row.get("status_code")
    failed = status is not None and str(status) != "200"
    rate = row.get("sampling_fraction")
    metadata = row.get("request_metadata")
    if isinstance(metadata, list):  # how Arrow gives a map
        pairs = [pair for pair in metadata if isinstance(pair, tuple)]
        version = next((value for key, value in pairs if key == "model_version"), None)
    else:
        version = metadata.get("model_version") if isinstance(metadata, Mapping) else None
    has_ms = row.get("timestamp_ms") is not None
    return Event(
        row.get("databricks_request_id"),
        row.get(_REQUEST),
        {"error": f"status {str(status)[:60]}"} if failed else row.get(_RESPONSE),
        version,
        row.get("timestamp_ms") if has_ms else row.get("request_time"),
        "ms" if has_ms else values.AUTO,
        rate if isinstance(rate, float) and 0.0 < rate <= 1.0 else 1.0,
    )


FORMATS: dict[str, Callable[[Mapping[str, Any]], Event]] = {
    "cloudevents": cloud_event,
    "triton": v2_json,
    "vertex": vertex,
    "mlflow": mlflow,
}


@dataclasses.dataclass
class Half:
    """What is needed of a request or a response, or of both."""

    path: str
    offset: int
    call_id: str  # empty where there is none
    has: set[str]
    ids: np.ndarray | list[bytes] | None = None
    logits: np.ndarray | None = None
    version: int = 0
    time: int | None = None
    sampling_rate: float = 1.0
    error: str = ""

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        ids = 0 if self.ids is None else len(self.ids) * _BYTES_PER_TEXT
        return _BYTES_PER_HALF + ids + (0 if self.logits is None else self.logits.nbytes)


class CallReader:
    """Reads the calls in files of one format; halves that have no partner are counted as bad."""

    def __init__(self, format: str, fields: PredictFields):
        self._event = FORMATS[format]
        self._fields = fields
        self._waiting: dict[str, Half] = {}
        self._waiting_bytes = 0

    def read(self, path: str) -> Iterator[Batch | Half]:
        """The calls in a file: a batch of each whole one or error, and the halves of others."""
        rows = tables.read_rows(path) if arrow.is_arrow(path) else text.json_rows(path)
        for offset, row in rows:
            for each in row if isinstance(row, list) else [row]:  # a batch of CloudEvents
                try:
                    if isinstance(each, UnusableError):
                        raise each
                    if not isinstance(each, Mapping):
                        raise UnusableError(f"not an object: {str(each)[:60]}")
                    half = self._half(path, offset, self._event(each))
                except UnusableError as error:
                    yield Batch([offset], str(error))
                    continue
                is_whole = len(half.has) == 2
                if not (is_whole or half.call_id):
                    half.error = half.error or "a request or response without an id"
                yield half if half.call_id and not is_whole else self._batch(half)

    def join(self, parts: Iterable[Batch | Half]) -> Iterator[Batch]:
        """Batches as they are, and halves as soon as both are there or after the last part."""
        for part in parts:
            if isinstance(part, Half):
                yield from self._join(part)
            else:
                yield part
        while self._waiting:
            yield self._give_up()

    def _half(self, path: str, offset: int, event: Event) -> Half:
        """Keeps of the bodies what a record needs, so that waiting takes little memory."""
        call_id = "" if event.call_id is None else str(event.call_id)
        half = Half(path, offset, call_id, set(), sampling_rate=event.sampling_rate)
        if event.time is not None:
            half.time = values.microseconds(event.time, constants.TIMESTAMP, event.time_unit)
        version = event.version
        for kind in (_RESPONSE, _REQUEST):
            body = getattr(event, kind)
            if body is _MISSING:
                continue
            half.has.add(kind)
            if half.ids is not None:  # in the response, so that the request does not matter
                continue
            try:
                if body is None:
                    raise UnusableError(f"the {kind} is missing")
                body = payloads.decode(body)
                if kind == _RESPONSE:
                    half.logits = payloads.logits_of(body, self._fields)
                    if version is None and isinstance(body, Mapping):
                        version = body.get("model_version")
                if kind == _REQUEST or self._fields.id_output is not None:
                    half.ids = payloads.ids_of(body, self._fields)
            except UnusableError as error:  # of the call, once it is complete
                half.error = half.error or str(error)
        half.version = _version(version)
        return half

    def _join(self, half: Half) -> Iterator[Batch]:
        key = half.call_id
        other = self._waiting.get(key)
        if other is not None and other.has != half.has:
            self._remove(key)
            yield self._batch(_both(other, half))
            return
        if other is not None:  # a second request or response of this id
            yield self._give_up(key)
        self._waiting[key] = half
        self._waiting_bytes += half.num_bytes + len(key)
        while self._waiting_bytes > _MAX_WAITING_BYTES:
            yield self._give_up()

    def _remove(self, key: str) -> Half:
        half = self._waiting.pop(key)
        self._waiting_bytes -= half.num_bytes + len(key)
        return half

    def _give_up(self, key: str | None = None) -> Batch:
        """The batch of a half whose partner has not come: a response may hold the ids itself."""
        half = self._remove(next(iter(self._waiting)) if key is None else key)
        if _RESPONSE not in half.has:
            half.error = "a request without its response"
        elif half.ids is None:
            half.error = half.error or "a response without its request, and without ids"
        return self._batch(half)

    def _batch(self, half: Half) -> Batch:
        ids, logits, error = half.ids, half.logits, half.error
        if ids is None or logits is None:
            error = error or f"ids are missing: {self._fields.id_output or 'b64'!r} is in no body"
        elif len(ids) != len(logits):
            error = error or (
                f"ids and logits must be of one batch. Received: {len(ids)} ids, logits "
                f"{list(logits.shape)}"
            )
        columns = {
            constants.EXAMPLE_ID: ids,
            constants.LOGITS: logits,
            constants.MODEL_VERSION: half.version,
            constants.TIMESTAMP: half.time,
        }
        return Batch([half.offset], error, {} if error else columns, half.sampling_rate, half.path)


def _both(first: Half, second: Half) -> Half:
    """A call from its halves; what the response says goes first."""
    response, request = (first, second) if _RESPONSE in first.has else (second, first)
    whole = dataclasses.replace(response, has={_REQUEST, _RESPONSE})
    if whole.ids is None:
        whole.ids = request.ids
        whole.error = whole.error or request.error
    whole.time = request.time if whole.time is None else whole.time
    return whole


def _version(value: Any) -> int:
    """A version that is an integer; servers also have names for them, which count as 0."""
    try:
        return values.int64(value, constants.MODEL_VERSION)
    except UnusableError:
        return 0


def _payload(elements: Any, key: str) -> Any:
    """A body from the repeated strings of a BigQuery row; None where there are none."""
    elements = [elements] if isinstance(elements, str) else elements
    if not isinstance(elements, list) or not elements:
        return None
    found = []
    for element in elements:
        try:
            found.append(payloads.decode(element))
        except UnusableError:  # of a request that may be of no interest
            found.append(None)
    whole = isinstance(found[0], Mapping) and isinstance(found[0].get(key), list)
    return found[0] if whole and len(found) == 1 else {key: found}

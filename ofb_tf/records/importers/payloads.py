"""Bodies of requests and responses, as JSON, into ids and logits.

They are those of the v1 protocol (TensorFlow Serving's REST API, KServe, Vertex AI): `instances`
and `predictions`, or `inputs` and `outputs` by name; of the v2 protocol (Open Inference Protocol:
Triton, KServe, Seldon): `inputs` and `outputs` as tensors; and of MLflow: `dataframe_records`,
`dataframe_split`. Sources: https://www.tensorflow.org/tfx/serving/api_rest,
https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md),
https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally (accepted input formats).
"""

import base64
import binascii
import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ofb_tf import hashing
from ofb_tf.records.importers.batches import UnusableError
from ofb_tf.records.importers.prediction_log import EXAMPLES, PredictFields

_ROWS = ("predictions", "instances", "dataframe_records")  # one element per example
_TENSORS = ("inputs", "outputs")  # by name, or a list of tensors, or of rows; a request has both
_MAX_NESTING = 4


def decode(payload: Any) -> Any:
    """JSON from what a log holds of a body: itself, or text or bytes of it, or base64 of those."""
    for _ in range(_MAX_NESTING):
        if not isinstance(payload, str | bytes):
            return payload
        try:
            payload = json.loads(payload)
        except (ValueError, RecursionError):
            try:
                payload = base64.b64decode(payload, validate=True)
            except (ValueError, binascii.Error):
                break
    raise UnusableError(f"a body must be JSON, or base64 of it. Received: {str(payload)[:60]}")


def logits_of(response: Any, fields: PredictFields) -> np.ndarray:
    """float32 `[n, k]` of a response's body, or UnusableError."""
    if isinstance(response, Mapping) and response.get("error"):
        raise UnusableError(f"the server answered with an error: {str(response['error'])[:60]}")
    name = fields.logits_output
    found = _values(response, name)
    found = _values(response, "") if found is None else found
    if found is None:
        raise UnusableError(f"output {name!r} is missing. Received: {_outline(response)}")
    try:
        array = np.array(found)
    except ValueError:  # lists of several lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu" or not array.ndim or not array.size:
        raise UnusableError(f"output {name!r} must hold numbers. Received: {str(found)[:60]}")
    with np.errstate(over="ignore"):
        return array.reshape(len(array), -1).astype(np.float32)


def ids_of(body: Any, fields: PredictFields) -> np.ndarray | list[bytes] | None:
    """Ids in a body, int64 `[n]` or n texts; None where it holds none; or UnusableError."""
    if fields.id_output is None:
        return _fingerprints(body)
    found = _values(body, fields.id_output)
    if found is None:
        return None
    flat = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in found]
    if flat and all(isinstance(v, str) for v in flat):
        return [v.encode("utf-8", "surrogatepass") for v in flat]
    if flat and all(isinstance(v, int) and not isinstance(v, bool) for v in flat):
        with contextlib.suppress(OverflowError):
            return np.array(flat, np.int64)
    raise UnusableError(
        f"{fields.id_output!r} must hold int64 or text. Received: {str(found)[:60]}"
    )


def _fingerprints(body: Any) -> np.ndarray | None:
    """Ids of serialized examples, which REST carries as `{"b64": …}`."""
    found = _values(body, "b64") or _values(body, EXAMPLES) or _values(body, "")
    if not found:
        return None
    texts = [value.get("b64") if isinstance(value, Mapping) else value for value in found]
    try:
        return hashing.to_int64([base64.b64decode(text or "!", validate=True) for text in texts])
    except (TypeError, ValueError) as error:
        raise UnusableError(
            f"the serialized examples must be base64 in 'b64'. Received: {str(found)[:60]}"
        ) from error


def _values(body: Any, name: str) -> list | None:
    """One value per example by name, "" for values without a name; None where there is none."""
    if isinstance(body, list):
        return _of_rows(body, name)
    if not isinstance(body, Mapping):
        raise UnusableError(f"a body must be an object or a list. Received: {str(body)[:60]}")
    for key in _ROWS:
        if isinstance(body.get(key), list):
            return _of_rows(body[key], name)
    for key in _TENSORS:
        found = body.get(key)
        if isinstance(found, Mapping):
            return found[name] if isinstance(found.get(name), list) else None
        if isinstance(found, list):
            is_v2 = all(isinstance(each, Mapping) and "datatype" in each for each in found)
            return _of_tensors(found, name) if is_v2 else _of_rows(found, name)
    split = body.get("dataframe_split")
    if isinstance(split, Mapping) and isinstance(split.get("columns"), list):
        if name not in split["columns"]:
            return None
        place = split["columns"].index(name)
        rows = split.get("data")
        if isinstance(rows, list) and all(isinstance(r, list) and place < len(r) for r in rows):
            return [row[place] for row in rows]
    raise UnusableError(
        f"a body must hold one of {', '.join((*_ROWS, *_TENSORS, 'dataframe_split'))}. "
        f"Received: {_outline(body)}"
    )


def _of_rows(rows: list, name: str) -> list | None:
    if not rows:
        return rows
    if not all(isinstance(row, Mapping) for row in rows):
        return None if name else rows
    found = [row.get(name) for row in rows]
    return found if any(value is not None for value in found) else None


def _of_tensors(tensors: list, name: str) -> list | None:
    """The data of a v2 tensor `[n, …]` as n values, each a list where it has more dimensions."""
    tensor = next((each for each in tensors if each.get("name") == name), None)
    if tensor is None:
        return None
    shape, data = tensor.get("shape"), tensor.get("data")
    if not isinstance(data, list):
        raise UnusableError(f"tensor {name!r} holds no data as JSON (binary data is not logged)")
    if not isinstance(shape, list) or not all(isinstance(d, int) and d >= 0 for d in shape):
        raise UnusableError(f"tensor {name!r} must have a shape. Received: {str(shape)[:60]}")
    if data and isinstance(data[0], list):  # nested as its shape says
        return data
    if not shape or not data or math.prod(shape) != len(data):
        raise UnusableError(
            f"tensor {name!r} holds {len(data)} values for its shape. Received: {str(shape)[:60]}"
        )
    width = math.prod(shape[1:])
    return data if len(shape) == 1 else [data[i : i + width] for i in range(0, len(data), width)]


def _outline(body: Any) -> str:
    return str(sorted(map(str, body)) if isinstance(body, Mapping) else body)[:60]

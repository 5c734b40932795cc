"""Whether a model's outputs are logits or probabilities, and the logits of probabilities."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# As keras.config.epsilon(): a saturated probability has a finite logit.
_EPSILON = 1e-7
_MAX_SUM_ERROR = 0.1  # of a softmax over many classes, rounded for a file
_MIN_ROWS = 32  # of one output, before [0, 1] says something


def logits_of(probabilities: Any, *, sigmoids: bool = False) -> Any:
    """Logits whose sigmoid (one column) or softmax (several) are these probabilities.

    Args:
      probabilities: floats `[n]` or `[n, k]` in [0, 1], or a dict of them by the names of heads.
      sigmoids: whether each of several columns is a probability for itself.

    Returns:
      float32 of the same shape, a dict of a dict; not a number where a probability is out of range.

    Raises:
      ValueError: several columns do not sum to 1.
    """
    if isinstance(probabilities, Mapping):
        return {name: logits_of(p, sigmoids=sigmoids) for name, p in probabilities.items()}
    p = np.asarray(probabilities, np.float32).astype(np.float64)
    p = np.where((p >= 0.0) & (p <= 1.0 + _EPSILON), np.clip(p, _EPSILON, 1.0 - _EPSILON), np.nan)
    if sigmoids or p.ndim < 2 or p.shape[1] == 1:
        return (np.log(p) - np.log1p(-p)).astype(np.float32)
    sums = p[np.isfinite(p).all(axis=1)].sum(axis=1)
    if len(sums) and abs(np.median(sums) - 1.0) > _MAX_SUM_ERROR:
        raise ValueError(
            "probabilities in several columns must be those of classes, which sum to 1. Received: "
            f"rows with a median sum of {np.median(sums):.3g}. Give a dict of heads, an array by "
            "the name of each; or write the log-odds of several labels as logits."
        )
    return np.log(p).astype(np.float32)


def side_by_side(outputs: Any) -> Any:
    """An array as it is; of a dict of heads, their columns in the order of names, `[n, k]`."""
    if not isinstance(outputs, Mapping):
        return outputs
    parts = [np.asarray(outputs[name]) for name in sorted(outputs)]
    return np.concatenate([p[:, None] if p.ndim == 1 else p for p in parts], axis=1)


def look_like_probabilities(outputs: np.ndarray) -> bool:
    """Whether rows of outputs `[n, k]` lie in [0, 1] and, for more than one, sum to 1.

    For one output that holds by chance, and for a regression, so a few rows say nothing.
    """
    rows = np.asarray(outputs, np.float32)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows) or rows.min() < 0.0 or rows.max() > 1.0:
        return False
    if rows.shape[1] == 1:
        return len(rows) >= _MIN_ROWS
    return bool((np.abs(rows.sum(axis=1, dtype=np.float64) - 1.0) < 1e-2).all())


def activation_of(loss: Any, layer: Any = None) -> str | None:
    """Which probabilities an output is, by the loss it is compiled with or its layer.

    "sigmoid", "softmax", or None for logits and predictions.

    Args:
      loss: what `compile` was given for the output: a name, a function or a `keras.losses.Loss`;
        None where the model is not compiled.
      layer: the output's layer, whose activation counts where there is no loss.
    """
    if loss is None:
        activation = getattr(layer, "activation", type(layer))
        name = getattr(activation, "__name__", "").lower()
        return name if name in ("sigmoid", "softmax") else None
    if hasattr(loss, "get_config"):
        name, found = type(loss).__name__, loss.get_config().get("from_logits", True) is False
    else:
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
        found = "crossentropy" in name.lower()
    if not found:
        return None
    return "sigmoid" if "binary" in name.lower() else "softmax"


def activation_of_output(model: Any, name: str | None = None) -> str | None:
    """`activation_of` a model's output: the one of that name, where it has several."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, list | tuple):
        loss = dict(zip(model.output_names, loss, strict=True))
    loss = loss.get(name) if isinstance(loss, Mapping) else loss
    layers = getattr(model, "layers", None) or [None]
    layer = next((each for each in layers if getattr(each, "name", "") == name), layers[-1])
    return activation_of(loss, layer)

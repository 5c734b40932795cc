"""Whether a model's outputs are logits or probabilities, and the logits of probabilities."""

from typing import Any

import numpy as np

# As keras.config.epsilon(): a saturated probability has a finite logit.
_EPSILON = 1e-7
_MIN_ROWS = 32  # of one output, before [0, 1] says something


def logits_of(probabilities: Any) -> np.ndarray:
    """Logits whose sigmoid (one column) or softmax (several) are these probabilities.

    Args:
      probabilities: floats `[n]` or `[n, k]` in [0, 1].

    Returns:
      float32 of the same shape; not a number where a probability is out of range.
    """
    p = np.asarray(probabilities, np.float32).astype(np.float64)
    p = np.where((p >= 0.0) & (p <= 1.0 + _EPSILON), np.clip(p, _EPSILON, 1.0 - _EPSILON), np.nan)
    one_output = p.ndim < 2 or p.shape[1] == 1
    return (np.log(p) - np.log1p(-p) if one_output else np.log(p)).astype(np.float32)


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


def gives_probabilities(loss: Any, layer: Any = None) -> bool:
    """Whether an output is a probability, by the loss it is compiled with or its layer.

    Args:
      loss: what `compile` was given for the output: a name, a function or a `keras.losses.Loss`;
        None where the model is not compiled.
      layer: the output's layer, whose activation counts where there is no loss.
    """
    if loss is None:
        activation = getattr(layer, "activation", type(layer))
        return getattr(activation, "__name__", "").lower() in ("sigmoid", "softmax")
    if hasattr(loss, "get_config"):
        return loss.get_config().get("from_logits", True) is False
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
    return "crossentropy" in name.lower()

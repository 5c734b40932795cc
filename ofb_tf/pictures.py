"""What the drawings of the commands share; matplotlib is imported when one is made."""

from typing import Any

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}
"""Settings for `matplotlib.rc_context`."""


def require_matplotlib() -> None:
    """Raises ImportError with the remedy if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The report needs matplotlib. Install it with: pip install ofb-tf[report]"
        ) from error

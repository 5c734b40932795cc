"""What importers yield: the records of some rows as columns, or what is wrong with the rows."""

import dataclasses
from typing import Any


class UnusableError(ValueError):
    """A call or a row that holds no forward record; the message says why."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Columns by the names of `ofb_tf.constants`, or else an error."""

    offsets: Any  # `[n]`, of the rows in their file: bytes, in Parquet and Arrow files rows
    error: str = ""
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    sampling_rate: float = 1.0  # of the log
    path: str = ""  # of the file, once `ImportSettings.read` or a join has set it

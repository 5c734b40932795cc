"""Other people's files into forward records: logs of servers and gateways, tables, text.

`convert` runs an import, `batches` is what all importers yield, and there is one module per family
of formats: `prediction_log` (TFRecords), `rows` (JSON lines and CSV, read by `text`), `tables`
(Parquet and Arrow, read by `ofb_tf.records.arrow`), `calls` (CloudEvents, Triton, Vertex AI,
MLflow, whose bodies `payloads` reads). docs/importing.md describes them.
"""

from ofb_tf.records.importers.batches import Batch, UnusableError
from ofb_tf.records.importers.calls import Half
from ofb_tf.records.importers.convert import (
    FORMATS,
    ImportReport,
    ImportRowError,
    ImportSettings,
    ImportWriter,
    import_records,
    match_logs,
    offset_unit,
)
from ofb_tf.records.importers.prediction_log import (
    EXAMPLES,
    PredictFields,
    read_messages,
    read_prediction_log,
    timestamp_of,
)
from ofb_tf.records.importers.rows import RowFields, read_rows

__all__ = [
    "EXAMPLES",
    "FORMATS",
    "Batch",
    "Half",
    "ImportReport",
    "ImportRowError",
    "ImportSettings",
    "ImportWriter",
    "PredictFields",
    "RowFields",
    "UnusableError",
    "import_records",
    "match_logs",
    "offset_unit",
    "read_messages",
    "read_prediction_log",
    "read_rows",
    "timestamp_of",
]

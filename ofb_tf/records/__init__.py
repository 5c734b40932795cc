"""Forward records: what serving's forward pass leaves behind, on disk and in memory."""

from ofb_tf.hashing import keyed_ids, partition_of, read_secret
from ofb_tf.records.arrow import export_parquet
from ofb_tf.records.files import CorruptRecordsError
from ofb_tf.records.graph import sorted_file_dataset
from ofb_tf.records.importers import import_records
from ofb_tf.records.maintenance import compact, expire, inspect, partition, verify
from ofb_tf.records.partitioned import PartitionedRecords
from ofb_tf.records.reader import ForwardRecords, ReadCounts, read_schema
from ofb_tf.records.writer import ForwardRecordWriter, WriterCounts

__all__ = [
    "CorruptRecordsError",
    "ForwardRecordWriter",
    "ForwardRecords",
    "PartitionedRecords",
    "ReadCounts",
    "WriterCounts",
    "compact",
    "expire",
    "export_parquet",
    "import_records",
    "inspect",
    "keyed_ids",
    "partition",
    "partition_of",
    "read_schema",
    "read_secret",
    "sorted_file_dataset",
    "verify",
]

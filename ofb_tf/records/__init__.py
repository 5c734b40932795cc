"""Forward records: what serving's forward pass leaves behind, on disk and in memory."""

from ofb_tf.records.forward_records import ForwardRecords
from ofb_tf.records.in_graph import partition_of, sorted_file_dataset
from ofb_tf.records.partitioned import PartitionedRecords
from ofb_tf.records.reader import CorruptRecordsError, ReadCounts, read_schema
from ofb_tf.records.writer import ForwardRecordWriter, WriterCounts

__all__ = [
    "CorruptRecordsError",
    "ForwardRecordWriter",
    "ForwardRecords",
    "PartitionedRecords",
    "ReadCounts",
    "WriterCounts",
    "partition_of",
    "read_schema",
    "sorted_file_dataset",
]

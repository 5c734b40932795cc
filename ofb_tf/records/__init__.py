"""Forward records: what serving's forward pass leaves behind, on disk and in memory."""

from ofb_tf.records.forward_records import ForwardRecords
from ofb_tf.records.in_graph import load_sorted_in_graph, partition_of
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
    "load_sorted_in_graph",
    "partition_of",
    "read_schema",
]

"""One backward from ten forward: train on the examples that serving's forward pass points to."""

from ofb_tf.records import ForwardRecords, ForwardRecordWriter, PartitionedRecords
from ofb_tf.selection import (
    BottomLoss,
    Importance,
    Inclusion,
    InfoBatch,
    LossMatching,
    Policy,
    SelectiveBackprop,
    TopLoss,
    Uniform,
    Window,
)
from ofb_tf.training.callbacks import BackupIterator, OFBTensorBoard, RecordForwardPasses
from ofb_tf.training.guards import SelectionGuard
from ofb_tf.training.model import OFBModel
from ofb_tf.transforms.element_spec import DatasetTransform
from ofb_tf.transforms.join import join_forward_records
from ofb_tf.transforms.sample import OFBSampler, ofb_sample
from ofb_tf.version import __version__

__all__ = [
    "BackupIterator",
    "BottomLoss",
    "DatasetTransform",
    "ForwardRecordWriter",
    "ForwardRecords",
    "Importance",
    "Inclusion",
    "InfoBatch",
    "LossMatching",
    "OFBModel",
    "OFBSampler",
    "OFBTensorBoard",
    "PartitionedRecords",
    "Policy",
    "RecordForwardPasses",
    "SelectionGuard",
    "SelectiveBackprop",
    "TopLoss",
    "Uniform",
    "Window",
    "__version__",
    "join_forward_records",
    "ofb_sample",
]

"""One backward from ten forward: train on the examples that serving's forward pass points to.

Names are imported when they are first used, so that `ofb --help` needs no TensorFlow.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ofb_tf.version import __version__

if TYPE_CHECKING:
    from ofb_tf import datasets, records, serving, testing
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
    from ofb_tf.training.callbacks import (
        BackupIterator,
        OFBTensorBoard,
        RecordForwardPasses,
        SelectionGuard,
    )
    from ofb_tf.training.model import OFBModel
    from ofb_tf.transforms.element_spec import DatasetTransform
    from ofb_tf.transforms.join import join_forward_records
    from ofb_tf.transforms.sample import OFBSampler, ofb_sample

_MODULE_OF = {
    "BackupIterator": "training.callbacks",
    "BottomLoss": "selection",
    "DatasetTransform": "transforms.element_spec",
    "ForwardRecordWriter": "records",
    "ForwardRecords": "records",
    "Importance": "selection",
    "Inclusion": "selection",
    "InfoBatch": "selection",
    "LossMatching": "selection",
    "OFBModel": "training.model",
    "OFBSampler": "transforms.sample",
    "OFBTensorBoard": "training.callbacks",
    "PartitionedRecords": "records",
    "Policy": "selection",
    "RecordForwardPasses": "training.callbacks",
    "SelectionGuard": "training.callbacks",
    "SelectiveBackprop": "selection",
    "TopLoss": "selection",
    "Uniform": "selection",
    "Window": "selection",
    "join_forward_records": "transforms.join",
    "ofb_sample": "transforms.sample",
}

__all__ = sorted([*_MODULE_OF, "__version__"])


def __getattr__(name: str) -> Any:
    """Imports a public name, or a module of the package, when it is first used (PEP 562)."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"ofb_tf.{_MODULE_OF[name]}"), name)
    else:
        try:
            value = importlib.import_module(f"ofb_tf.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"ofb_tf.{name}":
                raise
            raise AttributeError(f"module 'ofb_tf' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if "keras" in sys.modules:
    # Keras finds the classes of saved models by their registration.
    importlib.import_module("ofb_tf.training.model")

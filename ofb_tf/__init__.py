"""One backward from ten forward: train on the examples that serving's forward pass points to.

Names are imported when they are first used, so that `ofb --help` needs no TensorFlow.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ofb_tf.version import __version__ as __version__

if TYPE_CHECKING:  # `X as X` exports X, as `__all__` is not a literal
    from ofb_tf import (
        datasets as datasets,
        records as records,
        serving as serving,
        streaming as streaming,
        testing as testing,
    )
    from ofb_tf.evaluation.stream import evaluate as evaluate
    from ofb_tf.hashing import example_id_of as example_id_of
    from ofb_tf.records import (
        ForwardRecords as ForwardRecords,
        ForwardRecordWriter as ForwardRecordWriter,
        PartitionedRecords as PartitionedRecords,
    )
    from ofb_tf.selection import (
        BottomLoss as BottomLoss,
        Importance as Importance,
        Inclusion as Inclusion,
        InfoBatch as InfoBatch,
        LossMatching as LossMatching,
        Policy as Policy,
        SelectiveBackprop as SelectiveBackprop,
        TopLoss as TopLoss,
        Uniform as Uniform,
        Window as Window,
    )
    from ofb_tf.selection.scores import sequence_loss as sequence_loss
    from ofb_tf.training.callbacks import (
        BackupIterator as BackupIterator,
        OFBTensorBoard as OFBTensorBoard,
        RecordForwardPasses as RecordForwardPasses,
        SelectionGuard as SelectionGuard,
        StreamCheckpoint as StreamCheckpoint,
    )
    from ofb_tf.training.delayed_labels import FakeNegativeWeighted as FakeNegativeWeighted
    from ofb_tf.training.log_odds import AddLogInclusion as AddLogInclusion
    from ofb_tf.training.model import OFBModel as OFBModel
    from ofb_tf.transforms.element_spec import DatasetTransform as DatasetTransform
    from ofb_tf.transforms.join import join_forward_records as join_forward_records
    from ofb_tf.transforms.sample import OFBSampler as OFBSampler, ofb_sample as ofb_sample

_MODULE_OF = {
    "AddLogInclusion": "training.log_odds",
    "BackupIterator": "training.callbacks",
    "BottomLoss": "selection",
    "DatasetTransform": "transforms.element_spec",
    "FakeNegativeWeighted": "training.delayed_labels",
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
    "StreamCheckpoint": "training.callbacks",
    "TopLoss": "selection",
    "Uniform": "selection",
    "Window": "selection",
    "evaluate": "evaluation.stream",
    "example_id_of": "hashing",
    "join_forward_records": "transforms.join",
    "sequence_loss": "selection.scores",
    "ofb_sample": "transforms.sample",
}

__all__ = sorted([*_MODULE_OF, "__version__"])


if not TYPE_CHECKING:  # or a type checker would accept any name

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

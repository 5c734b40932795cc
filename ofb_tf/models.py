"""Where models saved by version 0.1 look for their classes; import them from `ofb_tf`."""

from ofb_tf.training.model import FunctionalOFBModel, OFBModel, WrappedOFBModel

__all__ = ["FunctionalOFBModel", "OFBModel", "WrappedOFBModel"]

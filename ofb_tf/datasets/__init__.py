"""Streams to try the library on: generated clicks, and any supervised TFDS dataset with ids."""

from ofb_tf.datasets.click_function import VOCABULARY_SIZES
from ofb_tf.datasets.click_stream import ClickStream
from ofb_tf.datasets.tfds_adapter import TfdsDescription, describe_tfds, load_tfds

__all__ = ["VOCABULARY_SIZES", "ClickStream", "TfdsDescription", "describe_tfds", "load_tfds"]

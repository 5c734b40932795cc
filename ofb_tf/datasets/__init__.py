"""Streams to try the library on: generated clicks, and any supervised TFDS dataset with ids."""

from ofb_tf.datasets.click_function import VOCABULARY_SIZES
from ofb_tf.datasets.click_stream import ClickStream

__all__ = ["VOCABULARY_SIZES", "ClickStream"]

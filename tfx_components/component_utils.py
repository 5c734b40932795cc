"""What the components share: errors that name the component, outputs that are whole or absent."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf


@contextlib.contextmanager
def naming_errors(name: str, uris: Sequence[str]) -> Iterator[None]:
    """Names the component in what goes wrong, and leaves nothing half-written behind.

    Args:
      name: the component's.
      uris: directories of its outputs; emptied on an error.

    Raises:
      ValueError: whatever was raised, with the component's name before its message.
    """
    try:
        yield
    except Exception as error:
        for uri in uris:
            with contextlib.suppress(tf.errors.OpError):
                remove_children(uri)
        raise ValueError(f"{name}: {error}") from error


def remove_children(directory: str, prefix: str = "") -> None:
    """Removes the files and directories in a directory whose names begin so."""
    for entry in tf.io.gfile.listdir(directory):
        entry = entry.rstrip("/")  # object stores name directories so
        if entry.startswith(prefix):
            path = os.path.join(directory, entry)
            remove = tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove
            remove(path)

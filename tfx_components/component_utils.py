"""What more than one component needs: checks, errors, files of a split, ids of examples."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records.files import compression_of

TEMPORARY_PREFIX = ".tmp-"
CHUNK = 1 << 18  # examples or records that a reader gathers before it deals them to partitions
_PLAIN = (bool, int, float, str, list, type(None))


def checked_at_construction(check: Callable[..., Any]) -> Callable[[Any], Any]:
    """A decorator that makes a component class check its parameters at construction.

    `check` gets the parameters whose values are known then, by name (a runtime parameter's is
    not), and raises ValueError for one out of range.
    """

    def decorate(component: Any) -> Any:
        def __init__(self: Any, **kwargs: Any) -> None:
            known = {name: value for name, value in kwargs.items() if isinstance(value, _PLAIN)}
            try:
                check(**known)
            except ValueError as error:
                raise ValueError(f"{component.__name__}: {error}") from error
            component.__init__(self, **kwargs)

        namespace = {
            "__init__": __init__,
            "__module__": component.__module__,
            "__doc__": component.test_call.__doc__,
        }
        return type(component.__name__, (component,), namespace)

    return decorate


@contextlib.contextmanager
def error_context(component: str, uris: Sequence[str]) -> Iterator[None]:
    """Raises any error as a ValueError that names the component; empties its output directories."""
    try:
        yield
    except Exception as error:
        for uri in uris:
            with contextlib.suppress(tf.errors.OpError):
                remove_children(uri)
        raise ValueError(f"{component}: {error}") from error


def in_chunks(batches: Iterable[dict[Any, Any]]) -> Iterator[list[dict[Any, Any]]]:
    """Groups consecutive batches of columns until they hold at least `CHUNK` ids."""
    group, count = [], 0
    for columns in batches:
        group.append(columns)
        count += len(columns[constants.EXAMPLE_ID])
        if count >= CHUNK:
            yield group
            group, count = [], 0
    if count:
        yield group


def remove_children(directory: str, prefix: str = "") -> None:
    """Removes the files and directories in a directory whose names have a prefix."""
    for entry in tf.io.gfile.listdir(directory):
        entry = entry.rstrip("/")  # object stores end directory names with a slash
        if entry.startswith(prefix):
            path = os.path.join(directory, entry)
            remove = tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove
            remove(path)


def list_files(directory: str) -> list[str]:
    """The data files of a split, sorted; FileNotFoundError if there is none."""
    names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    names = sorted(name for name in names if not name.startswith((".", "_")))
    if not names:
        raise FileNotFoundError(f"{directory} holds no data files.")
    return [os.path.join(directory, name) for name in names]


def read_tfrecords(files: Sequence[str]) -> tf.data.Dataset:
    """Serialized records of TFRecord files, file after file, each compressed in its own way."""
    compressions = [compression_of(file) for file in files]
    pairs = tf.data.Dataset.from_tensor_slices((list(files), compressions))
    return pairs.flat_map(tf.data.TFRecordDataset)


def example_fingerprints(serialized: Sequence[bytes]) -> np.ndarray:
    """Ids for examples without an id feature: int64 `[n]`, the fingerprints of their content.

    The bytes of a tf.Example depend on who serialized it, as its features have no order; TFX's
    BulkInferrer, for one, serializes again. So the example is serialized with its features sorted.
    """
    canonical = [
        tf.train.Example.FromString(example).SerializeToString(deterministic=True)
        for example in serialized
    ]
    return hashing.fingerprint(tf.constant(canonical, tf.string)).numpy()

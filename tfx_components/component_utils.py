"""What more than one component needs: checks, errors, files of a split, columns of examples."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants, hashing
from ofb_tf.records.files import compression_of
from ofb_tf.records.schema import Schema

TEMPORARY_PREFIX = ".tmp-"
CHUNK = 1 << 18  # examples or records that a reader gathers before it deals them to partitions
_PLAIN = (bool, int, float, str, list, type(None))

Columns = dict[Any, Any]


def check_ranges(ranges: Mapping[str, tuple[float, float]], values: Mapping[str, Any]) -> None:
    """Raises ValueError for the first of the values that is outside its closed range, or NaN."""
    for name, (low, high) in ranges.items():
        if name in values and not low <= values[name] <= high:
            expected = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            raise ValueError(f"{name} must be {expected}. Received: {values[name]!r}")


def checked_at_construction(check: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """A decorator that makes a component class check its parameters at construction.

    `check` gets the parameters whose values are known then, by name (a runtime parameter's is
    not), and raises ValueError for one out of range.
    """

    def decorate(component: Any) -> Any:
        def __init__(self: Any, **kwargs: Any) -> None:
            try:
                check({name: v for name, v in kwargs.items() if isinstance(v, _PLAIN)})
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
def error_context(where: str, uris: Sequence[str] = ()) -> Iterator[None]:
    """Raises any error as a ValueError that begins with `where`; empties the directories."""
    try:
        yield
    except Exception as error:
        for uri in uris:
            with contextlib.suppress(tf.errors.OpError):
                remove_children(uri)
        raise ValueError(f"{where}: {error}") from error


def by_partition(
    batches: Iterable[Columns], num_partitions: int
) -> Iterator[tuple[int, np.ndarray, Columns]]:
    """Deals consecutive batches of columns to partitions, at least `CHUNK` ids at a time.

    Yields a partition, the positions of its rows among all, int64 `[m]` ascending, and the rows.
    """
    first = 0
    for chunk in _chunks(batches):
        ids = chunk[constants.EXAMPLE_ID]
        for partition, rows in hashing.rows_by_partition(ids, num_partitions):
            yield partition, first + rows, {name: data[rows] for name, data in chunk.items()}
        first += len(ids)


def _chunks(batches: Iterable[Columns]) -> Iterator[Columns]:
    group, count = [], 0
    for batch in batches:
        group.append(batch)
        count += len(batch[constants.EXAMPLE_ID])
        if count >= CHUNK:
            yield concatenate(group)
            group, count = [], 0
    if count:
        yield concatenate(group)


def concatenate(batches: Sequence[Columns]) -> Columns:
    """Batches of columns as one; ValueError unless they have the same columns."""
    widths = [
        batch[constants.LOGITS].shape[1] if constants.LOGITS in batch else 0 for batch in batches
    ]
    check_schemas(map(Schema.of, batches, widths))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def check_schemas(schemas: Iterable[Schema]) -> Schema:
    """The schema that all records have; ValueError where they differ."""
    first, *others = set(schemas)
    if others:
        raise ValueError(
            f"the records have {' and '.join(sorted(map(str, (first, *others))))}: they come from "
            "different models. Generate records from each separately."
        )
    return first


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


def single_value(serialized: bytes, parameter: str, feature: str) -> int | float | bytes:
    """The only value of the feature that a parameter names; ValueError where there is not one."""
    features = tf.train.Example.FromString(serialized).features.feature
    kind = features[feature].WhichOneof("kind") if feature in features else None
    values: Sequence[Any] = getattr(features[feature], kind).value if kind else ()
    if len(values) != 1:
        raise ValueError(
            f"{parameter} {feature!r} must be one value in every example. Received: {len(values)} "
            f"values; the features are {sorted(features)}. Set {parameter}."
        )
    return values[0]


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

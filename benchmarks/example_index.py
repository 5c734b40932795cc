"""`ExampleIndex`: select by id and label alone, then read only the selected examples.

An index is a small file next to a TFRecord file of serialized tf.Examples, with the id, the label
and the byte offset of each of them. Sampling reads the index; only what it selects is read from the
examples themselves, by offset.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import files
from ofb_tf.transforms.element_spec import DatasetTransform, attach

STAGE = "ExampleIndex"
INDEX_SUFFIX = ".index"
SHARD = "shard"
BYTE_OFFSET = "byte_offset"
DEFAULT_FEATURES = {
    constants.EXAMPLE_ID: tf.io.FixedLenFeature([], tf.int64),
    constants.LABEL: tf.io.FixedLenFeature([], tf.int64),
}

_RESERVED = (SHARD, BYTE_OFFSET, constants.IMPORTANCE_WEIGHT)
_LISTS = {tf.int64: "int64_list", tf.float32: "float_list", tf.string: "bytes_list"}
_OPEN_SUFFIX = ".open"
_BLOCK_ROWS = 4096
_CHUNK = 256  # readers in one tf.data function: a function call per example would cost more
_REMEDY = "Write its index again with write_example_index."


def write_example_index(
    examples: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    feature_spec: dict[str, tf.io.FixedLenFeature] | None = None,
) -> list[str]:
    """Writes `FILE.index` for each TFRecord file, replacing an index that is there.

    Every example is read once. See `ExampleIndex` for a complete example.

    Args:
      examples: uncompressed TFRecord files of serialized tf.Examples: a file, a glob or a list.
      feature_spec: what the index holds: id, label, and what else selection looks at, as
        `tf.io.FixedLenFeature([], dtype)` of int64, float32 or string. None for an int64
        `example_id` and an int64 `label`.

    Returns:
      The paths of the indexes.

    Raises:
      ValueError: the feature_spec has something else, or a file is compressed.
      FileNotFoundError: no file matches.
      tf.errors.DataLossError: a file is damaged.
      tf.errors.InvalidArgumentError: an example lacks a feature.
    """
    feature_spec = DEFAULT_FEATURES if feature_spec is None else feature_spec
    _check_features(feature_spec)
    return [_write_index(path, feature_spec) for path in _match(examples)]


class ExampleIndex:
    """The indexes of TFRecord files, to sample by and to fetch what was selected.

    ```python
    import tensorflow as tf

    import ofb_tf
    from benchmarks.example_index import ExampleIndex, write_example_index
    from ofb_tf.testing import tiny_dataset

    with tf.io.TFRecordWriter("examples.tfrecord") as writer:
        for x in tiny_dataset(4800).as_numpy_iterator():
            example = tf.train.Example()
            for name in ("example_id", "label"):
                example.features.feature[name].int64_list.value.append(x[name])
            example.features.feature["feature"].float_list.value.extend(x["feature"])
            writer.write(example.SerializeToString())
    write_example_index("examples.tfrecord")  # once


    def parse_fn(serialized):
        spec = {"label": tf.io.FixedLenFeature([], tf.int64)}
        return tf.io.parse_example(
            serialized, spec | {"feature": tf.io.FixedLenFeature([2], tf.float32)}
        )


    index = ExampleIndex("examples.tfrecord")
    sampler = ofb_tf.ofb_sample(policy="uniform", batched_input=True, batch_size=48, seed=17)
    train = index.keys().apply(sampler).apply(index.fetch(parse_fn, batch_size=48))
    assert sum(len(batch["label"]) for batch in train) == 480
    ```

    The selection, its order and its weights are those of `ofb_sample(parse_fn=...)` with the same
    settings on `tf.data.TFRecordDataset` of the same files.

    Fetching pays where scanning costs more than a random access for each selected example: large
    examples, low rates. `python -m benchmarks.index_and_fetch` measures it. The file system must
    serve short reads at any offset well: local disks do, object stores do not.

    Args:
      examples: the indexed TFRecord files: a file, a glob (in sorted order) or a list.

    Raises:
      FileNotFoundError: no file matches, or one has no index.
      ValueError: an index is damaged, does not belong to its file as it is now, or holds other
        features than the first.
    """

    def __init__(self, examples: str | os.PathLike | Sequence[str | os.PathLike]) -> None:
        self._paths = _match(examples)
        specs = [_read_header(path) for path in self._paths]
        for path, spec in zip(self._paths, specs, strict=True):
            if spec != specs[0]:
                raise ValueError(
                    f"{STAGE}: all indexes must hold the same features, got {spec} for {path!r} "
                    f"and {specs[0]} for {self._paths[0]!r}. Write them with one feature_spec."
                )
        self._dtypes = specs[0]
        self._columns = {*self._dtypes, SHARD, BYTE_OFFSET}

    def keys(self) -> tf.data.Dataset:
        """What selection looks at, of all examples in the order of the files.

        Returns:
          Batches of any size, for `ofb_sample(batched_input=True, batch_size=...)`: dicts of the
          index's features, each `[n]`, with `shard` and `byte_offset`, int64 `[n]`.
        """
        columns = {**self._dtypes, BYTE_OFFSET: tf.int64}
        spec = {
            name: tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)
            for name, dtype in columns.items()
        }

        def read(shard: tf.Tensor, path: tf.Tensor) -> tf.data.Dataset:
            def columns_of(block: tf.Tensor) -> dict[str, tf.Tensor]:
                parsed = tf.io.parse_single_example(block, spec)
                return parsed | {SHARD: tf.fill(tf.shape(parsed[BYTE_OFFSET]), shard)}

            return tf.data.TFRecordDataset(path).skip(1).map(columns_of)

        shards = np.arange(len(self._paths))
        paths = [path + INDEX_SUFFIX for path in self._paths]
        return tf.data.Dataset.from_tensor_slices((shards, paths)).flat_map(read)

    def fetch(
        self, parse_fn: Callable, *, batch_size: int, drop_remainder: bool = False
    ) -> DatasetTransform:
        """Reads and parses the examples of sampled keys.

        Args:
          parse_fn: a function from a vector of serialized examples to batched features (a dict,
            `(x, y)` or `(x, y, sample_weight)`), as for `ofb_sample`.
          batch_size: size of the batches that come out, whatever the size of those that come in.
          drop_remainder: whether a last, smaller batch is dropped, for a static batch size.

        Returns:
          A function for `dataset.apply`, from batches of sampled `keys()` to those of
          `ofb_sample(parse_fn=..., batch_size=...)`, in the same order. When it runs, a damaged
          example raises `tf.errors.DataLossError`; one that is missing, or not the one that was
          indexed, `tf.errors.InvalidArgumentError`.

        Raises:
          ValueError: at application, the elements are not batches of sampled keys.
        """

        def parse(keys: dict[str, tf.Tensor], serialized: tf.Tensor) -> Any:
            extras = {
                name: values
                for name, values in keys.items()
                if name in constants.RECORD_FIELDS or name not in self._columns
            }
            return attach(STAGE, parse_fn(self._check_examples(serialized, keys)), extras)

        def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
            _check_sampled(dataset.element_spec)
            # No function inside that of the flat_map: it would be set up for every chunk.
            read = dataset.rebatch(_CHUNK).flat_map(self._read_chunk)
            batches = read.map(_check_complete).rebatch(batch_size, drop_remainder=drop_remainder)
            return batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

        return transform

    def _read_chunk(self, keys: dict[str, tf.Tensor]) -> tf.data.Dataset:
        """One element: up to `_CHUNK` keys, and their TFRecords with an empty string behind."""
        places = tf.stack([keys[SHARD], keys[BYTE_OFFSET]])
        count = tf.shape(places, tf.int64)[1]
        places = tf.reshape(tf.pad(places, [[0, 0], [0, _CHUNK - count]]), [2, _CHUNK, 1])
        paths = tf.unstack(tf.gather(tf.constant(self._paths), places[0]))
        readers = [_reader(*place) for place in zip(paths, tf.unstack(places[1]), strict=True)]
        # One TFRecord of each reader; the padding is never opened. The empty string is an element
        # also where nothing could be read, for the check to see.
        one_each = tf.data.Dataset.choose_from_datasets(readers, tf.data.Dataset.range(count))
        data = one_each.concatenate(tf.data.Dataset.from_tensors("")).batch(_CHUNK + 1)
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensors(keys), data)

    def _check_examples(self, serialized: tf.Tensor, keys: dict[str, tf.Tensor]) -> tf.Tensor:
        """The examples, which must have the integers and strings that the index has."""
        exact = {k: v for k, v in self._dtypes.items() if not v.is_floating and k in keys}
        if not exact:
            return serialized
        spec = {name: tf.io.FixedLenFeature([], dtype) for name, dtype in exact.items()}
        found = tf.io.parse_example(serialized, spec)
        message = f"{STAGE}: a file of examples is not the one that was indexed. {_REMEDY}"
        same = [tf.debugging.assert_equal(found[name], keys[name], message) for name in exact]
        with tf.control_dependencies(same):
            return tf.identity(serialized)


def _check_complete(
    keys: dict[str, tf.Tensor], data: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """A chunk without the empty string; every key must have its example."""
    count = tf.size(keys[SHARD])
    message = f"{STAGE}: a file of examples is shorter than indexed. {_REMEDY}"
    complete = tf.debugging.assert_equal(tf.size(data), count + 1, message)
    with tf.control_dependencies([complete]):
        # Copies, because TensorFlow 2.21 logs an error where the second rebatch gets slices.
        return tf.nest.map_structure(lambda part: tf.gather(part, tf.range(count)), (keys, data))


def _reader(path: tf.Tensor, offset: tf.Tensor) -> tf.data.Dataset:
    """The TFRecords of a file from an offset on, `[1]` each, read without a buffer."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path,
        compression_type="",
        buffer_size=tf.constant(0, tf.int64),
        byte_offsets=offset,
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))


def _match(examples: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    given = [examples] if isinstance(examples, str | os.PathLike) else examples
    paths = [path for each in given for path in files.expand(os.fspath(each))]
    paths = [path for path in paths if not path.endswith((INDEX_SUFFIX, _OPEN_SUFFIX))]
    if not paths:
        raise FileNotFoundError(
            f"{STAGE}: {examples!r} matches no file. Name TFRecord files of tf.Examples."
        )
    return paths


def _check_features(feature_spec: dict[str, Any]) -> None:
    for name, feature in feature_spec.items():
        scalar = isinstance(feature, tf.io.FixedLenFeature) and list(feature.shape) == []
        if not scalar or feature.dtype not in _LISTS or feature.default_value is not None:
            raise ValueError(
                f"{STAGE}: feature {name!r} must be tf.io.FixedLenFeature([], dtype) of int64, "
                f"float32 or string, without a default. Received: {feature}"
            )
        if name in _RESERVED:
            raise ValueError(
                f"{STAGE}: a feature must not be named {name!r}, which fetching uses. Leave it "
                "out; parse_fn may return it."
            )


def _check_sampled(spec: Any) -> None:
    needed = (SHARD, BYTE_OFFSET, constants.IMPORTANCE_WEIGHT)
    if not isinstance(spec, dict) or any(name not in spec for name in needed):
        raise ValueError(
            f"{STAGE}: fetch needs sampled keys, dicts with {list(needed)}, got {spec}. Apply it "
            "to index.keys().apply(ofb_sample(batched_input=True, batch_size=...))."
        )
    if spec[SHARD].shape.rank != 1:
        raise ValueError(
            f"{STAGE}: fetch needs batches, got single examples: {spec}. Set batch_size in "
            "ofb_sample."
        )


def _write_index(path: str, feature_spec: dict[str, tf.io.FixedLenFeature]) -> str:
    compression = files.compression_of(path)
    if compression:
        raise ValueError(
            f"{STAGE}: {path!r} is compressed as a whole ({compression}), which allows no random "
            "access. Write it without compression, or with single features compressed."
        )
    dtypes = {name: feature.dtype for name, feature in feature_spec.items()}
    blocks = list(_blocks(path, feature_spec))
    header = tf.train.Example()
    feature = header.features.feature
    feature["names"].bytes_list.value.extend(name.encode() for name in dtypes)
    feature["dtypes"].bytes_list.value.extend(dtype.name.encode() for dtype in dtypes.values())
    feature["examples_bytes"].int64_list.value.append(files.size_of(path))
    length = sum(len(block) + files.FRAME_BYTES for block in blocks)
    feature["blocks_bytes"].int64_list.value.append(length)
    index = path + INDEX_SUFFIX
    with tf.io.TFRecordWriter(index + _OPEN_SUFFIX) as writer:
        for block in (header.SerializeToString(), *blocks):
            writer.write(block)
    tf.io.gfile.rename(index + _OPEN_SUFFIX, index, overwrite=True)
    return index


def _blocks(path: str, feature_spec: dict[str, tf.io.FixedLenFeature]) -> Iterator[bytes]:
    """Serialized tf.Examples, each with the columns of up to `_BLOCK_ROWS` examples."""

    def columns(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(serialized, feature_spec)
        frames = tf.strings.length(serialized) + files.FRAME_BYTES
        return parsed | {BYTE_OFFSET: tf.cast(frames, tf.int64)}

    batches = tf.data.TFRecordDataset(path).batch(_BLOCK_ROWS).map(columns)
    end = 0
    for batch in batches.as_numpy_iterator():
        ends = end + np.cumsum(batch[BYTE_OFFSET])
        batch[BYTE_OFFSET] = np.concatenate([[end], ends[:-1]])
        end = int(ends[-1])
        block = tf.train.Example()
        for name, values in batch.items():
            dtype = tf.int64 if name == BYTE_OFFSET else feature_spec[name].dtype
            getattr(block.features.feature[name], _LISTS[dtype]).value.extend(values.tolist())
        yield block.SerializeToString()


def _read_header(path: str) -> dict[str, tf.DType]:
    """The features of a file's index and their dtypes, once both files have the right sizes."""
    index = path + INDEX_SUFFIX
    if not tf.io.gfile.exists(index):
        raise FileNotFoundError(
            f"{STAGE}: {path!r} has no index. Write it with write_example_index({path!r})."
        )
    try:
        _, first = next(iter(files.read_frames(index, limit=1)))
    except (files.CorruptRecordsError, StopIteration):
        raise ValueError(f"{STAGE}: {index!r} is damaged. {_REMEDY}") from None
    feature = tf.train.Example.FromString(first).features.feature
    for file, name, added in (
        (path, "examples_bytes", 0),
        (index, "blocks_bytes", len(first) + files.FRAME_BYTES),
    ):
        expected = sum(feature[name].int64_list.value) + added
        if files.size_of(file) != expected:
            raise ValueError(
                f"{STAGE}: {file!r} must have {expected} bytes as when it was indexed, got "
                f"{files.size_of(file)}. {_REMEDY}"
            )
    names = (name.decode() for name in feature["names"].bytes_list.value)
    dtypes = (tf.as_dtype(dtype.decode()) for dtype in feature["dtypes"].bytes_list.value)
    return dict(zip(names, dtypes, strict=True))

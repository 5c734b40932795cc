"""The block codec of forward-record files: columns of n records in one `tf.train.Example`.

Every TFRecord of a `*.ofbr` file is a block, whose features are the columns of `schema.COLUMNS` as
little-endian bytes, plus `format_version`, `num_outputs` and `top_k`. The last one is the footer
(`num_blocks`, `num_records`), without which a closed file counts as truncated.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records.schema import COLUMNS, Column, Runs, Schema

FORMAT_VERSION = 1

_FORMAT_VERSION_KEY = "format_version"
NUM_OUTPUTS_KEY = "num_outputs"
TOP_K_KEY = "top_k"
_NUM_BLOCKS_KEY = "num_blocks"
NUM_RECORDS_KEY = "num_records"
BASE_SUFFIX = "/base"
LENGTHS_SUFFIX = "/run_lengths"
_MAX_OUTPUTS = 2**31


class FormatError(ValueError):
    """A TFRecord that is not a block of forward records."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A decoded block: arrays of n records, columns with `runs` as `Runs`."""

    schema: Schema
    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.columns[constants.EXAMPLE_ID])


@dataclasses.dataclass(frozen=True)
class Footer:
    """The last TFRecord of a closed file."""

    num_blocks: int
    num_records: int


def encode_block(schema: Schema, columns: Mapping[str, Any]) -> bytes:
    """A serialized `tf.train.Example` of columns: arrays `[n]` or `[n, k]`, or `Runs`, by name."""
    example = _example({NUM_OUTPUTS_KEY: schema.num_outputs, TOP_K_KEY: schema.top_k})
    feature = example.features.feature
    for column in schema.present:
        data = columns[column.name]
        if column.runs:
            _encode_runs(feature, column.name, data if isinstance(data, Runs) else Runs.of(data))
        else:
            little_endian = data.astype(data.dtype.newbyteorder("<"), copy=False)
            feature[column.name].bytes_list.value.append(little_endian.tobytes())
    return example.SerializeToString()


def encode_footer(footer: Footer) -> bytes:
    """The bytes of a footer."""
    counts = {_NUM_BLOCKS_KEY: footer.num_blocks, NUM_RECORDS_KEY: footer.num_records}
    return _example(counts).SerializeToString()


def decode(serialized: bytes) -> Block | Footer:
    """Decodes what `encode_block` or `encode_footer` wrote; anything else is a FormatError."""
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
    except Exception as error:  # the parser's class differs between protobuf releases
        raise FormatError("not a tf.train.Example") from error
    version = _get_int(feature, _FORMAT_VERSION_KEY)
    if version != FORMAT_VERSION:
        raise FormatError(
            f"format_version is {version}, this release reads {FORMAT_VERSION}. Read the file "
            "with the release of ofb-tf that wrote it, or a newer one."
        )
    if _NUM_BLOCKS_KEY in feature:
        return Footer(_get_int(feature, _NUM_BLOCKS_KEY), _get_int(feature, NUM_RECORDS_KEY))
    num_outputs, top_k = _get_int(feature, NUM_OUTPUTS_KEY), _get_int(feature, TOP_K_KEY)
    if not 0 <= top_k <= num_outputs < _MAX_OUTPUTS:
        raise FormatError(f"num_outputs is {num_outputs} and top_k {top_k}")
    schema = Schema.of(feature, num_outputs, top_k)
    missing = [c.name for c in COLUMNS if c.required and c.name not in schema.columns]
    if missing:
        raise FormatError(f"columns {missing} are missing")
    columns: dict[str, Any] = {}
    num_records = len(_get_bytes(feature, constants.EXAMPLE_ID)) // 8
    for column in schema.present:
        if column.runs:
            columns[column.name] = _decode_runs(feature, column.name, num_records)
        else:
            width = schema.logits_width if column.per_output else None
            data = _get_bytes(feature, column.name)
            columns[column.name] = _decode_plain(data, column, num_records, width)
    return Block(schema, columns)


def _example(integers: dict[str, int]) -> Any:
    example = tf.train.Example()
    for name, value in {_FORMAT_VERSION_KEY: FORMAT_VERSION, **integers}.items():
        example.features.feature[name].int64_list.value.append(value)
    return example


def _get(feature: Any, name: str, kind: str) -> Any:
    values: Any = getattr(feature[name], kind).value if name in feature else ()
    if len(values) != 1:
        raise FormatError(f"feature {name!r} must hold one value in its {kind}")
    return values[0]


_get_int = functools.partial(_get, kind="int64_list")
_get_bytes = functools.partial(_get, kind="bytes_list")


def _encode_runs(feature: Any, name: str, runs: Runs) -> None:
    base = int(runs.values.min()) if len(runs.values) else 0
    # Unsigned, so that the offset between the ends of int64 does not overflow.
    offsets = (runs.values.view(np.uint64) - np.int64(base).view(np.uint64)).astype("<u8")
    width = (int(offsets.max()).bit_length() + 7) // 8 if len(offsets) else 0
    packed = offsets.view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    feature[name + BASE_SUFFIX].int64_list.value.append(base)
    feature[name].bytes_list.value.append(packed)
    if width and runs.lengths is not None:  # the one run of a constant is as long as the block
        lengths = runs.lengths.astype("<i4").tobytes()
        feature[name + LENGTHS_SUFFIX].bytes_list.value.append(lengths)


def _decode_runs(feature: Any, name: str, num_records: int) -> Runs:
    base = _get_int(feature, name + BASE_SUFFIX)
    packed = np.frombuffer(_get_bytes(feature, name), np.uint8)
    if not len(packed):
        return Runs(np.full(1, base, np.int64), np.full(1, num_records, np.int64))
    lengths = None
    num_runs = num_records
    if name + LENGTHS_SUFFIX in feature:
        data = _get_bytes(feature, name + LENGTHS_SUFFIX)
        if len(data) % 4:
            raise FormatError(f"run lengths of column {name!r} are misshapen")
        lengths = np.frombuffer(data, "<i4").astype(np.int64)
        num_runs = len(lengths)
        if (lengths < 0).any() or lengths.sum() != num_records:
            raise FormatError(f"run lengths of column {name!r} do not sum to {num_records}")
    if not num_runs or len(packed) % num_runs or len(packed) // num_runs > 8:
        raise FormatError(f"column {name!r} holds {len(packed)} bytes for {num_runs} runs")
    offsets = np.zeros((num_runs, 8), np.uint8)
    offsets[:, : len(packed) // num_runs] = packed.reshape(num_runs, -1)
    values = offsets.view("<u8")[:, 0] + np.int64(base).view(np.uint64)
    return Runs(values.view(np.int64), lengths)


def _decode_plain(data: bytes, column: Column, num_records: int, width: int | None) -> np.ndarray:
    count = num_records * (1 if width is None else width)
    dtype = np.dtype(column.dtype)
    if column.narrow_dtype and len(data) != count * dtype.itemsize:
        dtype = np.dtype(column.narrow_dtype)
    if len(data) != count * dtype.itemsize:
        raise FormatError(
            f"column {column.name!r} holds {len(data)} bytes, expected {count * dtype.itemsize} "
            f"for {num_records} records"
        )
    array = np.frombuffer(data, dtype.newbyteorder("<"))
    return array if width is None else array.reshape(num_records, width)

"""Parquet and Arrow files: reading them a record batch at a time, and writing records to them.

pyarrow (extra `arrow`) is imported only where a file is read or written.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from ofb_tf import constants
from ofb_tf.checks import check_choice
from ofb_tf.records import files, reader
from ofb_tf.records.blocks import Block
from ofb_tf.records.schema import expand

_ROW_GROUP_ROWS, _ROW_GROUP_BYTES = 1 << 17, 1 << 26
_SAFE_RELEASE = (14, 0, 1)
_PARQUET, _ARROW = b"PAR1", b"ARROW1"


class DamagedTableError(ValueError):
    """A Parquet or Arrow file is damaged.

    Attributes:
      row: number of the first row that is lost.
    """

    def __init__(self, row: int, reason: str):
        super().__init__(f"the file is damaged from here on: {reason}")
        self.row = row


def require_arrow() -> Any:
    """pyarrow, or an ImportError that says how to install it."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "Parquet and Arrow files need pyarrow: pip install 'ofb-tf[arrow]'"
        ) from error
    if tuple(map(int, pyarrow.__version__.split(".")[:3])) < _SAFE_RELEASE:
        try:  # older releases unpickle what a file holds (CVE-2023-47248)
            import pyarrow_hotfix  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"pyarrow {pyarrow.__version__} executes what a file holds: upgrade it to "
                f"{'.'.join(map(str, _SAFE_RELEASE))}, or pip install pyarrow_hotfix"
            ) from error
    return pyarrow


def is_arrow(path: str) -> bool:
    """Whether a file begins like a Parquet or Arrow file."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read(6).startswith((_PARQUET, _ARROW))


def export_parquet(
    pattern: files.Pattern,
    output_directory: str | os.PathLike,
    *,
    compression: str = "zstd",
    on_corrupt: str = "error",
    show_progress: bool = False,
) -> reader.ReadCounts:
    """Writes a Parquet file for every record file, for the tools that read Parquet.

    Columns are those of the records: `example_id`, `logits` (a number, or a list for more than one
    output), `loss`, `model_version`, `timestamp`, and those of the top-k form. All records are
    written, also those that a newer one of the same id replaces on loading. Needs the extra
    `arrow`.

    Args:
      pattern: a file, a glob, a directory, or a list of them.
      output_directory: created if missing; the files are named like the record files.
      compression: of Parquet: "zstd", "snappy", "gzip" or "none".
      on_corrupt: "error", or "skip" to write what precedes the damage in each file.
      show_progress: show a progress bar over the files.

    Returns:
      What was read, which is what was written.

    Raises:
      FileNotFoundError: the pattern matches nothing.
      ValueError: two record files have one name.
      CorruptRecordsError: a file is damaged.
      ImportError: pyarrow is not installed.
    """
    check_choice("compression", compression, ("zstd", "snappy", "gzip", "none"))
    require_arrow()
    directory = os.fspath(output_directory)
    tf.io.gfile.makedirs(directory)
    counts = reader.ReadCounts()
    outputs: dict[str, str] = {}
    for path in files.match_files(pattern):
        name = os.path.basename(path).removesuffix(".open").removesuffix(files.SUFFIX)
        output = os.path.join(directory, f"{name}.parquet")
        if output in outputs:
            raise ValueError(
                f"record files of one name need separate output directories. Received: "
                f"{outputs[output]!r} and {path!r}"
            )
        outputs[output] = path
    for output, path in tqdm.tqdm(
        outputs.items(), unit="file", disable=None if show_progress else True
    ):
        blocks = reader.read_blocks(path, on_corrupt=on_corrupt, counts=counts)
        _write(output, _row_groups(blocks), compression)
    return counts


def table_of(columns: Mapping[str, np.ndarray]) -> Any:
    """A `pyarrow.Table` of record columns `[n]` or `[n, k]`."""
    pa = require_arrow()
    arrays = {}
    for name, data in columns.items():
        data = data.astype(np.float32 if data.dtype.kind == "f" else data.dtype.newbyteorder("="))
        array = pa.array(data.reshape(-1))
        if name == constants.TIMESTAMP:
            array = array.cast(pa.timestamp("us", "UTC"))
        elif data.ndim == 2 and data.shape[1] != 1:
            offsets = np.arange(len(data) + 1, dtype=np.int32) * np.int32(data.shape[1])
            array = pa.ListArray.from_arrays(offsets, array)
        arrays[name] = array
    return pa.table(arrays)


def _row_groups(blocks: Iterator[Block]) -> Iterator[Any]:
    pa = require_arrow()
    tables: list[Any] = []
    for block in blocks:
        tables.append(table_of({name: expand(data) for name, data in block.columns.items()}))
        if (
            sum(table.num_rows for table in tables) >= _ROW_GROUP_ROWS
            or sum(table.nbytes for table in tables) >= _ROW_GROUP_BYTES
        ):
            yield pa.concat_tables(tables)
            tables = []
    if tables:
        yield pa.concat_tables(tables)


def _write(path: str, tables: Iterator[Any], compression: str) -> None:
    """Writes a file that appears under its name when complete; none where there is no table."""
    from pyarrow import parquet

    temporary = os.path.join(os.path.dirname(path), f".tmp-{uuid.uuid4().hex}")
    try:
        with contextlib.ExitStack() as stack:
            writer = None
            for table in tables:
                if writer is None:
                    filesystem, name = _filesystem(temporary)
                    sink = stack.enter_context(filesystem.open_output_stream(name))
                    writer = parquet.ParquetWriter(sink, table.schema, compression=compression)
                    stack.enter_context(writer)
                writer.write_table(table)
        if writer is not None:
            tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(OSError, tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise


def _filesystem(path: str) -> tuple[Any, str]:
    from pyarrow import fs

    return (fs.LocalFileSystem(), path) if "://" not in path else fs.FileSystem.from_uri(path)


def read_batches(
    path: str, size: int, choose: Callable[[Any], list[str] | None] = lambda schema: None
) -> Iterator[tuple[int, Any]]:
    """The record batches of a Parquet or Arrow file, with the numbers of their first rows.

    Args:
      path: a Parquet file, an Arrow IPC file or an Arrow IPC stream, on any file system of Arrow.
      size: the most rows of a batch.
      choose: the columns to read, given the schema, where the format allows it; None: all.

    Raises:
      DamagedTableError: the file is damaged; what precedes the damage has been given.
    """
    pa = require_arrow()
    from pyarrow import parquet

    filesystem, name = _filesystem(path)
    row = 0
    try:
        with filesystem.open_input_file(name) as file:
            start = file.read(len(_ARROW))
            file.seek(0)
            if start.startswith(_PARQUET):
                source = parquet.ParquetFile(file)
                columns = choose(source.schema_arrow)
                batches = source.iter_batches(size, columns=columns)
            else:
                is_file = start == _ARROW
                source = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
                choose(source.schema)
                whole = (
                    map(source.get_batch, range(source.num_record_batches)) if is_file else source
                )
                batches = (
                    batch.slice(begin, size)
                    for batch in map(_validated, whole)
                    for begin in range(0, batch.num_rows, size)
                )
            for batch in batches:
                yield row, batch
                row += batch.num_rows
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise DamagedTableError(row, str(error)[:200]) from error


def _validated(batch: Any) -> Any:
    """A batch of an Arrow file, whose buffers are used as they are: offsets may point anywhere."""
    batch.validate(full=True)
    return batch

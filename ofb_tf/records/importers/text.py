"""JSON lines and CSV: rows with their offsets, in bounded memory whatever the file holds."""

import contextlib
import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import tensorflow as tf

from ofb_tf.records.importers.batches import UnusableError

_MAX_LINE_BYTES = 1 << 24
_CHUNK_BYTES = 1 << 20


def json_rows(path: str) -> Iterator[tuple[int, Any]]:
    """The offset and content of every line of a JSON lines file, or the `UnusableError` of it."""
    for offset, line in lines(path):
        if isinstance(line, UnusableError):
            yield offset, line
        elif line.strip():
            try:
                yield offset, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield offset, UnusableError(f"not JSON: {str(error)[:100]}")


def csv_rows(path: str, needed: Collection[str]) -> Iterator[tuple[int, Any]]:
    """The same of a CSV file, by the offset of a row's last line.

    Raises:
      ValueError: the header lacks a field of `needed`.
    """
    position = 0

    def decoded() -> Iterator[str]:
        nonlocal position
        for offset, line in lines(path):
            position = offset
            if isinstance(line, UnusableError):
                raise line
            yield line.decode("utf-8", errors="surrogateescape")

    reader = csv.DictReader(decoded())
    missing = set(needed)
    with contextlib.suppress(csv.Error, UnusableError):
        missing -= set(reader.fieldnames or ())
    if missing:
        raise ValueError(
            f"the header must name {sorted(needed)}. Missing: {sorted(missing)}. Map them with "
            "--id_field, --logits_fields, --loss_field."
        )
    row: Any = {}
    while row is not None:
        try:
            row = next(reader, None)
        except (csv.Error, UnusableError) as error:
            row = UnusableError(f"not CSV: {error}")
        if row is not None:
            yield position, row


def lines(path: str) -> Iterator[tuple[int, Any]]:
    """The lines of a text file with their offsets; the last may be an `UnusableError`.

    `*.gz` is decompressed; offsets are those in the uncompressed text.
    """
    offset = 0
    with tf.io.gfile.GFile(path, "rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        rest = b""
        try:
            while chunk := file.read(_CHUNK_BYTES):
                *whole, rest = (rest + chunk).splitlines(keepends=True)
                for line in whole:
                    yield offset, line
                    offset += len(line)
                if len(rest) > _MAX_LINE_BYTES:
                    raise OSError(f"a line of more than {_MAX_LINE_BYTES} bytes")
        except (OSError, EOFError, zlib.error) as error:
            yield offset, UnusableError(f"the file is damaged from here on: {error}")
        else:
            yield offset, rest

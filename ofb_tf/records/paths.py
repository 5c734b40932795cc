"""Which files a records pattern names."""

import os
from collections.abc import Sequence

import tensorflow as tf

SUFFIX = ".ofbr"
OPEN_SUFFIX = ".ofbr.open"

Pattern = str | os.PathLike | Sequence[str | os.PathLike]


def is_local(path: str) -> bool:
    """Whether the path is on a file system of this machine, as against `gs://…` and the like."""
    return "://" not in path


def match_files(pattern: Pattern) -> list[str]:
    """The record files that a pattern names, sorted.

    Args:
      pattern: a file, a glob, a directory (its `*.ofbr` and `*.ofbr.open`), or a list of them.

    Raises:
      FileNotFoundError: a pattern names no record file.
      ValueError: the pattern is empty.
    """
    if isinstance(pattern, str | os.PathLike):
        return sorted(set(_match_one(os.fspath(pattern))))
    patterns = list(pattern)
    if not patterns:
        raise ValueError(
            "records pattern must name at least one file, glob or directory. Received: []"
        )
    return sorted({file for one in patterns for file in _match_one(os.fspath(one))})


def _match_one(pattern: str) -> list[str]:
    if not pattern:
        raise ValueError("records pattern must not be empty. Received: ''")
    if tf.io.gfile.isdir(pattern):
        names = tf.io.gfile.listdir(pattern)
        files = [os.path.join(pattern, name) for name in names if is_record_file(name)]
        if not files:
            raise FileNotFoundError(
                f"The directory {pattern!r} holds no record files ({SUFFIX}, {OPEN_SUFFIX}) among "
                f"its {len(names)} entries. Write some with ofb_tf.ForwardRecordWriter"
                f"({pattern!r}), or name the directory that a writer was given."
            )
        return files
    matched = tf.io.gfile.glob(pattern)
    files = [file for file in matched if is_record_file(file)]
    if matched == [pattern]:
        return matched  # a file named in full may have any name
    if not files:
        found = f"{len(matched)} files, none of them a record file" if matched else "nothing"
        raise FileNotFoundError(
            f"The records pattern {pattern!r} matches {found} ({SUFFIX}, {OPEN_SUFFIX}). Check "
            "the directory, and that a writer has flushed or closed its first file."
        )
    return files


def is_record_file(name: str) -> bool:
    """Whether a file's name is that of a closed or open record file."""
    return name.endswith((SUFFIX, OPEN_SUFFIX))

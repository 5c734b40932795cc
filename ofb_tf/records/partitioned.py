"""Records larger than memory: one sorted file per partition, loaded one at a time in the graph."""

import concurrent.futures
import os
import re

import tensorflow as tf

from ofb_tf.records import files, reader
from ofb_tf.records.graph import sorted_file_dataset

# A directory of this name next to the partitions: they are still being written, or were never
# finished.
UNFINISHED_PREFIX = "spool-"
_NAME = re.compile(r"partition-(\d+)-of-(\d+)\.ofbr$")


def partition_path(directory: str, partition: int, num_partitions: int) -> str:
    """The file with the records of one partition."""
    return os.path.join(directory, f"partition-{partition:05d}-of-{num_partitions:05d}.ofbr")


class PartitionedRecords:
    """The files that `ofb records partition` or the TFX component `ForwardRecordGen` wrote.

    A partition without a file is empty, as long as the others agree on how many there are:
    ForwardRecordGen writes no file for an empty partition. Only the headers of the files' blocks
    and the first block of each are read at construction.

    Args:
      directory: where the partitions are.

    Attributes:
      num_partitions: how many there are; an example's is `partition_of(example_id, n)`.
      num_outputs: outputs of the model, 0 where only losses were recorded.

    Raises:
      FileNotFoundError: there is no record file.
      CorruptRecordsError: a file is damaged.
      ValueError: the files are not of one set of partitions, or the set was never finished.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        directory = os.fspath(directory)
        paths = files.match_files(directory)
        matches = [_NAME.search(path) for path in paths]
        by_partition = {int(m[1]): path for m, path in zip(matches, paths, strict=True) if m}
        counts = {int(m[2]) for m in matches if m}
        if len(by_partition) < len(paths) or len(counts) > 1 or max(by_partition) >= max(counts):
            raise ValueError(
                f"{directory!r} must hold one set of files partition-*-of-*.ofbr that agree on "
                f"their number, got {[os.path.basename(path) for path in paths[:3]]} ... Write it "
                "with `ofb records partition`."
            )
        if any(name.startswith(UNFINISHED_PREFIX) for name in tf.io.gfile.listdir(directory)):
            raise ValueError(
                f"{directory!r} holds a directory {UNFINISHED_PREFIX}*: `ofb records partition` is "
                "still running or was interrupted. Wait, or remove the directory and run it again."
            )
        with concurrent.futures.ThreadPoolExecutor(reader.MAX_READERS) as pool:
            compressions = dict(zip(paths, pool.map(files.check_headers, paths), strict=True))
        self._schema = reader.read_schema(paths)
        self.num_partitions = counts.pop()
        self.num_outputs = self._schema.num_outputs
        self._files = [by_partition.get(k, "") for k in range(self.num_partitions)]
        self._compressions = [compressions.get(path, "") for path in self._files]

    def dataset(self, partition: tf.Tensor) -> tf.data.Dataset:
        """The columns of a partition, int64 scalar in `[0, num_partitions)`, sorted by id.

        They are one element, as of `sorted_file_dataset`, and empty where it has no file.
        """
        return sorted_file_dataset(
            tf.gather(tf.constant(self._files), partition),
            self._schema,
            compression=tf.gather(tf.constant(self._compressions), partition),
        )

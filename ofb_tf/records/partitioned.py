"""Records larger than memory: one sorted file a partition, loaded one at a time in the graph."""

import re

import tensorflow as tf

from ofb_tf.records import paths, reader
from ofb_tf.records.graph import sorted_file_dataset
from ofb_tf.records.tfrecord import compression_of

_NAME = re.compile(r"partition-(\d+)-of-(\d+)\.ofbr$")


class PartitionedRecords:
    """The files that `ofb records partition` wrote.

    Only the file names and the columns' widths are read at construction.

    Args:
      directory: where the partitions are.

    Attributes:
      num_partitions: how many there are; an example's is `partition_of(example_id, n)`.
      num_outputs: outputs of the model, 0 where only losses were recorded.

    Raises:
      FileNotFoundError: there is no record file.
      ValueError: the files are not one whole set of partitions.
    """

    def __init__(self, directory: str) -> None:
        self._files = paths.match_files(directory)
        matches = [_NAME.search(file) for file in self._files]
        numbers = [(int(m[1]), int(m[2])) for m in matches if m]
        count = len(self._files)
        if numbers != [(k, count) for k in range(count)]:
            raise ValueError(
                f"{directory!r} must hold one whole set of files partition-*-of-{count:05d}.ofbr, "
                f"got {[file.rsplit('/', 1)[-1] for file in self._files[:3]]} ... Write it with "
                "`ofb records partition`."
            )
        self._schema = reader.read_schema(self._files)
        self._compression = compression_of(self._files[0])
        self.num_partitions = count
        self.num_outputs = self._schema.num_outputs

    def dataset(self, partition: tf.Tensor) -> tf.data.Dataset:
        """One partition's columns, sorted by id, as one element. See `sorted_file_dataset`.

        Args:
          partition: int64 scalar in `[0, num_partitions)`.

        Returns:
          A dataset of one dict of columns.
        """
        filename = tf.gather(tf.constant(self._files), partition)
        return sorted_file_dataset(filename, self._schema, compression=self._compression)

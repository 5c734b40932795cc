"""The manifest of an `ofb.ForwardRecords` artifact: what lies in its partitions."""

import dataclasses
import json
import os

import tensorflow as tf

_FILE = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Counts of an artifact.

    Attributes:
      num_partitions: of the hash.
      num_outputs: of the model, 0 where records hold losses only.
      num_read: records that came in.
      num_duplicates: of these, records that a newer one of the same id replaced.
      num_records: records kept.
      records_by_partition: of length `num_partitions`.
      records_by_version: model version (as text) → records kept.
      oldest_timestamp: microseconds since 1970, of those kept.
      newest_timestamp: microseconds since 1970.
    """

    num_partitions: int
    num_outputs: int
    num_read: int
    num_duplicates: int
    num_records: int
    records_by_partition: list[int]
    records_by_version: dict[str, int]
    oldest_timestamp: int
    newest_timestamp: int

    def write(self, uri: str) -> None:
        """Writes it into the artifact."""
        with tf.io.gfile.GFile(os.path.join(uri, _FILE), "w") as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True))

    @classmethod
    def read(cls, uri: str) -> "Manifest":
        """Reads the manifest of an artifact.

        Raises:
          FileNotFoundError: the directory is no `ofb.ForwardRecords` artifact.
        """
        path = os.path.join(uri, _FILE)
        if not tf.io.gfile.exists(path):
            raise FileNotFoundError(
                f"{path} does not exist: {uri} is not an ofb.ForwardRecords artifact. Make one "
                "with ForwardRecordGen."
            )
        with tf.io.gfile.GFile(path) as file:
            return cls(**json.loads(file.read()))


def partition_path(uri: str, partition: int, num_partitions: int) -> str:
    """The file of one partition."""
    return os.path.join(uri, f"partition-{partition:05d}-of-{num_partitions:05d}.ofbr")

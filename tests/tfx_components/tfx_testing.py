"""What the TFX tests share besides fixtures: data, TFRecords, the reference probabilities."""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf


@dataclasses.dataclass
class Data:
    """A binary task: examples with ids, labels and a slice, and what serving said of them."""

    ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    city: np.ndarray

    def take(self, rows) -> "Data":
        """The examples at these places."""
        return Data(**{name: column[rows] for name, column in vars(self).items()})

    @property
    def scores(self) -> np.ndarray:
        """|sigmoid(z) - y| in float64: the reference for the gradient-norm bound."""
        return np.abs(1.0 / (1.0 + np.exp(-self.logits.astype(np.float64))) - self.labels)


def write_tfrecords(path: pathlib.Path, records: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = "GZIP" if path.suffix == ".gz" else ""
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for record in records:
            writer.write(record)


def read_tfrecords(path: pathlib.Path) -> list[bytes]:
    options = "GZIP" if path.suffix == ".gz" else ""
    return list(tf.data.TFRecordDataset(str(path), options).as_numpy_iterator())


def split_files(artifact, split: str = "train") -> list[pathlib.Path]:
    return sorted((pathlib.Path(artifact.uri) / f"Split-{split}").iterdir())


def read_split(artifact, split: str = "train") -> list[tf.train.Example]:
    """The examples of a split, in order."""
    records = (record for path in split_files(artifact, split) for record in read_tfrecords(path))
    return [tf.train.Example.FromString(record) for record in records]


def selected(artifact) -> dict[int, float]:
    """id → importance weight of the sampled split train."""
    found = {}
    for example in read_split(artifact):
        feature = example.features.feature
        (weight,) = feature["importance_weight"].float_list.value
        found[feature["id"].int64_list.value[0]] = weight
    return found


def total(artifact):
    """The sampler's statistics of the split train."""
    from ofb_tf.beam import read_statistics

    return read_statistics(artifact.uri)[1]["train"].total


def generate(uri, **arguments):
    """Runs ForwardRecordGen's function: the artifact in a directory."""
    import apache_beam as beam

    from tfx_components.artifacts import ForwardRecords
    from tfx_components.forward_record_gen import ForwardRecordGen

    artifact = ForwardRecords()
    artifact.uri = str(uri)
    defaults = {"beam_pipeline": beam.Pipeline(argv=["--direct_running_mode=in_memory"])}
    ForwardRecordGen.test_call(forward_records=artifact, **defaults | arguments)
    return artifact


def probabilities(scores: np.ndarray, rate: float, mix: float = 0.2) -> np.ndarray:
    """Capped PPS by bisection on c: the independent reference for a whole split, float64 `[n]`."""
    sizes = (1 - mix) * scores / scores.sum() + mix / len(scores)
    low, high = 0.0, 1.0 / sizes.min()
    for _ in range(200):
        middle = (low + high) / 2
        if np.minimum(1.0, middle * sizes).sum() < rate * len(scores):
            low = middle
        else:
            high = middle
    return np.minimum(1.0, high * sizes)

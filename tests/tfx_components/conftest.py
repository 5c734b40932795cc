"""Fixtures of the TFX tests; without TFX (the core environment) nothing here is collected."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from tfx_testing import Data, generate, write_tfrecords

import ofb_tf
from tests.streams import serialized_example

# This folder has the package's name: the package itself must be found first.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

collect_ignore_glob = [] if importlib.util.find_spec("tfx") else ["*_test.py"]


@pytest.fixture
def data() -> Data:
    rng = np.random.default_rng(5)
    n = 3000
    logits = rng.normal(-2.0, 2.0, n).astype(np.float32)
    labels = (rng.random(n) < 1.0 / (1.0 + np.exp(-logits))).astype(np.int64)
    ids = rng.permutation(10 * n)[:n].astype(np.int64)
    return Data(ids, labels, logits, rng.choice([b"north", b"south", b"west"], n))


@pytest.fixture
def as_examples(tmp_path):
    """A function from `Data` to an Examples artifact with the splits train and eval."""
    from tfx.types import standard_artifacts

    def make(data: Data, num_files: int = 3, name: str = "examples", **extra):
        artifact = standard_artifacts.Examples()
        artifact.uri = str(tmp_path / name)
        artifact.split_names = json.dumps(["train", "eval"])
        artifact.span = 4
        artifact.set_int_custom_property("span", 4)
        artifact.set_string_custom_property("payload_format", "FORMAT_TF_EXAMPLE")
        rows = [
            serialized_example(id=i, label=y, city=c, x=z, **extra)
            for i, y, c, z in zip(data.ids, data.labels, data.city, data.logits, strict=True)
        ]
        for k, part in enumerate(np.array_split(np.arange(len(rows)), num_files)):
            path = f"Split-train/data_tfrecord-{k:05d}-of-{num_files:05d}.gz"
            write_tfrecords(tmp_path / name / path, [rows[i] for i in part])
        write_tfrecords(tmp_path / name / "Split-eval/data_tfrecord-00000-of-00001.gz", rows[:50])
        return artifact

    return make


@pytest.fixture
def as_records(tmp_path):
    """A function from columns to an ofb.ForwardRecords artifact, made by the component."""

    def make(ids, logits, *, name="records", num_partitions=5, **columns):
        source = tmp_path / f"{name}-serving"
        with ofb_tf.ForwardRecordWriter(source) as writer:
            writer.write(ids, logits, **{"timestamp": 1_000_000} | columns)
        return generate(tmp_path / name, records_pattern=str(source), num_partitions=num_partitions)

    return make


@pytest.fixture
def examples(data, as_examples):
    return as_examples(data)


@pytest.fixture
def records(data, as_records):
    return as_records(data.ids, data.logits)


@pytest.fixture
def sample(tmp_path):
    """A function that runs OFBSampler's function: (Examples, SamplingStatistics)."""
    import apache_beam as beam
    from tfx.types import standard_artifacts

    from tfx_components import artifacts
    from tfx_components.ofb_sampler import OFBSampler

    def run(examples, records, *, name="sampled", argv=(), **kwargs):
        sampled, statistics = standard_artifacts.Examples(), artifacts.SamplingStatistics()
        sampled.uri = str(tmp_path / name)
        statistics.uri = str(tmp_path / f"{name}-statistics")
        settings = {
            "task": "binary",
            "id_feature": "id",
            "rate": 0.1,
            "seed": 3,
            "beam_pipeline": beam.Pipeline(argv=list(argv) or ["--direct_running_mode=in_memory"]),
        }
        OFBSampler.test_call(
            examples=examples,
            forward_records=records,
            sampled_examples=sampled,
            sampling_statistics=statistics,
            **settings | kwargs,
        )
        return sampled, statistics

    return run

"""The transforms alone, in Beam's TestPipeline."""

import math

import numpy as np
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import BeamAssertException, assert_that, equal_to
from tfx_testing import probabilities

from ofb_tf import hashing
from ofb_tf.records import partition_of
from tfx_components.artifacts import Manifest
from tfx_components.forward_record_gen import sources
from tfx_components.forward_record_gen.transforms import WritePartitions
from tfx_components.ofb_sampler.examples import KeySpec
from tfx_components.ofb_sampler.transforms import SamplerConfig, SampleSplit

_SPEC = KeySpec("id", "label", ("city",), {"id": "int64", "label": "int64", "city": "string"})


def _paths(directory, tmp_path, num_files):
    names = [f"data_tfrecord-{k:05d}-of-{num_files:05d}.gz" for k in range(num_files)]
    (tmp_path / "out").mkdir(exist_ok=True)
    return [(str(directory / n), str(tmp_path / "out" / n)) for n in names]


def test_sample_split(data, as_examples, as_records, tmp_path):
    as_examples(data)
    records = as_records(data.ids, data.logits)
    files = _paths(tmp_path / "examples" / "Split-train", tmp_path, 3)
    config = SamplerConfig(task="binary", seed=8)
    draws = hashing.hash01(data.ids, hashing.fold_in(np.int64(8), np.int64(0)))
    p = probabilities(data.scores, 0.1)

    def check(actual):
        (split,) = actual
        if split.total.num_selected != (draws < p).sum():
            raise BeamAssertException(f"selected {split.total.num_selected}")
        if not math.isclose(split.total.variance_selected, (p * (1 - p)).sum(), rel_tol=1e-4):
            raise BeamAssertException(f"variance {split.total.variance_selected}")
        if not math.isclose(split.total.variance_inverse, ((1 - p) / p).sum(), rel_tol=1e-4):
            raise BeamAssertException(f"inverse {split.total.variance_inverse}")
        if sum(tally.num_examples for tally in split.slices.values()) != len(data.ids):
            raise BeamAssertException(f"slices {split.slices}")

    with TestPipeline() as pipeline:
        manifest = Manifest.read(records.uri)
        output = pipeline | SampleSplit(config, _SPEC, files, records.uri, manifest)
        assert_that(output, check)


def test_write_partitions(data, tmp_path):
    import ofb_tf

    with ofb_tf.ForwardRecordWriter(tmp_path / "in") as writer:
        writer.write(data.ids, data.logits, timestamp=5, model_version=3)
    files = [str(path) for path in (tmp_path / "in").iterdir()]
    (tmp_path / "out").mkdir()
    counts = np.bincount(partition_of(data.ids, 4), minlength=4).tolist()
    n = len(data.ids)
    expected = Manifest(4, 1, n, 0, n, counts, {"3": n}, 5, 5)
    with TestPipeline() as pipeline:
        output = pipeline | WritePartitions(
            sources.read_record_file, files, str(tmp_path / "out"), 4
        )
        assert_that(output, equal_to([expected]))
    assert Manifest.read(str(tmp_path / "out")) == expected

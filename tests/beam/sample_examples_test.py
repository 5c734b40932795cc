"""Partitions and samples from plain TFRecords and record files, against a numpy reference."""

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.testing.util import assert_that, equal_to

import ofb_tf
from ofb_tf import hashing
from ofb_tf.beam import EvaluationFn, PartitionRecords, SampleExamples, SamplerConfig
from ofb_tf.evaluation.quality import Measured, measure
from tests.reference import capped_pps
from tests.streams import serialized_example

N = 1200


@pytest.fixture
def data():
    """Ids, labels and logits; the last hundred have no record."""
    rng = np.random.default_rng(5)
    logits = rng.normal(-2.0, 2.0, N).astype(np.float32)
    labels = (rng.random(N) < 1.0 / (1.0 + np.exp(-logits))).astype(np.int64)
    return rng.permutation(10 * N)[:N].astype(np.int64), labels, logits


def pipeline():
    return beam.Pipeline(argv=["--direct_running_mode=in_memory"])


@pytest.fixture
def stored(data, tmp_path):
    """Directories of examples, in three files, and of partitions of their records."""
    ids, labels, logits = data
    (tmp_path / "examples").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(N), 3)):
        with tf.io.TFRecordWriter(str(tmp_path / "examples" / f"part-{number}")) as writer:
            for row in rows:
                writer.write(serialized_example(id=ids[row], label=labels[row]))
    with ofb_tf.ForwardRecordWriter(tmp_path / "serving") as writer:
        writer.write(ids[:500], np.zeros(500), timestamp=1)  # an older model's
        writer.write(ids[:-100], logits[:-100], timestamp=2)
    with pipeline() as p:
        manifest = p | PartitionRecords(
            tmp_path / "serving", tmp_path / "records", num_partitions=4
        )
        counts = manifest | beam.Map(lambda m: (m.num_read, m.num_duplicates, m.num_records))
        assert_that(counts, equal_to([(1600, 500, 1100)]))
    return tmp_path / "examples", tmp_path / "records"


def test_the_sample_is_the_references(data, stored, tmp_path):
    ids, labels, logits = data
    config = SamplerConfig(task="binary", id_feature="id", rate=0.25, seed=3)
    with pipeline() as p:
        statistics = p | SampleExamples(*stored, tmp_path / "sampled", config)
        totals = statistics | beam.Map(lambda s: (s.total.num_examples, s.total.num_scored))
        assert_that(totals, equal_to([(N, N - 100)]))
    found = {}
    for number in range(3):
        dataset = tf.data.TFRecordDataset(str(tmp_path / "sampled" / f"part-{number}"))
        for serialized in dataset.as_numpy_iterator():
            feature = tf.train.Example.FromString(serialized).features.feature
            (weight,) = feature["importance_weight"].float_list.value
            found[feature["id"].int64_list.value[0]] = weight
    scores = np.abs(1.0 / (1.0 + np.exp(-logits[:-100].astype(np.float64))) - labels[:-100])
    sizes = 0.8 * scores / scores.sum() + 0.2 / len(scores)
    p = np.append(capped_pps(sizes, 0.25 * len(scores)), np.full(100, 0.25))
    draws = hashing.hash01(ids, hashing.fold_in(np.int64(3), np.int64(0)))
    # Scores are float32, and the scale is solved for on a histogram: no draw is that close to p.
    assert (np.abs(draws - p) > 1e-5 * p).all()
    chosen = draws < p
    assert set(found) == set(ids[chosen].tolist())
    for row in np.flatnonzero(chosen):
        assert found[ids[row]] == pytest.approx(0.25 / p[row], rel=1e-4)


def test_partitions_are_loaded_by_the_library(data, stored):
    ids, _, logits = data
    records = ofb_tf.ForwardRecords.load(stored[1])
    order = np.argsort(ids[:-100])
    np.testing.assert_array_equal(records.example_ids, ids[:-100][order])
    np.testing.assert_array_equal(records.logits[:, 0], logits[:-100][order])
    assert ofb_tf.PartitionedRecords(stored[1]).num_partitions == 4


def test_inputs_are_never_overwritten(stored, tmp_path):
    examples, records = stored
    config = SamplerConfig(task="binary", id_feature="id")
    with pytest.raises(ValueError, match="output_directory must be another directory"):
        SampleExamples(examples, records, examples, config)
    with pytest.raises(FileExistsError, match="holds record files already"):
        PartitionRecords(tmp_path / "serving", records, num_partitions=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "multiclass"}, "at least 2 outputs for task='multiclass', got 1"),
        ({"label_feature": "tips"}, "no label feature 'tips'"),
        ({"id_feature": "tips"}, "no id feature 'tips'"),
    ],
)
def test_what_does_not_fit_is_an_error_at_construction(stored, tmp_path, change, message):
    config = SamplerConfig(**{"task": "binary", "id_feature": "id"} | change)
    with pytest.raises(ValueError, match=message):
        SampleExamples(*stored, tmp_path / "sampled", config)
    with pytest.raises(FileNotFoundError, match="manifest.json does not exist.*PartitionRecords"):
        SampleExamples(stored[0], tmp_path / "serving", tmp_path / "sampled", config)


def test_the_combine_fn_by_itself(data):
    _, labels, logits = data

    def batch(rows):
        record = {"has_record": tf.constant(rows >= 100), "logits": tf.constant(logits[rows, None])}
        measured = measure(record, tf.constant(labels[rows]), "binary")
        nothing = np.zeros(len(rows), np.int64)
        return {
            "measured": Measured(*(part.numpy() for part in measured)),
            "model_versions": nothing,
            "timestamps": nothing,
        }

    def counts(result):
        return tuple(result["total"][name] for name in ("examples", "evaluated"))

    with pipeline() as p:
        found = (
            p
            | beam.Create([batch(rows) for rows in np.array_split(np.arange(N), 7)])
            | beam.Reshuffle()
            | beam.CombineGlobally(EvaluationFn("binary", num_outputs=1))
            | beam.Map(counts)
        )
        assert_that(found, equal_to([(N, N - 100)]))

"""The evaluation in OFBSampler's output is that of `ofb_tf.evaluate`, whatever the partitions."""

import json

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.testing.util import assert_that, equal_to

import ofb_tf
from ofb_tf.beam import EvaluationFn, read_statistics
from ofb_tf.evaluation.quality import Measured, measure


def approximately(value):
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    if isinstance(value, list):
        return [approximately(each) for each in value]
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


@pytest.mark.parametrize("argv", [[], ["--direct_running_mode=multi_threading"]])
def test_the_samplers_output_has_the_evaluation(data, as_examples, as_records, sample, argv):
    n = len(data.ids)
    data.logits[60:90] = np.nan
    versions = np.where(np.arange(n) < 1000, 1, 2)
    times = 1_700_000_000_000_000 + np.arange(n) * 1_000_000
    columns = {"model_version": versions[50:], "timestamp": times[50:]}
    records = as_records(data.ids[50:], data.logits[50:], **columns)
    _, artifact = sample(
        as_examples(data), records, argv=argv or (), slice_features=["city"], policy="uniform"
    )
    found = read_statistics(artifact.uri)[1]["train"].evaluation
    expected = ofb_tf.evaluate(
        ofb_tf.ForwardRecords.load(records.uri),
        {"example_id": data.ids, "label": data.labels, "city": data.city},
        task="binary",
        slice_keys=["city"],
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    # The most confident quarter is that of each partition.
    for name in ("confident_error", "expected_confident_error", "labels_look_noisy", "advice"):
        assert type(found.pop(name)) is type(expected.pop(name))
    assert found == approximately(expected)
    assert found["total"]["without_record"] == 50 and found["total"]["unusable"] == 30


def test_the_combine_fn_by_itself(data):
    def batch(rows):
        record = {"has_record": tf.constant(rows >= 100), "logits": tf.constant(data.logits[rows])}
        measured = measure(record, tf.constant(data.labels[rows]), "binary")
        nothing = np.zeros(len(rows), np.int64)
        return {
            "measured": Measured(*(part.numpy() for part in measured)),
            "model_versions": nothing,
            "timestamps": nothing,
        }

    def counts(result):
        return tuple(result["total"][name] for name in ("examples", "evaluated"))

    with beam.Pipeline(argv=["--direct_running_mode=in_memory"]) as pipeline:
        found = (
            pipeline
            | beam.Create([batch(rows) for rows in np.array_split(np.arange(3000), 7)])
            | beam.Reshuffle()
            | beam.CombineGlobally(EvaluationFn("binary", num_outputs=1))
            | beam.Map(counts)
        )
        assert_that(found, equal_to([(3000, 2900)]))

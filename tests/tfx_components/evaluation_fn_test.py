"""The evaluation in OFBSampler's output is that of `ofb_tf.evaluate`, whatever the partitions."""

import json

import numpy as np
import pytest

import ofb_tf
from ofb_tf.beam import read_statistics


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

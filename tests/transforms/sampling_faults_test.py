"""`ofb_sample` on bad arguments, elements and records."""

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.records import ForwardRecords
from tests.streams import (
    CLASSES,
    IDS,
    LABELS,
    LOGITS,
    WINDOW,
    N,
    X,
    dicts,
    ids_and_weights,
    sample,
    serialized,
    with_logits,
)

from_columns = ForwardRecords.from_columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.0}, r"rate must be in \(0, 1\]. Received: 0.0"),
        ({"rate": 1.5}, r"rate must be in \(0, 1\]. Received: 1.5"),
        ({"rate": float("nan")}, r"rate must be in \(0, 1\]"),
        ({"window_size": 0}, "window_size must be an integer of at least 1 and below"),
        ({"window_size": 2.5}, "window_size must be an integer"),
        ({"window_size": 5, "rate": 0.1}, "window_size . rate must be at least 1"),
        ({"batch_size": -1}, "batch_size must be an integer of at least 1 and .* Received: -1"),
        ({"task": "ranking"}, "task must be one of"),
        ({"missing": "ignore"}, "missing must be one of"),
        ({"policy": "best"}, "policy must be one of .* Received: 'best'"),
        ({"parse_fn": 3}, "parse_fn must be a function"),
        ({"seed": 2**63}, "seed must be an integer of at least -9"),
        ({"seed": 0.5}, "seed must be an integer of at least -9"),
        ({"max_age": -1.0, "records": "unused"}, "max_age must be positive seconds"),
    ],
)
def test_arguments_out_of_range_fail_at_construction(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ofb_tf.ofb_sample(**arguments)


def fails(dataset, message, **arguments):
    with pytest.raises(ValueError, match=message):
        sample(dataset, **arguments)


def test_spec_errors_name_field_expected_got_and_remedy(records):
    fails(dicts(), "neither 'logits' nor 'loss' .* Pass records=")
    without_id = tf.data.Dataset.from_tensor_slices({"label": LABELS})
    fails(without_id, "'example_id' is missing .*\\['label'\\].*Set id_key", records=records)
    without_label = tf.data.Dataset.from_tensor_slices({"example_id": IDS})
    fails(without_label, "'label' is missing .* Set label_key", records=records)
    fails(with_logits(label=X), "'label' must be a scalar, got .*shape=\\(3,\\)")
    fails(with_logits(label=np.array(["a"] * N)), "'label' must be numeric")
    fails(with_logits(example_id=IDS.astype(np.float32)), "'example_id' must be one of int64")
    fails(with_logits(logits=LABELS), "'logits' must be a float scalar or vector")
    fails(with_logits(logits=LOGITS[:, :, None]), "'logits' must be a float scalar or vector")
    fails(dicts(loss=X), "'loss' must be a scalar float")
    fails(dicts().batch(8), "Elements look batched.*unbatch", records=records)
    fails(dicts(), "with batched_input=True .* batch dimension", batched_input=True)
    fails(dicts().map(lambda e: e["x"]), "elements must be dicts", records=records)
    fails(serialized(), "parse_fn", records=records)
    fails(dicts(), "parse_fn and feature_spec are for serialized", parse_fn=lambda x: x)
    fails(dicts(logits=LOGITS[:, 0], label=X[:, 0]), "Set task='binary' or task='regression'")
    fails(with_logits(label=X[:, 0]), "must be an integer class id")


def test_records_of_another_number_of_outputs(records):
    message = r"must be \[7\], got \[4\] \(records hold num_outputs=4\)"
    fails(dicts(), message, records=records, num_outputs=7)
    fails(dicts(), r"must be \[1\] for task='binary', got \[4\]", records=records, task="binary")
    one = from_columns(IDS, LOGITS[:, 0])
    fails(dicts(), r"2 for task='multiclass', got \[1\]", records=one, task="multiclass")


def test_record_patterns_that_match_nothing(tmp_path):
    for pattern in (str(tmp_path / "*.ofbr"), str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="matches nothing|holds no record"):
            ofb_tf.ofb_sample(records=pattern)


@pytest.mark.parametrize("missing", ["uniform", "keep", "drop"])
def test_unusable_records_and_labels_never_make_a_nan_weight(missing):
    logits, labels = LOGITS.copy(), LABELS.copy()
    logits[::7, 0], logits[::11, 1] = np.nan, np.inf
    labels[::13] = 99
    records = from_columns(IDS[:900], logits[:900])
    got = sample(dicts(label=labels), records=records, missing=missing, keep_record=True)
    elements = list(got)
    weights = np.array([e["importance_weight"] for e in elements])
    assert np.isfinite(weights).all()
    usable = np.array([bool(e["has_record"]) for e in elements])
    if missing == "drop":
        assert usable.all()
    else:
        expected = 1.0 if missing == "uniform" else 0.1
        np.testing.assert_allclose(weights[~usable], expected, rtol=1e-6)
        assert (~usable).any()


def test_missing_error_names_an_example():
    dataset = sample(dicts(), records=from_columns(IDS[:-1], LOGITS[:-1]), missing="error")
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"No .*record.*{IDS[-1]}"):
        list(dataset)


def test_old_records_are_missing():
    records = from_columns(IDS, LOGITS, timestamps=np.repeat([1_000_000, 61_000_000], 500))
    arguments = {"records": records, "as_of": 62_000_000, "missing": "drop"}
    young, _ = ids_and_weights(sample(dicts(), max_age=60.0, **arguments))
    assert set(young) <= set(IDS[500:])
    assert len(young) == 50
    every, _ = ids_and_weights(sample(dicts(), max_age=62.0, **arguments))
    assert len(every) == 100


def test_the_newest_of_several_records_counts(tmp_path):
    wrong = np.full_like(LOGITS, np.nan)
    with ofb_tf.ForwardRecordWriter(str(tmp_path), num_outputs=CLASSES) as writer:
        writer.write(IDS, wrong, timestamp=1)
        writer.write(IDS, LOGITS, timestamp=3, model_version=3)
        writer.write(IDS, wrong, timestamp=2)
    got = ids_and_weights(sample(dicts(), records=str(tmp_path), missing="error"))
    for a, b in zip(got, ids_and_weights(sample()), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [49, 98, 103])
def test_a_rate_of_one_per_window_is_accepted(size):
    assert len(list(sample(rate=1 / size, window_size=size))) >= N // size


def test_numpy_integers_are_integers():
    sampled = sample(window_size=np.int64(WINDOW), batch_size=np.int32(10), seed=np.int64(5))
    expected = ids_and_weights(sample(batch_size=10))
    np.testing.assert_array_equal(ids_and_weights(sampled), expected)

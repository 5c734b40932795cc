"""The click stream against a numpy reference, its statistics, and its reproducibility."""

import math

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf import hashing, testing
from ofb_tf.datasets import VOCABULARY_SIZES, ClickStream
from ofb_tf.datasets.click_function import ClickFunction, value_probabilities


def _columns(dataset):
    """All elements of a batched dataset as one dict of arrays."""
    windows = list(dataset.as_numpy_iterator())
    return {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}


def _draws(ids, seed):
    """Uniform draws, log-dense and categorical values in float64, from the definition."""
    key = hashing.fold_in(np.int64(seed), ids)
    bits = hashing.fold_in(key[:, None], np.arange(21, dtype=np.int64)).view(np.uint32)
    uniforms = (bits >> 9) / 2.0**23
    radii = np.sqrt(-2 * np.log(1 - uniforms[:, :7]))
    angles = 2 * math.pi * uniforms[:, 7:14]
    log_dense = np.concatenate([radii * np.cos(angles), radii * np.sin(angles)], 1)[:, :13]
    sizes = np.array(VOCABULARY_SIZES)
    categorical = np.floor((sizes + 1) ** uniforms[:, 14:40]).astype(np.int64) - 1
    return uniforms[:, 41], log_dense, categorical


def _logit(function, example_id, log_dense, categorical):
    """One logit by plain loops over the columns."""
    angle = 2 * math.pi * function.drift * example_id / 1e6
    offsets = np.concatenate([[0], np.cumsum(VOCABULARY_SIZES)])
    effects = [function.value_effects[offsets[j] + categorical[j]] for j in range(26)]
    logit = 0.0
    for j in range(26):
        logit += math.cos(angle) * effects[j][0] + math.sin(angle) * effects[j][1]
    for j in range(13):
        start, quarter = function.dense_weights[j]
        logit += log_dense[j] * (math.cos(angle) * start + math.sin(angle) * quarter)
        logit += function.curvature[j] * (log_dense[j] ** 2 - 1)
        logit += function.dense_interactions[j] * log_dense[j] * effects[j][2]
        logit += function.pair_interactions[j] * effects[j][2] * effects[j + 13][2]
    return logit


def test_examples_match_a_numpy_reference():
    ids = np.array([0, 1, 2, 17, 4095, 123_456, 599_999], np.int64)
    stream = ClickStream(positive_rate=0.3, seed=5)
    examples = stream.generate(ids)
    draws, log_dense, categorical = _draws(ids, seed=5)
    np.testing.assert_array_equal(examples["categorical"], categorical)
    scales = np.linspace(0.3, 1.0, 13)
    np.testing.assert_allclose(examples["dense"], np.exp(log_dense * scales), rtol=1e-5)
    function = ClickFunction.from_seed(5, stream.drift)
    logits = [_logit(function, *row) for row in zip(ids, log_dense, categorical, strict=True)]
    probability = examples["click_probability"].numpy().astype(np.float64)
    # The intercept is the one number that the reference does not know.
    intercepts = np.log(probability / (1 - probability)) - logits
    np.testing.assert_allclose(intercepts, intercepts[0], atol=2e-5)
    np.testing.assert_array_equal(examples["label"], draws < probability)


def test_element_spec():
    spec = ClickStream(num_examples=8192).dataset(batched=True).element_spec
    assert spec == {
        "example_id": tf.TensorSpec([4096], tf.int64),
        "label": tf.TensorSpec([4096], tf.int64),
        "dense": tf.TensorSpec([4096, 13], tf.float32),
        "categorical": tf.TensorSpec([4096, 26], tf.int64),
        "click_probability": tf.TensorSpec([4096], tf.float32),
    }
    single = ClickStream(num_examples=10).dataset().element_spec
    assert single == {
        name: tf.TensorSpec(item.shape[1:], item.dtype) for name, item in spec.items()
    }


def test_windows_parts_lengths_and_order_change_nothing():
    stream = ClickStream(num_examples=1000)
    expected = {name: value.numpy() for name, value in stream.generate(range(1000)).items()}
    for window_size in (1, 7, 64, 999, 5000):
        actual = _columns(stream.dataset(window_size=window_size, batched=True))
        testing.assert_same_elements([actual], [expected], message=f"{window_size=}: ")
    whole = list(ClickStream(num_examples=300).dataset().as_numpy_iterator())
    longer = ClickStream(num_examples=10**12)
    part = longer.dataset(start=100, count=150, window_size=64)
    testing.assert_same_elements(part.as_numpy_iterator(), whole[100:250])
    windows = longer.dataset(start=0, count=300, window_size=50, batched=True)
    shards = [_columns(windows.shard(3, index))["example_id"] for index in range(3)]
    ids = np.sort(np.concatenate(shards))
    np.testing.assert_array_equal(ids, np.arange(300))
    ids = np.array([9, 3, 500_000, 3], np.int64)
    together = stream.generate(ids)
    for row, example_id in enumerate(ids):
        alone = stream.generate([example_id])
        for name, value in together.items():
            np.testing.assert_array_equal(value[row], alone[name][0])


def test_same_seed_equal_other_seed_different():
    streams = [ClickStream(num_examples=2000, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (_columns(stream.dataset(batched=True)) for stream in streams)
    testing.assert_same_elements([first], [again])
    assert np.mean(first["dense"] == other["dense"]) < 0.01
    assert np.corrcoef(first["click_probability"], other["click_probability"])[0, 1] < 0.2


@pytest.mark.parametrize("positive_rate", [0.002, 0.01, 0.3])
def test_rate_holds_on_ids_that_calibration_did_not_see(positive_rate):
    stream = ClickStream(positive_rate=positive_rate, seed=3)
    ids = np.arange(1, 600_000, 4, dtype=np.int64)
    examples = stream.generate(ids)
    probability = examples["click_probability"].numpy().astype(np.float64)
    assert abs(probability.mean() / positive_rate - 1) < 0.03
    tolerance = 5 * np.sqrt(np.sum(probability * (1 - probability)))
    assert abs(examples["label"].numpy().sum() - probability.sum()) < tolerance


def test_rate_stays_the_same_while_the_function_turns():
    stream = ClickStream(drift=1.0)
    probability = _columns(stream.dataset(batched=True))["click_probability"].astype(np.float64)
    for part in np.split(probability, 10):
        error = 5 * probability.std() / math.sqrt(len(part)) + 0.05 * stream.positive_rate
        assert abs(part.mean() - stream.positive_rate) < error


def test_categorical_values_follow_zipf():
    categorical = ClickStream().generate(np.arange(100_000))["categorical"].numpy()
    for column in (0, 12, 25):
        expected = value_probabilities(VOCABULARY_SIZES[column])
        assert expected.sum() == pytest.approx(1)
        share = np.bincount(categorical[:, column], minlength=VOCABULARY_SIZES[column]) / 100_000
        assert len(share) == VOCABULARY_SIZES[column]
        tolerance = 5 * np.sqrt(expected / 100_000) + 5 / 100_000
        assert np.all(np.abs(share - expected) < tolerance)


def test_dense_features_are_skewed_and_tell_of_the_label():
    examples = ClickStream(positive_rate=0.1).generate(np.arange(100_000))
    dense = examples["dense"].numpy().astype(np.float64)
    assert np.all(dense > 0)
    assert np.all(dense.mean(0) > np.median(dense, 0) * 1.02)
    correlation = np.corrcoef(np.log(dense).T, examples["label"].numpy())[-1, :-1]
    assert np.max(np.abs(correlation)) > 5 / math.sqrt(100_000) + 0.05


def test_effects_have_no_mean_and_do_not_covary_under_zipf():
    function = ClickFunction.from_seed(9, 0.0)
    start = 0
    for size in VOCABULARY_SIZES:
        effects = function.value_effects[start : start + size].astype(np.float64)
        weights = value_probabilities(size)
        start += size
        np.testing.assert_allclose(weights @ effects, 0, atol=1e-5)
        covariance = (effects * weights[:, None]).T @ effects
        np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-5)
    assert start == len(function.value_effects)


def _explained(stream, fit_start, test_start, count=10_000):
    """R² on one stretch of a linear model of the logit that was fitted on another."""

    def design(start):
        part = stream.generate(np.arange(start, start + count))
        columns = [np.log(part["dense"].numpy()), np.ones([count, 1])]
        for column in range(8):
            columns.append(np.eye(VOCABULARY_SIZES[column])[part["categorical"][:, column]])
        probability = part["click_probability"].numpy().astype(np.float64)
        return np.concatenate(columns, 1), np.log(probability / (1 - probability))

    inputs, logits = design(fit_start)
    solution = np.linalg.lstsq(inputs, logits, rcond=None)[0]
    inputs, logits = design(test_start)
    return 1 - np.var(logits - inputs @ solution) / np.var(logits)


def test_what_was_learnt_grows_stale_with_drift_alone():
    drifting = ClickStream(drift=0.5, positive_rate=0.1)  # a quarter turn in 500,000 examples
    steady = ClickStream(drift=0.0, positive_rate=0.1)
    assert _explained(drifting, 0, 10_000) > 0.3
    assert _explained(drifting, 0, 500_000) < 0.1
    assert _explained(drifting, 500_000, 510_000) > 0.3
    assert abs(_explained(steady, 0, 10_000) - _explained(steady, 0, 500_000)) < 0.03


def test_empty_part_and_checkpoint():
    stream = ClickStream(num_examples=11)
    assert not list(stream.dataset(count=0))
    assert not list(stream.dataset(start=11, batched=True))
    assert tf.size(stream.generate(tf.zeros([0], tf.int64))["dense"]) == 0
    testing.assert_checkpoint_roundtrip(stream.dataset(window_size=5))
    testing.assert_checkpoint_roundtrip(stream.dataset(window_size=5, batched=True))


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (None, {"num_examples": 0}, "num_examples must be at least 1. Received: 0"),
        (None, {"positive_rate": 0.0}, r"positive_rate must be in \(0, 1\). Received: 0.0"),
        (None, {"positive_rate": 1.0}, r"positive_rate must be in \(0, 1\). Received: 1.0"),
        (None, {"positive_rate": math.nan}, "positive_rate must be"),
        (None, {"drift": -1.0}, "drift must be finite and not negative. Received: -1.0"),
        (None, {"drift": math.inf}, "drift must be finite"),
        (None, {"seed": 2**63}, "seed must fit in int64"),
        ("dataset", {"start": -1}, r"start must be in \[0, 100\]. Received: -1"),
        ("dataset", {"start": 101}, "start must be"),
        ("dataset", {"start": 60, "count": 41}, r"count must be in \[0, 40\].*Received: 41"),
        ("dataset", {"window_size": 0}, "window_size must be at least 1. Received: 0"),
        ("write", {"num_shards": 0}, "num_shards must be at least 1. Received: 0"),
        ("write", {"compression": "ZSTD"}, "compression must be one of .None, 'GZIP'.. Received"),
        ("write", {"start": 101}, r"start must be in \[0, 100\]"),
        ("write", {"count": 101}, r"count must be in \[0, 100\]"),
    ],
)
def test_arguments_out_of_range(tmp_path, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        if method is None:
            ClickStream(**arguments)
        elif method == "dataset":
            ClickStream(num_examples=100).dataset(**arguments)
        else:
            ClickStream(num_examples=100).write_tfrecords(tmp_path, **arguments)


def test_conversions_match_a_numpy_reference_and_leave_clicks_alone():
    stream = ClickStream(positive_rate=0.3, seed=5, conversion_rate=0.2)
    ids = np.array([0, 1, 2, 17, 4095, 123_456, 599_999], np.int64)
    examples = stream.generate(ids)
    clicks = ClickStream(positive_rate=0.3, seed=5).generate(ids)
    assert set(examples) == set(clicks) | {"conversion", "conversion_probability"}
    for name, values in clicks.items():
        np.testing.assert_array_equal(examples[name], values)
    key = int(hashing.fold_in(np.int64(5), np.int64(31)))
    function = ClickFunction.from_seed(key, stream.drift)
    rows = zip(ids, *_draws(ids, seed=5)[1:], strict=True)
    logits = [_logit(function, *row) for row in rows]
    probability = examples["conversion_probability"].numpy().astype(np.float64)
    intercepts = np.log(probability / (1 - probability)) - logits
    np.testing.assert_allclose(intercepts, intercepts[0], atol=2e-5)


def test_conversions_are_known_of_clicks_alone_and_have_their_rate():
    stream = ClickStream(num_examples=200_000, positive_rate=0.1, seed=2, conversion_rate=0.25)
    columns = _columns(stream.dataset(batched=True))
    click = columns["label"] == 1
    np.testing.assert_array_equal(columns["conversion"] >= 0, click)
    p = columns["conversion_probability"][click].astype(np.float64)
    converted = columns["conversion"][click]
    assert abs(converted.mean() - p.mean()) < 5 * np.sqrt((p * (1 - p)).mean() / len(p))
    # The rate is that of other ids, of about as many clicks.
    assert abs(p.mean() - 0.25) < 5 * p.std() * np.sqrt(2 / len(p))


def test_what_conversions_do_not_have(tmp_path):
    with pytest.raises(
        ValueError, match=r"conversion_rate must be in \(0, 1\) or None. Received: 1"
    ):
        ClickStream(conversion_rate=1.0)
    with pytest.raises(ValueError, match="write_tfrecords writes no conversions"):
        ClickStream(conversion_rate=0.5).write_tfrecords(tmp_path)

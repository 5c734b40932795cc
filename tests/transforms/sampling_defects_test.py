"""Selections that were once silently wrong: what an example's weight and draw depend on."""

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.testing import assert_unbiased
from tests.streams import (
    CLASSES,
    IDS,
    LABELS,
    LOGITS,
    WINDOW,
    N,
    dicts,
    ids_and_weights,
    with_logits,
)
from tests.streams import sample as sample_stream


@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_without_ids_every_window_draws_anew(design):
    """Uniform sampling reads no losses either: nothing but its number sets a window apart."""
    windows, size, rate = 200, 100, 0.1
    pairs = (np.arange(windows * size), np.zeros(windows * size, np.int64))
    sampler = ofb_tf.ofb_sample(
        policy=ofb_tf.Uniform(design=design), rate=rate, window_size=size, seed=3
    )
    dataset = tf.data.Dataset.from_tensor_slices(pairs).apply(sampler)
    places = np.array([x for x, _, _ in dataset.as_numpy_iterator()])
    by_window = [tuple(sorted(places[places // size == w] % size)) for w in range(windows)]
    assert len(set(by_window)) == windows
    # Each place is chosen binomially often: 5 standard deviations over 200 windows.
    counts = np.bincount(places % size, minlength=size)
    assert (np.abs(counts - windows * rate) < 5 * np.sqrt(windows * rate * (1 - rate))).all()
    if design == "poisson":
        deviation = np.sqrt(windows * size * rate * (1 - rate))
        assert abs(len(places) - windows * size * rate) < 5 * deviation


@pytest.mark.parametrize("repeated", [lambda d: d.repeat(6), lambda d: d.repeat().take(6 * N)])
def test_repeating_before_sampling_draws_again(repeated):
    ids, _ = ids_and_weights(sample_stream(repeated(with_logits()), rate=0.1))
    assert len(ids) == 6 * N * 0.1
    # With one selection for ever there would be 100 distinct ids of 1000; independent ones leave
    # out an example of inclusion probability p with probability (1 - p)^6.
    assert len(set(ids.tolist())) > 300


def test_a_repeated_stream_is_still_a_function_of_the_seed():
    first, second = (ids_and_weights(sample_stream(with_logits().repeat(2)))[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("batch_size", [None, 20])
def test_sample_weights_of_any_shape_are_multiplied_per_example(shape, batch_size):
    given = np.random.default_rng(4).uniform(1, 2, (N, *shape)).astype(np.float32)
    features = {"example_id": IDS, "logits": LOGITS}
    triples = tf.data.Dataset.from_tensor_slices((features, LABELS, given))
    plain = sample_stream(with_logits(), batch_size=batch_size)
    importance = dict(zip(*map(np.ndarray.tolist, ids_and_weights(plain)), strict=True))
    place = {example_id: i for i, example_id in enumerate(IDS.tolist())}
    for x, _, weight in sample_stream(triples, batch_size=batch_size):
        ids = np.atleast_1d(x["example_id"])
        assert weight.shape == (*([] if batch_size is None else [len(ids)]), *shape)
        rows = weight.numpy().reshape(len(ids), *shape)
        for example_id, row in zip(ids.tolist(), rows, strict=True):
            expected = importance[example_id] * given[place[example_id]]
            np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_an_earlier_selections_weight_is_multiplied():
    trials, selected = 300, N // 4
    first = ofb_tf.ofb_sample(rate=0.5, window_size=WINDOW, seed=1, keep_record=True)
    second = ofb_tf.ofb_sample(rate=0.5, window_size=WINDOW // 2, seed=2, batch_size=selected)
    twice = with_logits().apply(first).apply(second).repeat(trials)  # every repetition redraws
    estimates = [
        np.mean(batch["importance_weight"].astype(np.float64) * batch["label"])
        for batch in twice.as_numpy_iterator()
    ]
    assert len(estimates) == trials
    assert_unbiased(lambda trial: estimates[trial], LABELS.mean(), trials=trials)


def lossy_stream(share):
    """A stream without records for a share of the examples, evenly spread."""
    has_record = np.arange(N) % 100 >= 100 * share
    return tf.data.Dataset.from_tensor_slices(
        {"example_id": IDS, "label": LABELS, "logits": LOGITS, "has_record": has_record}
    )


@pytest.mark.parametrize("share", [0.05, 0.32])
def test_keep_bounds_weights_and_the_probe_stays_uniform(share):
    """Kept examples use up the budget; the others' probability still is rate * uniform_mix."""
    fraction, flagged, largest, trials = 0.02, np.zeros(N), 0.0, 300
    place = {example_id: i for i, example_id in enumerate(IDS.tolist())}
    sampler = ofb_tf.ofb_sample(
        rate=0.1,
        window_size=WINDOW,
        missing="keep",
        uniform_probe=fraction,
        seed=9,
        batch_size=WINDOW,
    )
    sampled = lossy_stream(share).apply(sampler)
    for batch in sampled.repeat(trials).as_numpy_iterator():  # every repetition redraws
        largest = max(largest, batch["importance_weight"].max())
        probe = batch["example_id"][batch["uniform_probe"]]
        np.add.at(flagged, [place[i] for i in probe.tolist()], 1)
    assert largest <= 5.0 * (1 + 1e-6)  # 1 / uniform_mix
    deviation = np.sqrt(fraction * (1 - fraction) / trials)
    has_record = np.arange(N) % 100 >= 100 * share
    for group in (has_record, ~has_record):
        assert abs(flagged[group].mean() / trials - fraction) < 5 * deviation / np.sqrt(group.sum())
    # No single example is left out: each count is binomial.
    assert (flagged / trials > fraction - 5 * deviation).all()


@pytest.mark.parametrize("size", [49, 98, 103])
def test_a_rate_of_one_per_window_is_accepted(size):
    assert len(list(sample_stream(rate=1 / size, window_size=size))) >= N // size


def test_numpy_integers_are_integers():
    sampled = sample_stream(window_size=np.int64(WINDOW), batch_size=np.int32(10), seed=np.int64(5))
    expected = ids_and_weights(sample_stream(batch_size=10))
    np.testing.assert_array_equal(ids_and_weights(sampled), expected)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"])
def test_labels_of_every_integer_dtype_select_the_same(dtype):
    assert CLASSES > 2  # softmax cross-entropy
    ids, weights = ids_and_weights(sample_stream(with_logits(label=LABELS.astype(dtype))))
    expected = ids_and_weights(sample_stream())
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(weights, expected[1])


def test_uniform_holdout_is_the_deprecated_name_of_the_probe():
    with pytest.warns(DeprecationWarning, match="use uniform_probe"):
        sampler = ofb_tf.ofb_sample(uniform_holdout=0.01, window_size=WINDOW, seed=5)
    new = ofb_tf.ofb_sample(uniform_probe=0.01, window_size=WINDOW, seed=5)
    old = [bool(e["uniform_holdout"]) for e in with_logits().apply(sampler)]
    assert old == [bool(e["uniform_probe"]) for e in with_logits().apply(new)]


def test_keep_is_the_deprecated_name_of_flag(records):
    with pytest.warns(DeprecationWarning, match="use missing='flag'"):
        old = ofb_tf.join_forward_records(records, missing="keep")
    new = ofb_tf.join_forward_records(records)
    ofb_tf.testing.assert_same_elements(dicts(30).apply(old), dicts(30).apply(new))

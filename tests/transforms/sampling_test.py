"""`ofb_sample` on real record files: exact values, structure, late decode, counts."""

import collections

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.testing import assert_unbiased
from tests import reference
from tests.streams import (
    CLASSES,
    IDS,
    LABELS,
    LOGITS,
    PLACE,
    SPEC,
    WINDOW,
    N,
    X,
    dicts,
    ids_and_weights,
    sample,
    serialized,
    with_logits,
)


def test_rate_one_changes_nothing_but_adds_a_weight_of_one(records):
    got = list(sample(dicts(), records=records, rate=1.0, policy="uniform"))
    assert len(got) == N
    by_id = {int(e["example_id"]): e for e in got}
    for i in range(0, N, 97):
        element = by_id[int(IDS[i])]
        assert int(element["label"]) == LABELS[i]
        np.testing.assert_array_equal(element["x"], X[i])
        assert float(element["importance_weight"]) == 1.0


@pytest.mark.parametrize("batch_size", [None, 20, 64])
def test_every_window_gives_its_budget_and_every_row_stays_whole(records, batch_size):
    dataset = sample(dicts(), records=records, batch_size=batch_size, keep_record=True)
    dataset = dataset.unbatch() if batch_size else dataset
    windows = collections.Counter()
    for element in dataset:
        i = PLACE[int(element["example_id"])]
        windows[i // WINDOW] += 1
        assert int(element["label"]) == LABELS[i]
        np.testing.assert_array_equal(element["x"], X[i])
        np.testing.assert_array_equal(element["logits"], LOGITS[i])
        assert int(element["model_version"]) == 3
    assert dict(windows) == dict.fromkeys(range(N // WINDOW), WINDOW // 10)


def test_joined_records_and_records_in_the_elements_give_the_same_selection(records):
    joined = sample(dicts(), records=records)
    upstream = sample(dicts().apply(ofb_tf.join_forward_records(records)))
    expected = ids_and_weights(joined)
    for other in (sample(), upstream):
        for a, b in zip(expected, ids_and_weights(other), strict=True):
            np.testing.assert_array_equal(a, b)
    assert joined.element_spec == sample().element_spec == upstream.element_spec


@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_the_weighted_mean_loss_is_unbiased_over_epochs(design):
    losses = reference.cross_entropy(LOGITS, LABELS)
    dataset = sample(policy=ofb_tf.Importance(design=design), batch_size=50)
    estimates = []
    for _ in range(60):
        ids, weights = ids_and_weights(dataset)
        estimates.append((weights * losses[[PLACE[i] for i in ids.tolist()]]).sum() / (0.1 * N))
    tolerance = 5 * np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - losses.mean()) < tolerance


# Structure.


def test_with_every_argument_left_out():
    element = next(iter(with_logits().repeat(5).apply(ofb_tf.ofb_sample())))
    assert set(element) == {"example_id", "label", "x", "importance_weight"}
    assert element["importance_weight"].dtype == tf.float32


def test_without_ids_or_with_a_loss_alone():
    dataset = tf.data.Dataset.from_tensor_slices({"loss": np.abs(X[:, 0]), "label": LABELS})
    elements = list(dataset.apply(ofb_tf.ofb_sample(window_size=WINDOW, seed=1)))
    assert len(elements) == N // 10
    assert set(elements[0]) == {"label", "importance_weight"}


def test_tuples_keep_their_structure(records):
    features = {"example_id": IDS, "x": X}
    weights = np.full(N, 3.0, np.float32)
    pairs = tf.data.Dataset.from_tensor_slices((features, LABELS))
    triples = tf.data.Dataset.from_tensor_slices((features, LABELS, weights))
    two = list(sample(pairs, records=records))
    three = list(sample(triples, records=records))
    assert len(two) == len(three) == N // 10
    for (x, y, w), (x3, y3, w3) in zip(two, three, strict=True):
        assert set(x) == {"example_id", "x"}
        assert int(x["example_id"]) == int(x3["example_id"])
        assert int(y) == int(y3)
        np.testing.assert_allclose(w3, 3 * w, rtol=1e-6)
    kept = next(iter(sample(pairs, records=records, keep_record=True)))
    assert set(kept[0]) >= {"logits", "has_record", "model_version", "timestamp"}


def test_uniform_needs_neither_records_nor_a_dict():
    dataset = tf.data.Dataset.from_tensor_slices((X, LABELS))
    elements = list(sample(dataset, policy="uniform", batch_size=20, drop_remainder=True))
    assert len(elements) == 5
    assert elements[0][0].shape == (20, 3)
    np.testing.assert_array_equal(elements[0][2], np.ones(20))


def test_batches_have_a_static_size_with_drop_remainder():
    dataset = sample(batch_size=32, drop_remainder=True)
    assert dataset.element_spec["x"].shape == (32, 3)
    assert [len(b["label"]) for b in dataset] == [32] * 3
    assert [len(b["label"]) for b in sample(batch_size=32)] == [32, 32, 32, 4]


def test_string_ids():
    names = np.array([f"request-{i}" for i in range(N)])
    records = ofb_tf.ForwardRecords.from_columns(names, LOGITS)
    got = list(sample(dicts(example_id=names), records=records, missing="error"))
    assert len(got) == N // 10
    assert got[0]["example_id"].dtype == tf.string


@pytest.mark.parametrize("batch_size", [1, 64, 200, 333])
def test_batched_input_gives_the_same_selection(batch_size):
    batched = sample(with_logits().batch(batch_size), batched_input=True, batch_size=50)
    for a, b in zip(ids_and_weights(batched), ids_and_weights(sample(batch_size=50)), strict=True):
        np.testing.assert_array_equal(a, b)


# Late decode.


@pytest.mark.parametrize("batch_size", [None, 20])
def test_late_decode_gives_what_early_decode_gives(records, batch_size):
    late = sample(
        serialized(),
        records=records,
        batch_size=batch_size,
        parse_fn=lambda examples: tf.io.parse_example(examples, SPEC),
    )
    early = sample(dicts(), records=records, batch_size=batch_size)
    assert late.element_spec == early.element_spec
    for a, b in zip(late, early, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_parse_fn_sees_only_what_was_selected(records):
    parsed = tf.Variable(0, dtype=tf.int64)

    def parse(examples):
        parsed.assign_add(tf.size(examples, tf.int64))
        features = tf.io.parse_example(examples, SPEC)
        return features, features.pop("label")

    elements = list(sample(serialized(), records=records, batch_size=20, parse_fn=parse))
    assert int(parsed) == N // 10
    assert len(elements[0]) == 3


@pytest.mark.parametrize("batch_size", [None, 20])
def test_decode_fn_sees_only_what_was_selected(records, batch_size):
    decoded = tf.Variable(0, dtype=tf.int64)

    def decode(element):
        decoded.assign_add(1)
        return element | {"twice": element["x"] * 2}

    got = list(sample(dicts(), records=records, decode_fn=decode, batch_size=batch_size))
    assert int(decoded) == N // 10
    np.testing.assert_array_equal(got[0]["twice"], got[0]["x"] * 2)
    ids = np.concatenate([np.atleast_1d(e["example_id"]) for e in got])
    plain, _ = ids_and_weights(sample(dicts(), records=records))
    assert set(ids) == set(plain)


def test_decode_fn_alone_takes_serialized_examples(records):
    dataset = sample(
        serialized(),
        records=records,
        decode_fn=lambda example: tf.io.parse_single_example(example, SPEC),
    )
    assert dataset.element_spec == sample(dicts(), records=records).element_spec


# Counts and the uniform probe.


def test_statistics_count_every_example():
    logits, labels = LOGITS.copy(), LABELS.copy()
    logits[:30, 0] = np.nan
    labels[30:50] = -1
    records = ofb_tf.ForwardRecords.from_columns(IDS[:900], logits[:900])
    sampler = ofb_tf.ofb_sample(records=records, window_size=WINDOW, seed=3)
    dataset = dicts(label=labels)
    got = sampler.statistics(dataset)
    _, weights = ids_and_weights(dataset.apply(sampler))
    assert (got["examples"], got["without_record"], got["unusable"]) == (N, 100, 50)
    assert got["coverage"] == 0.85
    assert got["selected"] == N // 10
    assert got["realized_rate"] == 0.1
    # The pass over the dataset is a pass of its own, with draws of its own.
    assert abs(got["mean_weight"] - 1.0) < 5 * weights.std() / np.sqrt(len(weights))
    assert 1.0 < got["max_weight"] <= 5.0 * (1 + 1e-6)


def test_statistics_equal_the_sampled_dataset():
    sampler = ofb_tf.ofb_sample(window_size=WINDOW, seed=3, redraw_each_iteration=False)
    got = sampler.statistics(with_logits())
    _, weights = ids_and_weights(with_logits().apply(sampler))
    np.testing.assert_allclose(got["mean_weight"], weights.mean(), rtol=1e-6)
    np.testing.assert_allclose(got["max_weight"], weights.max(), rtol=1e-6)
    expected = reference.effective_sample_size(weights)
    np.testing.assert_allclose(got["effective_sample_size"], expected, rtol=1e-5)


def test_statistics_of_an_empty_dataset():
    got = ofb_tf.ofb_sample().statistics(with_logits(0))
    assert got["examples"] == got["selected"] == 0
    assert np.isnan(got["coverage"])


def test_the_uniform_probe_is_a_uniform_sample_of_the_stream():
    fraction, epochs, counts = 0.02, 150, np.zeros(N)
    for batch in sample(uniform_probe=fraction, batch_size=100).repeat(epochs):  # redraws
        flagged = batch["example_id"][batch["uniform_probe"]].numpy()
        np.add.at(counts, [PLACE[i] for i in flagged.tolist()], 1)
    deviation = np.sqrt(fraction * (1 - fraction) * epochs)
    assert abs(counts.mean() / epochs - fraction) < 5 * deviation / epochs / np.sqrt(N)
    # Halves by recorded difficulty are flagged alike.
    scores = np.linalg.norm(reference.gradients(LOGITS, LABELS), axis=1)
    hard = scores > np.median(scores)
    gap = counts[hard].mean() - counts[~hard].mean()
    assert abs(gap) < 5 * deviation * np.sqrt(2 / (N / 2))
    plain = ids_and_weights(sample())
    for a, b in zip(plain, ids_and_weights(sample(uniform_probe=fraction)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_uniform_probe_above_the_least_probability_is_refused():
    with pytest.raises(ValueError, match=r"uniform_probe must be in .* 0.02. Received: 0.05"):
        ofb_tf.ofb_sample(uniform_probe=0.05)


@pytest.mark.parametrize("share", [0.05, 0.32])
def test_keep_bounds_weights_and_the_probe_stays_uniform(share):
    """Kept examples use up the budget; the others' probability still is rate * uniform_mix."""
    fraction, flagged, largest, trials = 0.02, np.zeros(N), 0.0, 300
    has_record = np.arange(N) % 100 >= 100 * share  # evenly spread
    sampled = sample(
        with_logits(has_record=has_record),
        missing="keep",
        uniform_probe=fraction,
        batch_size=WINDOW,
    )
    for batch in sampled.repeat(trials).as_numpy_iterator():  # every repetition redraws
        largest = max(largest, batch["importance_weight"].max())
        probe = batch["example_id"][batch["uniform_probe"]]
        np.add.at(flagged, [PLACE[i] for i in probe.tolist()], 1)
    assert largest <= 5.0 * (1 + 1e-6)  # 1 / uniform_mix
    deviation = np.sqrt(fraction * (1 - fraction) / trials)
    for group in (has_record, ~has_record):
        assert abs(flagged[group].mean() / trials - fraction) < 5 * deviation / np.sqrt(group.sum())
    # No single example is left out: each count is binomial.
    assert (flagged / trials > fraction - 5 * deviation).all()


def test_uniform_holdout_is_the_deprecated_name_of_the_probe():
    with pytest.warns(DeprecationWarning, match="use uniform_probe"):
        sampler = ofb_tf.ofb_sample(uniform_holdout=0.01, window_size=WINDOW, seed=5)
    new = ofb_tf.ofb_sample(uniform_probe=0.01, window_size=WINDOW, seed=5)
    old = [bool(e["uniform_holdout"]) for e in with_logits().apply(sampler)]
    assert old == [bool(e["uniform_probe"]) for e in with_logits().apply(new)]


# Weights that were there before, and types.


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("batch_size", [None, 20])
def test_sample_weights_of_any_shape_are_multiplied_per_example(shape, batch_size):
    given = np.random.default_rng(4).uniform(1, 2, (N, *shape)).astype(np.float32)
    features = {"example_id": IDS, "logits": LOGITS}
    triples = tf.data.Dataset.from_tensor_slices((features, LABELS, given))
    plain = sample(with_logits(), batch_size=batch_size)
    importance = dict(zip(*map(np.ndarray.tolist, ids_and_weights(plain)), strict=True))
    for x, _, weight in sample(triples, batch_size=batch_size):
        ids = np.atleast_1d(x["example_id"])
        assert weight.shape == (*([] if batch_size is None else [len(ids)]), *shape)
        rows = weight.numpy().reshape(len(ids), *shape)
        for example_id, row in zip(ids.tolist(), rows, strict=True):
            expected = importance[example_id] * given[PLACE[example_id]]
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


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64"])
def test_labels_of_every_integer_dtype_select_the_same(dtype):
    assert CLASSES > 2  # softmax cross-entropy
    ids, weights = ids_and_weights(sample(with_logits(label=LABELS.astype(dtype))))
    expected = ids_and_weights(sample())
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(weights, expected[1])

"""`ofb_sample` on real record files: structure, exactness, reproducibility, checkpoints, faults."""

import collections

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.records import maintenance

N, WINDOW, CLASSES = 1000, 200, 4
RNG = np.random.default_rng(2)
IDS = RNG.permutation(np.arange(N)) * 7919 - 3_000_000
LABELS = RNG.integers(0, CLASSES, N)
LOGITS = (RNG.normal(size=(N, CLASSES)) * 2).astype(np.float32)
X = RNG.normal(size=(N, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    with ofb_tf.ForwardRecordWriter(str(directory), num_outputs=CLASSES) as writer:
        for begin in range(0, N, 128):
            writer.write(IDS[begin : begin + 128], LOGITS[begin : begin + 128], model_version=3)
    return str(directory)


def dicts(n=N, **changes):
    fields = {"example_id": IDS[:n], "label": LABELS[:n], "x": X[:n]} | changes
    return tf.data.Dataset.from_tensor_slices(fields)


def with_logits(n=N, **changes):
    return dicts(n, **{"logits": LOGITS[:n]} | changes)


def ids_and_weights(dataset):
    ids, weights = [], []
    for element in dataset:
        ids.append(np.atleast_1d(element["example_id"]))
        weights.append(np.atleast_1d(element["importance_weight"]))
    if not ids:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    return np.concatenate(ids), np.concatenate(weights)


def sample(dataset=None, **arguments):
    dataset = with_logits() if dataset is None else dataset
    return dataset.apply(ofb_tf.ofb_sample(**{"seed": 5, "window_size": WINDOW} | arguments))


# Exact values.


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
    place = {int(value): i for i, value in enumerate(IDS)}
    windows = collections.Counter()
    for element in dataset:
        i = place[int(element["example_id"])]
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
    p = np.exp(LOGITS - LOGITS.max(1, keepdims=True))
    losses = -np.log((p / p.sum(1, keepdims=True))[np.arange(N), LABELS])
    loss_of = dict(zip(IDS.tolist(), losses, strict=True))
    dataset = sample(policy=ofb_tf.Importance(design=design), batch_size=50)
    estimates = []
    for _ in range(60):
        ids, weights = ids_and_weights(dataset)
        estimates.append((weights * [loss_of[i] for i in ids.tolist()]).sum() / (0.1 * N))
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


def test_string_ids(tmp_path):
    names = np.array([f"request-{i}" for i in range(N)])
    ids = ofb_tf.hashing.as_example_ids(tf.constant(names)).numpy()
    with ofb_tf.ForwardRecordWriter(str(tmp_path), num_outputs=CLASSES) as writer:
        writer.write(ids, LOGITS)
    dataset = dicts(example_id=names)
    got = list(sample(dataset, records=str(tmp_path), missing="error"))
    assert len(got) == N // 10
    assert got[0]["example_id"].dtype == tf.string


@pytest.mark.parametrize("batch_size", [1, 64, 200, 333])
def test_batched_input_gives_the_same_selection(batch_size):
    batched = sample(with_logits().batch(batch_size), batched_input=True, batch_size=50)
    for a, b in zip(ids_and_weights(batched), ids_and_weights(sample(batch_size=50)), strict=True):
        np.testing.assert_array_equal(a, b)


# Late decode.


def serialized():
    def example(i):
        feature = {
            "example_id": tf.train.Feature(int64_list=tf.train.Int64List(value=[IDS[i]])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[LABELS[i]])),
            "x": tf.train.Feature(float_list=tf.train.FloatList(value=X[i])),
        }
        features = tf.train.Features(feature=feature)
        return tf.train.Example(features=features).SerializeToString()

    return tf.data.Dataset.from_tensor_slices([example(i) for i in range(N)])


SPEC = {
    "example_id": tf.io.FixedLenFeature([], tf.int64),
    "label": tf.io.FixedLenFeature([], tf.int64),
    "x": tf.io.FixedLenFeature([3], tf.float32),
}


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


# Reproducibility.


@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_same_seed_equal_other_seed_different_at_any_parallelism(design):
    def run(seed, threads):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        policy = ofb_tf.Importance(design=design)
        return ids_and_weights(sample(seed=seed, policy=policy).with_options(options))

    one, four, other = run(9, 1), run(9, 4), run(10, 4)
    np.testing.assert_array_equal(one[0], four[0])
    np.testing.assert_array_equal(one[1], four[1])
    assert set(one[0]) != set(other[0])


def test_each_epoch_draws_anew_and_runs_repeat():
    first, second = sample(), sample()
    epochs = [ids_and_weights(first)[0] for _ in range(3)]
    again = [ids_and_weights(second)[0] for _ in range(3)]
    for a, b in zip(epochs, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({tuple(e) for e in epochs}) == 3
    repeated = ids_and_weights(sample().repeat(3))[0]
    np.testing.assert_array_equal(repeated, np.concatenate(epochs))


def test_redrawing_can_be_turned_off():
    dataset = sample(redraw_each_iteration=False)
    np.testing.assert_array_equal(ids_and_weights(dataset)[0], ids_and_weights(dataset)[0])


def test_the_seed_none_draws_one_at_construction():
    a, b = (with_logits().apply(ofb_tf.ofb_sample(window_size=WINDOW)) for _ in range(2))
    assert set(ids_and_weights(a)[0]) != set(ids_and_weights(b)[0])


# Empty, short, infinite.


def test_an_empty_dataset_stays_empty():
    assert list(sample(with_logits(0))) == []
    assert list(sample(with_logits(0), batch_size=8)) == []


def test_a_dataset_shorter_than_a_window_keeps_the_rate_on_average():
    sizes = []
    dataset = sample(with_logits(25), batch_size=8)
    for _ in range(80):
        sizes.append(len(ids_and_weights(dataset)[0]))
    assert set(sizes) == {2, 3}
    assert abs(np.mean(sizes) - 2.5) < 5 * 0.5 / np.sqrt(80)


def test_an_infinite_dataset():
    dataset = sample(with_logits().repeat(), batch_size=20)
    assert len(list(dataset.take(30))) == 30


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.0}, r"rate must be in \(0, 1\]. Received: 0.0"),
        ({"rate": 1.5}, r"rate must be in \(0, 1\]. Received: 1.5"),
        ({"rate": float("nan")}, r"rate must be in \(0, 1\]"),
        ({"window_size": 0}, "window_size must be an integer of at least 1. Received: 0"),
        ({"window_size": 2.5}, "window_size must be an integer"),
        ({"window_size": 5, "rate": 0.1}, "window_size . rate must be at least 1"),
        ({"batch_size": -1}, "batch_size must be an integer of at least 1. Received: -1"),
        ({"task": "ranking"}, "task must be one of"),
        ({"missing": "ignore"}, "missing must be one of"),
        ({"policy": "best"}, "policy must be one of .* Received: 'best'"),
        ({"parse_fn": 3}, "parse_fn must be a function"),
        ({"seed": 2**63}, r"seed must be an integer in"),
        ({"seed": 0.5}, r"seed must be an integer in"),
        ({"max_age": -1.0, "records": "unused"}, "max_age must be positive seconds"),
    ],
)
def test_arguments_out_of_range_fail_at_construction(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ofb_tf.ofb_sample(**arguments)


@pytest.mark.parametrize("mix", [-0.1, 1.1, float("nan")])
def test_uniform_mix_out_of_range(mix):
    with pytest.raises(ValueError, match=r"uniform_mix must be in \[0, 1\]. Received"):
        ofb_tf.Importance(uniform_mix=mix)


@pytest.mark.parametrize("arguments", [{"design": "random"}, {"score": "entropy"}])
def test_unknown_design_or_score(arguments):
    with pytest.raises(ValueError, match="must be 'systematic'|must be 'gradient_norm_bound'"):
        ofb_tf.Importance(**arguments)


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


def test_records_of_another_number_of_outputs(records, tmp_path):
    fails(
        dicts(),
        r"must be \[7\], got \[4\] \(records hold num_outputs=4\)",
        records=records,
        num_outputs=7,
    )
    fails(dicts(), r"must be \[1\] for task='binary', got \[4\]", records=records, task="binary")
    with ofb_tf.ForwardRecordWriter(str(tmp_path), num_outputs=1) as writer:
        writer.write(IDS, LOGITS[:, 0])
    fails(
        dicts(),
        r"at least 2 for task='multiclass', got \[1\]",
        records=str(tmp_path),
        task="multiclass",
    )


def test_record_patterns_that_match_nothing(tmp_path):
    for pattern in (str(tmp_path / "*.ofbr"), str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="matches nothing|holds no record"):
            ofb_tf.ofb_sample(records=pattern)


@pytest.mark.parametrize("missing", ["uniform", "keep", "drop"])
def test_unusable_records_and_labels_never_make_a_nan_weight(tmp_path, missing):
    logits, labels = LOGITS.copy(), LABELS.copy()
    logits[::7, 0], logits[::11, 1] = np.nan, np.inf
    labels[::13] = 99
    with ofb_tf.ForwardRecordWriter(str(tmp_path), num_outputs=CLASSES) as writer:
        writer.write(IDS[:900], logits[:900])
    got = sample(dicts(label=labels), records=str(tmp_path), missing=missing, keep_record=True)
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


def test_missing_error_names_an_example(tmp_path):
    with ofb_tf.ForwardRecordWriter(str(tmp_path), num_outputs=CLASSES) as writer:
        writer.write(IDS[:-1], LOGITS[:-1])
    dataset = sample(dicts(), records=str(tmp_path), missing="error")
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"No .*record.*{IDS[-1]}"):
        list(dataset)


def test_old_records_are_missing(tmp_path):
    with ofb_tf.ForwardRecordWriter(str(tmp_path), num_outputs=CLASSES) as writer:
        writer.write(IDS[:500], LOGITS[:500], timestamp=1_000_000)
        writer.write(IDS[500:], LOGITS[500:], timestamp=61_000_000)
    arguments = {"records": str(tmp_path), "as_of": 62_000_000, "missing": "drop"}
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


# Checkpoints.


@pytest.fixture(scope="module")
def partitioned(records, tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("partitioned") / "by-id")
    maintenance.partition(records, directory, 3)
    return ofb_tf.PartitionedRecords(directory)


def partition_of_dataset(dataset, partition):
    """The examples of one partition; a user has them in files of their own."""

    def belongs(element):
        if element.dtype == tf.string if isinstance(element, tf.Tensor) else False:
            element = tf.io.parse_single_example(element, SPEC)
        return ofb_tf.records.partition_of(element["example_id"], 3) == partition

    return dataset.filter(belongs)


@pytest.mark.parametrize("by_partition", [False, True])
@pytest.mark.parametrize("design", ["systematic", "poisson"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_restore_at_every_step_continues_exactly(
    records, partitioned, tmp_path, by_partition, design, late, batch_size
):
    source = serialized().take(400) if late else dicts(400)
    sampler = ofb_tf.ofb_sample(
        records=partitioned if by_partition else records,
        policy=ofb_tf.Importance(design=design),
        parse_fn=(lambda examples: tf.io.parse_example(examples, SPEC)) if late else None,
        batch_size=batch_size,
        window_size=100,
        seed=8,
    )
    if by_partition:
        dataset = sampler.partitions(lambda k: partition_of_dataset(source, k))
    else:
        dataset = source.apply(sampler)

    def key(element):
        ids, weights = element["example_id"], element["importance_weight"]
        return np.atleast_1d(ids).tolist(), np.atleast_1d(weights).tolist()

    iterator = iter(dataset)
    steps, paths = [], []
    while True:
        path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / f"at{len(paths)}"))
        paths.append(path)
        try:
            steps.append(key(next(iterator)))
        except StopIteration:
            break
    assert len(steps) >= (30 if batch_size is None else 2)
    for step, path in enumerate(paths):
        restored = iter(dataset)
        tf.train.Checkpoint(iterator=restored).read(path)
        assert [key(element) for element in restored] == steps[step:]


def test_a_checkpoint_in_the_second_epoch_restores_in_a_new_dataset(tmp_path):
    dataset = sample(batch_size=10)
    list(dataset)
    iterator = iter(dataset)
    next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "second"))
    expected = [e["example_id"].numpy().tolist() for e in iterator]
    restored = iter(sample(batch_size=10))
    tf.train.Checkpoint(iterator=restored).read(path)
    assert [e["example_id"].numpy().tolist() for e in restored] == expected


# Counts and the uniform holdout.


def test_statistics_count_every_example(tmp_path):
    logits, labels = LOGITS.copy(), LABELS.copy()
    logits[:30, 0] = np.nan
    labels[30:50] = -1
    with ofb_tf.ForwardRecordWriter(str(tmp_path), num_outputs=CLASSES) as writer:
        writer.write(IDS[:900], logits[:900])
    sampler = ofb_tf.ofb_sample(records=str(tmp_path), window_size=WINDOW, seed=3)
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
    ess = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
    np.testing.assert_allclose(got["effective_sample_size"], ess, rtol=1e-5)


def test_statistics_of_an_empty_dataset():
    got = ofb_tf.ofb_sample().statistics(with_logits(0))
    assert got["examples"] == got["selected"] == 0
    assert np.isnan(got["coverage"])


def test_the_uniform_holdout_is_a_uniform_sample_of_the_stream():
    fraction, epochs = 0.02, 150
    dataset = sample(uniform_holdout=fraction)
    flagged = collections.Counter()
    for _ in range(epochs):
        for element in dataset.as_numpy_iterator():
            flagged[int(element["example_id"])] += bool(element["uniform_holdout"])
    counts = np.array([flagged[i] for i in IDS.tolist()])
    deviation = np.sqrt(fraction * (1 - fraction) * epochs)
    assert abs(counts.mean() / epochs - fraction) < 5 * deviation / epochs / np.sqrt(N)
    # Halves by recorded difficulty are flagged alike.
    scores = ofb_tf.scores.gradient_norm_bound(LOGITS, LABELS, "multiclass").numpy()
    hard = scores > np.median(scores)
    gap = counts[hard].mean() - counts[~hard].mean()
    assert abs(gap) < 5 * deviation * np.sqrt(2 / (N / 2))
    plain = ids_and_weights(sample())
    for a, b in zip(plain, ids_and_weights(sample(uniform_holdout=fraction)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_uniform_holdout_above_the_least_probability_is_refused():
    with pytest.raises(ValueError, match=r"uniform_holdout must be in .* 0.02. Received: 0.05"):
        ofb_tf.ofb_sample(uniform_holdout=0.05)


# Records larger than memory.


def test_partitions_give_every_example_its_record(partitioned):
    sampler = ofb_tf.ofb_sample(
        records=partitioned, window_size=50, seed=1, rate=1.0, keep_record=True, missing="error"
    )
    place = {int(value): i for i, value in enumerate(IDS)}
    seen = []
    for element in sampler.partitions(lambda k: partition_of_dataset(dicts(), k)):
        i = place[int(element["example_id"])]
        np.testing.assert_array_equal(element["logits"], LOGITS[i])
        assert int(element["model_version"]) == 3
        seen.append(i)
    assert sorted(seen) == list(range(N))


def test_partitions_with_the_poisson_design_select_what_one_join_selects(partitioned, records):
    """Each window normalises its own probabilities, so scores of 1 for all make them equal."""
    policy = ofb_tf.Importance(score=lambda window: tf.ones_like(window.losses), design="poisson")
    arguments = {"policy": policy, "seed": 4, "window_size": 100}
    whole, _ = ids_and_weights(sample(dicts(), records=records, **arguments))
    parts = ofb_tf.ofb_sample(records=partitioned, **arguments).partitions(
        lambda k: partition_of_dataset(dicts(), k)
    )
    assert set(ids_and_weights(parts)[0]) == set(whole)


def test_partitions_redraw_each_epoch_and_count(partitioned):
    sampler = ofb_tf.ofb_sample(records=partitioned, window_size=50, seed=4)
    dataset = sampler.partitions(lambda k: partition_of_dataset(dicts(), k))
    first, second = ids_and_weights(dataset)[0], ids_and_weights(dataset)[0]
    assert set(first) != set(second)
    missing = dicts(example_id=IDS + 1)
    counts = sampler.statistics(lambda k: partition_of_dataset(missing, k))
    assert (counts["examples"], counts["without_record"]) == (N, N)


def test_an_empty_partition(tmp_path):
    ids = np.array([i for i in range(100) if ofb_tf.records.partition_of(np.array([i]), 3)[0] != 1])
    with ofb_tf.ForwardRecordWriter(str(tmp_path / "in"), num_outputs=1) as writer:
        writer.write(ids, np.zeros(len(ids)))
    maintenance.partition(str(tmp_path / "in"), str(tmp_path / "out"), 3)
    records = ofb_tf.PartitionedRecords(str(tmp_path / "out"))
    stream = tf.data.Dataset.from_tensor_slices({"example_id": np.arange(100), "label": [1] * 100})
    counts = ofb_tf.ofb_sample(records=records, window_size=10).statistics(
        lambda k: partition_of_dataset(stream, k)
    )
    assert counts["examples"] == 100
    assert counts["without_record"] == 100 - len(ids)


def test_partitioned_records_need_partitioned_examples(partitioned, records, tmp_path):
    with pytest.raises(ValueError, match=r"call sampler\.partitions"):
        sample(dicts(), records=partitioned)
    with pytest.raises(ValueError, match=r"needs records=PartitionedRecords"):
        ofb_tf.ofb_sample(records=records).partitions(lambda k: dicts())
    with pytest.raises(ValueError, match="ofb records partition"):
        ofb_tf.PartitionedRecords(records)

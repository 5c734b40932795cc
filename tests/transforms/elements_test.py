"""The forms that ids, labels and features may have, and fields whose names collide."""

import warnings

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
    PLACE,
    N,
    X,
    dicts,
    sample,
    serialized_example,
    with_logits,
)

slices = tf.data.Dataset.from_tensor_slices


@pytest.fixture(name="reference", scope="module")
def _reference():
    """Ids and weights of the plain form, which every other form must select too."""
    records = ForwardRecords.from_columns(IDS, LOGITS)
    elements = list(sample(dicts(), records=records))
    return records, {int(e["example_id"]): float(e["importance_weight"]) for e in elements}


def assert_selects(expected, places, weights):
    got = dict(zip(IDS[np.asarray(places)].tolist(), np.ravel(weights).tolist(), strict=True))
    assert got == expected


PLACES = np.arange(N)
ONE_HOT = np.eye(CLASSES, dtype=np.float32)[LABELS]


@pytest.mark.parametrize("form", ["[1]", "one-hot", "y[label]", "nested", "one entry", "batched"])
def test_forms_of_labels_select_alike(reference, form):
    records, expected = reference
    x = {"example_id": IDS, "place": PLACES}
    elements, arguments = {
        "[1]": ((x, LABELS[:, None]), {}),
        "one-hot": ((x, ONE_HOT), {"task": "multiclass"}),
        "y[label]": ((x, {"label": LABELS, "other": X}), {}),
        "nested": (
            ({"key": x}, {"a": {"b": LABELS}}),
            {"label_key": "a/b", "id_key": "key/example_id"},
        ),
        "one entry": ((x, {"digit": LABELS}), {}),
        "batched": ((x, {"label": ONE_HOT}), {"task": "multiclass", "batched_input": True}),
    }[form]
    dataset = slices(elements)
    dataset = dataset.batch(150) if form == "batched" else dataset
    got = list(sample(dataset, records=records, **arguments))
    places = [e[0].get("key", e[0])["place"] for e in got]
    assert_selects(expected, places, [e[2] for e in got])


@pytest.mark.parametrize("batch_size", [None, 16])
def test_an_id_next_to_the_tuple_is_not_fed(reference, batch_size):
    records, expected = reference
    dataset = tf.data.Dataset.zip(slices(IDS), slices((PLACES, LABELS)))
    got = list(sample(dataset, records=records, batch_size=batch_size))
    assert all(len(element) == 3 for element in got)
    places = np.concatenate([np.ravel(x) for x, _, _ in got])
    np.testing.assert_array_equal(np.concatenate([np.ravel(y) for _, y, _ in got]), LABELS[places])
    assert_selects(expected, places, np.concatenate([np.ravel(w) for _, _, w in got]))


def test_string_ids_next_to_the_tuple():
    text = np.array([f"user-{i}" for i in range(N)])
    records = ForwardRecords.from_columns(text, LOGITS)
    dataset = tf.data.Dataset.zip(slices(text), slices((PLACES, LABELS, np.ones(N, np.float32))))
    sampler = ofb_tf.ofb_sample(records=records, window_size=100, seed=1)
    assert sampler.statistics(dataset)["coverage"] == 1.0
    assert len(list(dataset.apply(sampler))) == 100


@pytest.mark.parametrize("batch_size", [None, 16])
def test_ragged_and_sparse_features_keep_their_rows(reference, batch_size):
    records, expected = reference
    lengths = PLACES % 4
    ragged = tf.RaggedTensor.from_row_lengths(np.repeat(PLACES, lengths), lengths)
    dense = np.where(np.arange(5) < lengths[:, None], PLACES[:, None] + 1, 0)
    fields = {"place": PLACES, "ragged": ragged, "sparse": tf.sparse.from_dense(dense)}
    got = list(
        sample(
            slices({"example_id": IDS, "label": LABELS, **fields}),
            records=records,
            batch_size=batch_size,
        )
    )
    places = np.concatenate([np.ravel(e["place"]) for e in got])
    assert_selects(
        expected, places, np.concatenate([np.ravel(e["importance_weight"]) for e in got])
    )
    sparse = [np.reshape(tf.sparse.to_dense(e["sparse"]), [-1, 5]) for e in got]
    np.testing.assert_array_equal(np.concatenate(sparse), dense[places])
    rows = [e["ragged"].to_list() if batch_size else [e["ragged"].numpy().tolist()] for e in got]
    assert [row for part in rows for row in part] == [[p] * (p % 4) for p in places.tolist()]


def test_no_label_is_needed_where_records_hold_the_loss():
    losses = np.random.default_rng(0).exponential(size=N).astype(np.float32)
    records = ForwardRecords.from_columns(IDS, losses=losses)
    tokens = np.tile(LABELS[:, None], [1, 6])
    dataset = slices(({"example_id": IDS}, {"tokens": tokens, "class": LABELS}))
    batch = next(iter(sample(dataset, records=records, label_key=None, batch_size=8)))
    weights = batch[2]
    assert weights["tokens"].shape == (8, 1)
    assert weights["class"].shape == (8,)
    order = np.argsort([losses[PLACE[int(i)]] for i in batch[0]["example_id"]])
    assert (np.diff(weights["class"].numpy()[order]) <= 1e-6).all()
    with pytest.raises(ValueError, match="label_key=None needs records that hold the loss"):
        sample(with_logits(), label_key=None)


def test_a_row_of_zeros_is_no_class():
    rows = np.where((PLACES % 50 == 0)[:, None], 0, ONE_HOT)
    sampler = ofb_tf.ofb_sample(window_size=200, task="multiclass")
    assert sampler.statistics(with_logits(label=rows))["unusable"] == N // 50


@pytest.mark.parametrize("name", ["timestamp", "model_version", "logits", "has_record"])
def test_fields_of_the_user_are_never_overwritten(reference, name):
    records, expected = reference
    field = PLACES.astype(np.float32)
    dataset = dicts(**{name: field})
    got = list(sample(dataset, records=records))
    assert [float(e[name]) for e in got] == [PLACE[int(e["example_id"])] for e in got]
    assert len(got) == len(expected)
    with pytest.raises(ValueError, match=rf"fields \['{name}'\], which are names .*Rename"):
        sample(dataset, records=records, keep_record=True)
    with pytest.raises(ValueError, match=rf"fields \['{name}'\].*Rename"):
        dataset.apply(ofb_tf.join_forward_records(records))


def test_a_field_timestamp_survives_where_elements_carry_logits():
    got = list(sample(with_logits(timestamp=PLACES)))
    assert [int(e["timestamp"]) for e in got] == [PLACE[int(e["example_id"])] for e in got]
    assert "logits" not in got[0]


def test_labels_out_of_range_are_warned_of_in_the_pipeline(capfd):
    logits = LOGITS[:, :1]
    list(sample(with_logits(logits=logits, label=LABELS + 1), task="binary"))
    error = capfd.readouterr().err
    assert error.count("labels of this window are out of range for task='binary'") == N // 200
    few = np.where(PLACES % 25 == 0, 7, LABELS % 2)
    list(sample(with_logits(logits=logits, label=few), task="binary"))
    assert "out of range" not in capfd.readouterr().err


def test_errors_say_what_is_wrong_and_what_to_write(reference):
    records, _ = reference
    for dataset, message in (
        (slices((X, LABELS)), r"\(example_id, \(x, y\)\)"),
        (slices(({"example_id": IDS}, X)), "one-hot rows set task='multiclass'.*label_key=None"),
        (slices(({"example_id": IDS}, {"a": LABELS, "b": X})), r"have \['a', 'b'\]. Set label_key"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(dataset, records=records)


def test_probabilities_recorded_as_logits_are_warned_of():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    with pytest.warns(UserWarning, match="as probabilities do"):
        sample(dicts(), records=ForwardRecords.from_columns(IDS, p))
    with pytest.warns(UserWarning, match="as probabilities do"):
        records = ForwardRecords.from_columns(IDS, p[:, 0])
        sample(dicts(label=LABELS % 2), records=records, task="binary")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = ForwardRecords.from_columns(IDS, LOGITS[:, 0])
        sampler = ofb_tf.ofb_sample(records=logits, updatable=True, task="binary")
        dicts(label=LABELS % 2).apply(sampler)
    with pytest.warns(UserWarning, match="as probabilities do"):
        sampler.update(records)


USERS = np.array([f"user-{i % 40}" for i in range(N)])
TIMES = PLACES // 40
MADE = ofb_tf.example_id_of(USERS, TIMES)
COLUMNS = {"user": USERS, "time": TIMES}


@pytest.mark.parametrize("form", ["dict", "nested", "batched", "serialized", "joined"])
def test_an_id_made_of_columns(form):
    """The same selection as by a field with that id."""
    records = ForwardRecords.from_columns(MADE, LOGITS)
    fields = {"label": LABELS, "place": PLACES}
    expected = list(sample(slices({"example_id": MADE, **fields}), records=records))
    settings = {"records": records, "id_key": ["user", "time"]}
    dataset = slices({**COLUMNS, **fields})
    if form == "nested":
        settings["id_key"] = ["key/user", "key/time"]
        dataset = slices({"key": COLUMNS, **fields})
    elif form == "batched":
        dataset, settings["batched_input"] = dataset.batch(150), True
    elif form == "joined":
        dataset = dataset.apply(ofb_tf.join_forward_records(records, id_key=settings["id_key"]))
        del settings["records"]
    elif form == "serialized":
        rows = zip(USERS, TIMES, LABELS, PLACES, strict=True)
        dataset = slices(
            [serialized_example(user=u.encode(), time=t, label=y, place=p) for u, t, y, p in rows]
        )
        spec = dict.fromkeys(("time", "label", "place"), tf.io.FixedLenFeature([], tf.int64))
        spec["user"] = tf.io.FixedLenFeature([], tf.string)
        settings |= {"feature_spec": spec, "parse_fn": lambda s: tf.io.parse_example(s, spec)}
    got = list(sample(dataset, **settings))
    for element, other in zip(got, expected, strict=True):
        assert element["place"] == other["place"]
        assert element["importance_weight"] == other["importance_weight"]


@pytest.mark.parametrize(
    ("id_key", "message"),
    [
        (
            ["user", "hour"],
            r"field \('user', 'hour'\) is missing .*have \['label', 'time', 'user'\]",
        ),
        (["user", "rows"], r"\('user', 'rows'\) must be a scalar, got TensorSpec\(shape=\(2,\)"),
        ([], "is missing from the elements"),
    ],
)
def test_columns_that_make_no_id(id_key, message):
    records = ForwardRecords.from_columns(MADE, LOGITS)
    rows = {"rows": np.zeros([N, 2], np.int64)} if "rows" in id_key else {}
    with pytest.raises(ValueError, match=message):
        sample(slices({**COLUMNS, "label": LABELS, **rows}), records=records, id_key=id_key)

"""`ofb_sample(estimator="log_odds")`: the field that elements leave with."""

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.records import ForwardRecords
from ofb_tf.testing import assert_checkpoint_roundtrip, tiny_dataset
from tests.streams import CLASSES, IDS, LOGITS, PLACE, SPEC, dicts, serialized, with_logits

COMMON = {"seed": 5, "window_size": 200, "estimator": "log_odds"}


def sample(dataset, **arguments):
    return dataset.apply(ofb_tf.ofb_sample(**COMMON | arguments))


def columns(dataset, *names):
    elements = list(dataset.as_numpy_iterator())
    elements = [e[0] if isinstance(e, tuple) else e for e in elements]
    return [np.concatenate([np.atleast_1d(e[name]) for e in elements]) for name in names]


def test_elements_leave_with_offsets_instead_of_weights():
    got = sample(with_logits(), batch_size=20)
    weighted = sample(with_logits(), batch_size=20, estimator="weights")
    assert got.element_spec["log_inclusion"] == tf.TensorSpec([None, CLASSES], tf.float32)
    assert set(got.element_spec) == {"example_id", "label", "x", "log_inclusion"}
    ids, offsets, labels = columns(got, "example_id", "log_inclusion", "label")
    same_ids, weights = columns(weighted, "example_id", "importance_weight")
    np.testing.assert_array_equal(ids, same_ids)
    own = offsets[np.arange(len(ids)), labels]
    np.testing.assert_allclose(own, np.log(0.1 / weights), atol=1e-5)


def test_binary_has_one_offset():
    stream = tiny_dataset(400)
    got = sample(stream, batch_size=20)
    assert got.element_spec["log_inclusion"].shape == (None, 1)
    (offsets,) = columns(got, "log_inclusion")
    (logits,) = columns(sample(stream, batch_size=20, keep_record=True), "logits")
    # A negative is the more probable to be selected, the higher its logit.
    np.testing.assert_array_equal(np.argsort(offsets[:, 0])[::-1], np.argsort(logits[:, 0]))
    assert (offsets[logits < 0] > 0).all() and (offsets[logits > 0] < 0).all()


def test_records_in_the_top_k_form(tmp_path):
    """Two of four logits kept: the offsets have four columns, those of the kept nearly exact."""
    with ofb_tf.ForwardRecordWriter(str(tmp_path), num_outputs=CLASSES, top_k=2) as writer:
        writer.write(IDS, LOGITS)
    kept = ForwardRecords.load(str(tmp_path))
    assert kept.columns["logits"].shape[1] == 2
    full = ForwardRecords.from_columns(IDS, LOGITS)
    policy = ofb_tf.Importance(design="poisson")
    whole, top = (
        columns(
            sample(dicts(), records=records, batch_size=10, policy=policy, rate=0.5),
            "example_id",
            "log_inclusion",
        )
        for records in (full, kept)
    )
    assert top[1].shape[1] == CLASSES
    shared, rows, rows_of_top = np.intersect1d(whole[0], top[0], return_indices=True)
    assert len(shared) > 50
    likely = np.argsort(-LOGITS, axis=1)[[PLACE[i] for i in shared.tolist()], :2]
    exact, approximate = (
        np.take_along_axis(offsets, likely, 1) for offsets in (whole[1][rows], top[1][rows_of_top])
    )
    np.testing.assert_allclose(approximate, exact, atol=0.1)


def test_records_join_and_lost_ones_have_no_offset():
    recorded = np.arange(len(IDS)) % 3 > 0
    records = ForwardRecords.from_columns(IDS[recorded], LOGITS[recorded])
    got = sample(dicts(), records=records, keep_record=True)
    offsets, has_record = columns(got, "log_inclusion", "has_record")
    offsets = offsets.reshape(-1, CLASSES)
    assert 0 < has_record.sum() < len(has_record)
    np.testing.assert_array_equal(offsets[~has_record], 0.0)
    assert (offsets[has_record] < 0.0).all()


def test_tuples():
    """x holds the offsets; y and weights are left as they are."""
    pairs = with_logits().map(lambda e: (e, e["label"]))
    triples = with_logits().map(lambda e: (e, e["label"], 2.0))
    x, y = next(iter(sample(pairs, batch_size=8)))
    assert x["log_inclusion"].shape == (8, CLASSES) and y.shape == (8,)
    assert "importance_weight" not in x
    _, _, weight = next(iter(sample(triples, batch_size=8)))
    np.testing.assert_array_equal(weight, 2.0)


def test_serialized_examples():
    records = ForwardRecords.from_columns(IDS, LOGITS)
    arguments = {"records": records, "batch_size": 8}
    got = sample(serialized(), parse_fn=lambda s: tf.io.parse_example(s, SPEC), **arguments)
    assert next(iter(got))["log_inclusion"].shape == (8, CLASSES)
    with pytest.raises(ValueError, match="x must be a dict.*estimator='log_odds'"):
        sample(
            serialized(),
            parse_fn=lambda s: (tf.io.parse_example(s, SPEC)["x"], tf.zeros([tf.size(s)])),
            **arguments,
        )


def test_an_earlier_selection_counts():
    """Offsets of two samplers are added, an earlier importance weight is kept."""
    once = sample(with_logits(), keep_record=True, rate=0.5, redraw_each_iteration=False)
    twice = sample(once, rate=0.5, window_size=100, seed=6, keep_record=True)
    first = dict(zip(*(c.tolist() for c in columns(once, "example_id", "label")), strict=True))
    ids, offsets = columns(twice, "example_id", "log_inclusion")
    assert set(ids.tolist()) < set(first)
    assert offsets.min() < np.log(0.2 * 0.5), "the first selection's part is missing"
    weighted = sample(with_logits(), estimator="weights", keep_record=True, rate=0.5)
    _, weights = columns(sample(weighted, rate=0.5, window_size=100), "label", "importance_weight")
    assert weights.max() > 1.0


def test_uniform_has_the_width_that_is_asked_for():
    got = sample(dicts(), policy="uniform", num_outputs=CLASSES, batch_size=8)
    np.testing.assert_array_equal(next(iter(got))["log_inclusion"], np.zeros([8, CLASSES]))


def test_checkpoint():
    assert_checkpoint_roundtrip(sample(with_logits(), batch_size=10))


def test_statistics_are_those_of_unweighted_examples():
    got = ofb_tf.ofb_sample(**COMMON).statistics(with_logits())
    assert got["mean_weight"] == got["max_weight"] == 1.0
    assert got["realized_rate"] == 0.1


def with_soft_labels():
    return tiny_dataset(400).map(lambda e: e | {"label": tf.cast(e["label"], tf.float32) * 0.9})


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (tiny_dataset(task="regression"), {"task": "regression"}, "is for classification"),
        (tiny_dataset().map(lambda e: (e["feature"], e["label"])), {}, "x is a dict"),
        (
            tiny_dataset().map(lambda e: {k: e[k] for k in ("example_id", "label", "loss")}),
            {},
            "needs the recorded logits",
        ),
        (
            tiny_dataset(task="multiclass").map(lambda e: e | {"class_ids": [0, 1, 2]}),
            {},
            "pass the records instead",
        ),
    ],
    ids=["regression", "array", "loss", "top_k"],
)
def test_streams_that_do_not_fit_are_refused(dataset, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        sample(dataset, **arguments)
    assert "weights" in str(error.value)


def test_soft_labels_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="soft labels.*weights"):
        list(sample(with_soft_labels(), task="binary"))


def test_one_head_with_one_label_is_needed():
    with pytest.raises(ValueError, match=r"one head.*\['click', 'sale'\].*estimator='weights'"):
        ofb_tf.ofb_sample(**COMMON, task={"click": "binary", "sale": "binary"})
    rows = with_logits().map(lambda e: e | {"label": tf.one_hot(e["label"], CLASSES)})
    with pytest.raises(ValueError, match=r"one label.*\(4,\).*tf.argmax.*estimator='weights'"):
        sample(rows, task="multiclass")
    two = with_logits().map(lambda e: e | {"label": tf.zeros([2]), "logits": e["logits"][:2]})
    with pytest.raises(ValueError, match=r"one label.*\(2,\).*estimator='weights'"):
        sample(two, task="binary")
    with pytest.raises(ValueError, match="one label.*label_key=None.*estimator='weights'"):
        sample(with_logits().map(lambda e: e | {"loss": 1.0}), label_key=None)
    with pytest.raises(ValueError, match=r"one head.*\['click'\].*estimator='weights'"):
        ofb_tf.OFBModel(label_key={"click": "click"}, estimator="log_odds")


def test_an_unknown_estimator():
    with pytest.raises(ValueError, match="estimator must be one of.*'odds'"):
        ofb_tf.ofb_sample(estimator="odds")

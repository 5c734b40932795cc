import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import constants
from ofb_tf.records import ForwardRecords, ForwardRecordWriter, maintenance, partition_of
from ofb_tf.records.partitioned import PartitionedRecords
from ofb_tf.selection import scores
from ofb_tf.transforms import join


def exact(logits, labels):
    """Loss and bound in float64, from all logits."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    py = p[np.arange(len(p)), labels]
    onehot = np.eye(p.shape[1])[labels] if p.shape[1] <= 1000 else None
    if onehot is not None:
        bound = np.linalg.norm(p - onehot, axis=1)
    else:
        bound = np.sqrt((1 - py) ** 2 + (p**2).sum(axis=1) - py**2)
    return -np.log(py), bound, p


def record_of(logits, k, directory):
    with ForwardRecordWriter(directory, top_k=k) as writer:
        writer.write(np.arange(len(logits)), logits)
    records = ForwardRecords.load(directory)
    assert records.num_outputs == logits.shape[1]
    return join.lookup_in_memory(records, None).fields(tf.range(len(logits), dtype=tf.int64))


@pytest.mark.parametrize("num_classes", [1000, 50_000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("k", [1, 8])
def test_scores_are_within_the_proven_bound(tmp_path, num_classes, scale, k):
    rng = np.random.default_rng(0)
    n = 60
    logits = (scale * rng.normal(size=(n, num_classes))).astype(np.float32)
    labels = rng.integers(0, num_classes, n)
    labels[::3] = logits[::3].argmax(axis=1)  # a third of the labels are among the k
    record = record_of(logits, k, tmp_path)
    loss, bound, p = exact(logits, labels)
    got_loss = scores.example_loss(record, labels, "multiclass").numpy()
    got_bound = scores.gradient_norm_bound(record, labels, "multiclass").numpy()
    kept = (record[constants.CLASS_IDS].numpy() == labels[:, None]).any(axis=1)
    np.testing.assert_allclose(got_loss[kept], loss[kept], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got_bound[kept], bound[kept], atol=1e-3)
    largest = np.sort(p, axis=1)[:, ::-1][:, :k]
    residual = 1 - largest.sum(axis=1)
    spread = residual / (num_classes - k)
    np.testing.assert_allclose(got_loss[~kept], -np.log(spread)[~kept], rtol=1e-4)
    expected = np.sqrt((p**2).sum(axis=1) - 2 * spread + 1)
    np.testing.assert_allclose(got_bound[~kept], expected[~kept], rtol=1e-5)
    limit = np.minimum(largest[:, -1], residual) * (k + 1) / k
    error = np.abs(got_bound - bound)
    assert (error <= limit + 1e-3)[~kept].all()
    # The bound says something: it is far below the scores for flat and for peaked outputs alike.
    assert np.median(error) < 0.05 * np.median(bound)
    assert (got_bound <= np.sqrt(2) + 1e-6).all()


def test_all_mass_among_the_k_is_exact_and_finite(tmp_path):
    logits = np.full((2, 100), -200.0, np.float32)
    logits[:, 7] = 10.0
    record = record_of(logits, 2, tmp_path)
    labels = np.array([7, 50])
    np.testing.assert_allclose(
        scores.gradient_norm_bound(record, labels, "multiclass"), [0, np.sqrt(2)], 1e-5
    )
    assert np.isfinite(scores.example_loss(record, labels, "multiclass")).all()
    assert scores.example_loss(record, labels, "multiclass")[1] > 10


def test_not_finite_logits_and_labels_out_of_range_are_not_valid(tmp_path):
    logits = np.random.default_rng(0).normal(size=(6, 30)).astype(np.float32)
    logits[1, 3], logits[2, 4], logits[3, 5] = np.nan, np.inf, -np.inf
    record = record_of(logits, 4, tmp_path)
    valid = scores.valid_examples(record, tf.constant([0, 0, 0, 0, 30, -1]), "multiclass").numpy()
    # A class that the model rules out (-inf) is no fault: it is not among the k.
    np.testing.assert_array_equal(valid, [True, False, False, True, False, False])


def test_sampling_from_top_k_records_is_like_sampling_from_all_logits(tmp_path):
    rng = np.random.default_rng(0)
    n, num_classes = 512, 200
    logits = (3 * rng.normal(size=(n, num_classes))).astype(np.float32)
    labels = np.where(np.arange(n) % 2, logits.argmax(axis=1), rng.integers(0, num_classes, n))
    for name, k in {"all": None, "top": 10}.items():
        with ForwardRecordWriter(tmp_path / name, top_k=k) as writer:
            writer.write(np.arange(n), logits)
    examples = tf.data.Dataset.from_tensor_slices({"example_id": np.arange(n), "label": labels})
    taken = {}
    for name in ("all", "top"):
        sample = ofb_tf.ofb_sample(
            records=str(tmp_path / name),
            task="multiclass",
            window_size=n,
            seed=1,
            policy=ofb_tf.Importance(design="poisson"),
        )
        taken[name] = {
            int(e["example_id"]): float(e["importance_weight"]) for e in examples.apply(sample)
        }
        assert set(next(iter(examples.apply(sample)))) == {
            "example_id",
            "label",
            "importance_weight",
        }
    both = set(taken["all"]) & set(taken["top"])
    assert len(both) > 0.9 * len(taken["all"])
    for example_id in both:
        assert taken["all"][example_id] == pytest.approx(taken["top"][example_id], rel=0.1)


def test_a_partitions_lookup_gives_the_same_fields(tmp_path):
    logits = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    with ForwardRecordWriter(tmp_path / "in", top_k=5) as writer:
        writer.write(np.arange(300), logits)
    maintenance.partition(tmp_path / "in", tmp_path / "out", 3)
    partitioned = PartitionedRecords(str(tmp_path / "out"))
    in_memory = join.lookup_in_memory(ForwardRecords.load(tmp_path / "in"), None)
    ids = np.arange(300)
    for partition in range(3):
        here = tf.constant(ids[partition_of(ids, 3) == partition])
        (columns,) = partitioned.dataset(partition)
        got = join.lookup_in_columns(columns, None).fields(here)
        expected = in_memory.fields(here)
        assert set(got) == set(expected)
        assert (got[constants.NUM_OUTPUTS].numpy() == 40).all()
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_the_kept_logits_and_classes_are_the_largest(tmp_path):
    logits = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    record = record_of(logits, 5, tmp_path)
    order = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(record[constants.CLASS_IDS], order)

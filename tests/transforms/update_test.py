"""`OFBSampler.update`: new records in datasets and iterators that exist, without a retrace."""

import threading

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from tests.streams import IDS, LABELS, LOGITS, N, dicts, ids_and_weights

NEW_LOGITS = LOGITS[::-1].copy()
BY_ID = np.argsort(IDS)


class CountingPolicy(ofb_tf.Importance):
    """Counts how often it is traced."""

    traces = 0

    def inclusion(self, window, budget):
        type(self).traces += 1
        return super().inclusion(window, budget)


def records(logits=LOGITS, rows=slice(None), **columns):
    return ofb_tf.ForwardRecords.from_columns(IDS[rows], logits[rows], **columns)


def sampler(first, **settings):
    defaults = {"seed": 5, "window_size": 200, "redraw_each_iteration": False}
    return ofb_tf.ofb_sample(records=first, **defaults | settings)


def assert_same(a, b):
    for got, expected in zip(ids_and_weights(a), ids_and_weights(b), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "first",
    [
        records(),
        records(LOGITS.astype(np.float16), rows=slice(0, None, 3)),
        records(
            losses=LOGITS[:, 0] ** 2, model_versions=np.arange(N) % 300, timestamps=IDS + 10**9
        ),
    ],
    ids=["logits", "float16-partly-missing", "losses-versions-timestamps"],
)
def test_updatable_records_select_as_constant_ones_do(first):
    settings = {"keep_record": True, "max_age": 3600.0, "as_of": 3_600_000_000}
    constant = dicts().apply(sampler(first, **settings))
    updatable = dicts().apply(sampler(first, updatable=True, **settings))
    assert constant.element_spec == updatable.element_spec
    for a, b in zip(constant, updatable, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def test_the_top_k_form_can_be_updated(tmp_path):
    with ofb_tf.ForwardRecordWriter(str(tmp_path), top_k=2) as writer:
        writer.write(IDS, LOGITS)
    first = ofb_tf.ForwardRecords.load(str(tmp_path))
    updatable = sampler(first, updatable=True)
    updatable.update(str(tmp_path))
    assert_same(dicts().apply(updatable), dicts().apply(sampler(first)))


def test_the_next_iteration_uses_new_records_without_a_retrace():
    CountingPolicy.traces = 0
    updatable = sampler(records(), updatable=True, policy=CountingPolicy())
    dataset = dicts().apply(updatable)
    traced = CountingPolicy.traces
    assert_same(dataset, dicts().apply(sampler(records())))
    # Of another size, with other versions.
    fewer = records(NEW_LOGITS, slice(0, 700), model_versions=np.arange(700))
    updatable.update(fewer)
    assert_same(dataset, dicts().apply(sampler(fewer)))
    assert updatable.statistics(dicts())["coverage"] == 0.7
    traced_by_statistics = CountingPolicy.traces
    again = dicts().apply(updatable)
    assert_same(again, dataset)
    assert traced == 1 and CountingPolicy.traces == traced_by_statistics == 2


def test_a_running_iterator_uses_new_records_and_keeps_its_place():
    stream = dicts().apply(sampler(records(), updatable=True, batch_size=20))
    updatable = sampler(records(), updatable=True, batch_size=20)
    iterator = iter(dicts().apply(updatable))
    old = [batch["example_id"].numpy() for batch in stream]
    got = [next(iterator)["example_id"].numpy()]
    updatable.update(records(NEW_LOGITS))
    got += [batch["example_id"].numpy() for batch in iterator]
    new = dicts().apply(sampler(records(NEW_LOGITS), batch_size=20))
    new = [batch["example_id"].numpy() for batch in new]
    assert len(got) == len(old) == len(new) == 5
    # Each window is selected with the old or the new records; the last were not in a buffer yet.
    choices = [[np.array_equal(g, x) for g, x in zip(got, xs, strict=True)] for xs in (old, new)]
    assert all(a or b for a, b in zip(*choices, strict=True))
    assert choices[0][0]


def test_an_update_is_seen_as_a_whole():
    """While a thread replaces the records, no example gets the logits of another id."""
    ids = np.arange(4000)

    def make(version, count):
        rows = ids[:count]
        logits = (rows * 10 + version).astype(np.float32)
        return ofb_tf.ForwardRecords.from_columns(rows, logits, model_versions=version)

    versions = [make(1, 4000), make(2, 1500)]
    updatable = sampler(
        versions[0], updatable=True, window_size=50, keep_record=True, task="regression", rate=1.0
    )
    stream = tf.data.Dataset.from_tensor_slices(
        {"example_id": ids, "label": ids.astype(np.float32)}
    )
    dataset = stream.repeat(3).apply(updatable)
    done = threading.Event()

    def replace():
        turn = 0
        while not done.is_set():
            turn += 1
            updatable.update(versions[turn % 2])

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        seen = set()
        for element in dataset.batch(500).as_numpy_iterator():
            version, has = element["model_version"], element["has_record"]
            expected = element["example_id"][has] * 10 + version[has]
            np.testing.assert_array_equal(element["logits"][has, 0], expected)
            assert has[element["example_id"] < 1500].all()
            assert (version[element["example_id"] >= 1500] != 2).all()
            seen |= set(version.tolist())
    finally:
        done.set()
        thread.join()
    assert {1, 2} <= seen


@pytest.mark.slow
def test_checkpoints_leave_the_records_out(tmp_path):
    dataset = dicts().apply(sampler(records(), updatable=True))
    ofb_tf.testing.assert_checkpoint_roundtrip(dataset)
    iterator = iter(dataset)
    next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "checkpoint"))
    rest = [int(element["example_id"]) for element in iterator]
    # After a restart: another process would make the sampler again, from the records there are.
    restored = iter(dicts().apply(sampler(records(), updatable=True)))
    tf.train.Checkpoint(iterator=restored).read(path)
    assert [int(element["example_id"]) for element in restored] == rest


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="update.. needs a sampler made with updatable=True"):
        sampler(records()).update(records())
    for unfit in (None,):
        with pytest.raises(ValueError, match="updatable=True needs records that are loaded"):
            sampler(unfit, updatable=True)
    updatable = sampler(records(), updatable=True)
    for unfit in (records(losses=LOGITS[:, 0]), records(LOGITS.astype(np.float16))):
        with pytest.raises(ValueError, match="needs records like the first"):
            updatable.update(unfit)
    with (
        tf.distribute.MirroredStrategy(["CPU:0"]).scope(),
        pytest.raises(ValueError, match=r"outside the scope of a tf.distribute.Strategy"),
    ):
        sampler(records(), updatable=True)


def test_a_mirrored_strategy_distributes_the_dataset():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    updatable = sampler(records(), updatable=True, batch_size=20)
    dataset = dicts().apply(updatable)
    distributed = strategy.experimental_distribute_dataset(dataset)
    updatable.update(records(NEW_LOGITS))
    got = np.concatenate([batch["example_id"] for batch in distributed])
    new = dicts().apply(sampler(records(NEW_LOGITS), batch_size=20))
    np.testing.assert_array_equal(got, ids_and_weights(new)[0])
    assert len(LABELS) == N

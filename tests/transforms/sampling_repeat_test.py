"""`ofb_sample` repeats: seeds, epochs, checkpoints, partitions, and streams of any length."""

import ast
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.records import maintenance
from ofb_tf.testing import assert_checkpoint_roundtrip, tiny_dataset
from tests.streams import (
    IDS,
    LOGITS,
    PLACE,
    SPEC,
    WINDOW,
    N,
    dicts,
    ids_and_weights,
    partition_of_dataset,
    sample,
    serialized,
    with_logits,
)

# Seeds and epochs.


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


def test_the_global_seed_changes_nothing():
    """In a process of its own, from no seed to two: a global seed cannot be taken back."""
    code = (
        "import tensorflow as tf\n"
        "from tests.streams import ids_and_weights, sample\n"
        "for seed in (None, 1, 2):\n"
        "    if seed is not None:\n"
        "        tf.random.set_seed(seed)\n"
        "    dataset = sample()\n"
        "    print([ids_and_weights(dataset)[0].tolist() for _ in range(2)])\n"
    )
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    outputs = run.stdout.splitlines()
    assert len(outputs) == 3
    assert outputs[0] == outputs[1] == outputs[2]
    first, second = ast.literal_eval(outputs[0])
    assert set(first) != set(second)


def test_redrawing_can_be_turned_off():
    dataset = sample(redraw_each_iteration=False)
    np.testing.assert_array_equal(ids_and_weights(dataset)[0], ids_and_weights(dataset)[0])


def test_the_seed_none_draws_one_at_construction():
    a, b = (with_logits().apply(ofb_tf.ofb_sample(window_size=WINDOW)) for _ in range(2))
    assert set(ids_and_weights(a)[0]) != set(ids_and_weights(b)[0])


# Checkpoints.


@pytest.mark.parametrize("by_partition", [False, True])
@pytest.mark.parametrize("design", ["systematic", "poisson"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_restore_at_every_step_continues_exactly(
    records, partitioned, by_partition, design, late, batch_size
):
    source = serialized().take(160) if late else dicts(160)
    sampler = ofb_tf.ofb_sample(
        records=partitioned if by_partition else records,
        policy=ofb_tf.Importance(design=design),
        parse_fn=(lambda examples: tf.io.parse_example(examples, SPEC)) if late else None,
        batch_size=batch_size,
        window_size=40,
        seed=8,
    )
    if by_partition:
        dataset = sampler.partitions(lambda k: partition_of_dataset(source, k))
    else:
        dataset = source.apply(sampler)

    assert len(list(dataset)) >= (5 if batch_size is None else 2)
    ofb_tf.testing.assert_checkpoint_roundtrip(dataset)


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


# Records larger than memory.


def test_partitions_give_every_example_its_record(partitioned):
    sampler = ofb_tf.ofb_sample(
        records=partitioned, window_size=50, seed=1, rate=1.0, keep_record=True, missing="error"
    )
    seen = []
    for element in sampler.partitions(lambda k: partition_of_dataset(dicts(), k)):
        i = PLACE[int(element["example_id"])]
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


# Empty, short, infinite.


def test_an_empty_dataset_stays_empty():
    assert list(sample(with_logits(0))) == []
    assert list(sample(with_logits(0), batch_size=8)) == []


def test_a_dataset_shorter_than_a_window_keeps_the_rate_on_average():
    # One batch per pass. Passes of `repeat` draw again, as iterations do, and cost less.
    sizes = [len(batch["example_id"]) for batch in sample(with_logits(25), batch_size=8).repeat(80)]
    assert len(sizes) == 80 and set(sizes) == {2, 3}
    assert abs(np.mean(sizes) - 2.5) < 5 * 0.5 / np.sqrt(80)


def test_an_infinite_dataset():
    dataset = sample(with_logits().repeat(), batch_size=20)
    assert len(list(dataset.take(30))) == 30


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
    ids, _ = ids_and_weights(sample(repeated(with_logits()), rate=0.1))
    assert len(ids) == 6 * N * 0.1
    # With one selection for ever there would be 100 distinct ids of 1000; independent ones leave
    # out an example of inclusion probability p with probability (1 - p)^6.
    assert len(set(ids.tolist())) > 300


def test_a_repeated_stream_is_still_a_function_of_the_seed():
    first, second = (ids_and_weights(sample(with_logits().repeat(2)))[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("estimator", ["weights", "log_odds"])
def test_a_checkpoint_survives_checks_that_run_with_each_window(estimator):
    """A record for everyone, labels in range and hard: asserted, and no state of the iterator."""
    stream = tiny_dataset(400).map(lambda e: e | {"label": tf.cast(e["label"], tf.float32)})
    sampler = ofb_tf.ofb_sample(
        window_size=100, task="binary", missing="error", estimator=estimator, seed=3
    )
    assert_checkpoint_roundtrip(stream.apply(sampler))

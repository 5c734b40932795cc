"""OFBSampler by its own function, against an independent numpy reference."""

import dataclasses
import gzip
import json
import math
import os
import pathlib

import numpy as np
import pytest
from tfx_testing import probabilities, read_split, selected, split_files, total

from ofb_tf import hashing
from ofb_tf.beam import columns, example_fingerprints, read_statistics
from ofb_tf.beam import examples as example_files
from ofb_tf.records.files import compression_of


def _draws(ids, seed=3, epoch=0):
    return hashing.hash01(ids, hashing.fold_in(np.int64(seed), np.int64(epoch)))


def test_selection_and_weights_are_the_references(data, examples, records, sample):
    sampled, statistics = sample(examples, records)
    p = probabilities(data.scores, 0.1)
    # No score is capped here, so float32 scores are all that moves p; no draw is that close.
    draws = _draws(data.ids)
    assert p.max() < 1.0
    assert (np.abs(draws - p) > 1e-5 * p).all()
    chosen = draws < p
    found = selected(sampled)
    assert set(found) == set(data.ids[chosen].tolist())
    for i in np.flatnonzero(chosen):
        assert found[data.ids[i]] == pytest.approx(0.1 / p[i], rel=1e-5)
    stats = total(statistics)
    assert stats.variance_selected == pytest.approx((p * (1 - p)).sum(), rel=1e-4)
    assert stats.variance_inverse == pytest.approx(((1 - p) / p).sum(), rel=1e-4)


def test_log_odds_leaves_offsets_of_the_same_selection(data, examples, as_records, sample):
    """log(pi_1 / pi_0) by the split's own constants, 0 without a usable record."""
    data.logits[:30] = np.nan
    records = as_records(data.ids[20:], data.logits[20:])
    weighted = selected(sample(examples, records)[0])
    sampled, statistics = sample(examples, records, name="offsets", estimator="log_odds")
    found = {}
    for example in read_split(sampled):
        feature = example.features.feature
        assert "importance_weight" not in feature
        (found[feature["id"].int64_list.value[0]],) = feature["log_inclusion"].float_list.value
    assert set(found) == set(weighted)
    probability = 1.0 / (1.0 + np.exp(-data.logits.astype(np.float64)))
    scored = np.isfinite(data.logits)
    own = np.abs(probability - data.labels)[scored]
    budget, n = 0.1 * scored.sum(), scored.sum()
    pi = [budget * (0.8 * s / own.sum() + 0.2 / n) for s in (probability, 1.0 - probability)]
    assert max(np.nanmax(pi[0]), np.nanmax(pi[1])) < 1.0  # nothing is capped
    offsets = np.where(scored, np.log(pi[1] / pi[0]), 0.0)
    for row in np.flatnonzero(np.isin(data.ids, list(found))):
        assert found[data.ids[row]] == pytest.approx(offsets[row], abs=1e-4)
    assert total(statistics).effective_sample_size < 1.0  # of the weights that there would be


def test_log_odds_of_uniform_sampling_is_zero(examples, records, sample):
    sampled, _ = sample(examples, records, policy="uniform", estimator="log_odds")
    values = [e.features.feature["log_inclusion"].float_list.value for e in read_split(sampled)]
    assert {tuple(value) for value in values} == {(0.0,)}


@pytest.mark.parametrize("missing", ["uniform", "keep", "drop", "error"])
def test_uniform_does_not_select_by_records(data, as_examples, as_records, sample, missing):
    """As `ofb_tf.Uniform`; the statistics still say how many examples have a usable record."""
    data.logits[1] = np.nan
    records = as_records(data.ids[:-100], data.logits[:-100])
    sampled, artifact = sample(as_examples(data), records, policy="uniform", missing=missing)
    assert selected(sampled) == dict.fromkeys(data.ids[_draws(data.ids) < 0.1].tolist(), 1.0)
    stats = total(artifact)
    assert (stats.num_scored, stats.num_no_record, stats.num_unusable) == (2899, 100, 1)
    assert (stats.expected_selected, stats.unreachable) == (pytest.approx(300.0), 0)
    assert stats.effective_sample_size == pytest.approx(1.0)


def test_compression_is_read_from_the_files_not_from_their_names(examples, records, sample):
    first = selected(sample(examples, records)[0])
    for number, path in enumerate(split_files(examples)):
        content = path.read_bytes() if number else gzip.decompress(path.read_bytes())
        path.unlink()
        path.with_name(f"part-{number}").write_bytes(content)
    sampled, _ = sample(examples, records, name="again")
    found = split_files(sampled)
    assert [compression_of(str(path)) for path in found] == ["", "GZIP", "GZIP"]
    for path in found[1:]:
        path.rename(path.with_suffix(".gz"))
    assert selected(sampled) == first


def test_rate_one_keeps_everything(data, examples, records, sample):
    sampled, _ = sample(examples, records, rate=1.0)
    assert selected(sampled) == dict.fromkeys(data.ids.tolist(), 1.0)


def test_estimates_are_unbiased_and_the_rate_holds(data, as_examples, as_records, sample):
    """Of 20 copies under other ids: the weighted mean score, and the count of each copy."""
    copies, n = 20, len(data.ids)
    many = data.take(np.tile(np.arange(n), copies))
    many.ids = np.arange(copies * n)
    found = selected(sample(as_examples(many), as_records(many.ids, many.logits))[0])
    ids, weights = np.array(list(found)), np.array(list(found.values()))
    p = probabilities(data.scores, 0.1)
    counts = np.bincount(ids // n, minlength=copies)
    assert (np.abs(counts - 300) < 5 * math.sqrt((p * (1 - p)).sum())).all()
    estimates = np.bincount(ids // n, weights * data.scores[ids % n] / 300)
    # Variance of the Horvitz-Thompson estimate of the mean: sum of (1 - p) / p * (s / n)^2.
    error = math.sqrt(((1 - p) / p * (data.scores / n) ** 2).sum() / copies)
    assert abs(np.mean(estimates) - data.scores.mean()) < 5 * error


def test_order_files_partitions_and_chunks_do_not_matter(
    data, examples, records, as_examples, as_records, sample, monkeypatch
):
    first = selected(sample(examples, records)[0])
    monkeypatch.setattr(example_files, "_BATCH", 100)
    monkeypatch.setattr(columns, "CHUNK", 250)
    shuffled = data.take(np.random.default_rng(0).permutation(len(data.ids)))
    examples = as_examples(shuffled, num_files=7, name="shuffled")
    records = as_records(data.ids, data.logits, name="more", num_partitions=2)
    assert selected(sample(examples, records, name="again")[0]) == first


def test_other_seed_and_other_epoch_draw_differently(examples, records, sample):
    runs = [
        frozenset(selected(sample(examples, records, name=f"run-{kwargs}", **kwargs)[0]))
        for kwargs in ({}, {"seed": 4}, {"epoch": 1})
    ]
    assert len(set(runs)) == 3


def test_retry_writes_the_same_bytes(examples, records, sample):
    contents = []
    for _ in range(2):
        sampled, _ = sample(examples, records)
        contents.append({path.name: path.read_bytes() for path in split_files(sampled)})
    assert contents[0] == contents[1]
    assert list(contents[0]) == [f"data_tfrecord-{k:05d}-of-00003.gz" for k in range(3)]


def test_everything_else_is_kept(data, as_examples, records, sample):
    examples = as_examples(data, extra=5)
    sampled, _ = sample(examples, records)
    assert list(sampled.splits) == ["train", "eval"]
    assert sampled.span == 4
    assert sampled.get_int_custom_property("span") == 4
    assert sampled.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    (before,), (after,) = split_files(examples, "eval"), split_files(sampled, "eval")
    assert (before.name, before.read_bytes()) == (after.name, after.read_bytes())
    originals = {e.SerializeToString(deterministic=True) for e in read_split(examples)}
    for example in read_split(sampled):
        del example.features.feature["importance_weight"]
        assert example.SerializeToString(deterministic=True) in originals
    assert not [name for _, _, names in os.walk(sampled.uri) for name in names if ".tmp" in name]


def test_fingerprints_are_the_ids_where_there_is_no_id_feature(data, examples, as_records, sample):
    ids = example_fingerprints([example.SerializeToString() for example in read_split(examples)])
    assert len(set(ids)) == len(ids)
    sampled, artifact = sample(examples, as_records(ids, data.logits), id_feature="")
    assert total(artifact).coverage == 1.0
    expected = data.ids[_draws(ids) < probabilities(data.scores, 0.1)]
    assert set(selected(sampled)) == set(expected.tolist())


def test_statistics_count_what_happened(data, examples, as_records, sample):
    n = len(data.ids)
    logits = data.logits.copy()
    logits[:30] = np.nan
    timestamps = np.full(n, 100_000_000)
    timestamps[30:90] = 0
    versions = np.where(np.arange(n) < 1000, 1, 2)
    columns = (column[:-200] for column in (data.ids, logits, timestamps, versions))
    ids, logits, timestamps, versions = columns
    records = as_records(ids, logits, timestamp=timestamps, model_version=versions)
    sampled, artifact = sample(examples, records, max_age=50.0, slice_features=["city"])
    config, splits = read_statistics(artifact.uri)
    assert config["rate"] == 0.1 and config["seed"] == 3
    stats = splits["train"].total
    assert (stats.num_examples, stats.num_scored) == (n, n - 290)
    assert (stats.num_unusable, stats.num_stale, stats.num_no_record) == (30, 60, 200)
    assert splits["train"].examples_by_version == {"1": 1000, "2": n - 1200}
    assert stats.max_age == 100.0
    assert stats.sum_age == pytest.approx(60 * 100.0)

    found = selected(sampled)
    weights = np.array(list(found.values()))
    assert stats.num_selected == len(found)
    assert stats.sum_weights == pytest.approx(weights.sum())
    assert (stats.min_weight, stats.max_weight) == (weights.min(), weights.max())
    assert stats.effective_sample_size == pytest.approx(
        weights.sum() ** 2 / len(weights) / (weights**2).sum()
    )
    assert stats.expected_selected == pytest.approx(0.1 * n, rel=1e-6)
    assert np.isfinite(weights).all() and stats.max_weight <= 5.0

    slices = splits["train"].slices
    assert set(slices) == {"city=north", "city=south", "city=west"}
    for city in (b"north", b"south", b"west"):
        ids = data.ids[data.city == city]
        tally = slices[f"city={city.decode()}"]
        assert tally.num_examples == len(ids)
        assert tally.num_selected == len(set(ids.tolist()) & set(found))
    for name in ("num_scored", "num_stale", "num_selected"):
        assert sum(getattr(t, name) for t in slices.values()) == getattr(stats, name)
    assert artifact.get_int_custom_property("train/num_selected") == len(found)


@pytest.mark.parametrize(("missing", "unreachable"), [("uniform", 0), ("drop", 100), ("keep", 0)])
def test_statistics_of_examples_without_a_record(
    data, examples, as_records, sample, missing, unreachable
):
    """`golden_test` checks which of them are selected, and their weights."""
    records = as_records(data.ids[100:], data.logits[100:])
    stats = total(sample(examples, records, missing=missing)[1])
    assert stats.unreachable == unreachable
    assert stats.expected_selected == pytest.approx(300.0 - 0.1 * unreachable)


def test_as_of_leaves_later_records_out(data, examples, as_records, sample):
    records = as_records(data.ids, data.logits, timestamp=np.arange(3000) * 1_000_000)
    _, artifact = sample(examples, records, as_of=999 * 1_000_000)
    assert total(artifact).num_scored == 1000
    assert total(artifact).max_age == 999.0
    _, artifact = sample(examples, records, as_of=1, missing="uniform")
    assert total(artifact).num_scored == 1


def test_repeated_ids_are_drawn_together_and_counted(data, as_examples, records, sample):
    twice = data.take(np.tile(np.arange(len(data.ids)), 2))
    sampled, artifact = sample(as_examples(twice), records)
    stats = total(artifact)
    assert stats.num_repeated_ids == len(data.ids)
    assert stats.num_selected == 2 * len(selected(sampled))


def test_multiclass_and_losses(data, as_examples, as_records, sample):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3000, 4)).astype(np.float32)
    data = dataclasses.replace(data, labels=rng.integers(0, 4, 3000))
    sampled, _ = sample(as_examples(data), as_records(data.ids, logits), task="multiclass")
    softmax = np.exp(logits.astype(np.float64))
    softmax /= softmax.sum(axis=1, keepdims=True)
    scores = np.linalg.norm(softmax - np.eye(4)[data.labels], axis=1)
    expected = data.ids[_draws(data.ids) < probabilities(scores, 0.1)]
    assert set(selected(sampled)) == set(expected.tolist())

    losses = rng.exponential(size=3000).astype(np.float32)
    records = as_records(data.ids, None, loss=losses, name="losses")
    sampled, _ = sample(as_examples(data), records, task="multiclass", name="by-loss")
    expected = data.ids[_draws(data.ids) < probabilities(losses.astype(np.float64), 0.1)]
    assert set(selected(sampled)) == set(expected.tolist())

    losses[:30] = np.repeat([np.nan, np.inf, -1.0], 10)
    records = as_records(data.ids, None, loss=losses, name="broken")
    sampled, artifact = sample(as_examples(data), records, task="multiclass", name="of-broken")
    assert total(artifact).num_unusable == 30
    assert np.isfinite(list(selected(sampled).values())).all()


def test_statistics_are_json_even_if_nothing_is_selected(data, as_examples, records, sample):
    sampled, artifact = sample(as_examples(data.take(slice(3))), records, rate=1e-9)
    text = (pathlib.Path(artifact.uri) / "statistics.json").read_text()
    assert json.loads(text)["splits"]["train"]["total"]["min_weight"] is None
    assert selected(sampled) == {}
    assert total(artifact).min_weight == math.inf

"""Wrong labels, outliers and lost records: how many, which."""

import numpy as np
import pytest
import tensorflow as tf

from ofb_tf.experiments import corruption
from ofb_tf.experiments.config import SimulationConfig
from tests.experiments.conftest import array_workload

N = 20_000
IDS = np.arange(N) * 3


def make(num_classes, seed=0, **settings):
    return corruption.Corruption(
        SimulationConfig(dataset="arrays", **settings), seed, array_workload(num_classes)
    )


def examples(labels):
    return {"example_id": tf.constant(IDS), "label": tf.constant(labels)}


def share_tolerance(share):
    return 5 * np.sqrt(share * (1 - share) / N)


def test_label_noise_replaces_its_share_by_labels_of_the_same_distribution():
    wrong = make(3, label_noise=0.1).corrupt(examples(np.full(N, 7)))["label"].numpy()
    assert np.mean(wrong != 7) == pytest.approx(0.1, abs=share_tolerance(0.1))
    train_labels = array_workload(3).examples(0, 200)["label"].numpy()
    drawn = wrong[wrong != 7]
    for label in range(3):
        expected = np.mean(train_labels == label)
        tolerance = 5 * np.sqrt(expected * (1 - expected) / len(drawn))
        assert np.mean(drawn == label) == pytest.approx(expected, abs=tolerance)


def test_outliers_are_moved_both_ways_by_a_fixed_shift():
    workload = array_workload(None)
    clean = np.zeros(N, np.float32)
    moved = make(None, outliers=0.05).corrupt(examples(clean))["label"].numpy()
    assert moved.dtype == np.float32
    shift = 5 * workload.label_deviation
    np.testing.assert_allclose(np.unique(moved), [-shift, 0, shift], rtol=1e-6)
    for side in (-1, 1):
        share = np.mean(np.sign(moved) == side)
        assert share == pytest.approx(0.025, abs=share_tolerance(0.025))


def test_records_are_lost_at_their_share_and_drawn_again_at_every_refresh():
    lossy = make(3, missing_records=0.2)
    first, second = (lossy.has_record(IDS, interval) for interval in (0, 1))
    assert np.mean(~first) == pytest.approx(0.2, abs=share_tolerance(0.2))
    assert np.mean(~first & ~second) == pytest.approx(0.04, abs=share_tolerance(0.04))
    np.testing.assert_array_equal(first, lossy.has_record(IDS, 0))
    assert make(3).has_record(IDS, 0).all()


def test_a_wrong_label_stays_in_every_pass_and_differs_by_seed():
    labels = np.zeros(N, np.int64)
    first, again, other = (
        make(3, seed, label_noise=0.3).corrupt(examples(labels))["label"].numpy()
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_nothing_is_touched_without_corruption():
    clean = examples(np.zeros(N, np.int64))
    assert make(3).corrupt(clean) is clean


@pytest.mark.parametrize(
    ("num_classes", "settings", "message"),
    [
        (None, {"label_noise": 0.1}, r"label_noise must be 0 for regression .* Received: 0.1"),
        (3, {"outliers": 0.1}, r"outliers must be 0 for classification .* Received: 0.1"),
    ],
)
def test_a_corruption_that_does_not_apply_to_the_task(num_classes, settings, message):
    with pytest.raises(ValueError, match=message):
        make(num_classes, **settings)

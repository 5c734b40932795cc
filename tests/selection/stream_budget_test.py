"""A budget that follows the stream: its line, its state, and the rate that comes of it."""

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import Importance, LossMatching, stream_budget, window
from ofb_tf.testing import assert_checkpoint_roundtrip, assert_same_elements
from tests import reference

SIZE, RATE, MIX, WINDOWS = 320, 0.1, 0.2, 100
RARE, OFTEN = 0.005, 0.1  # positives in most windows, and in every tenth


def clustered(windows=WINDOWS, seed=41):
    """Labels and recorded logits of a stream whose positives cluster in time."""
    rng = np.random.default_rng(seed)
    chance = np.where(np.arange(windows) % 10 == 5, OFTEN, RARE).repeat(SIZE)
    labels = (rng.random(windows * SIZE) < chance).astype(np.int64)
    logits = np.log(0.01 + 0.5 * chance) + rng.normal(0, 0.8, len(chance))
    return labels, logits.astype(np.float32)[:, None]


LABELS, LOGITS = clustered()
NORMS = np.abs(1 / (1 + np.exp(-LOGITS[:, 0].astype(np.float64))) - LABELS)


def dataset(n=WINDOWS * SIZE, **fields):
    elements = {"example_id": np.arange(n), "label": LABELS[:n], "logits": LOGITS[:n]}
    return tf.data.Dataset.from_tensor_slices(elements | fields)


def sampler(**arguments):
    settings = {"rate": RATE, "window_size": SIZE, "seed": 3, "budget": "stream"}
    return ofb_tf.ofb_sample(**settings | arguments)


def probabilities(budget="stream", missing="uniform", has_record=None, labels=LABELS):
    """Of every example, window by window, as `ofb_sample` has them."""

    @tf.function(autograph=False)
    def step(labels, logits, ids, recorded, state):
        return window.select(
            Importance(uniform_mix=MIX),
            rate=RATE,
            task="binary",
            missing=missing,
            example_ids=ids,
            labels=labels,
            record={"logits": logits, "has_record": recorded},
            key=tf.constant(0, tf.int64),
            batch_size=None,
            state=state,
        )

    state = stream_budget.initial_state() if budget == "stream" else None
    has_record = np.ones(len(LABELS), bool) if has_record is None else has_record
    found = []
    for start in range(0, len(LABELS), SIZE):
        part = slice(start, start + SIZE)
        ids = np.arange(start, start + SIZE)
        got = step(*map(tf.constant, (labels[part], LOGITS[part], ids, has_record[part])), state)
        state = got.state
        found.append(got.probabilities.numpy())
    return np.concatenate(found)


@pytest.mark.parametrize(
    "scores",
    [
        np.random.default_rng(1).exponential(size=500),
        np.random.default_rng(2).pareto(0.5, size=500),
        np.full(500, 0.3),
        np.r_[np.zeros(450), np.full(50, 2.0)],
        np.r_[np.zeros(490), np.full(10, 2.0)],
        np.zeros(500),
        np.r_[np.full(499, 1e-12), 1e9],
    ],
    ids=["smooth", "heavy", "equal", "zeros", "few", "none", "extreme"],
)
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_the_first_window_takes_its_own_budget(scores, rate):
    """No past: the budget of the window, but for the one bin that the cap cuts."""
    n = tf.constant(500.0, tf.float64)
    state = stream_budget.remember(stream_budget.initial_state(), tf.constant(scores))
    slope, intercept = stream_budget.line(state, rate * n, n, MIX * rate).numpy()
    p = np.minimum(1.0, slope * scores + intercept)
    assert np.all(p >= MIX * rate * (1 - 1e-12))
    assert p.sum() == pytest.approx(rate * 500, rel=0.01)


def test_slope_equals_the_textbook_where_nothing_is_capped():
    scores = np.random.default_rng(3).uniform(0.5, 1.5, size=500)
    n = tf.constant(500.0, tf.float64)
    state = stream_budget.remember(stream_budget.initial_state(), tf.constant(scores))
    slope, intercept = stream_budget.line(state, RATE * n, n, MIX * RATE).numpy()
    expected = reference.capped_pps((1 - MIX) * scores / scores.sum() + MIX / 500, RATE * 500)
    np.testing.assert_allclose(slope * scores + intercept, expected, rtol=1e-9)


@pytest.mark.parametrize("design", ["systematic", "poisson"])
def test_the_rate_is_right_over_a_hundred_windows(design):
    got = sampler(policy=Importance(design=design)).statistics(dataset())
    p = probabilities()
    assert abs(p.mean() / RATE - 1) < 0.02
    # The systematic design is off by less than one example per window, independently.
    variance = WINDOWS / 4 if design == "systematic" else (p * (1 - p)).sum()
    assert abs(got["selected"] - p.sum()) < 5 * np.sqrt(variance)
    assert got["max_weight"] <= 1 / MIX * (1 + 1e-6)


def test_windows_with_many_positives_take_more():
    by_window = probabilities().reshape(WINDOWS, SIZE).sum(1)
    is_full = np.arange(WINDOWS) % 10 == 5
    assert by_window[is_full].mean() > 2 * by_window[~is_full].mean()


def test_variance_is_less_where_positives_cluster():
    """Of independent draws, by the exact formula; the rate is no higher."""
    streaming, windowed = probabilities(), probabilities("window")
    assert streaming.sum() < 1.02 * windowed.sum()
    variances = [(NORMS**2 * (1 / p - 1)).sum() for p in (streaming, windowed)]
    assert variances[0] < 0.5 * variances[1]


def test_the_estimate_is_unbiased():
    """Over seeds, of the sum over the stream: weights are those of what was drawn."""
    n = 10 * SIZE
    truth = NORMS[:n].sum()
    train = dataset(n, norm=NORMS[:n]).apply(sampler(batch_size=n))  # every iteration draws again

    def draw(seed):
        del seed
        batch = next(iter(train))
        return float((batch["norm"].numpy() * batch["importance_weight"].numpy()).sum() / RATE)

    ofb_tf.testing.assert_unbiased(draw, truth, trials=60, max_relative_error=0.1)


def test_probabilities_do_not_depend_on_later_windows():
    p = probabilities()
    changed = LABELS.copy()
    changed[50 * SIZE :] = 1
    np.testing.assert_array_equal(probabilities(labels=changed)[: 50 * SIZE], p[: 50 * SIZE])


def test_the_account_repays_a_drift():
    """Scores that fall by a tenth in every tenth window: the rate stays close to the target."""
    scores = np.random.default_rng(4).exponential(size=(WINDOWS, SIZE))
    scores *= np.exp(-np.arange(WINDOWS) / 100)[:, None]
    n = tf.constant(float(SIZE), tf.float64)
    state, total = stream_budget.initial_state(), 0.0
    for part in scores:
        state = stream_budget.remember(state, tf.constant(part))
        slope, intercept = tf.unstack(stream_budget.line(state, RATE * n, n, MIX * RATE))
        p = tf.minimum(slope * part + intercept, 1.0)
        state = stream_budget.settle(state, RATE * n, p)
        total += float(tf.reduce_sum(p))
    assert total / scores.size == pytest.approx(RATE, rel=0.05)
    missing = RATE * scores.size - total
    assert float(state.account) == pytest.approx(missing, rel=1e-9)


@pytest.mark.parametrize("missing", ["uniform", "keep", "drop"])
def test_missing_records(missing):
    has_record = np.random.default_rng(5).random(len(LABELS)) < 0.97
    p = probabilities(missing=missing, has_record=has_record)
    expected = {"uniform": RATE, "keep": 1.0, "drop": 0.0}[missing]
    np.testing.assert_array_equal(p[~has_record], expected)
    share = RATE * (has_record.mean() if missing == "drop" else 1.0)
    assert p.mean() == pytest.approx(share, rel=0.03)


def test_state_is_saved_with_the_iterator():
    train = dataset(8 * SIZE).apply(sampler(batch_size=16))
    assert_checkpoint_roundtrip(train, max_steps=12)


def test_determined_by_seed_and_ids():
    elements = [
        list(dataset(5 * SIZE).apply(sampler(redraw_each_iteration=False, seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert_same_elements(elements[0], elements[1])
    assert [e["example_id"] for e in elements[0]] != [e["example_id"] for e in elements[2]]


@pytest.mark.parametrize("n", [0, 1, SIZE - 1, SIZE + 1])
def test_short_streams(n):
    got = list(dataset(n).apply(sampler(batch_size=7)))
    assert sum(len(batch["label"]) for batch in got) == pytest.approx(RATE * n, abs=1.5)


def test_uniform_is_the_same_with_either_budget():
    streaming, windowed = (
        list(dataset(3 * SIZE).apply(sampler(policy="uniform", budget=budget)))
        for budget in ("stream", "window")
    )
    assert_same_elements(streaming, windowed)


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match="Policy.affine.*LossMatching.*budget='window'"):
        sampler(policy=LossMatching())
    with pytest.raises(ValueError, match="budget must be one of.*'rolling'"):
        sampler(budget="rolling")

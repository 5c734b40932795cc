"""A model in the shadow of the one that serves, by the records of both, against numpy."""

import numpy as np
import pytest

import ofb_tf
from ofb_tf.evaluation import gain, report, shadow
from tests import reference

N = 30_000
_RNG = np.random.default_rng(62)
IDS = np.arange(N)
SERVED = _RNG.normal(-2.5, 1.5, N).astype(np.float32)
LABELS = (_RNG.random(N) < 1 / (1 + np.exp(-SERVED))).astype(np.int64)
OTHER = (0.6 * SERVED + _RNG.normal(-1.0, 1.0, N)).astype(np.float32)
EXAMPLES = {"example_id": IDS, "label": LABELS}
BY_SERVED, BY_OTHER = IDS % 10 > 0, IDS % 7 > 0
BOTH = BY_SERVED & BY_OTHER


def evaluate(others):
    records, other_records = (
        ofb_tf.ForwardRecords.from_columns(IDS[rows], logits[rows])
        for rows, logits in ((BY_SERVED, SERVED), others)
    )
    return ofb_tf.evaluate(records, EXAMPLES, task="binary", shadow_records=other_records)


def norms(logits):
    """Gradient-norm bounds of the binary loss."""
    return np.abs(1 / (1 + np.exp(-logits[BOTH].astype(np.float64))) - LABELS[BOTH])


def variance_ratio(scores, gradients, rate):
    sizes = 0.8 * scores / scores.sum() + 0.2 / len(scores)
    p = reference.capped_pps(sizes, rate * len(scores))
    return np.average(rate / p, weights=gradients**2)


# Small chunks: summaries are put together, in which the bins of earlier scores move.
@pytest.mark.parametrize("pending", [1 << 18, 1000])
def test_both_models_and_what_selection_by_either_leaves(monkeypatch, pending):
    monkeypatch.setattr(shadow, "_MAX_PENDING", pending)
    found = evaluate((BY_OTHER, OTHER))["shadow"]
    for name, logits in (("served", SERVED), ("shadow", OTHER)):
        loss = np.logaddexp(0, np.where(LABELS, -logits, logits))[BOTH].mean()
        assert found[name]["loss"] == pytest.approx(loss, rel=1e-5)
        assert found[name]["evaluated"] == found[name]["examples"] == BOTH.sum()
    assert [row["rate"] for row in found["gain"]] == list(gain.RATES)
    for row in found["gain"]:
        by_own = variance_ratio(norms(OTHER), norms(OTHER), row["rate"])
        by_served = variance_ratio(norms(SERVED), norms(OTHER), row["rate"])
        # A bin is 0.1% wide, and its scores' mean stands for them.
        assert row["variance_ratio"] == pytest.approx(by_own, rel=2e-3)
        assert row["variance_ratio_by_served"] == pytest.approx(by_served, rel=2e-3)
        assert by_own < 0.98 * by_served


def test_a_model_in_its_own_shadow_loses_nothing():
    content = evaluate((BY_SERVED, SERVED))
    found = content["shadow"]
    assert found["served"] == found["shadow"]
    for row, own in zip(found["gain"], content["gain"], strict=True):
        # Not 0: the scores of a bin differ by up to 0.1%.
        assert row["variance_ratio_by_served"] == pytest.approx(row["variance_ratio"], rel=1e-5)
        assert row["variance_ratio"] <= own["variance_ratio"]  # which counts the missing
    (line,) = (
        line for line in report.notes(content) if line.startswith("Shadow: at a rate of 0.1")
    )
    assert f"{found['gain'][3]['variance_ratio']:.3f}" in line


def test_nothing_in_common():
    content = evaluate((~BY_SERVED, OTHER))
    assert content["shadow"]["served"]["evaluated"] == 0
    assert content["shadow"]["gain"][0]["variance_ratio"] is None
    assert content["shadow"]["gain"][0]["variance_ratio_by_served"] is None
    report.table_rows(content)
    with pytest.raises(ValueError, match="records must have 1 output for task='binary'"):
        ofb_tf.evaluate(
            ofb_tf.ForwardRecords.from_columns(IDS, SERVED), EXAMPLES, task="binary",
            shadow_records=ofb_tf.ForwardRecords.from_columns(IDS, np.ones([N, 3], np.float32)),
        )  # fmt: skip

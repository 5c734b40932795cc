"""OFBSampler's selections are what they were, and are those of tf.data."""

import os

import numpy as np
import pytest
import tensorflow as tf
from tfx_testing import selected

import ofb_tf
from tests.golden import cases

_CASES = {
    f"{policy}/{score}/{missing}": {"policy": policy, "score": score, "missing": missing}
    for policy, score in (
        ("importance", "gradient_norm_bound"),
        ("importance", "loss"),
        ("uniform", "loss"),
    )
    for missing in ("uniform", "keep", "drop", "error")
}


@pytest.fixture
def run(data, as_examples, as_records, sample):
    """A function from a case to {place: weight}, of a stream with gaps unless it must be whole."""

    def of(case: dict, losses: np.ndarray | None = None) -> tuple[dict[int, float], np.ndarray]:
        kept = np.ones(len(data.ids), bool)
        if case["missing"] != "error":
            data.logits[5::40] = np.nan
            kept = np.arange(len(kept)) % 7 != 3
        columns = {} if losses is None else {"loss": losses[kept]}
        records = as_records(data.ids[kept], data.logits[kept], **columns)
        found = selected(sample(as_examples(data), records, **case)[0])
        place = {int(example_id): i for i, example_id in enumerate(data.ids)}
        return {place[example_id]: weight for example_id, weight in found.items()}, kept

    return of


@pytest.mark.parametrize("name", _CASES)
def test_selection_is_what_it_was(name, run):
    found, _ = run(_CASES[name])
    places = sorted(found)
    chosen = {"places": places, "weights": cases.rounded(np.array([found[p] for p in places]))}
    if os.environ.get("OFB_WRITE_GOLDEN"):
        path = cases.HERE / "beam.json"
        cases.store("beam", (cases.stored("beam") if path.exists() else {}) | {name: chosen})
    cases.assert_same(chosen, cases.stored("beam")[name], rtol=2e-5)


@pytest.mark.parametrize("with_losses", [False, True], ids=["logits", "logits_and_losses"])
@pytest.mark.parametrize("name", _CASES)
def test_tf_data_selects_the_same(name, with_losses, run, data):
    """One Poisson window over the whole stream, NaN logits and losses among the records."""
    case, losses = _CASES[name], None
    if with_losses:
        losses = np.random.default_rng(6).exponential(size=len(data.ids)).astype(np.float32)
        if case["missing"] != "error":
            losses[11::50] = np.nan
    found, kept = run(case, losses)
    policy = ofb_tf.Uniform(design="poisson")
    if case["policy"] == "importance":
        policy = ofb_tf.Importance(score=case["score"], design="poisson")
    sampler = ofb_tf.ofb_sample(
        records=ofb_tf.ForwardRecords.from_columns(
            data.ids[kept], data.logits[kept], None if losses is None else losses[kept]
        ),
        policy=policy,
        rate=0.1,
        task="binary",
        window_size=len(data.ids),
        batch_size=len(data.ids),
        seed=3,
        missing=case["missing"],
        redraw_each_iteration=False,  # the epoch is then 0, as OFBSampler's is
    )
    stream = {"example_id": data.ids, "label": data.labels, "place": np.arange(len(data.ids))}
    examples = tf.data.Dataset.from_tensor_slices(stream)
    (batch,) = examples.apply(sampler).as_numpy_iterator()
    weights = dict(zip(batch["place"].tolist(), batch["importance_weight"].tolist(), strict=True))
    # Beam solves for the scale on bins of scores 0.1% wide: a draw may lie between the two p.
    both = set(found) & set(weights)
    assert len(set(found) ^ set(weights)) <= 1
    assert len(both) > 200
    np.testing.assert_allclose(
        [found[p] for p in sorted(both)], [weights[p] for p in sorted(both)], rtol=5e-4
    )

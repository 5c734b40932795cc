"""`ofb_tf.evaluate` of several heads: each as if alone, and the joint gain against numpy."""

import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.evaluation import gain
from tests import reference

N = 6000
_RNG = np.random.default_rng(83)
IDS = _RNG.permutation(5 * N)[:N]
TASK = {"topic": ("multiclass", 4), "click": "binary", "price": "regression"}
LOSS_WEIGHTS = {"click": 3.0, "topic": 0.5}
LOGITS = {
    "click": _RNG.normal(-2, 1.5, (N, 1)).astype(np.float32),
    "price": _RNG.normal(3, 0.5, (N, 1)).astype(np.float32),
    "topic": _RNG.normal(0, 2, (N, 4)).astype(np.float32),
}
LABELS = {
    "click": (_RNG.random(N) < 0.15).astype(np.int64),
    # Known after a click alone, or for every third example.
    "price": np.where(_RNG.random(N) < 0.2, _RNG.normal(3, 1, N), np.nan).astype(np.float32),
    "topic": np.where(np.arange(N) % 3 == 0, _RNG.integers(0, 4, N), -1),
}
SIDE_BY_SIDE = np.concatenate([LOGITS[name] for name in sorted(LOGITS)], axis=1)
HAS_RECORD = np.arange(N) % 8 > 0
COUNTRY = _RNG.choice([b"DE", b"FR"], N)
SERVED = 1_700_000_000_000_000 + np.arange(N) * 60_000_000
VERSIONS = np.where(np.arange(N) < N // 3, 7, 12)
FIELDS = {"example_id": IDS, "country": COUNTRY, "at": SERVED + 400_000_000}
EXAMPLES = FIELDS | LABELS
BY = {"timestamp_key": "at", "slice_keys": ["country"]}


def records(logits, rows=HAS_RECORD):
    return ofb_tf.ForwardRecords.from_columns(
        IDS[rows], logits[rows], model_versions=VERSIONS[rows], timestamps=SERVED[rows]
    )


@pytest.fixture(scope="module")
def found():
    return ofb_tf.evaluate(
        records(SIDE_BY_SIDE), EXAMPLES, task=TASK, loss_weights=LOSS_WEIGHTS, **BY
    )


@pytest.mark.parametrize("name", sorted(TASK))
def test_each_head_is_what_its_own_records_give(found, name):
    task = "multiclass" if name == "topic" else TASK[name]
    alone = ofb_tf.evaluate(
        records(LOGITS[name]), FIELDS | {"label": LABELS[name]}, task=task, **BY
    )
    head = found["heads"][name]
    assert head == {key: value for key, value in alone.items() if key not in ("gain", "advice")}
    known = LABELS[name] >= 0 if name == "topic" else ~np.isnan(LABELS[name])
    assert head["total"]["invalid_labels"] == (HAS_RECORD & ~known).sum()
    assert head["total"]["evaluated"] == (HAS_RECORD & known).sum() > 0


def joint_scores():
    """METHOD.md, Several heads: the root of the sum of ω² m g²."""
    click = 1 / (1 + np.exp(-LOGITS["click"][:, 0].astype(np.float64))) - LABELS["click"]
    price = np.nan_to_num(LOGITS["price"][:, 0].astype(np.float64) - LABELS["price"])
    gradients = reference.gradients(LOGITS["topic"], np.maximum(LABELS["topic"], 0))
    topic = np.where(LABELS["topic"] >= 0, np.linalg.norm(gradients, axis=1), 0.0)
    return np.sqrt((3 * click) ** 2 + price**2 + (0.5 * topic) ** 2)


def test_gain_is_that_of_the_joint_score(found):
    scores = joint_scores()[HAS_RECORD]
    covered = HAS_RECORD.mean()
    assert found["total"]["mean_score"] == pytest.approx(scores.mean(), rel=1e-5)
    assert found["total"]["coverage"] == covered
    assert found["total"]["invalid_labels"] == 0  # a label that is not known is none of the joint
    assert [row["rate"] for row in found["gain"]] == list(gain.RATES)
    for row in found["gain"]:
        sizes = 0.8 * scores / scores.sum() + 0.2 / len(scores)
        weights = row["rate"] / reference.capped_pps(sizes, row["rate"] * len(scores))
        ratio = covered * np.average(weights, weights=scores**2) + 1 - covered
        # A bin is 0.1% wide, and its scores' mean stands for them.
        assert row["variance_ratio"] == pytest.approx(ratio, rel=2e-3)
        closure = (1 - ratio) / (1 - row["rate"])
        assert row["predicted_gap_closure"] == pytest.approx(closure, abs=2e-3)
    assert found["advice"] == gain.advise(found["total"], found["gain"], None)
    assert set(found) == {"heads", "total", "score_drift", "gain", "advice"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_loss_weights_decide_what_selection_is_for(found):
    click_alone = ofb_tf.evaluate(
        records(LOGITS["click"]), FIELDS | {"label": LABELS["click"]}, task="binary"
    )
    weighted = ofb_tf.evaluate(
        records(SIDE_BY_SIDE), EXAMPLES, task=TASK, loss_weights={"price": 0.0, "topic": 0.0}
    )
    assert weighted["gain"] == click_alone["gain"] != found["gain"]
    # The advice has the error of the head whose labels look the worst.
    errors = {name: head["confident_error"] for name, head in weighted["heads"].items()}
    assert errors["topic"] > errors["click"] > 0.02 and errors["price"] is None
    assert f"but {errors['topic']:.1%} of the labels contradict" in weighted["advice"]


def test_what_is_not_usable_for_one_head_is_not_for_the_selection():
    logits, labels = SIDE_BY_SIDE.copy(), dict(LABELS)
    rows = np.flatnonzero(HAS_RECORD & (LABELS["topic"] >= 0))
    logits[rows[:5], 2] = np.nan  # of the topic, known
    logits[np.flatnonzero(HAS_RECORD & (LABELS["topic"] < 0))[:4], 2] = np.nan  # not known
    labels["topic"] = np.where(np.isin(np.arange(N), rows[5:12]), 4, LABELS["topic"])
    found = ofb_tf.evaluate(records(logits), FIELDS | labels, task=TASK)
    unknown = (HAS_RECORD & (LABELS["topic"] < 0)).sum()
    assert found["total"]["unusable"] == found["heads"]["topic"]["total"]["unusable"] == 5
    assert found["total"]["invalid_labels"] == 7
    assert found["heads"]["topic"]["total"]["invalid_labels"] == unknown + 7
    assert found["total"]["evaluated"] == HAS_RECORD.sum() - 12
    click = found["heads"]["click"]["total"]
    assert click["unusable"] == click["invalid_labels"] == 0


def test_labels_are_found_as_ofb_sample_finds_them(found):
    """In a y that is a dict, under other names and nested, as one-hot rows."""
    one_hot = np.eye(4, dtype=np.float32)[LABELS["topic"]] * (LABELS["topic"] >= 0)[:, None]
    y = {"clicked": LABELS["click"], "shop": {"paid": LABELS["price"][:, None], "of": one_hot}}
    x = {name: FIELDS[name] for name in FIELDS}
    examples = tf.data.Dataset.from_tensor_slices((x, y))
    keys = {"click": "clicked", "price": "shop/paid", "topic": "shop/of"}
    other = ofb_tf.evaluate(
        records(SIDE_BY_SIDE), examples, task=TASK, loss_weights=LOSS_WEIGHTS, label_key=keys, **BY
    )
    assert other == found


def test_text_and_notes_have_all_heads(found):
    from ofb_tf.evaluation import report

    tables = report.table_rows(found)
    counts = {row[0]: row[1:] for row in tables[0]}
    assert counts["topic"][2] == f"{found['heads']['topic']['total']['invalid_labels']:,d}"
    assert counts["all heads"] == ["6,000", "750", "0", "0", "5,250"]
    metrics = [dict(zip(tables[1][0], row, strict=True)) for row in tables[1][1:]]
    assert [row["head"] for row in metrics] == ["click", "price", "topic", "all heads"]
    assert metrics[0]["accuracy"] == metrics[3]["loss"] == "–" != metrics[2]["accuracy"]
    titles = [table[0][0] for table in tables]
    assert titles[2:6] == [
        f"click: {t}" for t in ("model version", "record age", "time", "country")
    ]
    assert titles[-1] == "rate" and len(titles) == 2 + 3 * 4 + 1
    lines = report.notes(found)
    assert lines[-1] == found["advice"]
    assert [line.split(":")[0] for line in lines[:2]] == ["click", "topic"]  # suspicious labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": TASK | {"topic": ("multiclass", 3)}}, "must have 5 outputs for the heads.*: 6"),
        ({"task": {"click": "ranking"}}, r"task\['click'\] must be 'binary'"),
        ({"task": "binary", "loss_weights": {"click": 1.0}}, "loss_weights is for several heads"),
        ({"loss_weights": {"like": 1.0}}, "loss_weights must name heads of"),
        ({"label_key": {"click": "click"}}, "label_key must name a field for each of the heads"),
        ({"label_key": dict(zip(TASK, ("topic", "clicked", "price"), strict=True))},
         "field 'clicked' is missing from the elements, which have"),
        ({"label_key": dict(zip(TASK, ("topic", "country", "price"), strict=True))},
         "'country' must be numeric"),
        ({"label_key": dict(zip(TASK, ("topic", "pair", "price"), strict=True))},
         "'pair' must be one label for task="),
        ({"shadow_records": "records"}, "shadow_records must be None with several heads"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes, message):
    examples = EXAMPLES | {"pair": np.zeros([N, 2], np.int64)}
    with pytest.raises(ValueError, match=message):
        ofb_tf.evaluate(records(SIDE_BY_SIDE), examples, **{"task": TASK} | changes)


def test_records_that_do_not_hold_every_heads_logits_are_refused(tmp_path):
    with ofb_tf.ForwardRecordWriter(tmp_path / "top", top_k=2) as writer:
        writer.write(IDS, SIDE_BY_SIDE)
    with pytest.raises(ValueError, match="Records with top_k keep the largest of all heads'"):
        ofb_tf.evaluate(str(tmp_path / "top"), EXAMPLES, task=TASK)
    losses = ofb_tf.ForwardRecords.from_columns(IDS, losses=np.ones(N, np.float32))
    with pytest.raises(ValueError, match=r"must have 6 outputs for the heads.*Received: 0"):
        ofb_tf.evaluate(losses, EXAMPLES, task=TASK)


def test_the_program_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (pathlib.Path(__file__).parents[2] / "docs/evaluate.md").read_text(encoding="utf-8")
    section = page.split("## Several heads")[1].split("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    exec(compile(code, "evaluate.md", "exec"), {})  # noqa: S102
    assert "Selection" in capsys.readouterr().out

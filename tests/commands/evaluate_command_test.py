"""`ofb evaluate` from its flags to its tables, JSON and picture."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import cli
from tests.streams import serialized_example

N = 2000
_RNG = np.random.default_rng(71)
LOGITS = _RNG.normal(-2.0, 1.5, N).astype(np.float32)
LABELS = (_RNG.random(N) < 1 / (1 + np.exp(-LOGITS))).astype(np.int64)
PLACES = _RNG.choice([b"north", b"south"], N)
SERVED = 1_700_000_000_000_000 + np.arange(N) * 1_000_000
DELAY = 90_000_000


def write(path, rows, options="", **changes):
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for i in rows:
            at = SERVED[i] + DELAY
            features = {"example_id": i, "label": LABELS[i], "place": PLACES[i], "at": at}
            features |= changes
            writer.write(serialized_example(**{k: v for k, v in features.items() if v is not None}))


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "examples").mkdir()
    write(tmp_path / "examples/part-0.tfrecord", range(1200))
    write(tmp_path / "examples/part-1.gz", range(1200, N), "GZIP")
    with ofb_tf.ForwardRecordWriter(tmp_path / "records") as writer:
        writer.write(np.arange(100, N), LOGITS[100:], timestamp=SERVED[100:], model_version=3)
    return ["evaluate", f"--records={tmp_path}/records", f"--examples={tmp_path}/examples"]


def test_json_is_what_the_library_gives(flags, tmp_path, capsys):
    assert cli.main([*flags, "--timestamp_key=at", "--slice_keys=place", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    examples = {
        "example_id": np.arange(N),
        "label": LABELS,
        "place": PLACES,
        "at": SERVED + DELAY,
    }
    expected = ofb_tf.evaluate(
        str(tmp_path / "records"), examples, task="binary", timestamp_key="at", slice_keys=["place"]
    )
    assert content == expected
    assert content["total"]["without_record"] == 100


def test_a_shadow_has_its_tables(flags, tmp_path, capsys):
    with ofb_tf.ForwardRecordWriter(tmp_path / "shadow") as writer:
        writer.write(np.arange(N), LOGITS / 2)
    assert cli.main([*flags, f"--shadow_records={tmp_path}/shadow"]) == 0
    printed = capsys.readouterr().out
    rows = {re.split("  +", line)[0]: re.split("  +", line) for line in printed.splitlines()}
    assert rows["served"][1] == rows["shadow"][1] == "1,900"
    assert rows["rate"][1:] == ["variance ratio by its own scores", "by the served model's"]
    assert "Shadow: at a rate of 0.1, selection by the served model's records leaves" in printed


def test_tables_and_picture(flags, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out" / "picture.png"
    assert cli.main([*flags, "--slice_keys=place", f"--picture={path}"]) == 0
    printed = capsys.readouterr().out
    rows = {re.split("  +", line)[0]: re.split("  +", line) for line in printed.splitlines()}
    assert rows["2,000"] == ["2,000", "100", "0", "0", "1,900"]
    assert rows["all"][1:3] == ["2,000", "95.0%"]
    assert rows["north"][1] == f"{(PLACES == b'north').sum():,d}"
    assert rows["3"][1] == "1,900"
    assert {"0.01", "0.1", "0.5"} <= set(rows)
    assert "Suspicious labels: " in printed and f"Wrote {path}" in printed
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks(tmp_path, task, capsys):
    """Labels are floats in the files of a regression; the picture has the task's metric."""
    outputs = _RNG.normal(size=(N, 3 if task == "multiclass" else 1)).astype(np.float32)
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        for i in range(N):
            label = i % 3 if task == "multiclass" else np.float32(i % 3)
            writer.write(serialized_example(id=f"e{i}".encode(), y=label))
    with ofb_tf.ForwardRecordWriter(tmp_path / "records") as writer:
        writer.write(np.array([f"e{i}" for i in range(N)]), outputs)
    flags = [f"--records={tmp_path}/records", f"--examples={tmp_path}/x.tfrecord"]
    flags += ["--id_key=id", "--label_key=y", f"--task={task}", f"--picture={tmp_path}/p.png"]
    pytest.importorskip("matplotlib")
    assert cli.main(["evaluate", *flags]) == 0
    printed = capsys.readouterr().out
    assert ("accuracy" if task == "multiclass" else "R²") in printed
    if task == "regression":
        loss = np.mean((outputs[:, 0] - np.arange(N) % 3) ** 2)
        assert f"{loss:.4g}" in printed


def test_labels_that_are_not_there_are_counted(flags, tmp_path, capsys):
    """No label, several, or a NaN; a missing feature to slice by is empty text."""
    write(tmp_path / "examples/part-2", range(200, 260), label=None)
    write(tmp_path / "examples/part-3", range(200, 230), label=[0, 1], place=None)
    assert cli.main([*flags, "--slice_keys=place", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["total"]["invalid_labels"] == 90
    assert content["slices"]["place"][""]["examples"] == 30


HEADS = ["--task=click=binary,genre=multiclass:3", "--label_key=click=label,genre=kind"]


@pytest.fixture
def flags_of_heads(tmp_path):
    """The genre is known after a click alone: the first examples lack it."""
    logits = np.concatenate([LOGITS[:, None], _RNG.normal(size=(N, 3))], axis=1)
    genres = np.where(LABELS == 1, np.arange(N) % 3, -1)
    assert not LABELS[0]
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        for i in range(N):
            features = {"example_id": i, "label": LABELS[i]}
            features |= {"kind": genres[i]} if LABELS[i] else {}
            writer.write(serialized_example(**features))
    with ofb_tf.ForwardRecordWriter(tmp_path / "records") as writer:
        writer.write(np.arange(N), logits.astype(np.float32))
    expected = ofb_tf.evaluate(
        str(tmp_path / "records"),
        {"example_id": np.arange(N), "click": LABELS, "genre": genres},
        task={"click": "binary", "genre": ("multiclass", 3)},
        loss_weights={"genre": 0.5},
    )
    flags = ["evaluate", f"--records={tmp_path}/records", f"--examples={tmp_path}/x.tfrecord"]
    return flags, expected


def test_several_heads(flags_of_heads, tmp_path, capsys):
    flags, expected = flags_of_heads
    assert cli.main([*flags, *HEADS, "--loss_weights=genre=0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    pytest.importorskip("matplotlib")
    assert cli.main([*flags, *HEADS, f"--picture={tmp_path}/picture.png"]) == 0
    printed = capsys.readouterr().out
    rows = [re.split("  +", line) for line in printed.splitlines()]
    known = LABELS.sum()
    assert ["genre", "2,000", "0", f"{N - known:,d}", "0", f"{known:,d}"] in rows
    assert ["all heads", "2,000", "0", "0", "0", "2,000"] in rows
    assert any(row[0] == "genre: time" for row in rows)
    assert "click: Suspicious labels: " in printed
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=click=binary,genre"], "--task must be HEAD=VALUE for each head"),
        (["--task=click=binary,genre=multiclass:x"], "--task must be HEAD=VALUE for each head"),
        (["--task=click=binary,genre=multiclass"], "('multiclass', number of classes)"),
        ([*HEADS, "--loss_weights=click=a"], "--loss_weights must be HEAD=VALUE for each head"),
        ([HEADS[0]], "feature 'click' must be int64 or float32, got none in the first examples"),
        ([HEADS[0], "--label_key=kind"], "label_key must name a field for each of the heads"),
        ([HEADS[0].replace("3", "4"), HEADS[1]], "must have 5 outputs for the heads"),
        (["--loss_weights=click=1"], "loss_weights is for several heads"),
        ([*HEADS, "--shadow_records=/nowhere"], "shadow_records must be None with several heads"),
    ],
)
def test_what_does_not_fit_the_heads_is_named(flags_of_heads, arguments, message, capsys):
    assert cli.main([*flags_of_heads[0], *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--examples="], "--examples is required"),
        (["--records=/nowhere"], "/nowhere"),
        (["--examples=/nowhere/*"], "matches no file"),
        (["--task=multiclass"], "at least 2 outputs"),
        (["--label_key=clicked"], "feature 'clicked' must be int64 or float32, got none"),
        (["--id_key=label", "--label_key=place"], "feature 'place' must be int64 or float32"),
        (["--timestamp_key=place"], "feature 'place' must be int64, got string"),
    ],
)
def test_bad_input_is_named(flags, arguments, message, capsys):
    assert cli.main([*flags, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_damaged_and_different_examples_are_errors(flags, tmp_path, capsys):
    write(tmp_path / "examples/part-2", range(3), example_id=None)
    assert cli.main(flags) == 2
    assert "feature example_id must have one value in every example" in capsys.readouterr().err
    path = tmp_path / "examples/part-2"
    content = (tmp_path / "examples/part-0.tfrecord").read_bytes()
    path.write_bytes(content[:5000] + b"x" + content[5001:])
    assert cli.main(flags) == 2
    assert "the examples cannot be read" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    assert cli.main(["evaluate", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "ofb evaluate --records=records/ --examples=train/" in printed
    assert "--slice_keys" in printed

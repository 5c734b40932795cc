"""The whole loop under LocalDagRunner: once, from cache, with a second span, not blessed."""

import dataclasses
import json
import pathlib

import ml_metadata as mlmd
import numpy as np
import pytest
import tensorflow as tf
from ml_metadata.proto import metadata_store_pb2
from tfx.utils import path_utils

import ofb_tf
from ofb_tf.beam import Manifest, example_fingerprints, read_statistics
from tests.streams import serialized_example
from tfx_components.pipelines import local, trainer
from tfx_components.pipelines.graph import TRAIN, LoopConfig, create_components

pytestmark = [pytest.mark.e2e, pytest.mark.tfx]


def _write_span(root: pathlib.Path, span: int, rows: int) -> None:
    rng = np.random.default_rng(span)
    path = root / "csv" / f"span-{span}" / "data.csv"
    path.parent.mkdir(parents=True)
    lines = ["amount,hour,minute,kind,bought"]
    for _ in range(rows):
        amount, hour, kind = rng.exponential(10.0), rng.integers(24), rng.choice(["a", "b", "c"])
        bought = rng.random() < 1.0 / (1.0 + np.exp(3.0 - 0.2 * amount - (kind == "a")))
        # Some values are missing, as in real tables.
        shown = f"{amount:.4f}" if rng.random() < 0.95 else ""
        lines.append(f"{shown},{hour},{rng.uniform(0, 60):.4f},{kind},{int(bought)}")
    path.write_text("\n".join(lines) + "\n")


def _output(root, node, key) -> pathlib.Path:
    return pathlib.Path(local.latest_output(root, node, key))


def _config(root: pathlib.Path, **changes) -> LoopConfig:
    config = LoopConfig(
        csv_directory=str(root / "csv"),
        serving_directory=str(root / "serving"),
        training={
            "label_feature": "bought",
            "task": "binary",
            "categorical": ["hour"],
            "hidden_units": [16],
            "epochs": 2,
        },
        task="binary",
        label_feature="bought",
        sampling={"rate": 0.25, "seed": 5, "slice_features": ["kind"]},
    )
    return dataclasses.replace(config, **changes)


def _executions(root: pathlib.Path) -> dict[str, list[str]]:
    """node → states of its executions, in order."""
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(root / "metadata.sqlite")
    store = mlmd.MetadataStore(connection)
    states = {node.id: [] for node in create_components(_config(root))}
    for context in store.get_contexts_by_type("node"):
        node = context.name.split(".")[-1]
        for execution in sorted(store.get_executions_by_context(context.id), key=lambda e: e.id):
            states[node].append(execution.State.Name(execution.last_known_state))
    return states


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A loop that has run on one span."""
    root = tmp_path_factory.mktemp("loop")
    _write_span(root, 1, 2000)
    local.run(_config(root), str(root))
    return root


def test_every_node_ran_once_and_the_model_is_served(root):
    states = _executions(root)
    assert len(states) == 11 and all(state == ["COMPLETE"] for state in states.values())
    (version,) = (root / "serving").iterdir()
    trainer.load_keras_model(str(version))  # Pusher takes along what training continues from
    serve = tf.saved_model.load(str(version)).signatures["serving_default"]
    assert serve(examples=tf.constant([serialized_example(kind=b"a")] * 3))["logits"].shape == (
        3,
        1,
    )


def _train_files(root, node, key):
    files = [str(path) for path in (_output(root, node, key) / "Split-train").iterdir()]
    return list(tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator())


def test_records_are_what_the_base_model_says_of_the_training_split(root):
    examples = _train_files(root, "CsvExampleGen", "examples")
    base = path_utils.serving_model_path(local.latest_output(root, "BaseTrainer", "model"))
    serve = tf.saved_model.load(base).signatures["serving_default"]
    logits = serve(examples=tf.constant(examples))["logits"].numpy()
    records = ofb_tf.ForwardRecords.load(_output(root, "ForwardRecordGen", "forward_records"))
    ids = example_fingerprints(examples)
    np.testing.assert_array_equal(records.example_ids, np.sort(ids))
    np.testing.assert_allclose(records.logits, logits[np.argsort(ids)], rtol=1e-4, atol=1e-6)


def test_records_cover_the_training_split_and_weights_reach_the_trainer(root):
    manifest = Manifest.read(local.latest_output(root, "ForwardRecordGen", "forward_records"))
    _, splits = read_statistics(local.latest_output(root, "OFBSampler", "sampling_statistics"))
    total = splits[TRAIN].total
    assert total.coverage == 1.0
    assert manifest.num_records == total.num_examples
    assert total.num_repeated_ids == 0
    assert abs(total.num_selected - 0.25 * total.num_examples) < 5 * total.variance_selected**0.5
    records = _train_files(root, "OFBSampler", "sampled_examples")
    assert len(records) == total.num_selected
    weights = [
        tf.train.Example.FromString(r).features.feature["importance_weight"].float_list.value[0]
        for r in records
    ]
    assert len(set(weights)) > 50 and min(weights) > 0.0 and max(weights) <= 5.0


def test_comparison_on_the_untouched_split(root):
    uri = _output(root, "ModelComparison", "evaluation")
    metrics = json.loads((uri / "comparison.json").read_text())
    assert metrics["candidate"]["num_examples"] == metrics["baseline"]["num_examples"] > 400
    assert metrics["candidate"]["loss"] < metrics["baseline"]["loss"]


def test_second_run_is_all_cache(root):
    before = sorted(path for path in (root / "artifacts").rglob("*") if path.is_file())
    local.run(_config(root), str(root))
    after = sorted(path for path in (root / "artifacts").rglob("*") if path.is_file())
    assert after == before
    for node, states in _executions(root).items():
        assert states[:2] == ["COMPLETE", "CACHED"], node


def test_second_span_runs_every_node(root):
    _write_span(root, 2, 1500)
    local.run(_config(root), str(root))
    for node, states in _executions(root).items():
        assert states[-1] == "COMPLETE", node
    _, splits = read_statistics(local.latest_output(root, "OFBSampler", "sampling_statistics"))
    assert splits[TRAIN].total.num_examples < 1100
    assert len(list((root / "serving").iterdir())) == 2


def test_a_sample_that_is_not_blessed_is_not_trained_on(root):
    config = _config(root, validation={"min_effective_sample_size": 1.0})
    before = _executions(root)
    local.run(config, str(root))
    uri = _output(root, "SamplingValidator", "blessing")
    assert (uri / "NOT_BLESSED").exists()
    assert "effective sample size" in (uri / "anomalies.txt").read_text()
    after = _executions(root)
    for node in ("ContinuedTrainer", "ModelComparison", "Pusher"):
        assert "COMPLETE" not in after[node][len(before[node]) :], node
    assert len(list((root / "serving").iterdir())) == 2

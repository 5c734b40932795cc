"""From a log of each format, through `ofb records import`, to what a model trains on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf import cli
from tests.records.record_files import write

pytest.importorskip("pyarrow")
pytest.importorskip("tensorflow_serving.apis")
from benchmarks import importing

N = 2000


def sampled(records):
    rng = np.random.default_rng(0)
    examples = {
        "example_id": np.arange(N),
        "x": rng.normal(size=(N, 3)).astype(np.float32),
        "label": (rng.random(N) < 0.1).astype(np.int64),
    }
    return tf.data.Dataset.from_tensor_slices(examples).apply(
        ofb_tf.ofb_sample(
            records=records,
            rate=0.1,
            task="binary",
            missing="error",
            batch_size=20,
            window_size=500,
            seed=1,
        )
    )


def fit(dataset):
    """The weights of a model after one epoch."""
    keras.utils.set_random_seed(0)
    x = keras.Input([3], name="x")
    model = ofb_tf.OFBModel({"x": x}, keras.layers.Dense(1)(x))
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    history = model.fit(dataset, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    return model.get_weights()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The selected ids and weights, and the trained model, from records written by the server."""
    directory = str(tmp_path_factory.mktemp("records"))
    columns = importing.make_records(0, N)
    write(directory, columns["example_id"], columns["logits"][:, None])
    batches = list(sampled(directory).as_numpy_iterator())
    return batches, fit(sampled(directory))


@pytest.mark.parametrize("format", importing.FORMATS)
def test_a_log_selects_and_trains_as_the_servers_records(tmp_path, capsys, expected, format):
    write_log, _ = importing.FORMATS[format]
    log, records = tmp_path / f"log_{format}", tmp_path / "records"
    write_log(log, N)
    arguments = ["records", "import", str(log), f"--format={format}", f"--output_dir={records}"]
    assert cli.main(arguments) == 0
    assert "2,000" in capsys.readouterr().out
    batches, weights = expected
    for ours, theirs in zip(sampled(records).as_numpy_iterator(), batches, strict=True):
        for name in ("example_id", "importance_weight"):
            np.testing.assert_array_equal(ours[name], theirs[name])
    for ours, theirs in zip(fit(sampled(records)), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)

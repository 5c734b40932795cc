"""The deep models compute what they say, against numpy, and are what a configuration asks for."""

import keras
import numpy as np
import pytest

from ofb_tf.datasets import VOCABULARY_SIZES
from ofb_tf.experiments import models, workloads
from ofb_tf.experiments.config import SimulationConfig


def relu(values):
    return np.maximum(values, 0)


def test_deep_click_is_a_stacked_low_rank_dcn_v2():
    keras.utils.set_random_seed(0)
    inputs = models.click_inputs()
    model = keras.Model(inputs, models.deep_click(inputs))
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(random.normal(0, 0.1, variable.shape))
    dense = random.lognormal(size=(3, 13)).astype(np.float32)
    categorical = np.stack([random.integers(0, size, 3) for size in VOCABULARY_SIZES], 1)

    def layer(name, x):
        kernel, *bias = (w.astype(float) for w in model.get_layer(name).get_weights())
        return x @ kernel + (bias[0] if bias else 0)

    (table,) = next(one for one in model.layers if "embedding" in one.name).get_weights()
    rows = categorical + np.concatenate([[0], np.cumsum(VOCABULARY_SIZES)[:-1]])
    bottom = np.log(dense)
    for name in ("bottom_1", "bottom_2"):
        bottom = relu(layer(name, bottom))
    first = x = np.concatenate([table[rows].reshape(3, -1), bottom, np.log(dense)], 1)
    for number in range(3):
        x = first * layer(f"cross_up_{number}", layer(f"cross_down_{number}", x)) + x
    for name in ("hidden_1", "hidden_2", "hidden_3"):
        x = relu(layer(name, x))
    ours = model({"dense": dense, "categorical": categorical}).numpy()
    np.testing.assert_allclose(ours, x, rtol=1e-3, atol=1e-5)
    assert 2.0e6 < model.count_params() < 2.2e6
    in_layers = model.count_params() - table.size
    assert 1.3e6 < in_layers < 1.5e6


@pytest.mark.parametrize("model", ["small", "deep"])
def test_a_click_model_starts_from_the_share_of_positives(model):
    config = SimulationConfig(num_examples=100, test_examples=10, positive_rate=0.03, model=model)
    workload = workloads.get_workload(config, 0)
    built = workload.build()
    assert ("cross_up_0" in {layer.name for layer in built.layers}) == (model == "deep")
    assert built.layers[-1].bias.numpy() == pytest.approx(np.log(0.03 / 0.97))


@pytest.mark.parametrize(
    ("image_shape", "expected"),
    [((12, 12, 1), "conv2d"), (None, "hidden_3")],
    ids=["image", "flat"],
)
def test_deep_models_of_arrays(image_shape, expected):
    columns = int(np.prod(image_shape)) if image_shape else 5
    fields = {"example_id": np.arange(20), "label": np.arange(20) % 3}
    fields["features"] = np.ones([20, columns], np.float32)
    workload = workloads.flat_workload(
        fields, fields, num_classes=3, seed=0, image_shape=image_shape, model="deep"
    )
    model = workload.build()
    assert any(layer.name.startswith(expected) for layer in model.layers)
    assert model.output_shape == (None, 3)

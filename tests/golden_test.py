"""Selections are what they were: through tf.data and in the training step."""

import pytest

from tests.golden import cases

# float32 scores differ in their last bits between TensorFlow releases and processors.
RTOL = 2e-5


@pytest.mark.parametrize("name", cases.tf_data_cases())
def test_tf_data(name):
    chosen = cases.run_tf_data(**cases.tf_data_cases()[name])
    cases.assert_same(chosen, cases.stored("tf_data")[name], rtol=RTOL)


@pytest.mark.parametrize(("policy", "task"), cases.train_step_cases())
def test_train_step(policy, task):
    steps = cases.run_train_step(policy, task)["steps"]
    golden = cases.stored("train_step")[f"{policy}/{task}"]["steps"]
    for chosen, expected in zip(steps, golden, strict=True):
        # Weights are read off float32 gradients, which are small where an example is easy.
        cases.assert_same(chosen, expected, rtol=2e-3)

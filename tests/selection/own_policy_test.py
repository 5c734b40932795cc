"""A policy of the user's own: the example in the documentation runs as printed."""

import inspect
import re
import textwrap

import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import POLICIES, get_policy


def test_the_example_of_the_docstring():
    code = re.search(r"```python\n(.*?)```", inspect.getdoc(ofb_tf.Policy), re.DOTALL)[1]
    loss = np.r_[np.full(20, 2.0), np.full(180, 0.5)].astype(np.float32)
    dataset = tf.data.Dataset.from_tensor_slices(
        {"example_id": np.arange(200), "label": np.zeros(200, np.float32), "loss": loss}
    )
    lines = textwrap.dedent(code).strip().splitlines()
    lines[-1] = "sampled = " + lines[-1].replace("Threshold()", "Threshold(), window_size=200")
    given = {"ofb_tf": ofb_tf, "tf": tf, "dataset": dataset}
    exec("\n".join(lines), given)  # noqa: S102
    got = {int(e["example_id"]): float(e["importance_weight"]) for e in given["sampled"]}
    assert set(range(20)) <= set(got)
    others = len(got) - 20
    assert abs(others - 18) <= 5 * np.sqrt(180 * 0.1 * 0.9)
    for example_id, weight in got.items():
        assert weight == pytest.approx(0.1 if example_id < 20 else 1.0)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_name_is_a_policy(name):
    assert isinstance(get_policy(name), POLICIES[name])


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(ValueError, match=r"'loss_matching'.*'top_loss'.*Received: 'best'"):
        get_policy("best")
    with pytest.raises(TypeError, match="Received: 3"):
        get_policy(3)

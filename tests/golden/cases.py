"""Selections of fixed streams, kept in files: what a change of the code must leave as it is.

`python -m tests.golden.cases [NAME ...]` rewrites those cases of tf.data, or all cases;
`OFB_WRITE_GOLDEN=1` makes the TFX test rewrite those that run. Rewrite a case only with an entry
in CHANGELOG.md that says why.
"""

import itertools
import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import POLICIES

HERE = pathlib.Path(__file__).parent
N, WINDOW, RATE, SEED, CLASSES = 400, 200, 0.1, 29, 3
DESIGNS = ("systematic", "poisson")
MISSING = ("uniform", "keep", "drop", "error")


class Stream:
    """Examples with records; some of which are missing, and some of which are unusable."""

    def __init__(self, *, task: str, whole: bool) -> None:
        rng = np.random.default_rng(11)
        classes = CLASSES if task == "multiclass" else 1
        self.ids = rng.permutation(10 * N)[:N].astype(np.int64) * 7919 - 10_000_000
        self.text_ids = np.array([f"user-{i:x}" for i in self.ids])
        self.logits = (rng.normal(size=(N, classes)) * 2).astype(np.float32)
        self.labels = rng.integers(0, max(classes, 2), N)
        if task == "regression":
            self.labels = rng.normal(size=N).astype(np.float32)
        self.recorded = np.ones(N, bool)
        if not whole:
            self.recorded = rng.random(N) < 0.85
            self.logits[5::40] = np.nan
            if task != "regression":
                self.labels[7::50] = 9

    def records(self, text_ids: bool = False) -> ofb_tf.ForwardRecords:
        ids = self.ids
        if text_ids:
            ids = tf.strings.to_hash_bucket_fast(self.text_ids, 2**63 - 1).numpy()
        kept = self.recorded
        return ofb_tf.ForwardRecords.from_columns(ids[kept], self.logits[kept])

    def examples(self, text_ids: bool = False) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(
            {
                "example_id": self.text_ids if text_ids else self.ids,
                "label": self.labels,
                "place": np.arange(N),
            }
        )


def tf_data_cases() -> dict:
    """Name → arguments of `run_tf_data`."""
    cases = {}
    for policy, design, missing in itertools.product(sorted(POLICIES), DESIGNS, MISSING):
        cases[f"{policy}/{design}/{missing}"] = {
            "policy": POLICIES[policy](design=design),
            "missing": missing,
        }
    for policy, design in itertools.product(("importance", "uniform"), DESIGNS):
        cases[f"{policy}/{design}/text_ids"] = {
            "policy": POLICIES[policy](design=design),
            "text_ids": True,
        }
    for task in ("binary", "regression"):
        cases[f"importance/systematic/{task}"] = {"policy": "importance", "task": task}
    cases["importance/systematic/batches_of_7"] = {"policy": "importance", "batch_size": 7}
    cases["importance/systematic/probe"] = {"policy": "importance", "uniform_probe": 0.02}
    cases["importance/poisson/loss"] = {
        "policy": ofb_tf.Importance(score="loss", uniform_mix=0.4, design="poisson")
    }
    return cases


def run_tf_data(
    policy="importance", missing="uniform", text_ids=False, task="multiclass", **arguments
) -> dict:
    """Places of the selected in the order of leaving, their weights, and flags."""
    stream = Stream(task=task, whole=missing == "error")
    sampler = ofb_tf.ofb_sample(
        records=stream.records(text_ids),
        policy=policy,
        missing=missing,
        task=task,
        rate=RATE,
        window_size=WINDOW,
        seed=SEED,
        **{"batch_size": 10} | arguments,
    )
    batches = list(stream.examples(text_ids).apply(sampler).as_numpy_iterator())
    chosen = {"places": np.concatenate([b["place"] for b in batches]).tolist()}
    chosen["weights"] = rounded(np.concatenate([b["importance_weight"] for b in batches]))
    if "uniform_probe" in arguments:
        flags = np.concatenate([b["uniform_probe"] for b in batches])
        chosen["flagged"] = np.flatnonzero(flags).tolist()
    return chosen


def run_train_step(policy: str, task: str) -> dict:
    """What steps of `OFBModel(backward_rate=0.1)` select, read off the weights they leave.

    The inputs are rows of the identity, so a row of the kernel moves only where its example was
    selected, by its importance weight times the gradient of its loss.
    """
    stream = Stream(task=task, whole=True)
    n, outputs = 100, stream.logits.shape[1]
    x = keras.Input((n,))
    y = keras.layers.Dense(outputs, use_bias=False, name="table")(x)
    model = ofb_tf.OFBModel(
        x, y, backward_rate=0.1, selection_policy=policy, task=task, selection_seed=SEED
    )
    loss = {
        "regression": "mse",
        "binary": keras.losses.BinaryCrossentropy(from_logits=True),
        "multiclass": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }[task]
    model.compile(keras.optimizers.SGD(1.0), loss)
    start = stream.logits[:n]
    steps = []
    for step in range(2):
        labels = stream.labels[step * n : (step + 1) * n]
        model.layers[-1].set_weights([start])
        model.train_on_batch(np.eye(n, dtype=np.float32), labels)
        moved = start - model.layers[-1].get_weights()[0]
        if task == "regression":
            gradient = 2.0 * (start - labels[:, None])
        elif task == "binary":
            gradient = 1.0 / (1.0 + np.exp(-start)) - labels[:, None]
        else:
            gradient = np.exp(start) / np.exp(start).sum(1, keepdims=True) - np.eye(outputs)[labels]
        places = np.flatnonzero(np.abs(moved).max(1))
        largest = np.abs(gradient).argmax(1)[places]
        weights = 10 * moved[places, largest] / gradient[places, largest]
        steps.append({"places": places.tolist(), "weights": rounded(weights)})
    return {"steps": steps}


def train_step_cases() -> list[tuple[str, str]]:
    """(policy, task) pairs."""
    tasks = [("importance", "binary"), ("importance", "regression")]
    return [(policy, "multiclass") for policy in sorted(POLICIES)] + tasks


def rounded(weights: np.ndarray) -> list[float]:
    return [float(f"{weight:.6g}") for weight in weights]


def stored(name: str) -> dict:
    """What a golden file holds."""
    return json.loads((HERE / f"{name}.json").read_text())


def store(name: str, selections: dict) -> None:
    """Writes a golden file, one case per line."""
    lines = [f'"{case}": {json.dumps(chosen)}' for case, chosen in selections.items()]
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def assert_same(chosen: dict, golden: dict, *, rtol: float) -> None:
    """The same examples in the same order; weights to `rtol`."""
    assert chosen["places"] == golden["places"]
    assert chosen.get("flagged") == golden.get("flagged")
    np.testing.assert_allclose(chosen["weights"], golden["weights"], rtol=rtol)


if __name__ == "__main__":
    names = sys.argv[1:] or tf_data_cases()
    kept = stored("tf_data") if sys.argv[1:] else {}
    store("tf_data", kept | {name: run_tf_data(**tf_data_cases()[name]) for name in names})
    if not sys.argv[1:]:
        store("train_step", {"/".join(case): run_train_step(*case) for case in train_step_cases()})

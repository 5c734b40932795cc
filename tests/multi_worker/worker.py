"""One worker of a MultiWorkerMirroredStrategy: trains and writes what it ended with.

Run as `python -m tests.multi_worker.worker OUTPUT HOW` with TF_CONFIG in the environment; HOW is
"loop" (a training loop around `train_step`) or "fit" (what `fit` does, for `keras.Model` and for
`OFBModel`).
"""

import json
import os
import sys

import keras
import tensorflow as tf

import ofb_tf
from tests.training import models


def build(cls=ofb_tf.OFBModel):
    return models.build(cls, keras.optimizers.SGD(0.5), jit_compile=False)


def train_by_loop(strategy, model, dataset):
    """One epoch of `train_step` on every replica; the metrics at its end."""

    @tf.function
    def step(batch):
        strategy.run(model.train_step, args=(batch,))

    for batch in strategy.experimental_distribute_dataset(dataset):
        step(batch)
    return {name: [float(value)] for name, value in model.get_metrics_result().items()}


def main(output: str, how: str) -> None:
    """Trains on this worker's share of every global batch."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = models.batches(models.as_tuple(models.make_data())).with_options(options)
    content = {
        "replicas": strategy.num_replicas_in_sync,
        "task": json.loads(os.environ["TF_CONFIG"])["task"]["index"],
    }
    classes = {"ours": ofb_tf.OFBModel} | ({} if how == "loop" else {"stock": keras.Model})
    for name, cls in classes.items():
        with strategy.scope():
            model = build(cls)
            model.optimizer.build(model.trainable_variables)
        if how == "loop":
            content["history"] = train_by_loop(strategy, model, dataset)
            content["weights"] = [w.tolist() for w in model.get_weights()]
            continue
        try:
            model.fit(dataset, shuffle=False, verbose=0, steps_per_epoch=len(dataset))
            content[name] = "works"
        except Exception as error:
            content[name] = f"{type(error).__name__}: {str(error)[:40]}"
    with open(output, "w") as file:
        json.dump(content, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

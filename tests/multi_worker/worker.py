"""One worker of a MultiWorkerMirroredStrategy: trains and writes what it ended with.

Run as `python worker.py OUTPUT HOW` with TF_CONFIG in the environment; HOW is "loop" (a training
loop around `train_step`) or "fit" (what comes of it, for `keras.Model` and for `OFBModel`).
"""

import json
import os
import sys

import numpy as np

GLOBAL_BATCH, STEPS = 16, 4


def make_data():
    """Features, labels and importance weights of all steps."""
    random = np.random.default_rng(0)
    count = GLOBAL_BATCH * STEPS
    return (
        random.normal(size=(count, 3)).astype(np.float32),
        random.integers(0, 2, count),
        random.uniform(0.2, 5.0, count).astype(np.float32),
    )


def build(stock=False):
    """The same model in every process."""
    import keras

    import ofb_tf

    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), name="x")
    cls = keras.Model if stock else ofb_tf.OFBModel
    model = cls(inputs, keras.layers.Dense(2)(inputs))
    model.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def train_by_loop(strategy, model, dataset):
    """One epoch of `train_step` on every replica; the metrics at its end."""
    import tensorflow as tf

    @tf.function
    def step(batch):
        strategy.run(model.train_step, args=(batch,))

    for batch in strategy.experimental_distribute_dataset(dataset):
        step(batch)
    return {name: [float(value)] for name, value in model.get_metrics_result().items()}


def main(output: str, how: str) -> None:
    """Trains on this worker's share of every global batch."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = tf.data.Dataset.from_tensor_slices(make_data()).batch(GLOBAL_BATCH)
    dataset = dataset.with_options(options)
    content = {
        "replicas": strategy.num_replicas_in_sync,
        "task": json.loads(os.environ["TF_CONFIG"])["task"]["index"],
    }
    for stock in (False,) if how == "loop" else (True, False):
        with strategy.scope():
            model = build(stock=stock)
            model.optimizer.build(model.trainable_variables)
        if how == "loop":
            content["history"] = train_by_loop(strategy, model, dataset)
            content["weights"] = [w.tolist() for w in model.get_weights()]
            continue
        try:
            model.fit(dataset, shuffle=False, verbose=0, steps_per_epoch=STEPS)
            outcome = "works"
        except Exception as error:
            outcome = f"{type(error).__name__}: {str(error)[:40]}"
        content["stock" if stock else "ours"] = outcome
    with open(output, "w") as file:
        json.dump(content, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One worker of a MultiWorkerMirroredStrategy: trains and writes what it ended with.

Run as `python worker.py OUTPUT`, with TF_CONFIG in the environment.
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


def build():
    """The same model in every process."""
    import keras

    import ofb_tf

    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), name="x")
    model = ofb_tf.OFBModel(inputs, keras.layers.Dense(2)(inputs))
    model.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def main(output: str) -> None:
    """Trains on this worker's share of every global batch."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = tf.data.Dataset.from_tensor_slices(make_data()).batch(GLOBAL_BATCH)
    with strategy.scope():
        model = build()
    history = model.fit(
        dataset.with_options(options), shuffle=False, verbose=0, steps_per_epoch=STEPS
    ).history
    content = {
        "history": {name: [float(v) for v in values] for name, values in history.items()},
        "weights": [w.tolist() for w in model.get_weights()],
        "replicas": strategy.num_replicas_in_sync,
        "task": json.loads(os.environ["TF_CONFIG"])["task"]["index"],
    }
    with open(output, "w") as file:
        json.dump(content, file)


if __name__ == "__main__":
    main(sys.argv[1])

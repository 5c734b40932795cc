"""A small stream with logits, and the ways in which tests read it."""

import numpy as np
import tensorflow as tf

import ofb_tf

N, WINDOW, CLASSES = 1000, 200, 4
_RNG = np.random.default_rng(2)
IDS = _RNG.permutation(np.arange(N)) * 7919 - 3_000_000
LABELS = _RNG.integers(0, CLASSES, N)
LOGITS = (_RNG.normal(size=(N, CLASSES)) * 2).astype(np.float32)
X = _RNG.normal(size=(N, 3)).astype(np.float32)
PLACE = {example_id: place for place, example_id in enumerate(IDS.tolist())}


def dicts(n=N, **changes):
    fields = {"example_id": IDS[:n], "label": LABELS[:n], "x": X[:n]} | changes
    return tf.data.Dataset.from_tensor_slices(fields)


def with_logits(n=N, **changes):
    return dicts(n, **{"logits": LOGITS[:n]} | changes)


def ids_and_weights(dataset):
    elements = list(dataset)
    return tuple(
        np.concatenate([np.atleast_1d(element[name]) for element in elements])
        for name in ("example_id", "importance_weight")
    )


def sample(dataset=None, **arguments):
    dataset = with_logits() if dataset is None else dataset
    return dataset.apply(ofb_tf.ofb_sample(**{"seed": 5, "window_size": WINDOW} | arguments))


def serialized_example(**features):
    example = tf.train.Example()
    for name, value in features.items():
        feature, values = example.features.feature[name], np.ravel(value)
        lists = {"i": feature.int64_list, "f": feature.float_list, "S": feature.bytes_list}
        lists[values.dtype.kind].value.extend(values.tolist())
    return example.SerializeToString()


def serialized():
    rows = zip(IDS, LABELS, X, strict=True)
    examples = [serialized_example(example_id=i, label=label, x=x) for i, label, x in rows]
    return tf.data.Dataset.from_tensor_slices(examples)


SPEC = {
    "example_id": tf.io.FixedLenFeature([], tf.int64),
    "label": tf.io.FixedLenFeature([], tf.int64),
    "x": tf.io.FixedLenFeature([3], tf.float32),
}


def partition_of_dataset(dataset, partition):
    """The examples of one partition; a user has them in files of their own."""

    def belongs(element):
        if element.dtype == tf.string if isinstance(element, tf.Tensor) else False:
            element = tf.io.parse_single_example(element, SPEC)
        return ofb_tf.records.partition_of(element["example_id"], 3) == partition

    return dataset.filter(belongs)

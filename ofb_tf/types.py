"""Field names and type aliases that the modules share."""

from collections.abc import Callable

import tensorflow as tf

EXAMPLE_ID = "example_id"
LABEL = "label"
LOGITS = "logits"
LOSS = "loss"
MODEL_VERSION = "model_version"
TIMESTAMP = "timestamp"
HAS_RECORD = "has_record"
IMPORTANCE_WEIGHT = "importance_weight"
UNIFORM_HOLDOUT = "uniform_holdout"

# What the top-k form of a record keeps instead of every logit; see METHOD.md, "Scores".
CLASS_IDS = "class_ids"
LOGSUMEXP = "logsumexp"
SUM_SQUARED_PROBABILITIES = "sum_squared_probabilities"
NUM_OUTPUTS = "num_outputs"

MULTICLASS = "multiclass"
BINARY = "binary"
REGRESSION = "regression"
TASKS = (MULTICLASS, BINARY, REGRESSION)

MICROSECONDS = 1_000_000

DatasetTransform = Callable[[tf.data.Dataset], tf.data.Dataset]
"""A function from a dataset to a dataset, for `tf.data.Dataset.apply`."""

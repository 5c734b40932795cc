"""One partition of the join, in numpy: its examples, their records' fields, their scores."""

from typing import Any

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import ForwardRecords
from ofb_tf.selection import policy as base
from ofb_tf.selection import scores
from tfx_components import manifest
from tfx_components.sampler_config import SamplerConfig

Columns = dict[str, Any]

FOUND = "found"
AGE = "age"


def record_fields(
    config: SamplerConfig,
    uri: str,
    records: manifest.Manifest,
    partition: int,
    example_ids: np.ndarray,
) -> dict[str, np.ndarray]:
    """Joins a partition's examples to its records.

    Args:
      config: of the sampler.
      uri: of the `ofb.ForwardRecords` artifact.
      records: its manifest.
      partition: which one.
      example_ids: int64 `[n]`.

    Returns:
      `found` bool `[n]`: a record, whatever its age; `has_record`: and not too old. Where the
      partition has records, also `logits` `[n, k]` and / or `loss` `[n]`, `model_version` and
      `timestamp` int64 `[n]`, and `age` float64 `[n]`, seconds: of any record where not `found`.
    """
    nowhere = np.zeros(len(example_ids), bool)
    nothing = {FOUND: nowhere, constants.HAS_RECORD: nowhere}
    if not records.records_by_partition[partition]:
        return nothing
    as_of = config.as_of or records.newest_timestamp
    path = manifest.partition_path(uri, partition, records.num_partitions)
    loaded = ForwardRecords.load(path, as_of=as_of)
    if not len(loaded):
        return nothing
    row = np.searchsorted(loaded.example_ids.numpy(), example_ids)
    row = np.minimum(row, len(loaded) - 1)
    found = loaded.example_ids.numpy()[row] == example_ids
    fields = {FOUND: found, constants.HAS_RECORD: found}
    columns = {
        constants.LOGITS: loaded.logits,
        constants.LOSS: loaded.losses,
        constants.MODEL_VERSION: loaded.model_versions,
        constants.TIMESTAMP: loaded.timestamps,
    }
    for name, column in columns.items():
        if column is not None:
            fields[name] = column.numpy()[row]
    fields[AGE] = (as_of - fields[constants.TIMESTAMP]) / constants.MICROSECONDS
    if config.max_age:
        fields[constants.HAS_RECORD] = fields[FOUND] & (fields[AGE] <= config.max_age)
    return fields


def concatenate(chunks: list[Columns]) -> Columns:
    """One partition's chunks as columns sorted by id, file and position."""
    sizes = [len(chunk["example_ids"]) for chunk in chunks]
    ids = np.concatenate([chunk["example_ids"] for chunk in chunks])
    files = np.repeat(np.array([chunk["file"] for chunk in chunks], np.int32), sizes)
    positions = np.concatenate(
        [chunk["first"] + chunk["offsets"].astype(np.int64) for chunk in chunks]
    )
    order = np.lexsort((positions, files, ids))
    rows: Columns = {
        "example_ids": ids[order],
        "files": files[order],
        "positions": positions[order],
        "labels": np.concatenate([chunk["labels"] for chunk in chunks])[order],
        "slices": {},
    }
    for name in (key for key in chunks[0] if key.startswith("slice/")):
        vocabulary = sorted({value for chunk in chunks for value in chunk[name][0]})
        index = {value: code for code, value in enumerate(vocabulary)}
        codes = np.concatenate(
            [np.array([index[v] for v in chunk[name][0]])[chunk[name][1]] for chunk in chunks]
        )
        keys = [
            f"{name.removeprefix('slice/')}={value.decode('utf-8', 'replace')}"
            for value in vocabulary
        ]
        rows["slices"][name] = (keys, codes[order].astype(np.int32))
    return rows


def score_rows(
    config: SamplerConfig, fields: dict[str, np.ndarray], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, float32 `[n]`, 0 where unusable, and bool `[n]`: where usable."""
    logits, losses = fields.get(constants.LOGITS), fields.get(constants.LOSS)
    usable = fields[constants.HAS_RECORD]
    if logits is None and losses is None:
        return np.zeros(len(labels), np.float32), np.zeros(len(labels), bool)
    labels = tf.constant(labels)
    logits = None if logits is None else tf.constant(logits)
    usable = usable & scores.valid_examples(logits, labels, config.task).numpy()
    if config.score == base.GRADIENT_NORM_BOUND and logits is not None:
        score = scores.gradient_norm_bound(logits, labels, config.task).numpy()
    elif losses is not None:
        score = losses
    else:
        score = scores.example_loss(logits, labels, config.task).numpy()
    score = score.astype(np.float32)
    usable = usable & np.isfinite(score) & (score >= 0.0)
    return np.where(usable, score, np.float32(0.0)), usable

"""The serving side of the simulation: export, load back, answer, record."""

import keras
import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import ForwardRecordWriter

REQUEST_SIZE = 1024


def export_snapshot(model: keras.Model, directory: str) -> None:
    """Writes the model as a SavedModel with one endpoint, `serve`, from input fields to logits."""
    signature = {
        name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name=name)
        for name, tensor in model.input.items()
    }
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda fields: model(fields, training=False), [signature])
    archive.write_out(directory, verbose=False)


def serve_and_record(
    snapshot: str,
    examples: dict[str, tf.Tensor],
    records: str,
    *,
    num_outputs: int,
    version: int,
    kept: np.ndarray,
) -> None:
    """Has a loaded snapshot answer requests, and writes what every forward pass leaves behind.

    Args:
      snapshot: directory that `export_snapshot` wrote.
      examples: `example_id` and the model's inputs, each `[n, ...]`.
      records: directory of the record files, made where absent.
      num_outputs: width of the snapshot's output.
      version: the snapshot's number.
      kept: bool `[n]`: whose records are written; the others are lost.
    """
    served = tf.saved_model.load(snapshot)
    ids = examples[constants.EXAMPLE_ID]
    names = list(served.serve.input_signature[0])
    with ForwardRecordWriter(records, num_outputs=num_outputs) as writer:
        for start in range(0, len(ids), REQUEST_SIZE):
            request = slice(start, start + REQUEST_SIZE)
            logits = served.serve({name: examples[name][request] for name in names})
            written = kept[request]
            writer.write(ids[request][written], logits[written], model_version=version)

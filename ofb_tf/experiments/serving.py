"""The serving side of the simulation: export, load back, answer, record."""

import os

import keras
import tensorflow as tf

from ofb_tf import types
from ofb_tf.records import ForwardRecordWriter


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
    snapshot: str, examples: tf.data.Dataset, records: str, *, num_outputs: int, version: int
) -> None:
    """Runs a loaded snapshot over batches and writes what every forward pass leaves behind.

    Args:
      snapshot: directory that `export_snapshot` wrote.
      examples: batches of dicts with `example_id` and the model's inputs.
      records: directory of the record files, made where absent.
      num_outputs: width of the snapshot's output.
      version: the snapshot's number.
    """
    os.makedirs(records, exist_ok=True)
    served = tf.saved_model.load(snapshot)
    names = list(served.serve.input_signature[0])
    with ForwardRecordWriter(records, num_outputs=num_outputs) as writer:
        for batch in examples:
            logits = served.serve({name: batch[name] for name in names})
            writer.write(batch[types.EXAMPLE_ID], logits, model_version=version)

"""Recording inside the process that calls `model.predict`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ofb_tf import constants, hashing
from ofb_tf.records.outputs import activation_of_output, logits_of
from ofb_tf.records.writer import BlockWriter
from ofb_tf.serving.recorder import PredictionRecorder


class RecordPredictions(keras.callbacks.Callback):
    """Writes the outputs of `model.predict` as forward records.

    ```python
    import keras
    import numpy as np

    import ofb_tf
    from ofb_tf.serving import RecordPredictions

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with ofb_tf.ForwardRecordWriter("records") as writer:
        recorder = RecordPredictions(writer, np.arange(100), model_version=3)
        model.predict(np.zeros([100, 2]), callbacks=[recorder], verbose=0)
    assert len(ofb_tf.ForwardRecords.load("records")) == 100
    ```

    Ids come from `example_ids`, in the order of prediction, or from the model's own output, a dict
    with `example_id` and `logits`.
    """

    def __init__(
        self,
        writer: BlockWriter | PredictionRecorder,
        example_ids: Any = None,
        *,
        model_version: int = 0,
        id_output: str = constants.EXAMPLE_ID,
        logits_output: str | Sequence[str] = constants.LOGITS,
        from_logits: bool | None = None,
    ):
        """Makes the callback.

        Args:
          writer: takes the records; it stays open. A `PredictionRecorder` instead of a writer never
            makes `predict` wait for the disk, and drops what its queue has no room for.
          example_ids: int64 or string `[n]`, one per predicted example, in order; None if the
            model outputs them.
          model_version: int64.
          id_output: the output with the ids, used if `example_ids` is None.
          logits_output: the output with the logits, if the model's output is a dict; for several
            heads the names of all, which are recorded side by side in the order of their names.
          from_logits: False where the model gives probabilities, whose logits are then recorded;
            None takes it from the loss that the model is compiled with, or where it is not
            compiled from the activation of its last layer.

        Raises:
          ValueError: example_ids is not `[n]`, or neither integers nor strings.
        """
        super().__init__()
        self._ids = None if example_ids is None else hashing.id_vector(example_ids)
        self._writer = writer
        self._model_version = model_version
        self._id_output = id_output
        self._has_heads = not isinstance(logits_output, str)
        self._logits_outputs = sorted(
            [logits_output] if isinstance(logits_output, str) else logits_output
        )
        self._from_logits = from_logits
        self._position = 0

    def on_predict_begin(self, logs: dict | None = None) -> None:
        """Starts at the first id."""
        self._position = 0

    def on_predict_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Writes the batch; a ValueError says that logits are missing or ids are too few."""
        logs = logs or {}
        if isinstance(logs.get("outputs"), list | tuple):
            logs = dict(zip(self.model.output_names, logs["outputs"], strict=True))
        # Keras merges a dict of outputs into the logs.
        names = ["outputs"] if "outputs" in logs else self._logits_outputs
        if not set(names) <= set(logs):
            raise ValueError(
                f"RecordPredictions: the model's output must have {', '.join(names)}. "
                f"Received: {sorted(logs)}. Name it with logits_output, or the outputs of several "
                "heads with a list."
            )
        parts = {n: self._logits_of(n, np.atleast_1d(np.asarray(logs[n]))) for n in names}
        logits = parts[names[0]]
        if self._ids is not None:
            ids = self._ids[self._position : self._position + len(logits)]
            self._position += len(logits)
            if len(ids) < len(logits):
                raise _wrong_number(len(self._ids), f"at least {self._position}")
        elif self._id_output in logs:
            ids = _ids_of_output(logs[self._id_output])
        else:
            raise ValueError(
                "RecordPredictions: ids must come from example_ids, or from the model's output "
                f"{self._id_output!r}. Received: neither"
            )
        written = parts if self._has_heads else logits
        self._writer.write(ids, written, model_version=self._model_version)

    def _logits_of(self, name: str, outputs: np.ndarray) -> np.ndarray:
        """The logits of one output, which may be probabilities."""
        activation = activation_of_output(self.model, name)
        given = self._from_logits
        if given or (given is None and activation is None):
            return outputs
        return logits_of(outputs, sigmoids=activation == "sigmoid")

    def on_predict_end(self, logs: dict | None = None) -> None:
        """Raises a ValueError unless every id was used, or `model.stop_predicting` was set."""
        stopped = getattr(self.model, "stop_predicting", False)
        if self._ids is not None and self._position != len(self._ids) and not stopped:
            raise _wrong_number(len(self._ids), str(self._position))


def _wrong_number(num_ids: int, num_examples: str) -> ValueError:
    return ValueError(
        "RecordPredictions: example_ids must name every example once. Received: "
        f"{num_ids} ids for {num_examples} examples"
    )


def _ids_of_output(ids: Any) -> np.ndarray:
    if isinstance(ids, float):  # what Keras makes of a batch of one
        if abs(ids) >= 2**53:
            raise ValueError(
                "RecordPredictions: Keras turns the id of a batch of one into a float, which "
                f"cannot represent it. Received: {ids}. Give example_ids, or a batch_size that "
                "leaves no single example."
            )
        ids = int(ids)
    return np.reshape(hashing.to_int64(ids), [-1])

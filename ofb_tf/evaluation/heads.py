"""A model with several heads: the quality of each, and what one selection for all will gain."""

from typing import Any

import tensorflow as tf

from ofb_tf import constants
from ofb_tf.evaluation import gain
from ofb_tf.evaluation.accumulator import Evaluation
from ofb_tf.evaluation.quality import Measured, measure
from ofb_tf.selection.heads import Heads, combine

HEADS = "heads"


def measure_heads(
    record: dict[str, tf.Tensor], labels: list[tf.Tensor], heads: Heads
) -> tuple[Measured, dict[str, Measured]]:
    """Evaluates each example by its record and the label of each head.

    Args:
      record: `has_record` bool `[n]`, and `logits` `[n, heads.num_outputs]`.
      labels: `[n]` for each head, in their order; one that is not known is a NaN, or of a
        classification negative.
      heads: the heads.

    Returns:
      `quality.measure` of the joint score, to which a label that is not known adds nothing; and
      of each head by its name, for which it is an invalid label.

    Raises:
      ValueError: the records keep the largest logits alone.
    """
    joint = combine(heads, record, labels)
    is_valid = tf.reduce_all(joint.valid_labels, axis=1)
    joint_label = tf.where(is_valid, 0.0, float("nan"))  # the score stands in for a loss
    parts = zip(heads, heads.split(record[constants.LOGITS]), labels, strict=True)
    own = {
        head.name: measure(record | {constants.LOGITS: logits}, label, head.task)
        for head, logits, label in parts
    }
    return measure(joint.record, joint_label, constants.REGRESSION), own


class HeadsEvaluation:
    """An `Evaluation` of each head, and one of their joint score.

    Args:
      heads: the heads.
      num_outputs: of the records.
      as_of: as for `Evaluation`.
      uniform_mix: as for `Evaluation`.

    Raises:
      ValueError: the records have another number of outputs than the heads.
    """

    def __init__(
        self, heads: Heads, num_outputs: int, as_of: int = 0, uniform_mix: float = 0.2
    ) -> None:
        if num_outputs != heads.num_outputs:
            raise ValueError(
                f"records must have {heads.num_outputs} outputs for the heads "
                f"{[tuple(head[:3]) for head in heads]}. Received: {num_outputs}. Write the logits "
                "of all heads side by side, in the order of their names."
            )
        self._joint = Evaluation(constants.REGRESSION, 0, as_of, uniform_mix)
        self._heads = {
            head.name: Evaluation(head.task, head.num_outputs, as_of, uniform_mix) for head in heads
        }

    def add(self, measured: tuple[Measured, dict[str, Measured]], **columns: Any) -> None:
        """Adds n examples: what `measure_heads` gives, and columns as for `Evaluation.add`."""
        joint, own = measured
        self._joint.add(joint, **columns)
        for name, evaluation in self._heads.items():
            evaluation.add(own[name], **columns)

    def result(self) -> dict[str, Any]:
        """Every figure, in the types that JSON has; None for one that is not defined.

        Returns:
          `heads`, for each by its name what `Evaluation.result` gives but for `gain` and `advice`.
          And what concerns the selection, which happens once for all heads, of the joint score:
          `total`, with its counts, `coverage` and `mean_score`; `score_drift`, `gain` and
          `advice`.
        """
        joint = self._joint.result()
        heads = {name: evaluation.result() for name, evaluation in self._heads.items()}
        for found in heads.values():
            del found["gain"], found["advice"]
        errors = [h[constants.CONFIDENT_ERROR] for h in heads.values() if h["labels_look_noisy"]]
        del joint["total"][constants.LOSS]  # which is the score
        return {
            HEADS: heads,
            "total": joint["total"],
            "score_drift": joint["score_drift"],
            "gain": joint["gain"],
            "advice": gain.advise(joint["total"], joint["gain"], max(errors, default=None)),
        }

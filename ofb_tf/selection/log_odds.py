"""Log-odds correction: what a selection by label and record does to the odds of the labels.

Where the probability of being selected is a function of the score, and the score one of the
logits and the label, the record alone says with what probability an example would have been
selected under each label k, the rest of the window held fixed:

    pi_k = min(1, slope * s(logits, k) + intercept)

Among the selected, the log-odds of the labels are those of the stream plus log pi_k. A model that
is trained, without weights, on `logits + log pi` is therefore one of the stream. This is maximum
likelihood given the selection: consistent where the model's class is right, but no unbiased
estimate of the loss.

Reference: Fithian & Hastie, "Local case-control sampling", Annals of Statistics 42, 2014 (arXiv
1306.3706); Han et al., "Local uncertainty sampling for large-scale multi-class logistic
regression", arXiv 1604.08098; Wang, Zhang & Wang, "Nonuniform negative sampling and log odds
correction with rare events data", NeurIPS 2021 (arXiv 2110.13048). There the probabilities are
those of a pilot model; here they are those of the model that served.
"""

from typing import Any

import tensorflow as tf

from ofb_tf import constants
from ofb_tf.selection import scores
from ofb_tf.selection.policy import GRADIENT_NORM_BOUND, Policy

_TOP_K = (
    constants.LOGITS,
    constants.CLASS_IDS,
    constants.LOGSUMEXP,
    constants.SUM_SQUARED_PROBABILITIES,
    constants.NUM_OUTPUTS,
)


def check_log_odds(policy: Policy, task: Any) -> None:
    """Raises ValueError where no log-odds correction exists.

    Args:
      policy: needs probabilities that are a function of the gradient-norm bound, none of them 0.
      task: "multiclass" or "binary"; None where it is not known yet. Several heads, as `Heads` or
        a mapping by their names, have one score for all their labels, and no correction.
    """
    remedy = "Use estimator='weights'."
    if not isinstance(task, str | None):
        raise ValueError(
            "estimator='log_odds' corrects the logits of one head, which a joint score does not "
            f"allow. Received: the heads {[getattr(h, 'name', h) for h in task]}. {remedy}"
        )
    if task == constants.REGRESSION and policy.needs_records:
        raise ValueError(
            f"estimator='log_odds' is for classification. Received: task={task!r}. {remedy}"
        )
    if not policy.affine:
        raise ValueError(
            "estimator='log_odds' needs a policy whose probabilities are a function of the score "
            f"(Policy.affine). Received: {type(policy).__name__}. Use Importance, or "
            "estimator='weights'."
        )
    if policy.needs_records and policy.score != GRADIENT_NORM_BOUND:
        raise ValueError(
            "estimator='log_odds' needs score='gradient_norm_bound', which is known for every "
            f"label. Received: score={policy.score!r}. {remedy}"
        )
    if not getattr(policy, "uniform_mix", 1.0) > 0.0:
        raise ValueError(
            "estimator='log_odds' needs uniform_mix above 0, or a label with which an example is "
            f"never selected has no finite log probability. Received: 0. {remedy}"
        )


def log_inclusion(
    line: tf.Tensor,
    record: dict[str, tf.Tensor],
    usable: tf.Tensor,
    task: str,
    num_outputs: int | None = None,
) -> tf.Tensor:
    """What to add to a model's logits in the training loss.

    Args:
      line: float64 `[2]`, slope and intercept of the window, with an intercept above 0.
      record: as for `scores.example_loss`.
      usable: bool `[n]`: the others were selected whatever their label, and get 0.
      task: "multiclass" or "binary".
      num_outputs: number of classes, of a record in the top-k form.

    Returns:
      float32 `[n, num_classes]`: log pi_k. For binary `[n, 1]`: log(pi_1 / pi_0), for the one
      logit of label 1.
    """
    return offsets_of(class_scores(record, task, num_outputs), line, usable, task)


def offsets_of(by_class: tf.Tensor, line: tf.Tensor, usable: tf.Tensor, task: str) -> tf.Tensor:
    """The same from `class_scores`, where the line is known only later."""
    log_pi = tf.math.log(tf.minimum(line[0] * tf.cast(by_class, tf.float64) + line[1], 1.0))
    if task == constants.BINARY:
        log_pi = log_pi[:, 1:] - log_pi[:, :1]
    return tf.where(usable[:, None], tf.cast(log_pi, tf.float32), 0.0)


def class_scores(
    record: dict[str, tf.Tensor], task: str, num_outputs: int | None = None
) -> tf.Tensor:
    """The gradient-norm bound under each label: column k is the score, were k everyone's label.

    Args:
      record: as for `scores.example_loss`.
      task: "multiclass" or "binary".
      num_outputs: number of classes, of a record in the top-k form.

    Returns:
      float32 `[n, num_classes]`, two columns for binary.
    """
    if task == constants.BINARY:
        count = tf.shape(record[constants.LOGITS])[0]
        labels = [tf.fill([count], label) for label in (0.0, 1.0)]
        bounds = [scores.gradient_norm_bound(record, label, task) for label in labels]
        return tf.stack(bounds, axis=1)
    if constants.CLASS_IDS not in record:
        return _bounds(tf.nn.softmax(tf.cast(record[constants.LOGITS], tf.float32), axis=-1))
    # The labels outside the k are all alike: one more column stands for them.
    class_ids = tf.cast(record[constants.CLASS_IDS], tf.int64)
    others = tf.fill([tf.shape(class_ids)[0], 1], tf.constant(-1, tf.int64))
    candidates = tf.concat([class_ids, others], axis=1)
    flat = {name: tf.repeat(record[name], tf.shape(candidates)[1], axis=0) for name in _TOP_K}
    bounds = scores.gradient_norm_bound(flat, tf.reshape(candidates, [-1]), task)
    return _by_class(tf.reshape(bounds, tf.shape(candidates)), class_ids, num_outputs)


def _bounds(probabilities: tf.Tensor) -> tf.Tensor:
    """sqrt(sum of the other classes' p^2 + (1 - p_k)^2) for each class k: `[n, num_classes]`."""
    squares = tf.square(probabilities)
    # For the largest p, 1 - p_k is the sum of the others: nothing cancels where it is close to 1.
    is_top = tf.one_hot(
        tf.argmax(probabilities, axis=-1),
        tf.shape(probabilities)[-1],
        on_value=True,
        off_value=False,
    )
    rest = tf.where(is_top, 0.0, probabilities)
    rest_sum = tf.reduce_sum(rest, axis=-1, keepdims=True)
    rest_squares = tf.reduce_sum(tf.square(rest), axis=-1, keepdims=True)
    total = tf.reduce_sum(squares, axis=-1, keepdims=True)
    return tf.sqrt(
        tf.where(
            is_top,
            rest_squares + tf.square(rest_sum),
            total - squares + tf.square(1.0 - probabilities),
        )
    )


def _by_class(values: tf.Tensor, class_ids: tf.Tensor, num_outputs: int | None) -> tf.Tensor:
    """Values of the k classes and, in the last column, of all others → `[n, num_outputs]`."""
    rows, k = tf.unstack(tf.shape(class_ids))
    # A missing record has class ids of -1, and any class will do.
    columns = tf.maximum(tf.cast(class_ids, tf.int32), 0)
    places = tf.stack([tf.repeat(tf.range(rows), k), tf.reshape(columns, [-1])], axis=1)
    everywhere = tf.repeat(values[:, -1:], num_outputs, axis=1)
    return tf.tensor_scatter_nd_update(everywhere, places, tf.reshape(values[:, :-1], [-1]))

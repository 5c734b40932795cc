"""Selection policies: which examples of a window go on to training, and with what weight."""

from ofb_tf.selection.extreme_loss import BottomLoss, TopLoss
from ofb_tf.selection.fixed_scale import FixedScale
from ofb_tf.selection.importance import Importance
from ofb_tf.selection.info_batch import InfoBatch
from ofb_tf.selection.loss_matching import LossMatching
from ofb_tf.selection.policy import Inclusion, Policy, Window
from ofb_tf.selection.selective_backprop import SelectiveBackprop
from ofb_tf.selection.uniform import Uniform

POLICIES = {
    "importance": Importance,
    "uniform": Uniform,
    "loss_matching": LossMatching,
    "selective_backprop": SelectiveBackprop,
    "top_loss": TopLoss,
    "bottom_loss": BottomLoss,
    "info_batch": InfoBatch,
}


def get_policy(policy: str | Policy) -> Policy:
    """A policy from its name or itself.

    Args:
      policy: a key of `POLICIES`, or a `Policy`.

    Returns:
      A `Policy`, with default settings where a name was given.

    Raises:
      ValueError: an unknown name.
      TypeError: neither a name nor a `Policy`.
    """
    if isinstance(policy, Policy):
        return policy
    if not isinstance(policy, str):
        raise TypeError(
            f"policy must be one of {sorted(POLICIES)} or a Policy object. Received: {policy!r}"
        )
    if policy not in POLICIES:
        raise ValueError(
            f"policy must be one of {sorted(POLICIES)} or a Policy object. Received: {policy!r}"
        )
    return POLICIES[policy]()


__all__ = [
    "POLICIES",
    "BottomLoss",
    "FixedScale",
    "Importance",
    "Inclusion",
    "InfoBatch",
    "LossMatching",
    "Policy",
    "SelectiveBackprop",
    "TopLoss",
    "Uniform",
    "Window",
    "get_policy",
]

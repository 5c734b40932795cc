"""How OFBSampler samples: its settings, checked at construction."""

import dataclasses

from ofb_tf import constants
from ofb_tf.selection import policy as base


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How a split is sampled.

    Attributes:
      rate: in (0, 1].
      policy: "importance" or "uniform".
      uniform_mix: in [0, 1], of the importance policy.
      score: "gradient_norm_bound" or "loss".
      task: "multiclass", "binary" or "regression".
      missing: "uniform", "keep", "drop" or "error", as in `ofb_tf.ofb_sample`.
      max_age: seconds after which a record counts as missing; 0 for no limit.
      as_of: microseconds since 1970: later records are left out, ages count from here; 0 for the
        newest record's timestamp.
      seed: int64; with the example's id it decides the draw.
      epoch: int64; another one draws anew.
    """

    task: str
    rate: float = 0.1
    policy: str = "importance"
    uniform_mix: float = 0.2
    score: str = base.GRADIENT_NORM_BOUND
    missing: str = "uniform"
    max_age: float = 0.0
    as_of: int = 0
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate must be in (0, 1]. Received: {self.rate!r}")
        if not 0.0 <= self.uniform_mix <= 1.0:
            raise ValueError(f"uniform_mix must be in [0, 1]. Received: {self.uniform_mix!r}")
        if not self.max_age >= 0.0:
            raise ValueError(f"max_age must be seconds, 0 for no limit. Received: {self.max_age!r}")
        if self.as_of < 0:
            raise ValueError(f"as_of must be microseconds since 1970. Received: {self.as_of!r}")
        for name, allowed in (
            ("policy", ("importance", "uniform")),
            ("score", (base.GRADIENT_NORM_BOUND, base.LOSS)),
            ("task", constants.TASKS),
            ("missing", ("uniform", "keep", "drop", "error")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {allowed}. Received: {getattr(self, name)!r}"
                )

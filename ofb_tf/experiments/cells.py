"""Finished cells on disk: one JSON file each, named by a hash of all that the cell depends on."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from ofb_tf.experiments import config as configs
from ofb_tf.experiments.config import SimulationConfig
from ofb_tf.experiments.simulation import CellResult
from ofb_tf.selection import get_policy

CELL_VERSION = 1
"""To be raised whenever a change of selection, training or data makes cells come out otherwise."""

# What a cell is without: names of others, how often it is repeated, where data happen to be.
_NOT_OF_A_CELL = ("policies", "seeds", "data_dir")
# Settings that came later: left out at their defaults, so that older cells keep their names.
_ADDED = ("steps_per_window", "uniform_mix", "selective_beta")


@dataclasses.dataclass(frozen=True)
class CellKey:
    """One policy with one seed under settings from which all that it does not feel is removed.

    So a cell is the same in every comparison that needs it: "everything" at all rates, and a
    policy without records however old or incomplete the records are.

    Attributes:
      config: the settings.
      policy: its name.
      seed: the seed.
    """

    config: SimulationConfig
    policy: str
    seed: int

    def __post_init__(self) -> None:
        defaults: dict[str, Any] = {"seeds": 1, "policies": (self.policy,)}
        everything = self.policy == configs.EVERYTHING
        if everything or not get_policy(self.policy).needs_records:
            for field in ("refresh_interval", "missing_records"):
                defaults[field] = getattr(SimulationConfig, field)
        if everything:
            defaults |= {"rate": 1.0, "steps_per_window": 1}
            defaults["window_size"] = self.config.whole_batch_size
        if self.policy != configs.IMPORTANCE:
            defaults["uniform_mix"] = SimulationConfig.uniform_mix
        if self.policy != configs.SELECTIVE_BACKPROP:
            defaults["selective_beta"] = SimulationConfig.selective_beta
        if self.config.dataset != configs.CLICK_STREAM:
            defaults["positive_rate"] = SimulationConfig.positive_rate
        object.__setattr__(self, "config", dataclasses.replace(self.config, **defaults))

    @property
    def settings(self) -> dict[str, Any]:
        """What the cell depends on, as plain values."""
        config = dataclasses.asdict(self.config)
        settings = {name: value for name, value in config.items() if name not in _NOT_OF_A_CELL}
        for name in _ADDED:
            if settings[name] == getattr(SimulationConfig, name):
                del settings[name]
        return {
            **settings,
            "policy": self.policy,
            "seed": self.seed,
            "cell_version": CELL_VERSION,
        }

    @property
    def file_name(self) -> str:
        """The same for the same settings, on any machine."""
        text = json.dumps(self.settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        return f"{self.config.dataset}-{self.policy}-{self.seed}-{digest}.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
      result: what was measured.
      metric: name of the workload's metric.
      metric_text: what it is, in words.
    """

    result: CellResult
    metric: str
    metric_text: str


def save(directory: str | os.PathLike, key: CellKey, cell: Cell) -> None:
    """Writes a cell; the file is there whole or not at all."""
    path = pathlib.Path(directory) / key.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": key.settings, **dataclasses.asdict(cell)}
    temporary = path.with_suffix(f".{os.getpid()}.part")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, allow_nan=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(directory: str | os.PathLike, key: CellKey) -> Cell | None:
    """Reads a cell; None where it has not been finished, or the file is damaged."""
    path = pathlib.Path(directory) / key.file_name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = CellResult(**content["result"])
        return Cell(result, content["metric"], content["metric_text"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None

"""What may beat weights and log-odds correction where labels are wrong.

```
python -m benchmarks.wrong_labels --datasets=mnist,click_stream --seeds=3
```

A tenth of the training labels is random (`--label_noise`), and all else is as in `ofb compare`: in
memory, at a rate of 0.1. Each way is shown by gap closure at the learning rate that suits it best:

- `weights` and `log_odds`, each with several uniform mixes;
- `half`: both, each by half. With weights w^(1/2) and half of the offsets, the selected examples'
  log-odds are still those of the model plus the offsets;
- `trimmed`: selected examples whose label the recorded model takes to be less likely than 1% are
  left out; no longer unbiased where labels are right.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ofb_tf import constants
from ofb_tf.experiments import paths, summary, trial
from ofb_tf.experiments.config import EVERYTHING, IMPORTANCE, UNIFORM, SimulationConfig
from ofb_tf.tables import format_table

_LEAST = 0.01  # probability of a label that is kept


class _Half(paths.InMemory):
    """Weights and log-odds correction, each by half."""

    def _selected(self) -> tuple[np.ndarray, ...]:
        config = self.config
        found = []
        for estimator in (constants.WEIGHTS, constants.LOG_ODDS):
            self.config = dataclasses.replace(config, estimator=estimator)
            found.append(super()._selected())
        self.config = config
        (rows, weights, _), (same_rows, _, offsets) = found
        np.testing.assert_array_equal(rows, same_rows)
        return rows, np.sqrt(weights), offsets / 2


class _Trimmed(paths.InMemory):
    """Without examples whose label contradicts what the recorded model is sure of."""

    def _selected(self) -> tuple[np.ndarray, ...]:
        rows, weights, offsets = super()._selected()
        logits = self.records[rows].astype(np.float64)
        labels = self._examples[constants.LABEL].numpy()[rows]
        if logits.shape[1] == 1:
            likely = 1 / (1 + np.exp(np.where(labels == 1, -logits[:, 0], logits[:, 0])))
        else:
            shifted = np.exp(logits - logits.max(1, keepdims=True))
            likely = shifted[np.arange(len(labels)), labels] / shifted.sum(1)
        kept = ~(likely < _LEAST)  # also where there is no record
        return rows[kept], weights[kept], offsets[kept]


_WAYS: dict[str, tuple[str, type[paths.InMemory]]] = {
    "weights": (constants.WEIGHTS, paths.InMemory),
    "log_odds": (constants.LOG_ODDS, paths.InMemory),
    "half": (constants.WEIGHTS, _Half),
    "trimmed weights": (constants.WEIGHTS, _Trimmed),
    "trimmed log_odds": (constants.LOG_ODDS, _Trimmed),
}


def _measure(run: Callable[[float, int], float], rates: list[float], seeds: int) -> dict[str, Any]:
    """The metric of each seed at the learning rate with the smallest mean."""
    found = {rate: [run(rate, seed) for seed in range(seeds)] for rate in rates}
    best = min(found, key=lambda rate: np.mean(found[rate]))
    return {"learning_rate": best, "values": found[best]}


def main(arguments: list[str] | None = None) -> None:
    """Prints a row per stream, way and mix; `--output` keeps them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", default="mnist,click_stream", help="Comma-separated.")
    parser.add_argument("--data_dir", help="Directory of TFDS datasets.")
    parser.add_argument("--learning_rates", default="0.001,0.003", help="Comma-separated.")
    parser.add_argument("--uniform_mixes", default="0.2,0.5,0.8", help="Comma-separated.")
    parser.add_argument("--label_noise", type=float, default=0.1, help="Share of random labels.")
    parser.add_argument("--seeds", type=int, default=3, help="Repetitions, numbered from 0.")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures.")
    values = parser.parse_args(arguments)
    rates, mixes = (
        [float(each) for each in text.split(",")]
        for text in (values.learning_rates, values.uniform_mixes)
    )
    rows = []
    for dataset in values.datasets.split(","):
        config = SimulationConfig.for_dataset(
            dataset, label_noise=values.label_noise, data_dir=values.data_dir
        )

        def run(
            rate: float,
            seed: int,
            policy: str = IMPORTANCE,
            kind: type[paths.InMemory] = paths.InMemory,
            config: SimulationConfig = config,
            **settings: Any,
        ) -> float:
            config = dataclasses.replace(config, learning_rate=rate, **settings)
            result = trial.run(config, policy, seed, kind=kind)
            return result.metrics[result.metric]

        ends = {
            policy: _measure(lambda r, s, p=policy: run(r, s, p), rates, values.seeds)
            for policy in (UNIFORM, EVERYTHING)
        }
        for (way, (estimator, kind)), mix in itertools.product(_WAYS.items(), mixes):
            print(f"{dataset}, {way}, uniform mix {mix}", file=sys.stderr)
            settings = {"estimator": estimator, "uniform_mix": mix, "kind": kind}
            found = _measure(lambda r, s, k=settings: run(r, s, **k), rates, values.seeds)
            measured = {policy: end["values"] for policy, end in ends.items()}
            shown = summary.quality(measured | {IMPORTANCE: found["values"]}, IMPORTANCE)
            rows.append(
                {"stream": dataset, "way": way, "uniform_mix": mix}
                | {name: shown[name] for name in ("gap_closure", "gap_closure_standard_error")}
                | {"learning_rate": found["learning_rate"]}
            )
    table = [["stream", "way", "uniform mix", "gap closure", "learning rate"]]
    for row in rows:
        closure = f"{row['gap_closure']:.2f} ± {row['gap_closure_standard_error']:.2f}"
        table.append(
            [row["stream"], row["way"], f"{row['uniform_mix']:g}", closure,
             f"{row['learning_rate']:g}"]
        )  # fmt: skip
    print(format_table(table))
    if values.output:
        values.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The taxi loop from nothing, and then what sampling costs: a table over seeds of the trainer.

```
python -m tfx_components.pipelines.demo --csv=trips.csv --output_dir=out/tfx-demo
```
"""

import dataclasses
import json
import os
import shutil
import time

import apache_beam as beam
import numpy as np
from absl import app, flags
from tfx import v1 as tfx
from tfx.utils import path_utils

from tfx_components import artifacts, statistics, trainer_module
from tfx_components.example_files import list_files
from tfx_components.model_comparison import evaluate
from tfx_components.ofb_sampler import OFBSampler
from tfx_components.pipelines import local, taxi
from tfx_components.pipelines.graph import BASE, EVAL, TRAIN, LoopConfig

_CSV = flags.DEFINE_string("csv", None, "Chicago taxi trips, with header.", required=True)
_OUTPUT = flags.DEFINE_string("output_dir", "out/tfx-demo", "Where everything goes; made anew.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of sampler and trainer.", lower_bound=2)
_RATE = flags.DEFINE_float("rate", 0.1, "The fraction that is trained on.", 0.0, 1.0)

_BASE_EPOCHS = 8


def taxi_loop(csv_path: str, root: str, rate: float = 0.1) -> LoopConfig:
    """The loop on the trips; prepares the first span.

    Args:
      csv_path: the trips.
      root: directory of everything.
      rate: of the sampler.
    """
    taxi.prepare_csv(csv_path, os.path.join(root, "csv", "span-1"))
    return LoopConfig(
        csv_directory=os.path.join(root, "csv"),
        serving_directory=os.path.join(root, "serving"),
        training=taxi.training_settings(),
        base_training={"epochs": _BASE_EPOCHS},
        task="binary",
        label_feature=taxi.LABEL,
        sampling={"rate": rate, "seed": 17, "slice_features": ["payment_type"]},
    )


def compare(config: LoopConfig, root: str, seeds: int) -> dict[str, dict]:
    """Trains on samples of both policies and on everything, from the base model, seed by seed.

    Args:
      config: a loop that `local.run` ran in `root`.
      root: directory.
      seeds: how many; each draws the sample and shuffles the training anew.

    Returns:
      By row of the table: `losses` (one a seed), `calibration` (mean), `examples` and `bytes` that
      the trainer reads in a pass (mean).
    """
    schema = trainer_module.read_schema(
        os.path.join(local.latest_output(root, "SchemaGen", "schema"), "schema.pbtxt")
    )
    base = path_utils.serving_model_path(local.latest_output(root, "BaseTrainer", "model"))
    examples = tfx.types.standard_artifacts.Examples()
    examples.uri = local.latest_output(root, "CsvExampleGen", "examples")
    examples.split_names = json.dumps([BASE, TRAIN, EVAL])
    records = artifacts.ForwardRecords()
    records.uri = local.latest_output(root, "ForwardRecordGen", "forward_records")
    eval_files = list_files(examples.path(split=EVAL))

    def figures(directory: str) -> dict[str, float]:
        return evaluate(directory, eval_files, config.task, config.label_feature)

    def trained(files: list[str], seed: int) -> dict[str, float]:
        settings = trainer_module.training_config(config.training | {"seed": seed})
        model = trainer_module.train(settings, schema, train_files=files, base_model=base)
        directory = os.path.join(root, "compared")
        shutil.rmtree(directory, ignore_errors=True)
        trainer_module.export(model, settings, schema, directory)
        return figures(directory)

    rows = {"base": _row([figures(base)], 0, 0)}
    for policy in ("uniform", "importance"):
        results, counts = [], []
        for seed in range(seeds):
            sample, tally = _sample(config, examples, records, root, policy, seed)
            results.append(trained(list_files(sample.path(split=TRAIN)), seed))
            counts.append((tally.num_selected, tally.bytes_written))
        rows[policy] = _row(results, *np.mean(counts, axis=0))
    files = list_files(examples.path(split=TRAIN))
    rows["everything"] = _row(
        [trained(files, seed) for seed in range(seeds)],
        tally.num_examples,
        tally.bytes_read,
    )
    return rows


def _sample(
    config: LoopConfig,
    examples: tfx.types.standard_artifacts.Examples,
    records: artifacts.ForwardRecords,
    root: str,
    policy: str,
    seed: int,
) -> tuple[tfx.types.standard_artifacts.Examples, statistics.Tally]:
    """One sample by the component's own function."""
    sample, sampling = tfx.types.standard_artifacts.Examples(), artifacts.SamplingStatistics()
    sample.uri = os.path.join(root, "samples", f"{policy}-{seed}", "examples")
    sampling.uri = os.path.join(root, "samples", f"{policy}-{seed}", "statistics")
    OFBSampler.test_call(
        examples=examples,
        forward_records=records,
        sampled_examples=sample,
        sampling_statistics=sampling,
        task=config.task,
        label_feature=config.label_feature,
        splits=[TRAIN],
        policy=policy,
        beam_pipeline=beam.Pipeline(argv=["--direct_running_mode=in_memory"]),
        **config.sampling | {"seed": seed},
    )
    return sample, statistics.read(sampling.uri)[1][TRAIN].total


def _row(results: list[dict[str, float]], examples: float, num_bytes: float) -> dict:
    return {
        "losses": [result["loss"] for result in results],
        "calibration": float(np.mean([result["calibration"] for result in results])),
        "examples": float(examples),
        "bytes": float(num_bytes),
    }


def table(rows: dict[str, dict], rate: float) -> str:
    """The rows as text, with standard errors over the seeds."""
    everything = rows["everything"]
    gap = np.mean(rows["uniform"]["losses"]) - np.mean(everything["losses"])
    lines = [
        f"{'trained on':<18}{'eval loss':>20}{'gap closure':>13}{'calibration':>13}"
        f"{'examples':>11}{'bytes':>9}"
    ]
    for name, row in rows.items():
        losses = np.array(row["losses"])
        error = f" ± {losses.std(ddof=1) / len(losses) ** 0.5:.4f}" if len(losses) > 1 else ""
        closure = (np.mean(rows["uniform"]["losses"]) - losses.mean()) / gap
        title = f"{name} {rate:.0%}" if name in ("uniform", "importance") else name
        lines.append(
            f"{title:<18}{f'{losses.mean():.4f}{error}':>20}"
            f"{f'{closure:.2f}' if name != 'base' else '':>13}{row['calibration']:>13.2f}"
            f"{row['examples']:>11,.0f}{row['bytes'] / everything['bytes']:>9.1%}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Runs the loop and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    root = os.path.abspath(_OUTPUT.value)
    shutil.rmtree(root, ignore_errors=True)
    start = time.monotonic()
    config = taxi_loop(_CSV.value, root, _RATE.value)
    local.run(config, root)
    loop_seconds = time.monotonic() - start
    rows = compare(config, root, _SEEDS.value)
    with open(os.path.join(root, "comparison.json"), "w") as file:
        json.dump({"config": dataclasses.asdict(config), "rows": rows}, file, indent=1)
    text = table(rows, _RATE.value)
    with open(os.path.join(root, "table.txt"), "w") as file:
        file.write(text + "\n")
    print(
        f"\nChicago taxi trips: was the tip more than a fifth of the fare? Loss on the untouched "
        f"eval split,\n{_SEEDS.value} seeds of sampler and trainer, mean ± standard error. The "
        f"loop took {loop_seconds:.0f} s, all of it {time.monotonic() - start:.0f} s.\n\n{text}\n"
        f"\nsampling report: {local.latest_output(root, 'SamplingValidator', 'blessing')}"
        f"/report.html\nserved model: {config.serving_directory}"
    )


if __name__ == "__main__":
    app.run(main)

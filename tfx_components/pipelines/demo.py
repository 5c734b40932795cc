"""The taxi loop from nothing, then what sampling costs and gains: a table over seeds.

```
python -m tfx_components.pipelines.demo --csv=trips.csv --output_dir=out/tfx-demo
```
"""

import argparse
import dataclasses
import json
import os
import shutil
import time

import apache_beam as beam
import numpy as np
from tfx.types.standard_artifacts import Examples
from tfx.utils import path_utils

from ofb_tf.beam.reports import WeightStats, read_statistics, write_text
from ofb_tf.beam.sample import IMPORTANCE, UNIFORM
from ofb_tf.evaluation.tfrecords import match_examples
from ofb_tf.experiments.summary import gap_closure, standard_error
from ofb_tf.tables import format_table
from tfx_components.artifacts import ForwardRecords, SamplingStatistics
from tfx_components.ofb_sampler import OFBSampler
from tfx_components.pipelines import local, taxi, trainer
from tfx_components.pipelines.comparison import evaluate
from tfx_components.pipelines.graph import BASE, EVAL, TRAIN, LoopConfig

EVERYTHING = "everything"


def compare(config: LoopConfig, root: str, seeds: int) -> dict[str, dict]:
    """Trains on samples of both policies and on everything, from the base model, seed by seed.

    `config` is of a loop that `local.run` ran in `root`. Each row of the table has `losses`, one
    per seed, and the means of `calibration`, and of `examples` and `bytes` read per epoch.
    """
    schema_directory = local.latest_output(root, "SchemaGen", "schema")
    schema = trainer.read_schema(os.path.join(schema_directory, "schema.pbtxt"))
    base = path_utils.serving_model_path(local.latest_output(root, "BaseTrainer", "model"))
    examples, records = Examples(), ForwardRecords()
    examples.uri = local.latest_output(root, "CsvExampleGen", "examples")
    examples.split_names = json.dumps([BASE, TRAIN, EVAL])
    records.uri = local.latest_output(root, "ForwardRecordGen", "forward_records")
    eval_files = match_examples(examples.path(split=EVAL))

    def metrics(directory: str) -> dict[str, float]:
        return evaluate(directory, eval_files, config.task, config.label_feature)

    def trained(files: list[str], seed: int) -> dict[str, float]:
        settings = trainer.TrainingConfig.from_custom_config(config.training | {"seed": seed})
        model = trainer.train(settings, schema, train_files=files, base_model=base)
        directory = os.path.join(root, "compared")
        shutil.rmtree(directory, ignore_errors=True)
        trainer.export(model, settings, schema, directory)
        return metrics(directory)

    def sampled(policy: str, seed: int) -> tuple[list[str], WeightStats]:
        """The files and the statistics of one sample, by the component's own function."""
        sample, sampling = Examples(), SamplingStatistics()
        directory = os.path.join(root, "samples", f"{policy}-{seed}")
        sample.uri = os.path.join(directory, "examples")
        sampling.uri = os.path.join(directory, "statistics")
        OFBSampler.test_call(
            examples=examples,
            forward_records=records,
            sampled_examples=sample,
            sampling_statistics=sampling,
            task=config.task,
            label_feature=config.label_feature,
            splits=[TRAIN],
            beam_pipeline=beam.Pipeline(argv=["--direct_running_mode=in_memory"]),
            **config.sampling | {"policy": policy, "seed": seed},
        )
        return match_examples(sample.path(split=TRAIN)), read_statistics(sampling.uri)[1][
            TRAIN
        ].total

    rows = {BASE: _row([metrics(base)], 0, 0)}
    for policy in (UNIFORM, IMPORTANCE):
        results, counts = [], []
        for seed in range(seeds):
            files, stats = sampled(policy, seed)
            results.append(trained(files, seed))
            counts.append((stats.num_selected, stats.bytes_written))
        rows[policy] = _row(results, *np.mean(counts, axis=0))
    files = match_examples(examples.path(split=TRAIN))
    results = [trained(files, seed) for seed in range(seeds)]
    rows[EVERYTHING] = _row(results, stats.num_examples, stats.bytes_read)
    return rows


def _row(results: list[dict[str, float]], examples: float, num_bytes: float) -> dict:
    return {
        "losses": [result["loss"] for result in results],
        "calibration": float(np.mean([result["calibration"] for result in results])),
        "examples": float(examples),
        "bytes": float(num_bytes),
    }


def table(rows: dict[str, dict], rate: float) -> str:
    """The rows as text, with standard errors over the seeds."""
    mean = {name: float(np.mean(row["losses"])) for name, row in rows.items()}
    lines = [["trained on", "eval loss", "gap closure", "calibration", "examples", "bytes"]]
    for name, row in rows.items():
        error = standard_error(row["losses"])
        closure = gap_closure(mean[UNIFORM], mean[name], mean[EVERYTHING])
        lines.append(
            [
                f"{name} {rate:.0%}" if name in (UNIFORM, IMPORTANCE) else name,
                f"{mean[name]:.4f}" + ("" if error is None else f" ± {error:.4f}"),
                "–" if closure is None or name == BASE else f"{closure:.2f}",
                f"{row['calibration']:.2f}",
                f"{row['examples']:,.0f}",
                f"{row['bytes'] / rows[EVERYTHING]['bytes']:.1%}",
            ]
        )
    return format_table(lines)


def main(arguments: list[str] | None = None) -> None:
    """Runs the loop and prints the table; `--help` lists the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", required=True, help="Chicago taxi trips, with header")
    parser.add_argument(
        "--output_dir", default="out/tfx-demo", help="where everything goes; emptied first"
    )
    parser.add_argument("--seeds", type=int, default=5, help="of sampler and trainer, at least 2")
    parser.add_argument("--rate", type=float, default=0.1, help="fraction that is trained on")
    flags = parser.parse_args(arguments)
    if flags.seeds < 2:
        parser.error(f"--seeds must be at least 2. Received: {flags.seeds}")
    if not 0.0 < flags.rate <= 1.0:
        parser.error(f"--rate must be in (0, 1]. Received: {flags.rate}")
    root = os.path.abspath(flags.output_dir)
    shutil.rmtree(root, ignore_errors=True)
    start = time.monotonic()
    csv_directory = os.path.join(root, "csv")
    taxi.prepare_csv(flags.csv, os.path.join(csv_directory, "span-1"))
    serving_directory = os.path.join(root, "serving")
    sampling = {"rate": flags.rate, "seed": 17, "slice_features": ["payment_type"]}
    config = taxi.loop_config(csv_directory, serving_directory, **sampling)
    local.run(config, root)
    loop_seconds = time.monotonic() - start
    rows = compare(config, root, flags.seeds)
    results = {"config": dataclasses.asdict(config), "rows": rows}
    write_text(root, "comparison.json", json.dumps(results, indent=1))
    text = table(rows, flags.rate)
    write_text(root, "table.txt", text + "\n")
    print(
        f"\nChicago taxi trips: was the tip more than a fifth of the fare? Loss on the untouched "
        f"eval split,\n{flags.seeds} seeds of sampler and trainer, mean ± standard error. The "
        f"loop took {loop_seconds:.0f} s of {time.monotonic() - start:.0f} s in all.\n\n{text}\n"
        f"\nsampling statistics: "
        f"{local.latest_output(root, 'OFBSampler', 'sampling_statistics')}/statistics.json"
        f"\nserved model: {config.serving_directory}"
    )


if __name__ == "__main__":
    main()

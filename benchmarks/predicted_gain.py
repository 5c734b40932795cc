"""The gain that `ofb_tf.evaluate` predicts, and the one that `ofb compare` measured.

```
ofb compare --suite=standard --seeds=5 --learning_rates=0.001,0.003,0.01 --output_dir=out/standard
python -m benchmarks.predicted_gain --results=out/standard/results.json
```

For every stream of the suite, its model is trained on the first half (at most 60,000 examples) and
answers the rest (as many at most), as production would have. `evaluate` predicts from these records
alone; gap closures are those of the default policy in the comparisons at each rate, with every
policy at its best learning rate where there is a sweep. Ends with the rank correlation of the two.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

_MOST = 60_000
_BATCH = 64
_SETTINGS = ("dataset", "positive_rate", "num_examples", "test_examples", "passes", "model")


def _predict(settings: dict, data_dir: str | None) -> dict[float, float]:
    """The predicted gap closure of a stream by rate."""
    import ofb_tf
    from ofb_tf import constants
    from ofb_tf.experiments import paths, workloads
    from ofb_tf.experiments.config import SimulationConfig

    settings = {name: settings[name] for name in _SETTINGS} | {"data_dir": data_dir}
    config = SimulationConfig.for_dataset(**settings)
    workload = workloads.get_workload(config, seed=0, in_memory=True)
    count = min(_MOST, workload.num_examples // 2)
    seen, answered = (workload.examples(start, count) for start in (0, count))
    compiled = paths.compiled_model(config, workload)
    compiled.reset(workload.initial_weights(0), config.learning_rate)
    nothing = np.zeros([count, workload.num_outputs], np.float32)
    rows, weights = np.arange(count, dtype=np.int32), np.ones(count, np.float32)
    compiled.train(seen, rows, weights, nothing, _BATCH)
    records = ofb_tf.ForwardRecords.from_columns(
        answered[constants.EXAMPLE_ID].numpy(), compiled.outputs(answered)
    )
    fields = {name: answered[name].numpy() for name in (constants.EXAMPLE_ID, constants.LABEL)}
    found = ofb_tf.evaluate(records, fields, task=workload.task)
    return {row["rate"]: row["predicted_gap_closure"] for row in found["gain"]}


def _measured(results: dict) -> dict[tuple[str, float], dict]:
    """By dataset (with its share of positives) and rate: a comparison of plain settings."""
    from ofb_tf.experiments.config import AT_BEST, Comparison, SimulationConfig

    found = {}
    for one in results["comparisons"]:
        config = one["config"]
        plain = SimulationConfig.for_dataset(
            config["dataset"], positive_rate=config["positive_rate"], rate=config["rate"]
        )
        title = Comparison("", plain).title
        key = title.rsplit(", rate ", 1)[0], config["rate"]
        if one["title"] in (title, f"{title}, {AT_BEST}") and (
            key not in found or one["learning_rate"] is None
        ):
            found[key] = one
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def main(arguments: list[str] | None = None) -> None:
    """Prints a row per stream and rate, and the correlation; `--output` keeps them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=pathlib.Path, required=True, help="of ofb compare")
    parser.add_argument("--data_dir", help="Directory of TFDS datasets.")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures.")
    values = parser.parse_args(arguments)

    from ofb_tf.tables import format_table

    predictions: dict[str, dict[float, float]] = {}
    rows = []
    for (name, rate), one in _measured(json.loads(values.results.read_text())).items():
        if name not in predictions:
            print(f"Predicting {name}", file=sys.stderr)
            predictions[name] = _predict(one["config"], values.data_dir)
        if rate in predictions[name]:
            closure = one["policies"]["importance"]["gap_closure"]
            rows.append((name, rate, predictions[name][rate], closure))
    predicted, measured = (np.array([row[column] for row in rows]) for column in (2, 3))
    correlation = float(np.corrcoef(_ranks(predicted), _ranks(measured))[0, 1])
    table = [["stream", "rate", "predicted gap closure", "measured"]]
    table += [[name, f"{rate:g}", f"{p:.2f}", f"{m:.2f}"] for name, rate, p, m in rows]
    print(format_table(table))
    print(f"\nRank correlation over {len(rows)} pairs: {correlation:.3f}")
    if values.output:
        names = ("stream", "rate", "predicted", "measured")
        pairs = [dict(zip(names, row, strict=True)) for row in rows]
        content = {"pairs": pairs, "rank_correlation": correlation}
        values.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

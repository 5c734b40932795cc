"""Chicago taxi trips as a binary task: was the tip more than a fifth of the fare?"""

import csv
import os
from typing import Any

from ofb_tf import constants
from tfx_components.pipelines.graph import LoopConfig
from tfx_components.pipelines.trainer import TrainingConfig

LABEL = "tipped"
_TIPS, _FARE = "tips", "fare"


def prepare_csv(source: str, directory: str) -> str:
    """Writes `data.csv`, with the label in place of the tips, which would give it away.

    Returns the directory; raises ValueError where the source lacks the columns.
    """
    os.makedirs(directory, exist_ok=True)
    with (
        open(source, newline="") as file,
        open(os.path.join(directory, "data.csv"), "w", newline="") as out,
    ):
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        missing = [name for name in (_TIPS, _FARE) if name not in names]
        if missing:
            raise ValueError(f"{source} must have the columns {missing}. It has: {names}")
        kept = [name for name in names if name != _TIPS]
        writer = csv.DictWriter(out, [*kept, LABEL])
        writer.writeheader()
        for row in reader:
            tips, fare = float(row.pop(_TIPS) or 0.0), float(row[_FARE] or 0.0)
            writer.writerow(row | {LABEL: int(tips > 0.2 * fare)})
    return directory


def training_settings(**overrides: object) -> dict[str, object]:
    """Trainer's `custom_config` for this task; `TrainingConfig` says what each means."""
    settings: dict[str, Any] = {
        "label_feature": LABEL,
        "task": constants.BINARY,
        # Constant but for one trip, and a clock that no later trip repeats.
        "exclude": ["pickup_census_tract", "trip_start_timestamp"],
        "categorical": [
            "pickup_community_area",
            "dropoff_community_area",
            "dropoff_census_tract",
            "trip_start_hour",
            "trip_start_day",
            "trip_start_month",
        ],
    } | overrides
    TrainingConfig(**settings)  # a wrong setting fails here and not in the Trainer
    return settings


def loop_config(csv_directory: str, serving_directory: str, **sampling: Any) -> LoopConfig:
    """The loop on the trips; `sampling` are arguments of `OFBSampler`."""
    return LoopConfig(
        csv_directory=csv_directory,
        serving_directory=serving_directory,
        training=training_settings(),
        base_training={"epochs": 8},
        task=constants.BINARY,
        label_feature=LABEL,
        sampling=sampling,
    )

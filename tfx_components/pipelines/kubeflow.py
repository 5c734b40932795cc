"""The loop for Kubeflow Pipelines v2: the same nodes, compiled to a pipeline spec.

```
python -m tfx_components.pipelines.kubeflow --output=out/kubeflow/ofb-loop.json \
    --pipeline_root=gs://BUCKET/ofb --csv_directory=gs://BUCKET/trips --image=REGISTRY/ofb-tf
```

The image must have `ofb-tf[tfx]` installed. Submit the file with kfp's client or Vertex AI.
"""

import json
import os
import sys

import yaml
from absl import app, flags
from tfx import v1 as tfx

from tfx_components.pipelines import taxi
from tfx_components.pipelines.graph import LoopConfig, create_components

NAME = "ofb-loop"

_OUTPUT = flags.DEFINE_string("output", "out/kubeflow/ofb-loop.json", "The file to write.")
_ROOT = flags.DEFINE_string("pipeline_root", "gs://BUCKET/ofb", "Where artifacts go.")
_CSV = flags.DEFINE_string("csv_directory", "gs://BUCKET/trips", "With span-1/*.csv and so on.")
_SERVING = flags.DEFINE_string("serving_directory", "gs://BUCKET/serving", "Pusher's target.")
_IMAGE = flags.DEFINE_string("image", "ofb-tf:latest", "Container image with ofb-tf[tfx].")


def compile_pipeline(config: LoopConfig, pipeline_root: str, image: str, output: str) -> None:
    """Writes the pipeline job (JSON), and beside it its spec alone (`.yaml`), which kfp loads.

    Args:
      config: the loop; its directories must be readable from the cluster.
      pipeline_root: where artifacts go.
      image: container image with ofb-tf and TFX.
      output: path of the job, `*.json`.
    """
    directory, name = os.path.split(os.path.abspath(output))
    os.makedirs(directory, exist_ok=True)
    pipeline = tfx.dsl.Pipeline(
        pipeline_name=NAME,
        pipeline_root=pipeline_root,
        components=create_components(config),
        enable_cache=True,
        beam_pipeline_args=["--direct_running_mode=multi_processing", "--direct_num_workers=0"],
    )
    runner = tfx.orchestration.experimental.KubeflowV2DagRunner(
        tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(default_image=image),
        output_dir=directory,
        output_filename=name,
    )
    runner.run(pipeline)
    with open(output) as file:
        job = json.load(file)
    with open(os.path.splitext(output)[0] + ".yaml", "w") as file:
        yaml.safe_dump(job["pipelineSpec"], file, sort_keys=False)


def main(argv: list[str]) -> None:
    """Compiles the taxi loop."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    config = LoopConfig(
        csv_directory=_CSV.value,
        serving_directory=_SERVING.value,
        training=taxi.training_settings(),
        base_training={"epochs": 8},
        task="binary",
        label_feature=taxi.LABEL,
    )
    compile_pipeline(config, _ROOT.value, _IMAGE.value, _OUTPUT.value)
    print(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
    sys.exit(app.run(main))

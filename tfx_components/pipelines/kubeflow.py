"""The loop for Kubeflow Pipelines v2: the same nodes, compiled to a pipeline spec.

```
python -m tfx_components.pipelines.kubeflow --output=out/kubeflow/ofb-loop.json \
    --pipeline_root=gs://BUCKET/ofb --csv_directory=gs://BUCKET/trips --image=REGISTRY/ofb-tf
```

The image must have `ofb-tf[tfx]` installed. Submit the file with kfp's client or Vertex AI.
"""

import argparse
import json
import os

import yaml
from tfx import v1 as tfx

from tfx_components.pipelines import taxi
from tfx_components.pipelines.graph import LoopConfig, create_components
from tfx_components.pipelines.local import NAME


def compile_pipeline(config: LoopConfig, pipeline_root: str, image: str, output: str) -> None:
    """Writes the pipeline job, `*.json`, and next to it only its spec, `*.yaml`, which kfp loads.

    The directories of `config` must be readable from the cluster, and the container image must
    hold ofb-tf and TFX; artifacts go to `pipeline_root`.
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


def main(arguments: list[str] | None = None) -> None:
    """Compiles the taxi loop; `--help` lists the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, description in (
        ("--output", f"out/kubeflow/{NAME}.json", "file to write"),
        ("--pipeline_root", "gs://BUCKET/ofb", "where artifacts go"),
        ("--csv_directory", "gs://BUCKET/trips", "holds span-1/*.csv and so on"),
        ("--serving_directory", "gs://BUCKET/serving", "where Pusher puts the model"),
        ("--image", "ofb-tf:latest", "container image with ofb-tf[tfx] installed"),
    ):
        parser.add_argument(name, default=default, help=description)
    flags = parser.parse_args(arguments)
    config = taxi.loop_config(flags.csv_directory, flags.serving_directory)
    compile_pipeline(config, flags.pipeline_root, flags.image, flags.output)
    print(f"wrote {flags.output}")


if __name__ == "__main__":
    main()

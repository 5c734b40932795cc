"""The loop on this machine: LocalDagRunner, metadata in SQLite. `demo.py` runs it on data."""

import os
from typing import Any

from tfx import v1 as tfx

from tfx_components.pipelines.graph import LoopConfig, create_components

NAME = "ofb-loop"


def create_pipeline(
    config: LoopConfig, root: str, *, enable_cache: bool = True, beam_args: list[str] | None = None
) -> tfx.dsl.Pipeline:
    """The pipeline, for any TFX runner, with artifacts and metadata under the directory `root`.

    `enable_cache` reuses the outputs of nodes whose inputs are unchanged; `beam_args` are for
    every Beam component, by default one process in memory.
    """
    return tfx.dsl.Pipeline(
        pipeline_name=NAME,
        pipeline_root=os.path.join(root, "artifacts"),
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            os.path.join(root, "metadata.sqlite")
        ),
        components=create_components(config),
        enable_cache=enable_cache,
        beam_pipeline_args=beam_args
        or ["--direct_running_mode=in_memory", "--direct_num_workers=1"],
    )


def run(config: LoopConfig, root: str, **kwargs: Any) -> None:
    """Runs the loop once; `kwargs` are of `create_pipeline`, and `root` is made if missing."""
    os.makedirs(root, exist_ok=True)
    tfx.orchestration.LocalDagRunner().run(create_pipeline(config, root, **kwargs))


def latest_output(root: str, node: str, key: str) -> str:
    """The directory that a node wrote last as its output `key`, of a loop that ran in `root`.

    Raises:
      FileNotFoundError: the node has not run.
    """
    directory = os.path.join(root, "artifacts", node, key)
    runs = [int(name) for name in os.listdir(directory)] if os.path.isdir(directory) else []
    if not runs:
        raise FileNotFoundError(f"{directory} holds no run: {node} has not run.")
    return os.path.join(directory, str(max(runs)))

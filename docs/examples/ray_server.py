"""Ray Serve: a deployment of two replicas, each with a recorder of its own.

Ray makes the object in a process of its choice, and calls `__del__` when it stops the replica, as
here at `serve.delete`: the files are complete then. A replica that is killed instead loses what was
still in its buffers.

    pip install ofb-tf 'ray[serve]'
    python docs/examples/ray_server.py records --requests=10000
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import ray
from actor import Model, parse_arguments  # Ray's processes find what is beside this file
from ray import serve


@serve.deployment(num_replicas=2, max_ongoing_requests=16)
class Server:
    """What a replica holds."""

    def __init__(self, records: str):
        self.model = Model(records)

    def __call__(self, example_id: int, x: np.ndarray) -> float:
        return float(self.model.predict([example_id], x[None])[0])

    def __del__(self):
        self.model.stop()


def main() -> None:
    """Deploys, asks, and takes the deployment down."""
    arguments = parse_arguments(__doc__)
    ray.init(num_cpus=2, include_dashboard=False)
    server = serve.run(Server.bind(os.path.abspath(arguments.records)), name="model")
    features = np.eye(8, dtype=np.float32)
    answers = [server.remote(number, features[number % 8]) for number in range(arguments.requests)]
    print(f"{sum(0 < answer.result() < 1 for answer in answers)} requests answered", flush=True)
    serve.delete("model")
    ray.shutdown()


if __name__ == "__main__":
    main()

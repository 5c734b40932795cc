"""A FastAPI server that records what it answers, for gunicorn with several workers and --preload.

The recorder is made once, when gunicorn's parent process imports this module. In each forked worker
it starts over with files that only this worker writes. A worker that gets SIGTERM finishes the
requests that it has accepted, and the lifespan closes the recorder: uvicorn then ends the process
by the same signal, so nothing later would.

    pip install ofb-tf fastapi gunicorn uvicorn-worker
    RECORDS_DIR=records gunicorn --chdir docs/examples --preload --workers 2 \
        --worker-class uvicorn_worker.UvicornWorker fastapi_server:app

TensorFlow's threads do not survive a fork: load a TensorFlow model in the lifespan, before `yield`,
and not where the module is imported.
"""

import contextlib
import os
from collections.abc import AsyncIterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import fastapi
import numpy as np
import pydantic

from ofb_tf.records import ForwardRecordWriter
from ofb_tf.serving import PredictionRecorder

MODEL_VERSION = 3
WEIGHTS = np.linspace(-1.0, 1.0, 8, dtype=np.float32)  # the model

writer = ForwardRecordWriter(os.environ.get("RECORDS_DIR", "records"), on_error="drop")
recorder = PredictionRecorder(writer, queue_size=8192)


@contextlib.asynccontextmanager
async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    """Runs in each worker."""
    yield
    recorder.close()
    counts = recorder.counts
    lost = counts.num_responses - counts.num_recorded + writer.counts.num_dropped
    print(f"worker {os.getpid()}: recorded {counts.num_recorded}, lost {lost}", flush=True)


app = fastapi.FastAPI(lifespan=lifespan)


class Examples(pydantic.BaseModel):
    """A request: n examples."""

    example_id: list[int]
    x: list[list[float]]


@app.post("/predict")
async def predict(examples: Examples) -> dict[str, list[float]]:
    """Answers with n probabilities."""
    logits = np.asarray(examples.x, np.float32) @ WEIGHTS
    recorder.write(examples.example_id, logits[:, None], model_version=MODEL_VERSION)
    return {"predictions": (1 / (1 + np.exp(-logits))).tolist()}

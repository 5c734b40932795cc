"""What every test shares: quiet TensorFlow, fixed hypothesis profile."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest
from hypothesis import settings

settings.register_profile("ofb", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ofb")


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Directory with a record of every example of `tests.streams`."""
    import ofb_tf
    from tests.streams import CLASSES, IDS, LOGITS, N

    directory = tmp_path_factory.mktemp("records")
    with ofb_tf.ForwardRecordWriter(str(directory), num_outputs=CLASSES) as writer:
        for begin in range(0, N, 128):
            writer.write(IDS[begin : begin + 128], LOGITS[begin : begin + 128], model_version=3)
    return str(directory)


@pytest.fixture(scope="session")
def partitioned(records, tmp_path_factory):
    """The same, by id."""
    import ofb_tf
    from ofb_tf.records import maintenance

    directory = str(tmp_path_factory.mktemp("partitioned") / "by-id")
    maintenance.partition(records, directory, 3)
    return ofb_tf.PartitionedRecords(directory)

"""The program of `make stream-demo`, on a short stream, against a real broker."""

import json
import pathlib
import shutil

import pytest

pytest.importorskip("confluent_kafka", reason="confluent-kafka is in the extra `kafka`")

from tests.processes import python
from tests.streaming.broker import JARS, Broker, wait_for

PROGRAM = pathlib.Path(__file__).parents[2] / "docs" / "examples" / "stream_demo.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kafka,
    pytest.mark.skipif(shutil.which("java") is None, reason="Kafka needs Java"),
    pytest.mark.skipif(not JARS.exists(), reason="`make test-kafka` gets Kafka's jars"),
]


def test_serves_records_labels_joins_samples_trains_and_refreshes(tmp_path):
    broker = Broker()
    try:
        broker.run("up")
        printed = python(
            *(PROGRAM, f"--servers={broker.servers}", "--json", f"--output_dir={tmp_path}"),
            *("--examples=6000", "--per_second=500", "--refresh_batches=2"),
            timeout=900,
        )
        # Those of the run are gone.
        wait_for(
            "deleting topics",
            lambda: set(broker.admin.list_topics(timeout=10).topics) <= {"__consumer_offsets"},
        )
    finally:
        broker.run("down")
    results = json.loads(printed)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    for policy in ("importance", "uniform"):
        found = results[policy]
        # A tenth of each window of 1000, of all examples: none is lost, none comes twice.
        assert (found["examples"], found["trained"]) == (6000, 600)
        assert found["excess_kl"] < results["untrained"]["excess_kl"]
        served, labelled = (found[f"{name}_to_trained_seconds"] for name in ("served", "labelled"))
        assert 0 < labelled[0] <= labelled[1] and 0 < served[0] <= served[1]
        # Labels come after the attribution window, clicks earlier: 3% of the examples.
        assert 5 < served[0] - labelled[0] < 8
    assert results["importance"]["coverage"] > 0.99
    assert results["uniform"]["effective_sample_size"] == 1.0
    assert results["importance"]["effective_sample_size"] < 1.0
    # The first, and those that were exported before the last example was served.
    assert 1 <= results["server"]["models"] <= 4
    assert results["server"]["dropped_records"] == 0

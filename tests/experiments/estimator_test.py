"""`ofb compare` with the second estimator and the stream's budget."""

import numpy as np
import pytest

from ofb_tf.experiments import config as configs
from ofb_tf.experiments import paths, trial
from ofb_tf.experiments.workloads import get_workload

SETTINGS = {
    "num_examples": 5_200,
    "window_size": 260,  # so that selections are whole batches
    "refresh_interval": 5,
    "test_examples": 1_000,
    "positive_rate": 0.03,
}


@pytest.mark.parametrize(
    "settings",
    # Over intervals the stream's budget goes on through files, and begins again in memory.
    [{"estimator": "log_odds"}, {"budget": "stream", "refresh_interval": 0}],
    ids=["log_odds", "stream"],
)
def test_both_paths_select_and_train_alike(settings):
    config = configs.SimulationConfig(**SETTINGS | settings)
    through_files, in_memory = (
        trial.run(config, "importance", 0, through_files=files) for files in (True, False)
    )
    assert through_files.backward_examples == in_memory.backward_examples
    assert through_files.metrics == pytest.approx(in_memory.metrics, rel=1e-3)
    given = {name: value for name, value in settings.items() if name == "refresh_interval"}
    plain = trial.run(configs.SimulationConfig(**SETTINGS | given), "importance", 0)
    assert in_memory.metrics != pytest.approx(plain.metrics, rel=1e-6)
    if "estimator" in settings:
        assert in_memory.max_weight == 1.0


def test_selection_in_memory_follows_the_stream():
    config = configs.SimulationConfig(**SETTINGS, budget="stream")
    workload = get_workload(config, 0, in_memory=True)
    path = paths.InMemory(config, "importance", 0, workload)
    examples = workload.examples(0, 1300)
    path.serve(0, examples, np.ones(1300, bool))
    path.arrive(0, examples)
    rows, _, offsets = path._selected()
    assert len(set(np.bincount(rows // 260).tolist())) > 1
    np.testing.assert_array_equal(offsets, 0.0)


def test_only_importance_has_these_settings():
    config = configs.SimulationConfig(estimator="log_odds", budget="stream")
    defaults = {"estimator": "weights", "budget": "window"}
    for policy, differs in (("importance", True), ("uniform", False), ("everything", False)):
        settings = configs.Trial(config, policy, 0).settings
        given = {name: settings[name] for name in defaults}
        assert given == ({"estimator": "log_odds", "budget": "stream"} if differs else defaults)
    assert configs.Comparison("", config).title.endswith(
        "log-odds correction, budget of the stream"
    )
    with pytest.raises(ValueError, match="estimator must be one of"):
        configs.SimulationConfig(estimator="odds")

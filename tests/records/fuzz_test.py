"""A short run of `make fuzz`, and that it finds what it looks for."""

import random

import pytest

from ofb_tf.records.importers import values
from tests import fuzz


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return fuzz.Targets(str(tmp_path_factory.mktemp("fuzz")))


def test_a_short_run_finds_nothing(targets):
    accepted = dict.fromkeys(targets.names(), 0)
    for name in accepted:
        for seed in range(4 if name == "graph" else 20):
            accepted[name] += targets.run(name, random.Random(f"{name}-{seed}"))
    # Most mutations make an input that is read in part: otherwise little would be tried.
    assert all(accepted[name] > 3 for name in accepted if name not in ("record_bytes", "graph"))


def test_the_same_seed_makes_the_same_input(targets):
    def make(seed):
        return [fuzz.mutate_json(random.Random(seed), targets.rows()) for _ in range(2)]

    first, second = make(5)
    assert repr(first) == repr(second) != repr(make(6)[0])


def test_a_broken_reader_is_found(targets, monkeypatch):
    def run(name):
        for seed in range(60):
            targets.run(name, random.Random(f"{name}-{seed}"))

    with monkeypatch.context() as patch:  # a wrong value
        patch.setattr(values, "floats", lambda *_: [1.0, 2.0])
        with pytest.raises(fuzz.Finding, match="though only row"):
            run("jsonl")
    with monkeypatch.context() as patch:  # an exception that is not documented
        patch.setattr(values, "int64", lambda value, name: int(value))
        with pytest.raises(fuzz.Finding, match="Error"):
            run("jsonl")
    with monkeypatch.context() as patch:  # a slow one
        patch.setattr(fuzz, "MAX_SECONDS", 0.0)
        with pytest.raises(fuzz.Finding, match="seconds"):
            run("jsonl")

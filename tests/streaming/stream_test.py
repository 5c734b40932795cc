"""`SampledStream`: the batch path's selection, the join by arrival, states, and waiting."""

import functools
import json
import pathlib
import re
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import ofb_tf
from ofb_tf import streaming
from ofb_tf.selection import Importance
from tests.streaming.files import START, Stream, parse

N, FILE = 1000, 130
HOUR = 3600.0


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A stream in 8 files of examples, each a second after its file of records."""
    directory = tmp_path_factory.mktemp("logs")
    stream = Stream(N)
    for k, begin in enumerate(range(0, N, FILE)):
        rows = range(begin, min(begin + FILE, N))
        recorded = [row for row in rows if row % 50]
        stream.write_records(directory / "records", f"r{k:03d}", recorded, START + 10 * k)
        stream.write_examples(directory / "examples", f"e{k:03d}", rows, START + 10 * k + 1)
    return directory


@functools.cache  # and so is what is traced for it
def sampler(**settings):
    defaults = {"window_size": 200, "batch_size": 16, "seed": 17, "max_age": HOUR}
    return ofb_tf.ofb_sample(**defaults | {"task": "binary", "parse_fn": parse} | settings)


def follow(directory, *, sample=None, **settings):
    return streaming.SampledStream(
        sampler() if sample is None else sample,
        examples=streaming.ExampleDirectory(directory / "examples"),
        records=streaming.RecordDirectory(directory / "records"),
        **{"follow": False, "poll_interval": 0.01} | settings,
    )


def pairs(batches):
    """(id, weight) of everything selected, in order."""
    return [
        pair
        for batch in batches
        for pair in zip(
            batch["example_id"].tolist(), batch["importance_weight"].tolist(), strict=True
        )
    ]


def read(stream, elements=None):
    dataset = stream.dataset()
    return list((dataset if elements is None else dataset.take(elements)).as_numpy_iterator())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("systematic", {}),
        ("poisson", {"policy": Importance(design="poisson")}),
        ("budget", {"budget": "stream"}),
        ("drop", {"missing": "drop"}),
        ("single", {"batch_size": None}),
    ],
)
def test_selects_what_the_batch_path_selects(logs, name, settings):
    del name
    files = sorted(map(str, (logs / "examples").iterdir()))
    batch = ofb_tf.ofb_sample(
        records=str(logs / "records"),
        redraw_each_iteration=False,
        task="binary",
        parse_fn=parse,
        **{"window_size": 200, "batch_size": 16, "seed": 17} | settings,
    )
    expected = tf.data.TFRecordDataset(files).apply(batch).as_numpy_iterator()
    found = read(follow(logs, sample=sampler(**settings)))
    if settings.get("batch_size", 16) is None:
        assert [(e["example_id"], e["importance_weight"]) for e in found] == [
            (e["example_id"], e["importance_weight"]) for e in expected
        ]
    else:
        assert pairs(found) == pairs(expected)
    assert found


@pytest.mark.parametrize("budget", ["window", "stream"])
def test_goes_on_from_any_state_in_another_process(logs, budget):
    stream, again = (follow(logs, sample=sampler(budget=budget)) for _ in range(2))
    whole = read(stream)
    for elements in range(len(whole)):
        stream.restore({})
        batches = stream.dataset().as_numpy_iterator()
        for _ in range(elements):
            next(batches)
        state = json.loads(json.dumps(stream.state(elements)))
        again.restore(state)
        # The last batch may be smaller, and batches begin where the state says.
        assert pairs(read(again)) == pairs(whole[elements:]), elements
        assert again.status()["examples"] == N


def test_states_follow_each_other_across_restarts(logs):
    whole, found, state = read(follow(logs)), [], {}
    while len(found) < len(whole):
        stream = follow(logs)
        stream.restore(state)
        batches = read(stream, 2)
        found += batches
        state = stream.state(len(batches)) if len(batches) == 2 else {}
    assert pairs(found) == pairs(whole)


def test_state_refuses_what_is_past_or_not_read(logs):
    stream = follow(logs)
    assert stream.state(0) == {}
    with pytest.raises(ValueError, match="No element was read"):
        stream.state(1)
    batches = stream.dataset().as_numpy_iterator()
    for _ in range(4):
        next(batches)
    stream.state(4)
    with pytest.raises(ValueError, match="no less than at the last call"):
        stream.state(0)
    with pytest.raises(ValueError, match="no more than were read"):
        stream.state(4000)


def test_restore_refuses_other_settings(logs):
    stream = follow(logs)
    read(stream, 2)
    state = stream.state(2)
    other = follow(logs, sample=sampler(seed=18))
    with pytest.raises(ValueError, match="would select other examples"):
        other.restore(state)
    with pytest.raises(ValueError, match="version 1"):
        other.restore(state | {"version": 0})


@given(data=st.data())
@settings(max_examples=15)
def test_joins_by_arrival(tmp_path_factory, data):
    """Against a numpy oracle: files in any order of arrival, repeated ids, ages, waiting."""
    directory = tmp_path_factory.mktemp("arrivals")
    stream = Stream(60)
    max_wait, max_age = 5.0, 30.0
    parts = data.draw(
        st.lists(
            st.tuples(
                st.floats(0.0, 60.0),  # arrival
                st.floats(0.0, 40.0),  # age of its records
                st.lists(st.integers(0, 59), min_size=1, max_size=40, unique=True),
            ),
            min_size=1,
            max_size=6,
        )
    )
    # Times of arrival in whole microseconds, all different.
    parts = sorted((round(t, 3) + 1e-4 * k, age, rows) for k, (t, age, rows) in enumerate(parts))
    for k, (arrived, age, rows) in enumerate(parts):
        logits = np.full([len(rows), 1], k, np.float32)
        stream.write_records(
            directory / "records", f"{k}", rows, START + arrived, age=round(age, 3), logits=logits
        )
    for k in range(3):
        rows = range(20 * k, 20 * k + 20)
        stream.write_examples(directory / "examples", f"{k}", rows, START + 20.0 * k + 0.5)

    expected = {}
    for window in range(2):  # of 30: the second file is in both
        rows = range(30 * window, 30 * window + 30)
        arrived = 20.0 * (1, 2)[window] + 0.5
        newest, behind = {}, 0
        loaded = [
            k
            for k, (when, _, _) in enumerate(parts)
            if when <= arrived or (window == 1 and when <= expected.get("loaded", -1.0))
        ]
        later = [k for k, part in enumerate(parts) if k not in loaded]
        while True:
            newest = {}
            for k in loaded:
                when, age, known = parts[k]
                made = when - round(age, 3)
                for row in known:
                    if row not in newest or round(made * 1e6) >= round(newest[row][0] * 1e6):
                        newest[row] = made, k
            if set(rows) <= set(newest) or behind == len(later):
                break
            if parts[later[behind]][0] > arrived + max_wait:
                break
            loaded.append(later[behind])
            behind += 1
        expected["loaded"] = max((parts[k][0] for k in loaded), default=-1.0)
        for row in rows:
            made, k = newest.get(row, (-np.inf, None))
            expected[row] = k if made >= arrived - max_age else None

    sample = sampler(rate=1.0, window_size=30, batch_size=None, max_age=max_age, keep_record=True)
    found = read(follow(directory, sample=sample, max_wait=max_wait))
    assert len(found) == 60
    row_of = {id_: row for row, id_ in enumerate(stream.ids.tolist())}
    for element in found:
        k = expected[row_of[int(element["example_id"])]]
        assert element["has_record"] == (k is not None)
        if k is not None:
            assert element["logits"].tolist() == [k]


def test_memory_is_bounded_by_max_age(tmp_path):
    stream = Stream(4000)
    for k in range(40):
        rows = range(100 * k, 100 * k + 100)
        stream.write_records(tmp_path / "records", f"{k:02d}", rows, START + 10 * k)
        stream.write_examples(tmp_path / "examples", f"{k:02d}", rows, START + 10 * k)
    sample = sampler(window_size=100, batch_size=10, max_age=25.0)
    stream = follow(tmp_path, sample=sample)
    resident = []
    for _ in stream.dataset():
        resident.append(stream.status()["resident_records"])
    assert stream.status()["coverage"] == 1.0
    # Records of 25 seconds are 3 files; those that the window itself loads come on top.
    assert max(resident) <= 400
    state = stream.state(len(resident))
    assert len(state["records"]["resident"]) <= 4


def test_follows_directories_that_grow(tmp_path):
    """Files appear while the stream is read, records after their examples; nobody is lost."""
    stream = Stream(N)

    def write():
        for k, begin in enumerate(range(0, N, FILE)):
            rows = range(begin, min(begin + FILE, N))
            stream.write_examples(tmp_path / "examples", f"{k}", rows, time.time())
            time.sleep(0.05)
            stream.write_records(tmp_path / "records", f"{k}", rows, time.time())

    thread = threading.Thread(target=write)
    thread.start()
    followed = follow(tmp_path, follow=True, max_wait=60.0)
    found = read(followed, 6)  # of 16 in 960 examples
    thread.join()
    assert followed.status()["coverage"] == 1.0
    # Afterwards, with the times at which the files arrived, the same.
    assert pairs(found) == pairs(read(follow(tmp_path, max_wait=60.0), 6))
    followed.close()


def test_can_be_left_while_it_waits(logs):
    """An iterator that waits for files can be dropped, and another one made."""
    stream = follow(logs, follow=True)
    whole = len(read(follow(logs)))
    for _ in range(2):
        batches = iter(stream.dataset().prefetch(2))
        for _ in range(whole - 1):
            next(batches)
        del batches
    stream.close()


def test_missing_records_after_max_wait(logs):
    stream = follow(logs, max_wait=1000.0)
    read(stream)
    # Each file once, also the first, from which the dataset took its form.
    assert stream.records.counts.num_files == 8
    assert stream.records.counts.num_read == N - N // 50
    figures = stream.status()
    assert figures["examples"] == N
    assert figures["without_record"] == N // 50
    assert figures["lag_seconds"] == 0.0


def test_errors_name_what_is_wrong(logs, tmp_path):
    with pytest.raises(ValueError, match="max_age"):
        follow(logs, sample=sampler(max_age=None))
    with pytest.raises(ValueError, match="max_wait must be at least 0"):
        follow(logs, max_wait=-1.0)
    with pytest.raises(ValueError, match="at least one finished file"):
        follow(tmp_path).dataset()
    with pytest.raises(ValueError, match="records=None"):
        follow(logs, sample=sampler(records=str(logs / "records"))).dataset()
    with pytest.raises(ValueError, match="path and pattern"):
        streaming.ExampleDirectory("")


def test_a_file_that_is_gone_is_an_error(tmp_path):
    stream = Stream(400)
    for k in range(4):
        rows = range(100 * k, 100 * k + 100)
        stream.write_records(tmp_path / "records", f"{k}", rows, START + k)
        stream.write_examples(tmp_path / "examples", f"{k}", rows, START + k)
    first = follow(tmp_path, sample=sampler(window_size=80, batch_size=4))
    read(first, 3)
    state = first.state(3)
    (tmp_path / "examples" / "1.tfrecord").unlink()
    again = follow(tmp_path, sample=sampler(window_size=80, batch_size=4))
    again.restore(state)
    with pytest.raises(Exception, match="deleted before it was read"):
        read(again)


def test_corrupt_examples(tmp_path):
    stream = Stream(300)
    for k in range(3):
        rows = range(100 * k, 100 * k + 100)
        stream.write_records(tmp_path / "records", f"{k}", rows, START + k)
        stream.write_examples(tmp_path / "examples", f"{k}", rows, START + k)
    path = tmp_path / "examples" / "1.tfrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    sample = sampler(window_size=20, batch_size=2)
    with pytest.raises(Exception, match=r"Corrupt file of examples .*1\.tfrecord"):
        read(follow(tmp_path, sample=sample))
    skipping = follow(tmp_path, sample=sample, on_corrupt="skip")
    read(skipping)
    assert skipping.status()["corrupt_files"] == 1
    assert 200 < skipping.status()["examples"] < 300


def test_records_of_another_form_are_refused(tmp_path):
    stream = Stream(100)
    stream.write_records(tmp_path / "records", "0", range(100), START)
    wide = np.zeros([100, 3], np.float32)
    stream.write_records(tmp_path / "records", "1", range(100), START + 1, logits=wide)
    stream.write_examples(tmp_path / "examples", "0", range(100), START + 2)
    with pytest.raises(Exception, match="a new file holds num_outputs=3"):
        read(follow(tmp_path, sample=sampler(window_size=100)))


def test_elements_that_are_not_serialized(logs):
    """Any reader of a file will do: dicts with a ragged feature."""

    def reader(path):
        def ragged(serialized):
            parsed = tf.io.parse_single_example(serialized, _SPEC)
            words = tf.RaggedTensor.from_row_splits(tf.range(3), [0, 1, 3])
            return parsed | {"words": words}

        return tf.data.TFRecordDataset(path).map(ragged)

    stream = streaming.SampledStream(
        sampler(parse_fn=None),
        examples=streaming.ExampleDirectory(logs / "examples", reader),
        records=streaming.RecordDirectory(logs / "records"),
        follow=False,
    )
    found = list(stream.dataset())
    assert isinstance(found[0]["words"], tf.RaggedTensor)
    plain = pairs(read(follow(logs)))
    assert [id_ for batch in found for id_ in batch["example_id"].numpy()] == [p[0] for p in plain]


_SPEC = {
    "example_id": tf.io.FixedLenFeature([], tf.int64),
    "label": tf.io.FixedLenFeature([], tf.int64),
}


def test_the_page_about_streams_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (pathlib.Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
    stream = Stream(120_000)
    for k in range(3):
        rows = range(40_000 * k, 40_000 * k + 40_000)
        stream.write_records("logs/records", f"{k}", rows, time.time())
        stream.write_examples("logs/examples", f"{k}", rows, time.time())
    namespace = {}
    for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(code, namespace)  # noqa: S102
    assert namespace["stream"].status()["coverage"] == 1.0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "batch-000000000030",
        "batch-000000000040",
    ]


def test_files_that_appear_with_old_times_find_their_records(tmp_path):
    """As of a copy that keeps the times: each file of records is there before its examples."""
    stream = Stream(400)
    followed = follow(tmp_path, follow=True, sample=sampler(window_size=100, batch_size=10))

    def appear(k):
        rows = range(100 * k, 100 * k + 100)
        stream.write_records(tmp_path / "records", f"{k}", rows, START + k)
        stream.write_examples(tmp_path / "examples", f"{k}", rows, START + k + 0.5)

    appear(0)
    batches = followed.dataset().as_numpy_iterator()
    next(batches)
    for k in range(1, 4):
        appear(k)
        time.sleep(0.1)
    for _ in range(3):
        next(batches)
    assert followed.status()["coverage"] == 1.0
    followed.close()

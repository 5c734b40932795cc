"""Three logs of one stream, written slice by slice of event time, and what must come of them."""

import os

import numpy as np
import tensorflow as tf

import ofb_tf

RATE = 0.1
WINDOW = 2.0  # seconds of attribution
MAX_WAIT = 0.5
START = 1_700_000_000_000_000  # microseconds
PER_SECOND = 1000


class Logs:
    """A binary stream of `n` examples, PER_SECOND a second: 2% without a record, 3% of the records
    too late, 30% with a label, of which a few come after the window.
    """

    def __init__(self, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.n = n
        self.ids = rng.permutation(10 * n)[:n].astype(np.int64)
        self.times = START + np.arange(n) * (1_000_000 // PER_SECOND)
        self.logits = rng.normal(-1.0, 2.0, [n, 1]).astype(np.float32)
        delay = rng.integers(0, 100_000, n)
        delay[rng.random(n) < 0.03] = round(MAX_WAIT * 1e6) + 1
        self.record_times = self.times + delay
        self.recorded = rng.random(n) >= 0.02
        self.label_times = self.times + rng.integers(0, round(1.1 * WINDOW * 1e6), n)
        self.labelled = rng.random(n) < 0.3
        self.joined = self.recorded & (delay <= MAX_WAIT * 1e6)
        in_time = self.label_times <= self.times + WINDOW * 1e6
        self.labels = (self.labelled & in_time).astype(np.int64)

    def write(self, directory, begin: float, end: float, name: str) -> None:
        """Files of what happened in `[begin, end)` seconds after the start."""
        bounds = START + round(begin * 1e6), START + round(end * 1e6)

        def during(times):
            rows = np.flatnonzero((times >= bounds[0]) & (times < bounds[1]))
            return rows[np.argsort(times[rows], kind="stable")]

        rows = during(self.record_times)
        rows = rows[self.recorded[rows]]
        self._write_records(
            directory, name, self.ids[rows], self.logits[rows], self.record_times[rows]
        )
        rows = during(self.times)
        self._write_examples(directory, "examples", name, [self.example(row) for row in rows])
        rows = during(self.label_times)
        rows = rows[self.labelled[rows]]
        self._write_examples(directory, "labels", name, [self.label(row) for row in rows])

    def write_heartbeat(self, directory, name: str, time: int) -> None:
        """One event of an unknown id in each log: the watermark reaches `time`."""
        id_ = np.int64(10 * self.n + time // 1_000_000)
        self._write_records(directory, name, id_[None], self.logits[:1], np.array([time]))
        for kind, more in (("examples", {}), ("labels", {"label": 1})):
            event = _example(example_id=id_, timestamp=time, **more)
            self._write_examples(directory, kind, name, [event])

    def _write_records(self, directory, name, ids, logits, times) -> None:
        if not len(ids):
            return
        path = os.path.join(directory, "records", f"{name}.part")
        with ofb_tf.ForwardRecordWriter(path, num_outputs=1) as writer:
            writer.write(ids, logits, timestamp=times, model_version=1)
        (file,) = os.listdir(path)
        os.rename(os.path.join(path, file), os.path.join(directory, "records", f"{name}.ofbr"))
        os.rmdir(path)

    def example(self, row: int) -> tf.train.Example:
        """As it is served: without a label."""
        return _example(float(row), example_id=self.ids[row], timestamp=self.times[row])

    def label(self, row: int) -> tf.train.Example:
        return _example(example_id=self.ids[row], timestamp=self.label_times[row], label=1)

    def _write_examples(self, directory, kind, name, examples) -> None:
        if not examples:
            return
        temporary = os.path.join(directory, kind, f".{name}")
        with tf.io.TFRecordWriter(temporary) as writer:
            for example in examples:
                writer.write(example.SerializeToString())
        os.rename(temporary, os.path.join(directory, kind, name))

    def expected(self, policy, seed: int) -> dict[int, tuple[int, float]]:
        """id → (label, weight) by the one-machine path: `ofb_sample` over a finished dataset."""
        dataset = tf.data.Dataset.from_tensor_slices(
            {
                "example_id": self.ids,
                "label": self.labels,
                # A logit that is not finite counts as a missing record.
                "logits": np.where(self.joined[:, None], self.logits, np.float32(np.nan)),
            }
        )
        sampled = dataset.apply(
            ofb_tf.ofb_sample(
                policy=policy,
                rate=RATE,
                task="binary",
                seed=seed,
                window_size=4096,
                redraw_each_iteration=False,
            )
        )
        return {
            int(one["example_id"]): (int(one["label"]), float(one["importance_weight"]))
            for one in sampled.as_numpy_iterator()
        }


def _example(x: float | None = None, **integers: int) -> tf.train.Example:
    example = tf.train.Example()
    for name, value in integers.items():
        example.features.feature[name].int64_list.value.append(int(value))
    if x is not None:
        example.features.feature["x"].float_list.value.append(x)
    return example

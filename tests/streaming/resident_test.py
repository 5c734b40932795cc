"""Records in memory: against a dict, through additions and drops in any order."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from ofb_tf.records.reader import Columns
from ofb_tf.records.schema import Schema
from ofb_tf.streaming import resident
from ofb_tf.streaming.resident import ResidentRecords

SCHEMA = Schema(1, 0, ("example_id", "logits", "model_version", "timestamp"))


def columns(ids, logits, timestamps):
    return Columns.of(
        SCHEMA,
        {
            "example_id": np.array(ids, np.int64),
            "logits": np.array(logits, np.float32)[:, None],
            "model_version": np.array(logits, np.int64) % 3,
            "timestamp": np.array(timestamps, np.int64),
        },
    )


@given(
    st.lists(
        st.one_of(
            st.lists(st.tuples(st.integers(0, 30), st.integers(0, 50)), max_size=20),
            st.integers(0, 50),
        ),
        max_size=25,
    )
)
def test_against_a_dict(operations):
    capacity, resident._LEAST_CAPACITY = resident._LEAST_CAPACITY, 4
    try:
        records, parts, held, value = ResidentRecords(SCHEMA), [], {}, 0
        for number, operation in enumerate(operations):
            if isinstance(operation, int):
                dropped = 0
                while parts and max((time for _, time in parts[0][1]), default=0) < operation:
                    gone = parts.pop(0)[0]
                    held = {id_: record for id_, record in held.items() if record[2] != gone}
                    dropped += 1
                assert records.drop_before(operation) == dropped
            else:
                values = range(value, value + len(operation))
                value += len(operation)
                ids, times = zip(*operation, strict=True) if operation else ((), ())
                records.add(columns(ids, values, times))
                parts.append((number, operation))
                for id_, time, logit in zip(ids, times, values, strict=True):
                    if id_ not in held or time >= held[id_][1]:
                        held[id_] = logit, time, number
            check(records, held)
            assert records.num_parts == len(parts)
            assert len(held) <= len(records) <= sum(len(part) for _, part in parts)
    finally:
        resident._LEAST_CAPACITY = capacity


def check(records, held):
    rows = records.find(tf.range(31, dtype=tf.int64))
    fields = records.fields(rows)
    assert np.flatnonzero(rows >= 0).tolist() == sorted(held)
    for id_, (logit, time, _) in held.items():
        assert fields["logits"][id_] == [logit]
        assert fields["timestamp"][id_] == time
        assert fields["model_version"][id_] == logit % 3

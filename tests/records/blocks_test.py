import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from ofb_tf import constants
from ofb_tf.records import blocks
from ofb_tf.records.schema import MAX_BLOCK_BYTES, MAX_BLOCK_RECORDS, Runs, Schema, expand

INT64 = st.integers(-(2**63), 2**63 - 1)


def make_block(n=5, num_outputs=3, top_k=0, logits_dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    width = top_k or num_outputs
    columns = {
        constants.EXAMPLE_ID: rng.integers(-(2**63), 2**63 - 1, n),
        constants.LOGITS: rng.normal(size=(n, width)).astype(logits_dtype),
        constants.LOSS: rng.normal(size=n).astype(np.float32),
        constants.MODEL_VERSION: Runs.of(np.full(n, 7)),
        constants.TIMESTAMP: Runs.of(rng.integers(0, 2**50, n)),
    }
    if top_k:
        columns[constants.CLASS_IDS] = rng.integers(0, num_outputs, (n, width)).astype(np.int32)
        columns[constants.LOGSUMEXP] = rng.normal(size=n).astype(np.float32)
        columns[constants.SUM_SQUARED_PROBABILITIES] = rng.random(n).astype(np.float32)
    return Schema.of(columns, num_outputs, top_k), columns


@pytest.mark.parametrize("n", [0, 1, 5, 8192])
@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("logits_dtype", [np.float32, np.float16])
def test_a_block_decodes_to_what_was_encoded(n, top_k, logits_dtype):
    schema, columns = make_block(n, top_k=top_k, logits_dtype=logits_dtype)
    block = blocks.decode(blocks.encode_block(schema, columns))
    assert block.schema == schema
    assert len(block) == n
    for name, data in columns.items():
        got = expand(block.columns[name])
        np.testing.assert_array_equal(got, expand(data), err_msg=name)
        if n:
            assert got.dtype == expand(data).dtype, name


@given(st.lists(st.tuples(INT64, st.integers(1, 5)), min_size=1, max_size=40))
def test_runs_of_any_int64_survive(pairs):
    values = np.repeat(np.array([v for v, _ in pairs], np.int64), [c for _, c in pairs])
    runs = Runs.of(values)
    np.testing.assert_array_equal(runs.expand(), values)
    schema, columns = make_block(len(values))
    columns[constants.TIMESTAMP] = runs
    block = blocks.decode(blocks.encode_block(schema, columns))
    np.testing.assert_array_equal(block.columns[constants.TIMESTAMP].expand(), values)


def test_columns_are_little_endian_bytes_of_a_tf_example():
    schema, columns = make_block(4, num_outputs=1)
    example = tf.train.Example.FromString(blocks.encode_block(schema, columns))
    feature = example.features.feature
    ids = feature["example_id"].bytes_list.value[0]
    assert ids == b"".join(int(i).to_bytes(8, "little", signed=True) for i in columns["example_id"])
    assert feature["format_version"].int64_list.value[:] == [1]
    assert feature["num_outputs"].int64_list.value[:] == [1]
    parsed = tf.io.parse_single_example(
        example.SerializeToString(), {"logits": tf.io.FixedLenFeature([], tf.string)}
    )
    logits = tf.io.decode_raw(parsed["logits"], tf.float32)
    np.testing.assert_array_equal(logits, columns["logits"][:, 0])


def test_a_block_of_live_batches_takes_at_most_16_bytes_per_record():
    n = MAX_BLOCK_RECORDS
    schema, columns = make_block(n, num_outputs=1)
    del columns[constants.LOSS]
    schema = dataclasses.replace(schema, columns=tuple(c for c in schema.columns if c != "loss"))
    for batch in (256, 16, 1):  # one timestamp per batch, all within half an hour
        starts = np.arange(0, n, batch) * 200_000 + 1_700_000_000_000_000
        columns[constants.TIMESTAMP] = Runs.of(np.repeat(starts, batch))
        size = len(blocks.encode_block(schema, columns))
        assert size <= 16 * n + 400, batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["format_version"].int64_list.value.__setitem__(0, 9), "format_version is 9"),
        (lambda f: f.pop("format_version"), "format_version"),
        (lambda f: f.pop("example_id"), "example_id"),
        (lambda f: f["num_outputs"].int64_list.value.__setitem__(0, -1), "num_outputs is -1"),
        (lambda f: f["top_k"].int64_list.value.__setitem__(0, 2**40), "top_k 1099511627776"),
        (lambda f: f.pop("timestamp"), "timestamp"),
        (lambda f: f["logits"].bytes_list.value.__setitem__(0, b"123"), "logits"),
        (lambda f: f["loss"].bytes_list.value.append(b""), "loss"),
        (lambda f: f["timestamp"].bytes_list.value.__setitem__(0, b"12345"), "timestamp"),
        (lambda f: f["timestamp/run_lengths"].bytes_list.value.append(b"123"), "run lengths"),
        (lambda f: f["timestamp/run_lengths"].bytes_list.value.append(b"\0\0\0\0"), "sum to 6"),
    ],
)
def test_a_malformed_block_says_what_is_wrong(change, message):
    example = tf.train.Example.FromString(blocks.encode_block(*make_block(6)))
    change(example.features.feature)
    with pytest.raises(blocks.FormatError, match=message):
        blocks.decode(example.SerializeToString())


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_a_format_error(data):
    with pytest.raises(blocks.FormatError):
        blocks.decode(data)


@pytest.mark.parametrize("num_outputs", [1, 8000, 70_000])
def test_as_many_records_as_the_schema_allows_fit_into_a_block(num_outputs):
    schema, _ = make_block(1, num_outputs)
    count = schema.records_per_block()
    assert (count == MAX_BLOCK_RECORDS) == (num_outputs <= 8000)

    def size(n):  # values that cannot be stored as runs or in fewer bytes
        columns = schema.empty(n)
        for data in columns.values():
            data[...] = np.resize(np.array([0, 2**31 - 1]), len(data)).reshape(
                -1, *[1] * (data.ndim - 1)
            )
            if data.dtype == np.int64:
                data *= 2**32
        return len(blocks.encode_block(schema, columns))

    per_record = (size(40) - size(20)) / 20
    assert size(20) + (count - 20) * (per_record + 1) <= MAX_BLOCK_BYTES

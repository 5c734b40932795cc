"""Reading one sorted record file inside a tf.data graph: the record side of a partitioned join."""

import tensorflow as tf

from ofb_tf import constants
from ofb_tf.records import blocks, files
from ofb_tf.records.schema import Schema

_MAX_BLOCKS = 1 << 16


def sorted_file_dataset(
    filename: tf.Tensor | str, schema: Schema, *, compression: tf.Tensor | str = ""
) -> tf.data.Dataset:
    """A file that `partition` or `compact` wrote, as a dataset of one element: its columns.

    It may be created in the function of a `Dataset.flat_map`, and so works under the tf.data
    service and across an iterator's checkpoint, which `get_single_element` does not.

    Args:
      filename: string scalar. As a Python string the file's headers are checked here; a tensor
        must name a file that has been checked, as `PartitionedRecords` does. Empty for a
        partition without a file, which has no records.
      schema: the file's columns, from `read_schema`, known when the graph is made.
      compression: "", "GZIP" or "ZLIB".

    Returns:
      A dataset of one dict, by column name: `example_id` int64 `[n]`, strictly increasing;
      `logits` float32 `[n, k]`; `loss` float32 `[n]`; `model_version` and `timestamp` int64
      `[n]`; in the top-k form `class_ids` int32 `[n, k]`, `logsumexp` and
      `sum_squared_probabilities` float32 `[n]`; those of them that the schema has; in the top-k
      form also `num_outputs`, int32 scalar.

    Raises:
      CorruptRecordsError: a TFRecord claims more than the file holds or a block may have.
      tf.errors.DataLossError: when run, a checksum does not match.
      tf.errors.InvalidArgumentError: when run, the ids are not sorted, or the columns of a block
        have different lengths, or the file has another schema, or it is not complete.
    """
    if isinstance(filename, str) and filename:
        files.check_headers(filename)
    filename = tf.convert_to_tensor(filename, tf.string)
    exists = tf.strings.length(filename) > 0
    # Every file starts with an empty block, so that one without blocks yields an element too. It
    # stands for the footer where there is no file.
    first = {column.name: tf.zeros([0], tf.as_dtype(column.dtype)) for column in schema.present} | {
        blocks.NUM_RECORDS_KEY: tf.where(exists, tf.constant(-1, tf.int64), 0)
    }
    stored = tf.data.TFRecordDataset(tf.boolean_mask([filename], [exists]), compression)
    whole = (
        tf.data.Dataset.from_tensors(first)
        .concatenate(stored.map(lambda serialized: _decode(serialized, schema)))
        # One ragged batch of all blocks: its flat values are the columns, concatenated.
        .ragged_batch(_MAX_BLOCKS)
    )
    return whole.map(lambda batch: _flatten(batch, schema))


def _flatten(whole: dict[str, tf.RaggedTensor], schema: Schema) -> dict[str, tf.Tensor]:
    """The columns of all blocks, concatenated and checked."""
    result = {}
    for column in schema.present:
        values = whole[column.name].flat_values
        if column.per_output:
            values = tf.reshape(values, [-1, schema.logits_width])
        result[column.name] = values
    if schema.top_k:
        result[constants.NUM_OUTPUTS] = tf.constant(schema.num_outputs, tf.int32)
    ids = result[constants.EXAMPLE_ID]
    checks = [
        tf.debugging.assert_less(
            ids[:-1],
            ids[1:],
            message="sorted_file_dataset: ids must be strictly increasing. Write the file with "
            "`ofb records partition` or `ofb records compact`.",
        ),
        tf.debugging.assert_equal(
            whole[blocks.NUM_RECORDS_KEY][-1],
            tf.size(ids, tf.int64),
            message="sorted_file_dataset: the file is not complete. Check it with "
            "`ofb records verify` and write it again.",
        ),
    ]
    with tf.control_dependencies(checks):
        return {name: tf.identity(values) for name, values in result.items()}


def _decode(serialized: tf.Tensor, schema: Schema) -> dict[str, tf.Tensor]:
    """Flat columns of one block; a footer decodes as a block of no records."""
    integer = tf.io.FixedLenFeature([], tf.int64, -1)
    string = tf.io.FixedLenFeature([], tf.string, "")
    integers = (blocks.NUM_RECORDS_KEY, blocks.NUM_OUTPUTS_KEY, blocks.TOP_K_KEY)
    spec = dict.fromkeys(integers, integer)
    for column in schema.present:
        spec[column.name] = string
        if column.runs:
            spec[column.name + blocks.BASE_SUFFIX] = integer
            spec[column.name + blocks.LENGTHS_SUFFIX] = string
    parsed = tf.io.parse_single_example(serialized, spec)
    num_records = tf.strings.length(parsed[constants.EXAMPLE_ID]) // 8
    is_footer = parsed[blocks.NUM_RECORDS_KEY] >= 0
    expected = [schema.num_outputs, schema.top_k]
    got = [parsed[blocks.NUM_OUTPUTS_KEY], parsed[blocks.TOP_K_KEY]]
    check = tf.debugging.Assert(
        is_footer | tf.reduce_all(tf.stack(got) == tf.constant(expected, tf.int64)),
        [f"sorted_file_dataset: the block must have {schema}; its num_outputs and top_k:", *got],
    )
    with tf.control_dependencies([check]):
        result = {blocks.NUM_RECORDS_KEY: tf.identity(parsed[blocks.NUM_RECORDS_KEY])}
    for column in schema.present:
        data = parsed[column.name]
        if column.runs:
            result[column.name] = _decode_runs(parsed, column.name, num_records)
        elif column.narrow_dtype:
            result[column.name] = tf.cond(
                tf.strings.length(data) == num_records * schema.logits_width * 4,
                lambda data=data: tf.io.decode_raw(data, tf.float32),
                lambda data=data: tf.cast(tf.io.decode_raw(data, tf.float16), tf.float32),
            )
        else:
            result[column.name] = tf.io.decode_raw(data, tf.as_dtype(column.dtype))
    # Of each block, since the errors of two could cancel out.
    sizes = [tf.size(result[column.name]) for column in schema.present]
    widths = [schema.logits_width if column.per_output else 1 for column in schema.present]
    check = tf.debugging.Assert(
        tf.reduce_all(tf.stack(sizes) == num_records * tf.constant(widths)),
        ["sorted_file_dataset: a block must have one record per id. Values per column:", *sizes],
    )
    with tf.control_dependencies([check]):
        return {name: tf.identity(values) for name, values in result.items()}


def _decode_runs(parsed: dict[str, tf.Tensor], name: str, num_records: tf.Tensor) -> tf.Tensor:
    lengths = tf.io.decode_raw(parsed[name + blocks.LENGTHS_SUFFIX], tf.int32)
    has_lengths = tf.size(lengths) > 0
    num_runs = tf.where(has_lengths, tf.size(lengths), num_records)
    packed = tf.io.decode_raw(parsed[name], tf.uint8)
    width = tf.size(packed) // tf.maximum(num_runs, 1)
    packed = tf.pad(tf.reshape(packed, [num_runs, width]), [[0, 0], [0, 8 - width]])
    offsets = tf.bitcast(tf.ensure_shape(packed, [None, 8]), tf.int64)
    values = parsed[name + blocks.BASE_SUFFIX] + offsets
    # The run of each record, by the runs' ends; tf.repeat would make a matrix.
    run = tf.searchsorted(tf.cumsum(lengths), tf.range(num_records), side="right")
    return tf.gather(values, tf.where(has_lengths, run, tf.range(num_records)))

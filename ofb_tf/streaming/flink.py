"""The join of records, examples and labels as an unbounded Flink job, by PyFlink (extra `flink`).

    flink run -py ofb_tf/streaming/flink.py --records=DIR --examples=DIR --labels=DIR --output=DIR

Each log is a directory in which finished files appear, in the order of their names. Sources keep
their position, buckets of ids what is pending and the file sink its open files in Flink's state,
so a job that recovers from a checkpoint neither loses nor doubles an example.
"""

import argparse
import base64
import json
import os
from collections.abc import Iterator

import tensorflow as tf
from pyflink.common import Configuration, Duration, Encoder, Types, WatermarkStrategy
from pyflink.common.watermark_strategy import TimestampAssigner
from pyflink.datastream import (
    DataStream,
    KeyedProcessFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from pyflink.datastream.connectors.file_system import (
    FileSink,
    FileSource,
    RollingPolicy,
    StreamFormat,
)
from pyflink.datastream.state import ListStateDescriptor, ValueStateDescriptor

from ofb_tf.constants import EXAMPLE_ID, LABEL, TIMESTAMP
from ofb_tf.records.files import SUFFIX
from ofb_tf.selection import FixedScale
from ofb_tf.streaming import join
from ofb_tf.streaming.join import EXAMPLES, LABELS, RECORDS, Columns, JoinConfig

_BATCH = 4096
_POLL_MILLIS = 500
_POLLS_AHEAD = 4
# kind, bucket, timestamp in milliseconds, pickled columns (None where only time has passed)
_BLOCK = Types.TUPLE([Types.STRING(), Types.LONG(), Types.LONG(), Types.PICKLED_BYTE_ARRAY()])


class _Tail(KeyedProcessFunction):
    """A log's directory → its blocks by bucket. The name of the last file read is its state."""

    def __init__(self, kind: str, num_buckets: int, dtypes: dict[str, str]) -> None:
        self._kind, self._num_buckets, self._dtypes = kind, num_buckets, dtypes

    def open(self, runtime_context: RuntimeContext) -> None:
        self._last = runtime_context.get_state(ValueStateDescriptor("last", Types.STRING()))
        self._newest = runtime_context.get_state(ValueStateDescriptor("newest", Types.LONG()))
        self._recovered: set[str] = set()

    def process_element(self, value: str, ctx: KeyedProcessFunction.Context) -> None:
        self._poll_again(ctx)

    def on_timer(
        self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext
    ) -> Iterator[tuple[str, int, int, Columns | None]]:
        directory, last = ctx.get_current_key(), self._last.value() or ""
        newest = self._newest.value() or 0
        if directory not in self._recovered:
            # Flink's checkpoints have no watermark; a log that is silent now would hold it back.
            self._recovered.add(directory)
            if newest:
                yield self._kind, 0, newest, None
        names = (n for n in tf.io.gfile.listdir(directory) if not n.startswith((".", "_")))
        if self._kind == RECORDS:
            names = (n for n in names if n.endswith(SUFFIX))
        # One file per poll bounds what PyFlink must buffer before it can pass anything on.
        for name in sorted(n for n in names if n > last)[:1]:
            for columns in join.read_columns(
                self._kind, os.path.join(directory, name), self._dtypes
            ):
                newest = max(newest, int(columns[TIMESTAMP].max()) // 1000)
                for bucket, rows in join.split(columns, self._num_buckets):
                    yield self._kind, bucket, newest, rows
            self._last.update(name)
            self._newest.update(newest)
        self._poll_again(ctx)

    def _poll_again(self, ctx: KeyedProcessFunction.Context) -> None:
        """Timers of the next polls. PyFlink may lose what was registered just before a checkpoint
        from which the job recovers, so the later ones are there to carry on.
        """
        service = ctx.timer_service()
        now = service.current_processing_time() // _POLL_MILLIS
        for ahead in range(1, _POLLS_AHEAD + 1):
            service.register_processing_time_timer((now + ahead) * _POLL_MILLIS)


class _BlockTime(TimestampAssigner):
    def extract_timestamp(self, value: tuple, record_timestamp: int) -> int:
        return value[2]


class _Join(KeyedProcessFunction):
    """Blocks of a bucket → its selected examples, at event-time timers."""

    def __init__(self, config: JoinConfig) -> None:
        self._config = config

    def open(self, runtime_context: RuntimeContext) -> None:
        bytes_type = Types.PICKLED_BYTE_ARRAY()
        self._pending = runtime_context.get_state(ValueStateDescriptor("pending", bytes_type))
        self._inbox = runtime_context.get_list_state(ListStateDescriptor("inbox", bytes_type))
        metrics = runtime_context.get_metrics_group().add_group("ofb")
        self._counters = {
            name: metrics.counter(name)
            for name in (
                "left",
                "selected",
                "without_record",
                "unlabelled",
                "records_without_example",
                "labels_without_example",
            )
        }

    def process_element(self, value: tuple, ctx: KeyedProcessFunction.Context) -> None:
        kind, _, _, columns = value
        if columns is not None:
            self._inbox.add((kind, columns))
            self._look_again(ctx)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[str]:
        pending = self._pending.value() or join.Pending()
        for kind, columns in self._inbox.get() or ():
            pending.add(kind, columns)
        self._inbox.clear()
        watermark = ctx.timer_service().current_watermark() * 1000
        left = join.leave(pending, watermark, self._config)
        selected = join.sample(left, self._config)
        for name, count in (left.counts | {"selected": len(selected)}).items():
            self._counters[name].inc(count)
        if pending:
            self._pending.update(pending)
            self._look_again(ctx)
        else:
            self._pending.clear()
        for serialized in selected:
            yield base64.urlsafe_b64encode(serialized).decode()

    def _look_again(self, ctx: KeyedProcessFunction.Context) -> None:
        """One timer per interval, which is the same for however many blocks."""
        service, interval = ctx.timer_service(), round(self._config.interval * 1000)
        now = max(service.current_watermark(), 0)
        service.register_event_time_timer((now // interval + 1) * interval)


def tail(
    env: StreamExecutionEnvironment,
    kind: str,
    index: str,
    *,
    max_disorder: float,
    num_buckets: int,
    dtypes: dict[str, str],
) -> DataStream:
    """A log that grows, as a stream of blocks with watermarks.

    Args:
      env: the environment.
      kind: "records", "examples" or "labels".
      index: a directory of text files with a directory of the log on each line; it may grow.
      max_disorder: seconds by which a timestamp may precede one that was read before it.
      num_buckets: the same for all three logs.
      dtypes: see `join.read_columns`.

    Returns:
      A stream for `weighted_examples`. Its parallelism must be 1, so that its watermark is that of
      the file read last; use a topic with partitions where one task is not enough.
    """
    source = FileSource.for_record_stream_format(StreamFormat.text_line_format(), index)
    source = source.monitor_continuously(Duration.of_millis(10 * _POLL_MILLIS)).build()
    lines = env.from_source(source, WatermarkStrategy.no_watermarks(), f"{kind}: directories")
    blocks = (
        lines.key_by(lambda directory: directory, Types.STRING())
        .process(_Tail(kind, num_buckets, dtypes), _BLOCK)
        .name(f"{kind}: files")
    )
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(
        Duration.of_millis(round(max_disorder * 1000))
    ).with_timestamp_assigner(_BlockTime())
    return blocks.assign_timestamps_and_watermarks(strategy)


def weighted_examples(
    records: DataStream, examples: DataStream, labels: DataStream, config: JoinConfig
) -> DataStream:
    """Joins and samples three streams of blocks.

    Args:
      records: blocks `(kind, bucket, milliseconds, columns)`, with watermarks.
      examples: the same.
      labels: the same.
      config: how to join and sample.

    Returns:
      A stream of tf.Examples with `label` and `importance_weight`, serialized, in web-safe base64,
      which `tf.io.decode_base64` reads.
    """
    blocks = records.union(examples, labels)
    return (
        blocks.key_by(lambda block: block[1], Types.LONG())
        .process(_Join(config), Types.STRING())
        .name("join and sample")
    )


def file_sink(directory: str) -> FileSink:
    """Lines in files that get their names when the checkpoint that covers them is complete."""
    return (
        FileSink.for_row_format(directory, Encoder.simple_string_encoder("US-ASCII"))
        .with_rolling_policy(RollingPolicy.on_checkpoint_rolling_policy())
        .build()
    )


def read_output(directory: str) -> tf.data.Dataset:
    """The serialized tf.Examples that `file_sink` has finished, in no particular order."""
    files = sorted(tf.io.gfile.glob(os.path.join(directory, "*", "part-*")))
    return tf.data.TextLineDataset(files).map(tf.io.decode_base64)


def main(argv: list[str] | None = None) -> None:
    """Submits the job; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Joins and samples a stream on Flink.")
    for kind in (RECORDS, EXAMPLES, LABELS):
        parser.add_argument(f"--{kind}", required=True, help=f"index of the {kind}: see `tail`")
    parser.add_argument("--output", required=True, help="directory of the weighted examples")
    parser.add_argument("--config", required=True, help="JSON object: fields of JoinConfig")
    parser.add_argument("--slope", type=float, required=True, help="of FixedScale")
    parser.add_argument("--offset", type=float, required=True, help="of FixedScale")
    parser.add_argument("--num_buckets", type=int, default=128)
    parser.add_argument("--max_disorder", type=float, default=60.0, help="seconds")
    parser.add_argument("--dtypes", default="{}", help="JSON object: features that are not int64")
    parser.add_argument("--parallelism", type=int, default=1)
    parser.add_argument("--checkpoint_interval", type=float, default=60.0, help="seconds")
    args = parser.parse_args(argv)
    settings = Configuration()
    settings.set_string(
        "execution.checkpointing.interval", f"{round(args.checkpoint_interval * 1000)}ms"
    )
    env = StreamExecutionEnvironment.get_execution_environment(settings)
    env.set_parallelism(1)  # of whatever reads: a log's watermark is made in one place
    dtypes = {EXAMPLE_ID: "int64", TIMESTAMP: "int64", LABEL: "int64"} | json.loads(args.dtypes)
    records, examples, labels = (
        tail(
            env,
            kind,
            getattr(args, kind),
            max_disorder=args.max_disorder,
            num_buckets=args.num_buckets,
            dtypes=dtypes,
        )
        for kind in (RECORDS, EXAMPLES, LABELS)
    )
    config = JoinConfig(policy=FixedScale(args.slope, args.offset), **json.loads(args.config))
    weighted = weighted_examples(records, examples, labels, config)
    weighted.set_parallelism(args.parallelism)
    weighted.sink_to(file_sink(args.output)).set_parallelism(args.parallelism)
    env.execute_async("ofb join")


if __name__ == "__main__":
    main()

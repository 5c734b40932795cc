"""Looking up windows of ids in records: speed, memory, and loading."""

import gc
from collections.abc import Callable

import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.child import measure
from benchmarks.parts import Curve, Part, Row, Run, Settings, millions_per_second, of, ratio
from ofb_tf import constants
from ofb_tf.transforms.join import lookup_in_memory

_LOOKUPS = 400 * inputs.WINDOW
_MILLION = 1_000_000

Find = Callable[[tf.Tensor], tf.Tensor]


def _ofb(ids: np.ndarray) -> Find:
    records = ofb_tf.ForwardRecords.from_columns(ids, inputs.logits_of(ids))
    lookup = lookup_in_memory(records, None)
    return lambda wanted: lookup.fields(wanted)[constants.LOGITS][:, 0]


def _through_table(table: tf.lookup.experimental.DenseHashTable, ids: np.ndarray) -> Find:
    """Through a table of rows, -1 where there is none, into the column of logits."""
    column = tf.constant(inputs.logits_of(ids))

    def find(wanted: tf.Tensor) -> tf.Tensor:
        row = table.lookup(wanted)
        return tf.where(row < 0, float("nan"), tf.gather(column, tf.maximum(row, 0)))

    return find


def _static_table(ids: np.ndarray) -> Find:
    rows = tf.range(len(ids), dtype=tf.int64)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(ids, rows), -1)
    return _through_table(table, ids)


def _dense_table(ids: np.ndarray) -> Find:
    buckets = 2 ** int(len(ids) * 1.3).bit_length()
    table = tf.lookup.experimental.DenseHashTable(
        tf.int64, tf.int64, -1, empty_key=0, deleted_key=1, initial_num_buckets=buckets
    )
    for start in range(0, len(ids), _MILLION):
        part = ids[start : start + _MILLION]
        table.insert(part, tf.range(start, start + len(part), dtype=tf.int64))
    return _through_table(table, ids)


def _searchsorted(ids: np.ndarray) -> Find:
    order = np.argsort(ids)
    keys, column = tf.constant(ids[order]), tf.constant(inputs.logits_of(ids)[order])

    def find(wanted: tf.Tensor) -> tf.Tensor:
        row = tf.minimum(tf.searchsorted(keys, wanted), len(ids) - 1)
        same = tf.gather(keys, row) == wanted
        return tf.where(same, tf.gather(column, row), float("nan"))

    return find


def _lookups(make: Callable[[np.ndarray], Find], count: int) -> Callable[[Settings], Run]:
    """Looking up windows of ids, 90% of which have a record, in a pipeline."""

    def build(settings: Settings) -> Run:
        number, lookups = settings.count(count), settings.count(_LOOKUPS)
        ids = inputs.scattered_ids(number)
        # Ids are a bijection of 0, 1, 2, ..., so those of higher numbers have no record.
        numbers = np.random.default_rng(1).integers(number * 10 // 9, size=lookups)
        wanted = inputs.scattered(numbers)
        make(ids[:1000])  # first use allocates more than the records
        before = inputs.resident_bytes()
        find = make(ids)
        gc.collect()
        held = inputs.resident_bytes() - before
        windows = tf.data.Dataset.from_tensor_slices(wanted).batch(inputs.WINDOW).cache()
        inputs.consume(windows.map(lambda wanted: {constants.EXAMPLE_ID: wanted}))
        dataset = windows.map(
            lambda wanted: {constants.EXAMPLE_ID: find(wanted)}, num_parallel_calls=tf.data.AUTOTUNE
        )
        _check(find, wanted[:1000], numbers[:1000] < number)

        def run() -> dict[str, float]:
            return {"items": inputs.consume(dataset), "bytes_per_record": held / number}

        return run

    return build


def _check(find: Find, wanted: np.ndarray, has_record: np.ndarray) -> None:
    """Raises where the peer finds wrong logits."""
    expected = np.where(has_record, inputs.logits_of(wanted), np.nan)
    np.testing.assert_array_equal(find(tf.constant(wanted)), expected)


def _load(count: int) -> Callable[[Settings], Run]:
    """Reading record files: time, resident memory afterwards, and the peak."""

    def build(settings: Settings) -> Run:
        directory = inputs.record_files(settings, settings.count(count))
        on_disk = sum(path.stat().st_size for path in directory.iterdir())
        small = inputs.record_files(settings, 8192)
        ofb_tf.ForwardRecords.load(str(small))  # first use allocates more than the records

        def run() -> dict[str, float]:
            before = inputs.resident_bytes()
            records = ofb_tf.ForwardRecords.load(str(directory))
            peak = inputs.peak_bytes() - before
            resident = inputs.resident_bytes() - before
            items = len(records)
            return {
                "items": items,
                "peak_over_resident": peak / resident,
                "resident_per_record": resident / items,
                "disk_per_record": on_disk / items,
            }

        return run

    return build


def _prepare_records(settings: Settings) -> None:
    inputs.record_files(settings, 8192)
    inputs.record_files(settings, settings.count(10 * _MILLION))


def _growth(settings: Settings) -> Run:
    """Lookups with 1, 10 and 50 million records, one after the other."""
    runs = {
        count: _lookups(_ofb, count * _MILLION)(settings) for count in (1, 10, 50)
    }  # all are held, as the largest alone needs most of the memory

    def run() -> dict[str, float]:
        figures = {"items": 0}
        for count, lookup in runs.items():
            measured = measure(lookup)
            figures["items"] += measured["items"]
            figures[f"curve_records_{count}"] = measured["cpu_us"]
        return figures

    return run


PARTS = (
    Part(
        name="join",
        title="Looking up windows of 4096 in 10 million records with scattered ids",
        item="lookup",
        peers={
            "ofb_tf": _lookups(_ofb, 10 * _MILLION),
            "StaticHashTable": _lookups(_static_table, 10 * _MILLION),
            "DenseHashTable": _lookups(_dense_table, 10 * _MILLION),
            "searchsorted": _lookups(_searchsorted, 10 * _MILLION),
        },
        rows=(
            Row(
                "lookups per CPU second against StaticHashTable, 10 million records (×)",
                ratio("cpu_us", "StaticHashTable", "ofb_tf"),
                at_least=0.45,
            ),
            Row(
                "resident bytes per record of the join",
                of("ofb_tf", "bytes_per_record"),
                at_most=24,
            ),
            Row(
                "resident bytes per record, StaticHashTable with its column",
                of("StaticHashTable", "bytes_per_record"),
            ),
            *(
                Row(f"million lookups per CPU second, {peer}", millions_per_second(peer))
                for peer in ("ofb_tf", "StaticHashTable", "DenseHashTable", "searchsorted")
            ),
        ),
    ),
    Part(
        name="join_small",
        title="Looking up windows of 4096 in 1 million records with scattered ids",
        item="lookup",
        peers={
            "ofb_tf": _lookups(_ofb, _MILLION),
            "StaticHashTable": _lookups(_static_table, _MILLION),
        },
        rows=(
            Row(
                "lookups per CPU second against StaticHashTable, 1 million records (×)",
                ratio("cpu_us", "StaticHashTable", "ofb_tf"),
            ),
        ),
    ),
    Part(
        name="load",
        title="Loading 10 million one-output records",
        item="record",
        prepare=_prepare_records,
        repeats=1,  # the peak is of the whole life of the process
        peers={"ForwardRecords.load": _load(10 * _MILLION)},
        rows=(
            Row(
                "loading 10 million records: peak memory over resident memory (×)",
                of("ForwardRecords.load", "peak_over_resident"),
                at_most=3,
            ),
            Row(
                "bytes per record on disk, one output, uncompressed",
                of("ForwardRecords.load", "disk_per_record"),
                at_most=16,
            ),
            Row(
                "resident bytes per record after loading",
                of("ForwardRecords.load", "resident_per_record"),
            ),
            Row(
                "million records loaded per second (wall)",
                millions_per_second("ForwardRecords.load", "wall"),
            ),
        ),
    ),
    Part(
        name="join_growth",
        title="Growth of a lookup with the number of records",
        item="lookup",
        repeats=1,
        peers={"ofb_tf": _growth},
        curves=(Curve("curve_records_", "million records", "CPU µs per lookup"),),
    ),
)

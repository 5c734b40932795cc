"""`SampledStream`: examples and records that go on arriving, joined and sampled without end."""

import atexit
import collections
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ofb_tf import constants
from ofb_tf.checks import check_choice
from ofb_tf.selection.stream_budget import StreamState
from ofb_tf.streaming.logs import ExampleDirectory, Follower, Log, Segment
from ofb_tf.streaming.resident import ResidentRecords
from ofb_tf.transforms import dense, statistics
from ofb_tf.transforms.element_spec import gather
from ofb_tf.transforms.join import RecordLookup
from ofb_tf.transforms.sample import OFBSampler

_STATE_VERSION = 1
_LEFT_OUT = (constants.EXAMPLE_ID, constants.MODEL_VERSION, constants.TIMESTAMP)
_PREFETCH = 2
_AHEAD = 2  # windows that are joined while another one is selected from
_BATCH_SIZE = 256  # examples that are copied while they are in the processor's cache
_EXIT_SECONDS = 5.0
_MANY = 1000  # windows of a file; behind so many one is cut in two
# Python raises the second where TensorFlow's message of the first quotes bytes that are no text.
_UNPARSABLE = (tf.errors.InvalidArgumentError, UnicodeDecodeError)


class SampledStream:
    """A stream that does not end: its examples, joined with their records and sampled.

    Follows a log of examples and a log of forward records. Windows of consecutive examples are
    joined and selected from as by `ofb_sample`, in one function that is traced once. What is
    selected is a function of the logs: of the order of the examples, and of the times at which
    files arrived, not of when they are read. So a stream that is read again, or goes on from a
    `state` in another process, selects the same examples with the same weights.

    An example's file that arrived at time t sees the records that arrived until t, and where some
    are missing those until t + `max_wait`, one file after the other until none is missing. An
    example without a record by then counts as missing, and so does one whose record is older than
    t - `max_age`. Records stay in memory for as long as `max_age` lets them count.

    ```python
    import tensorflow as tf

    import ofb_tf
    from ofb_tf import streaming
    from ofb_tf.testing import tiny_dataset

    with ofb_tf.ForwardRecordWriter("records") as writer:  # by the server
        for example in tiny_dataset(1000).batch(100):
            writer.write(example["example_id"], example["logits"])
    with tf.io.TFRecordWriter("examples.tmp") as writer:  # by whoever joins the labels
        for example in tiny_dataset(1000):
            features = {
                name: tf.train.Feature(int64_list=tf.train.Int64List(value=[example[name]]))
                for name in ("example_id", "label")
            }
            features = tf.train.Features(feature=features)
            writer.write(tf.train.Example(features=features).SerializeToString())
    tf.io.gfile.makedirs("examples")
    tf.io.gfile.rename("examples.tmp", "examples/0.tfrecord")

    feature_spec = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("example_id", "label")}
    stream = streaming.SampledStream(
        ofb_tf.ofb_sample(
            window_size=250,
            batch_size=25,
            seed=17,
            max_age=3600,
            parse_fn=lambda serialized: tf.io.parse_example(serialized, feature_spec),
        ),
        examples=streaming.ExampleDirectory("examples"),
        records=streaming.RecordDirectory("records"),
    )
    batches = stream.dataset().as_numpy_iterator()
    first = [next(batches) for _ in range(2)]
    stream.restore(stream.state(1))  # in production: with the weights, by StreamCheckpoint
    assert (next(stream.dataset().as_numpy_iterator())["label"] == first[1]["label"]).all()
    ```

    Args:
      sampler: what `ofb_sample` returns, without records and with `max_age`. It always redraws:
        a stream has no epochs.
      examples: a log of examples with ids and labels.
      records: a log of forward records.
      max_wait: seconds for which an example waits for a record that is not there yet.
      poll_interval: seconds between two looks at the logs.
      follow: whether to wait for what has not arrived yet; False ends at the end of the logs.
      on_corrupt: of files of examples: "error", or "skip" to lose the rest of a damaged one, from
        the block with the damage on, and count it.

    Raises:
      ValueError: an argument out of range, or the elements do not fit; see `ofb_sample`.
    """

    def __init__(
        self,
        sampler: OFBSampler,
        *,
        examples: ExampleDirectory | Any,
        records: Log,
        max_wait: float = 0.0,
        poll_interval: float = 1.0,
        follow: bool = True,
        on_corrupt: str = "error",
    ) -> None:
        config = sampler.config
        if config.max_age is None or config.batched_input:
            raise ValueError(
                "A stream needs a sampler with max_age, which bounds the memory of records, and "
                "without batched_input. Received: "
                f"max_age={config.max_age}, batched_input={config.batched_input}"
            )
        if not (0.0 <= max_wait < float("inf") and 0.0 < poll_interval < float("inf")):
            raise ValueError(
                "max_wait must be at least 0 and poll_interval above 0, both finite. Received: "
                f"max_wait={max_wait!r}, poll_interval={poll_interval!r}"
            )
        self.config = config
        self.max_wait, self.poll_interval, self.follow = max_wait, poll_interval, follow
        self._sampler = sampler
        self.examples, self.records = examples, records
        self.on_corrupt = check_choice("on_corrupt", on_corrupt, ("error", "skip"))
        self._start: dict[str, Any] | None = None
        self._first_records: dict[str, Any] = {}  # by segment: read, but not used yet
        self._reading: _Reading | None = None
        self._dataset: tf.data.Dataset | None = None

    def dataset(self) -> tf.data.Dataset:
        """What training reads: batches, or single examples, as `ofb_sample` gives them.

        Each iteration begins where `restore` said, or at the beginning of the logs, and ends the
        one before. Waits until there is a file of records, from which the dataset takes its form.
        """
        if self._dataset is None:
            self._dataset = self._make_dataset()
        return self._dataset

    def state(self, elements: int) -> dict[str, Any]:
        """Where the stream is after so many elements of the last iteration over `dataset()`.

        Args:
          elements: how many batches (or single examples) training has used. The pipeline may
            have read ahead. Not less than at the last call.

        Returns:
          A dict for `restore`, in types that JSON has: positions in the logs, the number of the
          window, the state of `budget="stream"` and the sums of `statistics`.

        Raises:
          ValueError: the iteration has not given so many elements.
        """
        if elements == 0 and self._reading is None:
            return self._start or {}
        if self._reading is None:
            raise ValueError(f"No element was read yet. Received: elements={elements}")
        return self._reading.state(elements * (self.config.batch_size or 1))

    def restore(self, state: dict[str, Any]) -> None:
        """Makes the next iteration over `dataset()` begin there.

        Args:
          state: from `state`, of this or another process, with the same settings and logs.

        Raises:
          ValueError: another version's state, or that of a stream with other settings.
        """
        if state and state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"state must be of version {_STATE_VERSION}. Received: {state.get('version')!r}"
            )
        settings = self.settings()
        if state and state["settings"] != settings:
            raise ValueError(
                f"The state is of a stream with {state['settings']}, this one has {settings}: it "
                "would select other examples. Make the sampler with the same settings."
            )
        if self._reading is not None:
            self._reading.close()
            self._reading = None
        self._start = state or None

    def commit(self, state: dict[str, Any]) -> None:
        """Tells the logs that a checkpoint with this state is complete; see `StreamCheckpoint`."""
        if self._reading is not None:
            self._reading.commit(state)

    def settings(self) -> dict[str, Any]:
        """What a state must be restored with."""
        names = ("window_size", "batch_size", "rate", "seed", "missing", "budget", "max_age")
        return {name: getattr(self.config, name) for name in names} | {"max_wait": self.max_wait}

    def status(self) -> dict[str, float]:
        """Figures of the last iteration, at this moment.

        Returns:
          Those of `OFBSampler.statistics` since the beginning of the stream; while it is read also
          `lag_seconds`, since the arrival of the oldest example that waits; `resident_records` and
          `resident_bytes`, of the columns in memory; `windows`; `corrupt_files`, of examples;
          `rejected_examples`, of a topic, which `parse_fn` could not parse.
        """
        if self._reading is None:
            return statistics.summarize((self._start or {}).get("totals"))
        return self._reading.status()

    def close(self) -> None:
        """Ends the iteration that is going on."""
        if self._reading is not None:
            self._reading.close()

    def _make_dataset(self) -> tf.data.Dataset:
        steps = _traced(self._sampler, self.examples.element_spec, self._schema())

        def selected() -> Iterator[Any]:
            if self._reading is not None:
                self._reading.close()
            read, self._first_records = self._first_records, {}
            self._reading = _Reading(self, steps, self._start, read)
            return self._reading.selected()

        windows = tf.data.Dataset.from_generator(selected, output_signature=steps.selected_spec)
        # What waits in a prefetch notices that its iterator is dropped; a rebatch that pulls from
        # a generator does not.
        return steps.leave(windows.prefetch(_PREFETCH))

    def _schema(self) -> Any:
        log = self.records.follow()
        try:
            while True:
                for segment in log.poll():
                    records = log.read(segment)
                    if len(records):
                        self._first_records = {segment.name: records}
                        return records.schema
                if not self.follow:
                    raise ValueError(
                        "records must hold at least one finished file, or follow must be True."
                    )
                time.sleep(self.poll_interval)
        finally:
            log.close()


class _TracedSteps:
    """The sampler's steps as functions that are traced once, and the form of what they give."""

    def __init__(self, sampler: OFBSampler, element_spec: Any, schema: Any) -> None:
        steps = sampler.steps(element_spec, schema.num_outputs)
        config = steps.config
        self.schema, self.leave, self.state = schema, steps.leave, steps.state
        left_out = (constants.EXAMPLE_ID,) if config.keep_record else _LEFT_OUT
        self.columns = [name for name in schema.columns if name not in left_out]

        @tf.autograph.experimental.do_not_convert
        def select(
            window: Any, keys: dict, ids: tf.Tensor, columns: dict, found: tf.Tensor, state: Any
        ) -> tuple:
            if constants.CLASS_IDS in columns:
                columns = columns | {constants.NUM_OUTPUTS: tf.constant(schema.num_outputs)}
            # The rows were found outside.
            lookup = RecordLookup(lambda _: (tf.range(tf.size(ids)), found), columns, None, None)
            return steps.select(window, keys, ids, lookup.fields(ids), state)

        window = _batched(element_spec)
        keys = tf.function(steps.keys, autograph=False).get_concrete_function(window)
        columns = {
            name: tf.TensorSpec([None, *column.shape[1:]], column.dtype)
            for name, column in schema.empty().items()
            if name in self.columns
        }
        found = tf.TensorSpec([None], tf.bool)
        state = steps.state
        if state is not None:
            state = tf.nest.map_structure(tf.TensorSpec.from_tensor, state)
        outputs = tf.nest.map_structure(tf.type_spec_from_value, keys.structured_outputs)
        traced = tf.function(select, autograph=False).get_concrete_function(
            window, *outputs, columns, found, state
        )
        self.keys, self.select = keys, traced
        self.selected_spec = tf.nest.map_structure(
            tf.type_spec_from_value, traced.structured_outputs[0]
        )
        self.nothing = _nothing(self.selected_spec)


# By sampler: a stream that is made again, as after an error, needs no other functions.
_TRACED: weakref.WeakKeyDictionary[OFBSampler, dict[str, _TracedSteps]] = (
    weakref.WeakKeyDictionary()
)


def _traced(sampler: OFBSampler, element_spec: Any, schema: Any) -> _TracedSteps:
    """The steps for elements and records of this form, which are traced once per sampler."""
    traced, form = _TRACED.setdefault(sampler, {}), repr((element_spec, schema))
    if form not in traced:
        traced[form] = _TracedSteps(sampler, element_spec, schema)
    return traced[form]


def _batched(element_spec: Any) -> Any:
    nothing = tf.data.Dataset.from_generator(lambda: (), output_signature=element_spec)
    return nothing.batch(2).element_spec


def _nothing(spec: Any) -> Any:
    """No selected examples; None where they hold ragged or sparse features."""
    if not dense.is_dense(spec):
        return None
    return tf.nest.map_structure(lambda part: tf.zeros([0, *part.shape[1:]], part.dtype), spec)


class _Place(NamedTuple):
    """Where a window begins, what it was joined with, and where its selection ends."""

    window: int  # its number
    segment: Segment | None  # with its first example
    segment_number: int
    row: int  # in that segment
    records: tuple[int, int]  # numbers of the resident segments: the first, and behind the last
    budget: StreamState | None
    totals: dict[str, Any] | None
    end: int  # selected examples of this iteration up to its end


class _Joined(NamedTuple):
    """A window with its records, and where the next one begins."""

    window: Any
    keys: dict[str, tf.Tensor]
    ids: tf.Tensor
    columns: dict[str, np.ndarray]
    found: np.ndarray
    records: tuple[int, int]  # as in `_Place`
    following: dict[str, Any]  # of the next window's `_Place`: what both logs say


class _Reading:
    """One iteration over a stream. Segments that a state names have numbers below 0.

    One thread reads both logs and joins the next windows, while another one selects.
    """

    def __init__(
        self,
        stream: SampledStream,
        steps: _TracedSteps,
        start: dict[str, Any] | None,
        records_read: dict[str, Any],
    ) -> None:
        start = start or {"examples": {}, "records": {}}
        self._stream, self._steps = stream, steps
        self._lock = threading.Lock()
        self._closed = threading.Event()

        examples, records = start["examples"], start["records"]
        self._examples: Follower = stream.examples.follow(examples.get("position"))
        self._segments: collections.deque[Segment] = collections.deque()  # not opened yet
        self._segment: Segment | None = None
        self._segment_number, self._row = -1, 0
        self._blocks: Iterator[Any] | None = None  # of the open segment
        self._left: tuple[Any, int, int] | None = None  # a block, its next row and their number
        self._begun = examples.get("segment"), examples.get("row")  # in which the state stands

        self._records: Follower = stream.records.follow(records.get("position"))
        self._records_read = records_read  # by segment
        self._resident = ResidentRecords(steps.schema)
        self._loaded = [Segment(*each) for each in records.get("resident", ())]
        self._base = self._first = -len(self._loaded)  # numbers: of `_loaded`, and of the resident
        self._queue: collections.deque[Segment] = collections.deque()  # not loaded yet
        self._polled = self._seen = float("-inf")  # last looks, of the examples with a find

        budget = start.get("budget")
        segment, row = self._begun
        self._next = _Place(
            window=start.get("window", 0),
            segment=Segment(*segment) if segment else None,
            segment_number=-1,
            row=row or 0,
            records=(self._first, 0),
            budget=_budget(budget) if budget else steps.state,
            totals=start.get("totals"),
            end=0,
        )
        self._places: collections.deque[_Place] = collections.deque()  # of windows made
        self._skip = start.get("row", 0)  # selected examples of the first window that are done
        self._begin = self._end = -self._skip  # selected examples: before `_places`, and in all
        # Of each window that is not selected from yet: when its first example arrived.
        self._waiting: collections.deque[float] = collections.deque()
        self._corrupt_files = self._rejected = 0
        self._ready: queue.SimpleQueue[_Joined | Exception | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(_AHEAD - 1)  # in `_ready`, but for the next window
        self._thread = threading.Thread(
            target=self._join_ahead, name="ofb_tf.SampledStream", daemon=True
        )
        self._nothing = steps.nothing  # of what is selected; None where it cannot be told yet

    def selected(self) -> Iterator[Any]:
        """What is selected of each window; nothing, again and again, while there is none."""
        atexit.register(self._exit)
        self._thread.start()
        try:
            while not self._closed.is_set():
                try:
                    joined = self._ready.get(timeout=self._stream.poll_interval)
                except queue.Empty:
                    if self._nothing is not None:
                        yield self._nothing  # lets the pipeline see whether it was cancelled
                    continue
                if isinstance(joined, Exception):
                    raise joined
                if joined is None:
                    return
                self._room.release()
                yield self._select(joined)
        finally:
            self.close()

    def _join_ahead(self) -> None:
        """What the thread does: the next windows into `_ready`, and None or an error at the end."""
        try:
            for joined in self._joined():
                self._ready.put(joined)
                self._room.acquire()
            self._ready.put(None)
        except Exception as error:
            self._ready.put(error)

    def _exit(self) -> None:
        """Python must not end while the thread is inside TensorFlow."""
        self.close()
        self._thread.join(_EXIT_SECONDS)

    def _select(self, joined: _Joined) -> Any:
        selected, counts, budget = self._steps.select(
            joined.window,
            joined.keys,
            joined.ids,
            {name: tf.constant(joined.columns[name]) for name in self._steps.columns},
            tf.constant(joined.found),
            self._next.budget,
        )
        counts = {name: value.numpy().item() for name, value in counts.items()}
        done, self._skip = self._skip, 0
        with self._lock:  # closes the books on the window
            self._end += counts["selected"]
            place = self._next._replace(records=joined.records, end=self._end)
            self._places.append(place)
            self._waiting.popleft()
            before = place.totals
            self._next = place._replace(
                **joined.following,
                window=place.window + 1,
                budget=budget,
                totals=counts if before is None else statistics.add(before, counts),
                end=0,
            )
        if self._nothing is None:
            self._nothing = gather(selected, tf.range(0))
        return gather(selected, tf.range(done, counts["selected"])) if done else selected

    def state(self, rows: int) -> dict[str, Any]:
        """See `SampledStream.state`; `rows` is a number of selected examples."""
        with self._lock:
            if not max(self._begin, 0) <= rows <= max(self._end, 0):
                raise ValueError(
                    "elements must be no less than at the last call, and no more than were read. "
                    f"Received: {rows} examples; {max(self._begin, 0)} were asked for before, "
                    f"{self._end} were selected"
                )
            while self._places and self._places[0].end <= rows:
                self._begin = self._places.popleft().end
            place = self._places[0] if self._places else self._next
            first, behind = place.records
            del self._loaded[: first - self._base]
            self._base = first
            return {
                "version": _STATE_VERSION,
                "settings": self._stream.settings(),
                "window": place.window,
                "row": rows - self._begin,
                "examples": {
                    "position": self._examples.position(place.segment_number + 1),
                    "segment": place.segment,
                    "row": place.row,
                },
                "records": {
                    "position": self._records.position(max(behind, 0)),
                    "resident": self._loaded[: behind - first],
                },
                "budget": place.budget and [np.asarray(part).tolist() for part in place.budget],
                "totals": place.totals,
            }

    def commit(self, state: dict[str, Any]) -> None:
        """See `SampledStream.commit`."""
        self._examples.commit(state["examples"])
        self._records.commit(state["records"])

    def status(self) -> dict[str, float]:
        """See `SampledStream.status`."""
        with self._lock:
            since = self._waiting[0] if self._waiting else None
            return statistics.summarize(self._next.totals) | {
                "windows": self._next.window,
                "lag_seconds": 0.0 if since is None else max(time.time() - since, 0.0),
                "resident_records": len(self._resident),
                "resident_bytes": self._resident.num_bytes,
                "corrupt_files": self._corrupt_files,
                "rejected_examples": self._rejected,
            }

    def close(self) -> None:
        """Ends the iteration, also one that waits."""
        self._closed.set()
        self._room.release()
        atexit.unregister(self._exit)
        self._examples.close()
        self._records.close()

    def _joined(self) -> Iterator[_Joined]:
        """Each window with its records."""
        segment, row = self._begun
        if segment:
            self._open(Segment(*segment), row, self._stream.config.window_size)
        for loaded in self._loaded[:]:
            self._load(loaded)
        was_joined = self._skip > 0  # the first window, before the stream was restored
        while True:
            window, arrived = self._collect()
            if window is None:
                return
            window, keys, ids = self._keys(window)
            rows = self._resident.find(ids)
            if not was_joined:
                rows = self._join(ids, arrived)
            was_joined = False
            oldest = self._oldest(arrived)
            columns = self._resident.fields(rows)
            found = (rows >= 0) & (columns[constants.TIMESTAMP] >= oldest)
            with self._lock:
                records = self._first, self._base + len(self._loaded)
                self._first += self._resident.drop_before(oldest)
            following = {
                "segment": self._segment,
                "segment_number": self._segment_number,
                "row": self._row,
                "records": (self._first, records[1]),
            }
            yield _Joined(window, keys, ids, columns, found, records, following)

    def _collect(self) -> tuple[Any, float]:
        """The next window and when the last of its examples arrived; None at the end."""
        parts: list[Any] = []
        missing = self._stream.config.window_size
        while missing and (self._left is not None or self._next_block(missing)):
            assert self._left is not None
            block, begin, end = self._left
            number = min(missing, end - begin)
            parts.append(block if number == end else _rows(block, begin, begin + number))
            self._left = (block, begin + number, end) if begin + number < end else None
            self._row += number
            if len(parts) == 1:
                self._waiting.append(self._segment_arrived())
            missing -= number
        if not parts or self._closed.is_set():
            return None, 0.0
        return _concat(parts), self._segment_arrived()

    def _next_block(self, missing: int) -> bool:
        """Puts examples into `_left`; whether there are any more."""
        while not self._closed.is_set():
            if self._blocks is not None:
                block = self._read_block()
                if block is not None:
                    self._left = block, 0, _size(block)
                    return True
                self._blocks = None
            if not self._segments:
                self._segments.extend(self._examples.poll())
                self._seen = time.time() if self._segments else self._seen
            if self._segments:
                self._segment_number += 1
                self._open(self._segments.popleft(), 0, missing)
            elif self._stream.follow:
                self._closed.wait(self._stream.poll_interval)
            else:
                return False
        return False

    def _open(self, segment: Segment, row: int, missing: int) -> None:
        """Begins with a segment, of which so many examples belong to the window at hand."""
        examples = self._examples.read(segment)
        if isinstance(examples, tf.data.Dataset):
            examples = examples.skip(row) if row else examples
            blocks = _elements(_in_windows(examples, missing, self._stream.config.window_size))
        else:
            blocks = iter([_rows(examples, row, _size(examples))])
        self._segment, self._row, self._blocks = segment, row, blocks

    def _read_block(self) -> Any:
        assert self._blocks is not None and self._segment is not None
        try:
            return next(self._blocks, None)
        except tf.errors.DataLossError as error:
            if self._stream.on_corrupt == "error":
                raise ValueError(
                    f"Corrupt file of examples {self._segment.name!r}, {self._row} examples or "
                    f"more from its start: {error.message}. on_corrupt='skip' goes on with the "
                    "next file and counts it."
                ) from error
            self._corrupt_files += 1
            return None

    def _keys(self, window: Any) -> tuple[Any, dict, tf.Tensor]:
        """A window with its keys and ids, without examples that the log takes aside."""
        reject = getattr(self._stream.examples, "reject", None)
        try:
            return (window, *self._steps.keys(window))
        except _UNPARSABLE as error:
            if reject is None:
                raise
            reason = str(error)
        usable = np.array(self._usable(window, 0, _size(window)), np.int64)
        unusable = np.setdiff1d(np.arange(_size(window)), usable)
        reject(gather(window, tf.constant(unusable)).numpy().tolist(), reason)
        with self._lock:
            self._rejected += len(unusable)
        window = gather(window, tf.constant(usable))
        return (window, *self._steps.keys(window))

    def _usable(self, window: Any, begin: int, end: int) -> list[int]:
        """Which of these rows can be parsed, by halves."""
        try:
            self._steps.keys(gather(window, tf.range(begin, end)))
            return list(range(begin, end))
        except _UNPARSABLE:
            if end - begin == 1:
                return []
        middle = (begin + end) // 2
        return self._usable(window, begin, middle) + self._usable(window, middle, end)

    def _join(self, ids: tf.Tensor, arrived: float) -> np.ndarray:
        """Rows of the records of a window, of which it waits for those that are missing."""
        while self._load_one(arrived, arrived):
            pass
        rows = self._resident.find(ids)
        deadline = arrived + self._stream.max_wait
        while (rows < 0).any() and not self._closed.is_set():
            if self._load_one(arrived, deadline):
                rows = self._resident.find(ids)
            elif self._stream.follow and time.time() < deadline:
                self._closed.wait(self._stream.poll_interval)
            else:
                break
        return rows

    def _load_one(self, arrived: float, latest: float) -> bool:
        """Loads the next file of records, if it arrived until `latest`."""
        # Also after every look that found examples: files may come with old times of arrival.
        if not self._queue and self._polled <= max(latest, self._seen):
            now = time.time()
            self._queue.extend(self._records.poll())
            if not self._queue:  # otherwise there may be more
                self._polled = now
        if not self._queue or self._queue[0].arrived > latest:
            return False
        segment = self._queue.popleft()
        # After a long break there may be files of which every record is too old by now.
        is_old = (
            not self._resident.num_parts
            and segment.arrived < self._oldest(arrived) / constants.MICROSECONDS
        )
        if not is_old:
            self._load(segment)
        with self._lock:
            self._loaded.append(segment)
            self._first += is_old
        return True

    def _load(self, segment: Segment) -> None:
        read = self._records_read.pop(segment.name, None)
        self._resident.add(self._records.read(segment) if read is None else read)

    def _segment_arrived(self) -> float:
        assert self._segment is not None
        return self._segment.arrived

    def _oldest(self, arrived: float) -> int:
        """The timestamp below which records do not count, in microseconds."""
        max_age = self._stream.config.max_age
        assert max_age is not None
        return round((arrived - max_age) * constants.MICROSECONDS)


def _budget(parts: list[Any]) -> StreamState:
    return StreamState(*(tf.constant(part, tf.float64) for part in parts))


def _concat(parts: list[Any]) -> Any:
    """Blocks of examples, one after the other."""

    def concat(*tensors: Any) -> Any:
        if isinstance(tensors[0], tf.SparseTensor):
            return tf.sparse.concat(0, tensors, expand_nonconcat_dims=True)
        return tf.concat(tensors, axis=0)

    return parts[0] if len(parts) == 1 else tf.nest.map_structure(concat, *parts)


def _in_windows(examples: tf.data.Dataset, first: int, size: int) -> tf.data.Dataset:
    """Batches: one of what the window at hand lacks, then whole windows, so that none is copied."""
    if not dense.is_dense(examples.element_spec):
        return examples.batch(size).prefetch(_PREFETCH)
    batches = examples.batch(min(size, _BATCH_SIZE))
    return dense.rebatch(batches, [first, *[size] * _MANY]).prefetch(_PREFETCH)


def _elements(dataset: tf.data.Dataset) -> Iterator[Any]:
    """As Python iterates over a dataset, without TensorFlow's error at its end.

    It loses 600 bytes with each error, which adds up over a stream of files.
    """
    iterator = iter(dataset)
    while (element := iterator.get_next_as_optional()).has_value():
        yield element.get_value()


def _rows(block: Any, begin: int, end: int) -> Any:
    """Rows of a block, without a copy where its features are dense."""
    if all(isinstance(part, tf.Tensor) for part in tf.nest.flatten(block)):
        return tf.nest.map_structure(lambda part: part[begin:end], block)
    return gather(block, tf.range(begin, end))


def _size(block: Any) -> int:
    """How many examples an eager block has."""
    return tf.nest.flatten(block)[0].shape[0]

"""An endless stream of clicks, generated in the graph, each example a function of seed and id."""

import dataclasses
import itertools
import math
import os

import numpy as np
import tensorflow as tf

from ofb_tf import hashing
from ofb_tf.checks import check_count
from ofb_tf.constants import EXAMPLE_ID, LABEL
from ofb_tf.datasets import click_tfrecords
from ofb_tf.datasets.click_function import (
    NUM_CATEGORICAL,
    NUM_DENSE,
    VOCABULARY_SIZES,
    ClickFunction,
)
from ofb_tf.datasets.click_tfrecords import CATEGORICAL, CLICK_PROBABILITY, DENSE

CONVERSION = "conversion"
CONVERSION_PROBABILITY = "conversion_probability"

# Elementwise kernels compute the last few elements of a tensor by other instructions, which differ
# in the last bit. Windows padded to whole vectors give an example the same bits in any window.
_ROW_MULTIPLE = 16
# Two 23-bit draws each: 14 for the normals, 26 for the values, one each for conversion and label.
_HASH_COLUMNS = 21
_CONVERSION_KEY = 31  # of the seed of the second hidden function; the first has keys up to 30
_CALIBRATION_IDS = np.arange(0, 2**20, 8, dtype=np.int64)
_DENSE_SCALES = np.linspace(0.3, 1.0, NUM_DENSE, dtype=np.float32)
_LOG_SIZES = np.log1p(np.array(VOCABULARY_SIZES)).astype(np.float32)
_MAX_VALUES = np.array(VOCABULARY_SIZES, np.int64) - 1


@dataclasses.dataclass(frozen=True)
class ClickStream:
    """A stream of 13 dense and 26 categorical features, a rare click, and its true probability.

    An example depends on `seed`, `positive_rate`, `drift` and its id alone, so any part, any length
    and any worker gives the same examples, at once and offline. The id is the time.

    - `dense`: log-normal, skewed; their logarithms act on the logit, linearly and squared.
    - `categorical`: Zipf with exponent 1 over `VOCABULARY_SIZES`; every value has its own effect.
    - Some products of columns act too.
    - All linear effects turn with time, `drift` times in a million examples: what was learnt
      grows stale, while the rate of clicks stays the same.

    Attributes:
      num_examples: length of the whole stream.
      positive_rate: mean click probability, in (0, 1).
      drift: turns of the hidden function in a million examples; 0 for a stationary stream.
      seed: int64; another seed is another function and other examples.
      conversion_rate: the mean probability, in (0, 1), that a click converts, which a second hidden
        function gives. Examples then have a second label, `conversion` int64 `[n]`: 0 or 1 where
        there is a click, elsewhere -1, not known; and the hidden `conversion_probability`. None
        for clicks alone.

    Raises:
      ValueError: an attribute is out of range.
    """

    num_examples: int = 600_000
    positive_rate: float = 0.01
    drift: float = 0.3
    seed: int = 0
    conversion_rate: float | None = None
    _functions: list[ClickFunction] = dataclasses.field(init=False, repr=False, compare=False)
    _intercepts: list[np.float32] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("num_examples", self.num_examples)
        if not 0 < self.positive_rate < 1:
            raise ValueError(f"positive_rate must be in (0, 1). Received: {self.positive_rate}")
        if not 0 <= self.drift < math.inf:
            raise ValueError(f"drift must be finite and not negative. Received: {self.drift}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit in int64. Received: {self.seed}")
        seeds = [self.seed]
        if self.conversion_rate is not None:
            if not 0 < self.conversion_rate < 1:
                raise ValueError(
                    f"conversion_rate must be in (0, 1) or None. Received: {self.conversion_rate}"
                )
            seeds.append(int(hashing.fold_in(np.int64(self.seed), np.int64(_CONVERSION_KEY))))
        functions = [ClickFunction.from_seed(seed, self.drift) for seed in seeds]
        object.__setattr__(self, "_functions", functions)
        object.__setattr__(self, "_intercepts", self._calibrate())

    def generate(self, example_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The examples of some ids, by tensor operations alone.

        Args:
          example_ids: int64 `[n]`, not negative; in any order, also beyond `num_examples`.

        Returns:
          A dict of `example_id` int64 `[n]`, `label` int64 `[n]` in {0, 1}, `dense` float32
          `[n, 13]`, positive, `categorical` int64 `[n, 26]`, column j in
          `[0, VOCABULARY_SIZES[j])`, and the hidden `click_probability` float32 `[n]`; with
          `conversion_rate` also `conversion` and `conversion_probability`.
        """
        example_ids = tf.convert_to_tensor(example_ids, tf.int64)
        count = tf.size(example_ids)
        ids = tf.pad(example_ids, [[0, -count % _ROW_MULTIPLE]])
        draws, log_dense, categorical, logits = self._draw(ids)
        probability, *of_conversion = (
            tf.sigmoid(logit + intercept)
            for logit, intercept in zip(logits, self._intercepts, strict=True)
        )
        label = tf.cast(draws[:, 1] < probability, tf.int64)
        dense = tf.exp(log_dense * _DENSE_SCALES)
        padded = {
            LABEL: label, DENSE: dense, CATEGORICAL: categorical, CLICK_PROBABILITY: probability,
        }  # fmt: skip
        for converts in of_conversion:
            converted = tf.cast(draws[:, 0] < converts, tf.int64)
            padded[CONVERSION] = tf.where(label == 1, converted, -1)
            padded[CONVERSION_PROBABILITY] = converts
        rows = example_ids.shape[:1]
        first = {
            name: tf.ensure_shape(values[:count], rows.concatenate(values.shape[1:]))
            for name, values in padded.items()
        }
        return {EXAMPLE_ID: example_ids} | first

    def dataset(
        self,
        *,
        start: int = 0,
        count: int | None = None,
        window_size: int = 4096,
        batched: bool = False,
    ) -> tf.data.Dataset:
        """A part of the stream in the order of time.

        Args:
          start: first id, in `[0, num_examples]`.
          count: number of examples; all that follow by default.
          window_size: examples generated at once; it changes the speed alone.
          batched: yields the windows of `generate` (the last may be short), not single examples.

        Returns:
          A dataset of dicts as in `generate`.

        Raises:
          ValueError: an argument is out of range.
        """
        if not 0 <= start <= self.num_examples:
            raise ValueError(f"start must be in [0, {self.num_examples}]. Received: {start}")
        count = self.num_examples - start if count is None else count
        if not 0 <= count <= self.num_examples - start:
            raise ValueError(
                f"count must be in [0, {self.num_examples - start}], as the stream has "
                f"num_examples={self.num_examples} and start={start}. Received: {count}"
            )
        check_count("window_size", window_size)
        stop = start + count

        def window(first: tf.Tensor) -> dict[str, tf.Tensor]:
            ids = tf.range(first, tf.minimum(first + window_size, stop))
            if count % window_size == 0:
                ids = tf.ensure_shape(ids, [window_size])
            return self.generate(ids)

        windows = tf.data.Dataset.range(start, stop, window_size).map(
            window, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        return windows if batched else windows.unbatch()

    def write_tfrecords(
        self,
        directory: str | os.PathLike,
        *,
        num_shards: int = 1,
        start: int = 0,
        count: int | None = None,
        compression: str | None = None,
    ) -> list[str]:
        """Writes sharded TFRecord files of tf.Examples; `parse_fn` reads them.

        Each shard holds a contiguous part of the stream.

        Args:
          directory: output directory; made if missing.
          num_shards: number of files, at least 1; their lengths differ by one example at most.
          start: first id.
          count: number of examples; by default all from `start`.
          compression: None or "GZIP".

        Returns:
          The paths of the shards in the order of time.

        Raises:
          ValueError: an argument is out of range, or the stream has conversions, for which the
            files have no field.
          FileExistsError: the directory already holds shards of a click stream.
        """
        check_count("num_shards", num_shards)
        if self.conversion_rate is not None:
            raise ValueError(
                "write_tfrecords writes no conversions: make the stream without conversion_rate, "
                "or write the elements of dataset(). Received: "
                f"conversion_rate={self.conversion_rate}"
            )
        count = self.num_examples - start if count is None else count
        bounds = [start + count * shard // num_shards for shard in range(num_shards + 1)]
        shards = [
            self.dataset(start=first, count=last - first, batched=True)
            for first, last in itertools.pairwise(bounds)
        ]
        return click_tfrecords.write_shards(shards, directory, compression)

    feature_spec = staticmethod(click_tfrecords.feature_spec)
    """What `tf.io.parse_example` needs for the files: scalars by name; takes no argument."""
    parse_fn = staticmethod(click_tfrecords.parse_fn)
    """From serialized examples, string `[n]`, to a dict as of `generate`: for `ofb_sample`."""

    def _draw(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """What belongs to ids `[n]`, before the intercepts.

        Returns draws of conversion and label `[n, 2]`, log-dense `[n, 13]`, categorical `[n, 26]`
        and the logits `[n]` of each hidden function.
        """
        key = hashing.fold_in(tf.constant(self.seed, tf.int64), ids)
        columns = tf.range(_HASH_COLUMNS, dtype=tf.int64)
        bits = tf.bitcast(hashing.fold_in(key[:, None], columns), tf.uint32)  # [n, columns, 2]
        bits = tf.reshape(bits, [-1, 2 * _HASH_COLUMNS])
        # The bits become a mantissa: multiples of 2^-23 in [0, 1).
        mantissas = tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32))
        uniforms = tf.bitcast(tf.bitwise.bitwise_or(mantissas, 0x3F800000), tf.float32) - 1.0
        radii = tf.sqrt(-2.0 * tf.math.log(1.0 - uniforms[:, :7]))
        angles = uniforms[:, 7:14] * (2 * math.pi)
        log_dense = tf.concat([radii * tf.cos(angles), radii * tf.sin(angles)], 1)[:, :NUM_DENSE]
        powers = tf.exp(uniforms[:, 14 : 14 + NUM_CATEGORICAL] * _LOG_SIZES)
        categorical = tf.clip_by_value(tf.cast(powers, tf.int64) - 1, 0, _MAX_VALUES)
        logits = [each.logits(ids, log_dense, categorical) for each in self._functions]
        return uniforms[:, -2:], log_dense, categorical, logits

    def _calibrate(self) -> list[np.float32]:
        """The intercepts with which fixed ids have the rates, that of conversions over clicks."""
        parts = np.split(_CALIBRATION_IDS, 16)
        logits_of = [np.stack(self._draw(tf.constant(ids))[-1]) for ids in parts]
        weights, intercepts = None, []
        rates = (self.positive_rate, self.conversion_rate)
        for logits, rate in zip(np.concatenate(logits_of, axis=1), rates, strict=False):
            logits = logits.astype(np.float64)
            low, high = -100.0, 100.0
            for _ in range(60):
                middle = (low + high) / 2
                mean = np.average(1 / (1 + np.exp(-(logits + middle))), weights=weights)
                low, high = (middle, high) if mean < rate else (low, middle)
            intercepts.append(np.float32(middle))
            weights = 1 / (1 + np.exp(-(logits + middle)))
        return intercepts

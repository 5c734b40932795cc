"""Inclusion probabilities of a whole split, from a summary of its scores in constant memory.

A summary counts float32 scores by their exponent and the top 10 bits of their significand, as HDR
histograms do, and keeps each bin's exact sum: at most 24 bytes for each of 261,120 bins. All of
it is integers, so merging is associative and commutative to the last bit: runners, workers and
retries get the same probabilities.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from ofb_tf.selection import window

_LOW_BITS = 13  # of the 23 of a float32 significand: 1024 bins per octave, 0.1% wide
_LOW_MASK = (1 << _LOW_BITS) - 1
_SMALLEST_NORMAL = np.finfo(np.float32).tiny
_STEP = 1e300  # a slope that lifts any normal float32 above 1 and leaves 0 at 0


@dataclasses.dataclass(frozen=True)
class ScoreSummary:
    """Scores of a split, by bin: int64 `[m]` columns.

    Attributes:
      bins: ascending: the upper bits of the float32 scores.
      counts: scores in each bin.
      low_sums: sum of the scores' lower bits in each bin.
      num_missing: examples without a usable score.
    """

    bins: np.ndarray
    counts: np.ndarray
    low_sums: np.ndarray
    num_missing: int = 0

    @classmethod
    def of(cls, scores: Sequence[float] | np.ndarray, num_missing: int = 0) -> "ScoreSummary":
        """Summarises float32 scores `[n]`, finite and at least 0; below 2^-126 counts as 0."""
        scores = np.asarray(scores, np.float32)
        if not (np.isfinite(scores).all() and (scores >= 0.0).all()):
            raise ValueError("scores must be finite and at least 0; count others as missing.")
        bits = _bits(scores)
        bins, inverse, counts = np.unique(
            bits >> _LOW_BITS, return_inverse=True, return_counts=True
        )
        low_sums = np.zeros(len(bins), np.int64)
        np.add.at(low_sums, inverse, bits & _LOW_MASK)
        return cls(bins, counts.astype(np.int64), low_sums, num_missing)

    @classmethod
    def merge(cls, summaries: "Iterable[ScoreSummary]") -> "ScoreSummary":
        """The summary of all examples of several."""
        summaries = list(summaries) or [cls.of([])]
        bins, inverse = np.unique(np.concatenate([s.bins for s in summaries]), return_inverse=True)
        counts, low_sums = np.zeros((2, len(bins)), np.int64)
        np.add.at(counts, inverse, np.concatenate([s.counts for s in summaries]))
        np.add.at(low_sums, inverse, np.concatenate([s.low_sums for s in summaries]))
        return cls(bins, counts, low_sums, sum(s.num_missing for s in summaries))

    @property
    def num_scored(self) -> int:
        """Examples with a score."""
        return int(self.counts.sum())

    def sums(self) -> np.ndarray:
        """Each bin's sum of scores: float64 `[m]`, each rounded once from the exact sum."""
        upper = self.bins << _LOW_BITS
        exponents = upper >> 23
        significands = (upper & ((1 << 23) - 1)) | np.where(exponents > 0, 1 << 23, 0)
        # Exact in Python's integers: n * 2^24 leaves int64 behind at 2^39 examples.
        columns = (self.counts, significands, self.low_sums, exponents)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return np.array([math.ldexp(n * high + low, e - 150) for n, high, low, e in rows])


def _bits(scores: np.ndarray) -> np.ndarray:
    """int64 `[n]` of float32 scores `[n]`."""
    # Subnormal numbers would make wider bins, and -0.0 a separate one.
    scores = np.where(scores < _SMALLEST_NORMAL, np.float32(0.0), scores)
    return scores.view(np.uint32).astype(np.int64)


def bins_of(scores: np.ndarray) -> np.ndarray:
    """In which bins of a summary scores are: int64 `[n]` of float32 `[n]`, finite, at least 0."""
    return _bits(scores) >> _LOW_BITS


@dataclasses.dataclass(frozen=True)
class SplitInclusion:
    """Probabilities of a split, `min(1, slope * score + offset)`: METHOD's capped PPS.

    An example without a usable score has the probability `missing`; weights are relative to `rate`.
    """

    slope: float
    offset: float
    missing: float
    rate: float

    def probabilities(self, scores: np.ndarray, has_score: np.ndarray) -> np.ndarray:
        """float64 `[n]` in [0, 1]: a function of each example alone."""
        scores = np.where(has_score, scores, 0.0).astype(np.float64)
        sampled = np.minimum(1.0, self.slope * scores + self.offset)
        return np.where(has_score, sampled, self.missing)

    def weights(self, probabilities: np.ndarray) -> np.ndarray:
        """Importance weights rate / p: float32 `[n]`, 0 where p is 0 (never selected)."""
        ratio = np.divide(
            self.rate, probabilities, out=np.zeros_like(probabilities), where=probabilities > 0.0
        )
        return ratio.astype(np.float32)


def solve(
    summary: ScoreSummary, *, rate: float, uniform_mix: float, missing: str
) -> SplitInclusion:
    """The probabilities whose sum over the split is the budget.

    A size is `(1 - uniform_mix) * s / sum(s) + uniform_mix / n`; the constant c of
    `sum(min(1, c * size)) = budget` is found on the bins, largest first. Bins wholly above or
    below the cap count exactly, and so does a bin of equal scores. In the one bin that the cap may
    cut, the mean stands for its scores, which are within 0.1% of each other: the sum of the
    probabilities misses the budget by less than 2.5e-4 times that one bin's count.

    Reference: Tillé, "Sampling Algorithms", 2006, section 2.10 (the capped probabilities).
    """
    n = summary.num_scored
    budget = window.budget(rate, missing, n + summary.num_missing, n, uniform_mix)
    missing_probability = window.missing_probability(rate, missing)
    sums = summary.sums()
    total = math.fsum(sums)
    if n == 0 or total == 0.0 or uniform_mix == 1.0 or budget >= n:
        share = min(1.0, budget / n) if n else 0.0
        return SplitInclusion(0.0, share, missing_probability, rate)
    uniform_mix *= max(1.0, rate * n / budget)  # as in `Importance`, for missing="keep"
    slope, offset = (1.0 - uniform_mix) / total, uniform_mix / n
    counts = summary.counts[::-1].astype(np.float64)
    sizes = slope * sums[::-1] + offset * counts  # of whole bins, largest scores first
    capped = np.concatenate([[0.0], np.cumsum(counts)[:-1]])
    rest = np.cumsum(sizes[::-1])[::-1]
    # The first bins are capped: those whose mean size would get more than 1 of what is left.
    num_capped = int(np.sum((budget - capped) * sizes > rest * counts))
    if num_capped == len(counts) or rest[num_capped] <= 0.0:
        # uniform_mix 0 and fewer positive scores than the budget: the zeros share evenly.
        num_zero = n - capped[num_capped] if num_capped < len(counts) else 0.0
        share = (budget - (n - num_zero)) / num_zero if num_zero else 1.0
        return SplitInclusion(_STEP, share, missing_probability, rate)
    scale = (budget - capped[num_capped]) / rest[num_capped]
    return SplitInclusion(slope * scale, offset * scale, missing_probability, rate)

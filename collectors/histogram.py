"""One distribution: HDR bucket counts by vector operations, and the exact moments beside them. No clock, no file.

The counts are those of `hdrh.histogram.HdrHistogram(LOWEST, HIGHEST, DIGITS)` bit for bit, kept only over the blocks
that were touched: a latency that spans two octaves costs 16 KB instead of 196 KB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from .snapshot import Moments

LOWEST: Final = 1_000
HIGHEST: Final = 3_600_000_000_000
DIGITS: Final = 3
UNIT_BITS: Final = 9  # floor(log2(LOWEST)): a cell of the first block is 512 units wide
HALF_BITS: Final = 10  # 1024 cells per octave: 3 significant digits
BLOCK: Final = 1 << HALF_BITS
CELLS: Final = 24 * BLOCK
RESOLUTION: Final = 1 / BLOCK  # widest cell relative to its values

_LINEAR_BELOW: Final = 1 << (UNIT_BITS + HALF_BITS)
_MANTISSA_SHIFT: Final = 52 - HALF_BITS
_INDEX_OFFSET: Final = (1023 + UNIT_BITS + HALF_BITS - 1) << HALF_BITS
_CHUNK: Final = 1 << 15  # values per pass: the temporaries stay in the L2 cache (benches/bench_histogram.py)
_SUMMABLE: Final = 1 << 47  # a chunk of values below this cannot overflow an int64 sum

Values = npt.NDArray[np.int64]


def indices(values: Values) -> Values:
    """The cell of each value; values must lie within LOWEST..HIGHEST.

    From the first whole octave on, a cell number is the exponent and the top ten mantissa bits of the value as a
    float64, which is exact for integers below 2**53.
    """
    floating = values.astype(np.float64).view(np.int64)
    return np.where(values < _LINEAR_BELOW, values >> UNIT_BITS, (floating >> _MANTISSA_SHIFT) - _INDEX_OFFSET)


def lowest_equivalent(index: int) -> int:
    """The smallest value that falls in the cell."""
    octave = index >> HALF_BITS
    if octave == 0:
        return index << UNIT_BITS
    return (BLOCK + (index & (BLOCK - 1))) << (octave - 1 + UNIT_BITS)


def highest_equivalent(index: int) -> int:
    """The largest value that falls in the cell."""
    return lowest_equivalent(index) + (1 << (max(0, (index >> HALF_BITS) - 1) + UNIT_BITS)) - 1


def index_of(value: int) -> int:
    """The cell of one value, clamped into the range of the histogram. What `indices` returns, at a tenth of its price."""
    value = min(max(value, LOWEST), HIGHEST)
    octave = value.bit_length() - UNIT_BITS - HALF_BITS
    if octave <= 0:
        return value >> UNIT_BITS
    return octave << HALF_BITS | value >> octave - 1 + UNIT_BITS & BLOCK - 1


class Histogram:
    """Counts by cell, and exact count, sum, variance, min and max of the raw values.

    Values outside LOWEST..HIGHEST are counted in the nearest cell and in `clamped_low` or `clamped_high`; the moments
    and extremes are those of the values as they came.
    """

    __slots__ = ("clamped_high", "clamped_low", "count", "counts", "first", "m2", "max", "min", "sum")

    def __init__(self) -> None:
        self.first = 0  # cell of counts[0], a multiple of BLOCK
        self.counts: Values = np.zeros(0, np.int64)
        self.count = 0
        self.sum = 0
        self.m2 = 0.0  # sum of squared deviations from the mean
        self.min: int | None = None
        self.max: int | None = None
        self.clamped_low = 0
        self.clamped_high = 0

    def record(self, values: Values) -> None:
        """Takes every value in, in any order."""
        for start in range(0, len(values), _CHUNK):
            self._record(values[start : start + _CHUNK])

    def _record(self, values: Values) -> None:
        low, high = int(values.min()), int(values.max())
        if low < LOWEST or high > HIGHEST:
            self.clamped_low += int(np.count_nonzero(values < LOWEST))
            self.clamped_high += int(np.count_nonzero(values > HIGHEST))
        cells = indices(np.clip(values, LOWEST, HIGHEST) if low < LOWEST or high > HIGHEST else values)
        bottom, top = int(cells.min()), int(cells.max())
        self._cover(bottom, top)
        found = np.bincount(cells - bottom)
        self.counts[bottom - self.first : top - self.first + 1] += found
        fits = low > -_SUMMABLE and high < _SUMMABLE
        total = int(values.sum()) if fits else sum(values.tolist())
        deviations = values - total / len(values)
        self._join(len(values), total, float(np.dot(deviations, deviations)), low, high)

    def add(self, other: Histogram) -> None:
        """Merges another histogram in: the counts are those of recording its values here."""
        if not other.count:
            return
        self._cover(other.first, other.first + len(other.counts) - 1)
        offset = other.first - self.first
        self.counts[offset : offset + len(other.counts)] += other.counts
        self.clamped_low += other.clamped_low
        self.clamped_high += other.clamped_high
        assert other.min is not None
        assert other.max is not None
        self._join(other.count, other.sum, other.m2, other.min, other.max)

    def _join(self, count: int, total: int, m2: float, low: int, high: int) -> None:
        """Chan, Golub and LeVeque's pairwise update of the variance (1979)."""
        if self.count:
            delta = total / count - self.sum / self.count
            m2 += self.m2 + delta * delta * count * self.count / (count + self.count)
        self.m2 = m2
        self.count += count
        self.sum += total
        self.min = low if self.min is None else min(self.min, low)
        self.max = high if self.max is None else max(self.max, high)

    def _cover(self, bottom: int, top: int) -> None:
        """Makes the touched range hold the cells bottom..top, in whole blocks."""
        first = bottom & ~(BLOCK - 1)
        end = (top | (BLOCK - 1)) + 1
        if len(self.counts):
            first, end = min(first, self.first), max(end, self.first + len(self.counts))
            if first == self.first and end == self.first + len(self.counts):
                return
        counts = np.zeros(end - first, np.int64)
        offset = self.first - first
        if len(self.counts):
            counts[offset : offset + len(self.counts)] = self.counts
        self.first, self.counts = first, counts

    def percentiles(self, wanted: Sequence[float]) -> list[int] | None:
        """The values at these percentiles (0..100) by HDR's rule (the highest value of the cell), but never beyond the
        exact extremes. None without a sample."""
        if not self.count or self.min is None or self.max is None:
            return None
        reached = np.cumsum(self.counts)
        ranks = [max(1, int(percentile * self.count / 100 + 0.5)) for percentile in wanted]
        cells = np.searchsorted(reached, ranks)
        return [min(max(highest_equivalent(self.first + int(cell)), self.min), self.max) for cell in cells]

    def below(self, bounds: Sequence[int]) -> list[int]:
        """How many values fell at or below each bound (ascending), cells that hold a bound included; then all the rest.
        One number more than bounds; they add up to `count`."""
        reached = np.concatenate(([0], np.cumsum(self.counts)))
        ends = [min(max(index_of(bound) + 1 - self.first, 0), len(self.counts)) for bound in bounds]
        upto = [int(reached[end]) for end in ends] + [self.count]
        return [now - before for before, now in zip([0, *upto], upto, strict=False)]

    def moments(self) -> Moments | None:
        """Exact count, sum, spread and extremes of the values as they came; None without any."""
        if self.min is None or self.max is None:
            return None
        return Moments(self.count, float(self.sum), self.m2, self.min, self.max)

    def with_moments(self, moments: Moments) -> Histogram:
        """This histogram with exact moments instead of those that from_cells could only guess."""
        self.sum, self.m2, self.min, self.max = round(moments.sum), moments.m2, moments.min, moments.max
        return self

    @property
    def mean(self) -> float | None:
        return self.sum / self.count if self.count else None

    @property
    def stddev(self) -> float | None:
        """Of the population, exact to float rounding."""
        return math.sqrt(self.m2 / self.count) if self.count else None

    def hdr(self) -> HdrHistogram:
        """The same counts as an hdrh histogram, for encoding."""
        histogram = HdrHistogram(LOWEST, HIGHEST, DIGITS)
        np.frombuffer(histogram.counts, np.uint64)[self.first : self.first + len(self.counts)] = self.counts
        if self.min is not None and self.max is not None:
            histogram.total_count = self.count
            histogram.min_value = min(max(self.min, LOWEST), HIGHEST)
            histogram.max_value = min(max(self.max, LOWEST), HIGHEST)
        return histogram

    @classmethod
    def from_hdr(cls, histogram: HdrHistogram) -> Histogram:
        """The counts of an hdrh histogram; see from_cells."""
        counts = np.frombuffer(histogram.counts, np.uint64).astype(np.int64)
        touched = np.flatnonzero(counts)
        return cls.from_cells(touched, counts[touched])

    @classmethod
    def from_cells(cls, cells: Values, counts: Values) -> Histogram:
        """From filled cells and their counts, in any order. The moments are those of the cells' middles, the extremes
        the ends of the outer cells, as nothing better is known."""
        made = cls()
        if len(cells):
            bottom, top = int(cells.min()), int(cells.max())
            made._cover(bottom, top)
            np.add.at(made.counts, cells - made.first, counts)
            middles = cls.middles(cells)
            made.count, made.sum = int(counts.sum()), int(np.dot(counts, middles))
            made.m2 = float(np.dot(counts, (middles - made.sum / made.count) ** 2))
            made.min, made.max = max(LOWEST, lowest_equivalent(bottom)), highest_equivalent(top)
        return made

    @staticmethod
    def middles(cells: Values) -> npt.NDArray[np.float64]:
        """The middle value of each cell."""
        octaves = np.maximum(cells >> HALF_BITS, 1) - 1 + UNIT_BITS
        lowest = np.where(cells < BLOCK, cells, BLOCK + (cells & (BLOCK - 1))).astype(np.float64) * 2.0**octaves
        middles: npt.NDArray[np.float64] = lowest + 2.0 ** (octaves - 1)
        return middles

    def packed(self) -> list[Any]:
        """Everything as plain data for a checkpoint; `unpacked` is the way back."""
        cells = np.flatnonzero(self.counts).astype(np.uint32)
        each = self.counts[cells].astype(np.uint64)
        moments = [str(self.sum), self.m2, self.min, self.max, self.clamped_low, self.clamped_high]
        return [(cells + np.uint32(self.first)).tobytes(), each.tobytes(), *moments]

    @classmethod
    def summed(cls, packs: Sequence[Sequence[Any]]) -> Histogram:
        """The sum of several `packed()`: what adding each one alone makes, in one pass over all their cells."""
        packs = [each for each in packs if each[1]]
        if len(packs) == 1:
            return cls.unpacked(packs[0])
        made = cls()
        if not packs:
            return made
        cells = np.frombuffer(b"".join(each[0] for each in packs), np.uint32).astype(np.int64)
        counts = np.frombuffer(b"".join(each[1] for each in packs), np.uint64).astype(np.int64)
        made._cover(int(cells.min()), int(cells.max()))
        np.add.at(made.counts, cells - made.first, counts)
        ends = np.cumsum([len(each[1]) >> 3 for each in packs])
        each_count = np.diff(np.cumsum(counts)[ends - 1], prepend=0)
        sums = [int(each[2]) for each in packs]
        made.count, made.sum = int(each_count.sum()), sum(sums)
        deviations = np.array(sums, np.float64) / each_count - made.sum / made.count
        made.m2 = float(sum(each[3] for each in packs) + np.dot(each_count, deviations * deviations))
        made.min, made.max = min(each[4] for each in packs), max(each[5] for each in packs)
        made.clamped_low, made.clamped_high = sum(each[6] for each in packs), sum(each[7] for each in packs)
        return made

    @classmethod
    def unpacked(cls, packed: Sequence[Any]) -> Histogram:
        made = cls()
        cells, each = np.frombuffer(packed[0], np.uint32).astype(np.int64), np.frombuffer(packed[1], np.uint64)
        if len(cells):
            made._cover(int(cells[0]), int(cells[-1]))
            made.counts[cells - made.first] = each.astype(np.int64)
        made.count, made.sum, made.m2 = int(each.sum()), int(packed[2]), packed[3]
        made.min, made.max, made.clamped_low, made.clamped_high = packed[4:8]
        return made

"""Two runs of the same schedule, block by block: how far apart a statistic of theirs may be. No clock, no file.

Runs with the same seed send the same requests, in length and order, at the same times. Where many arrive at once or
replies are long, both are slow: that part of the noise is common to them and cancels in the difference of their blocks
(common random numbers; Law, Simulation Modeling and Analysis, 11.2). What is not common stays in it, so that the interval
holds whether or not anything is.

    1. In each block, how many more values than its share lie at or below the quantile, over all values of the run: what
       the block adds to the error of the run's F(x).
    2. The difference of the two runs in each block; the error of its sum from overlapping batch means
       (collectors.confidence), correlation between blocks included: the larger of what batches of 1/20 and of 1/10 of the
       blocks say. With the short ones alone the mean of a queue at load 0.8 raised 9 % false alarms, with both 6 %.
    3. Half of it to either run, mapped back to its order statistics: the bounds of the ratio.

`benches/compare_power.py --only paired` prints how much it finds, and its false alarms.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from .confidence import MIDDLES, QUANTILES, batch_means, student
from .ladder import Blocks, Floats, Ints

BLOCKS_MIN: Final = 20  # fewer have too few batches for a variance
BATCH_COUNTS: Final = (20, 10)
SHARED_MIN: Final = 0.95  # of either run's values must lie in the time that both cover, as the ratio is that of all


class _Side(NamedTuple):
    """One run: per block its part of the error of F(x), or of the mean's logarithm."""

    error: Floats
    reached: Ints  # values in each cell or below
    value: float


def paired_bounds(base: Blocks, candidate: Blocks, statistic: str) -> tuple[float, float] | None:
    """The 95 % interval of the logarithm of candidate/base; None where the blocks do not lie side by side or are few.

    The blocks' ticks are counted from the start of the run.
    """
    aligned = _aligned(base, candidate)
    if aligned is None:
        return None
    sides = [_side(blocks, statistic) for blocks in aligned]
    if sides[0] is None or sides[1] is None:
        return None
    one, other = sides[0], sides[1]
    spreads = [batch_means((other.error - one.error)[None, :], count) for count in BATCH_COUNTS]
    reach = max(student(0.975, each.freedom) * float(each.error[0]) for each in spreads)
    if statistic == "mean":
        value = math.log(other.value / one.value)
        return value - reach, value + reach
    q, half = QUANTILES[statistic], reach / 2
    low = math.log(_at(other, q - half) / _at(one, q + half))
    return low, math.log(_at(other, q + half) / _at(one, q - half))


def _aligned(base: Blocks, candidate: Blocks) -> tuple[Blocks, Blocks] | None:
    """The blocks of both over the time that both cover; None where that is short, or a run goes on without the other."""
    if base.span != candidate.span:
        return None
    start = max(base.first, candidate.first)
    end = min(each.first + each.size * each.span for each in (base, candidate))
    if end - start < BLOCKS_MIN * base.span:
        return None
    both = base.between(start, end), candidate.between(start, end)
    covered = all(
        cut.count.sum() >= SHARED_MIN * each.count.sum() for cut, each in zip(both, (base, candidate), strict=True)
    )
    return both if covered else None


def _side(blocks: Blocks, statistic: str) -> _Side | None:
    totals = blocks.totals
    n = int(totals.sum())
    if not n:
        return None
    reached = np.cumsum(blocks.sums_of_cells())
    if statistic == "mean":
        sums = blocks.sums(MIDDLES)
        mean = float(sums.sum()) / n
        return _Side((sums / mean - totals) / n, reached, mean) if mean > 0 else None
    cell = int(np.searchsorted(reached, QUANTILES[statistic] * n))
    share = float(reached[cell]) / n
    return _Side((blocks.upto(np.array([cell]))[0] - share * totals) / n, reached, 0.0)


def _at(side: _Side, share: float) -> float:
    """The order statistic at a share of the values."""
    n = int(side.reached[-1])
    rank = min(max(round(share * n), 1), n)
    return float(MIDDLES[int(np.searchsorted(side.reached, rank))])

"""Where a run is steady: start-up and drain found and cut, a trend named with its size. No clock, no file.

1. Cut the start, then, on the reversed series, the end: MSER-5 (White, Simulation 1997) proposes a cut. It minimises the
   standard error of what is left, which for correlated data often cuts a run that needs no cut. So a cut is made only if
   what it removes deviates from the rest by far more than any segment of equal length in the rest does.
2. What is left is tested for a trend: Mann-Kendall with the variance of Hamed & Rao (J. Hydrology 1998), as the plain
   test takes correlation for a trend in over half of the runs of a loaded queue. The slope is Sen's (1968).

The series is one value per block: the mean latency; and how many requests ended in the block, because the requests that
end in the first and last seconds are the short ones of a crowd that is still filling or already leaving.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import numpy as np

from .confidence import MIDDLES
from .ladder import Blocks, Floats

State = Literal["steady", "drifting", "too_short"]

BLOCKS_MIN: Final = 20  # fewer cannot show both a transient and what is steady
TOLERANCE: Final = 1.1
FAR: Final = 2.5  # a cut part deviates by so many times the largest deviation of an equally long part of the rest
FAR_LONG: Final = 8.0  # where the cut costs over a tenth of the data
KEPT_MIN: Final = 0.5  # of the blocks; a longer transient is a drift
SIGNIFICANT: Final = 0.01
DRIFT_MIN: Final = 0.1  # change over the window relative to its level, below which a trend is a number but no verdict
GROUPS_MAX: Final = 64  # values that a trend is tested on: pairs grow with the square


class Trend(NamedTuple):
    """Sen's slope per block with its 95 % interval, and the two-sided probability that there is none."""

    slope: float
    low: float
    high: float
    probability: float


class Steady(NamedTuple):
    """The stationary window, in blocks start..end-1 of the ladder and in s since its first tick."""

    state: State
    start: int
    end: int
    from_s: float
    to_s: float
    reason: str
    drift_per_h: float | None  # of the mean, in the unit of the values per hour; None from too few blocks with values
    drift_ci95: tuple[float, float] | None


def steady(blocks: Blocks, tick_s: float) -> Steady:
    """Finds the window in the blocks of one metric; `tick_s` is the duration of a tick."""
    block_s = blocks.span * tick_s
    counts = blocks.totals.astype(np.float64)
    used = np.flatnonzero(counts)
    if len(used) < BLOCKS_MIN:
        why = f"{len(used)} blocks of {block_s:g} s have values; {BLOCKS_MIN} are needed"
        return Steady("too_short", 0, blocks.size, 0.0, blocks.size * block_s, why, None, None)
    first, last = int(used[0]), int(used[-1]) + 1
    sums = blocks.sums(MIDDLES)[first:last]
    counts = counts[first:last]
    levels = _filled(sums, counts)
    end = len(counts) - _cuts(levels[::-1], counts[::-1])
    start = _cuts(levels[:end], counts[:end])
    if end - start < KEPT_MIN * len(counts) or np.count_nonzero(counts[start:end]) < BLOCKS_MIN // 2:
        start, end = 0, len(counts)
    trend = trend_of(levels[start:end], counts[start:end])
    per_h = 3600 / block_s
    level = float(np.average(levels[start:end], weights=counts[start:end] + 1e-9))
    change = abs(trend.slope) * (end - start) / level if level else 0.0
    drifting = trend.probability < SIGNIFICANT and change > DRIFT_MIN
    cuts = [f"{start * block_s:g} s of start-up"] * bool(start)
    cuts += [f"{(len(counts) - end) * block_s:g} s of drain"] * (end < len(counts))
    reason = f"the mean changes by {change:.0%} over the window" if drifting else "no transient found"
    if cuts:
        reason = f"{reason}; " * drifting + " and ".join(cuts) + " cut off"
    return Steady(
        "drifting" if drifting else "steady",
        first + start,
        first + end,
        (first + start) * block_s,
        (first + end) * block_s,
        reason,
        trend.slope * per_h if math.isfinite(trend.high) else None,
        (trend.low * per_h, trend.high * per_h) if math.isfinite(trend.high) else None,
    )


def trend_of(values: Floats, weights: Floats) -> Trend:
    """Mann-Kendall's test with Hamed and Rao's variance, and Sen's slope, of at most 64 weighted means of the values."""
    size = max(1, -(-len(values) // GROUPS_MAX))
    starts = np.arange(0, len(values) - size + 1, size)
    mass = np.add.reduceat(weights, starts) if size > 1 else weights
    grouped = np.add.reduceat(values * weights, starts) if size > 1 else values * weights
    y = grouped[mass > 0] / mass[mass > 0]
    n = len(y)
    if n < 4:
        return Trend(0.0, -math.inf, math.inf, 1.0)
    low, high = np.triu_indices(n, 1)
    x = (starts[mass > 0]).astype(np.float64)
    slopes = (y[high] - y[low]) / (x[high] - x[low])
    score = float(np.sign(slopes).sum())
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18 * _correlation(y, x, float(np.median(slopes))))
    z = (abs(score) - 1) / spread if abs(score) > 1 else 0.0
    ordered = np.sort(slopes)
    reach = NormalDist().inv_cdf(0.975) * spread
    below = max(0, math.floor((len(slopes) - reach) / 2))
    above = min(len(slopes) - 1, math.ceil((len(slopes) + reach) / 2))
    probability = 2 * (1 - NormalDist().cdf(z))
    return Trend(float(np.median(slopes)), float(ordered[below]), float(ordered[above]), probability)


def _correlation(y: Floats, x: Floats, slope: float) -> float:
    """By how much correlation widens the test's variance: over the ranks of the detrended values, all lags that are
    significant up to the first that is not."""
    n = len(y)
    ranks = np.argsort(np.argsort(y - slope * x)).astype(np.float64)
    ranks -= ranks.mean()
    total = float(ranks @ ranks)
    factor = 1.0
    for lag in range(1, n - 2):
        rho = float(ranks[lag:] @ ranks[:-lag]) / total
        if rho < 1.65 / math.sqrt(n):  # one-sided: negative correlation would make the test reject too much
            break
        factor += 2 / (n * (n - 1) * (n - 2)) * (n - lag) * (n - lag - 1) * (n - lag - 2) * rho
    return factor


def _filled(sums: Floats, counts: Floats) -> Floats:
    """The mean of each block; of an empty one, that of all."""
    return np.divide(sums, counts, out=np.full_like(sums, sums.sum() / counts.sum()), where=counts > 0)


def _cuts(levels: Floats, counts: Floats) -> int:
    return max(_cut(levels, counts), _cut(counts, np.ones_like(counts)))


def _cut(values: Floats, weights: Floats) -> int:
    """How many values to drop from the front: MSER's proposal, if what it drops is far from the rest."""
    proposed = _mser(values)
    if not proposed:
        return 0
    reached = np.cumsum(np.pad(values * weights, (1, 0)))
    mass = np.cumsum(np.pad(weights, (1, 0)))
    head = reached[proposed] / max(mass[proposed], 1e-9)
    rest = (reached[-1] - reached[proposed]) / max(mass[-1] - mass[proposed], 1e-9)
    # Overlapping windows of the rest, as long as the head but no longer than a tenth of all: the rest of a long head
    # has next to no windows of its length, and those are all alike. The far end may be a transient of its own.
    short = max(1, len(values) // 10)
    length = min(proposed, short)
    spans = mass[proposed + length :] - mass[proposed:-length]
    windows = (reached[proposed + length :] - reached[proposed:-length]) / np.maximum(spans, 1e-9)
    spans, windows = spans[: max(1, len(spans) - short)], windows[: max(1, len(windows) - short)]
    if not spans.any():  # all that has values is at the ends: nothing shows how far apart windows of the rest are
        return 0
    far = FAR if proposed <= short else FAR_LONG
    return proposed if abs(head - rest) > far * float(np.abs(windows[spans > 0] - rest).max()) else 0


def _mser(values: Floats) -> int:
    """The truncation, of at most half, after which the mean of what is left is about as sure as it gets: the shortest
    whose standard error is within a tenth of the least. The least alone cuts 30 % of a steady queue for 2 % of error."""
    left = np.arange(len(values), 0, -1).astype(np.float64)
    ahead = np.cumsum(values[::-1])[::-1]
    squares = np.cumsum((values * values)[::-1])[::-1] - ahead**2 / left
    errors = np.sqrt(np.maximum(squares, 0.0))[: len(values) // 2] / left[: len(values) // 2]
    return int(np.argmax(errors <= TOLERANCE * errors.min()))

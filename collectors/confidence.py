"""How sure a distribution is: effective sample size and 95 % intervals from its ladder of blocks. No clock, no file.

Requests of one server share its queue and its batch, so n of them say less than n independent ones. How much less
shows in the blocks: if a threshold is exceeded by varying shares of the requests from block to block, more than chance
alone would vary them, neighbours in time are alike.

    1. For each statistic, the indicator "value <= x" at the estimate x, summed per block; less its share of the block.
    2. Overlapping batch means (Meketon & Schmeiser, WSC 1984): sums over every run of 1/20 of the blocks. Their mean
       square is the variance of the share F(x), correlation inside and between blocks included; requests per block may
       vary, as the residuals are those of a ratio.
    3. n_eff = F (1 - F) / variance: so many independent requests would be as sure.
    4. Student's t, adjusted for the skewness of the batch sums (Johnson 1978, Hall 1992), bounds the share. Without it
       upper bounds of M/M/1 fail twice as often as lower ones: congestion comes in rare, long episodes.
    5. The share's bounds are mapped back to the order statistics of the total.

Where n_eff x (1 - q) is small, those runs that happened to see no congestion estimate both a low quantile and a low
variance: a bound that is printed only when the estimate says it can be fails far more often than 5 %. So the half
width is inflated by 1 + 8 k / (n_eff x (1 - q)), k = 1 - n_eff/n being how correlated the data are, and with fewer than
20 (1 + k) independent values beyond the quantile there is no bound above. What decides that is not the quantile's own
n_eff, which errs together with its interval, but that of a quantile nearer to the median, taken to be as much lower as
in a queue, where tails are the most correlated (_DECIDING); its own must only be near it. For the median 15 values beyond
are enough, for the mean 30 by the median's n_eff. Calibrated with benches/coverage.py. A bound below needs no such
number, but where there is none above it is the careful one: the least n_eff of all quantiles, and no skewness, as one
long congestion makes its own n_eff look large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from .histogram import CELLS, Histogram, highest_equivalent, lowest_equivalent
from .ladder import Blocks, Floats, Ints

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
INTERVALS: Final = ("mean", *QUANTILES)  # the statistics that have one
BATCHES: Final = 20
BEYOND: Final = 20  # independent values that must be expected beyond a quantile for a bound on that side
BEYOND_CENTRE: Final = 15  # the same for median and mean
BEYOND_MEAN: Final = 30  # the same for the mean, by the median's n_eff
OWN_LEAST: Final = 0.8  # share of the needed that a quantile's own n_eff must find, whatever the one that decides says
CHANCE: Final = 1.3  # n over n_eff of independent values reaches it by chance
# Of a quantile: the one whose n_eff decides, and about how many times more correlated it is than that in a queue.
_DECIDING: Final = {"p90": ("p50", 2.6), "p95": ("p75", 1.4), "p99": ("p95", 1.15), "p99_9": ("p99", 1.15)}
_THRESHOLDS: Final = dict(sorted({**QUANTILES, "p75": 0.75}.items(), key=lambda item: item[1]))
BEYOND_LEAST: Final = 8  # fewer inflate the half width no further
INFLATION: Final = 8.0
BLOCKS_MIN: Final = 5  # fewer have no variance to speak of
COUNT_MIN: Final = 20
ASSUMED_SHARE: Final = 5
P99_9_NEEDS: Final = 3688  # independent requests below which p99.9 is not printed
_SEEN_BEYOND: Final = 10  # values beyond a quantile from which its own n_eff can be estimated
MIDDLES: Final = Histogram.middles(np.arange(CELLS))


class Interval(NamedTuple):
    """A statistic with its 95 % interval in the unit of the values; None for a bound that the sample cannot give."""

    value: float
    low: float | None
    high: float | None
    n_eff: float
    support: float = math.inf  # independent values expected above it, over those that `high` needs: None below 1

    @property
    def half_width(self) -> float | None:
        """Half the distance of the bounds; None if one is missing."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Confidence:
    """What a distribution's blocks say about its certainty.

    `n_eff` is that of the median's indicator: bounded, so that no outlier moves it, and with the most values on either
    side. Each interval rests on the n_eff of its own statistic. None and empty where there are too few blocks.
    """

    count: int
    n_eff: float | None
    intervals: Mapping[str, Interval]  # mean, p50, p90, p95, p99, p99_9

    @property
    def supports_p99_9(self) -> bool:
        """Whether p99.9 may be printed: the tail's own n_eff counts too."""
        if self.n_eff is None:
            return False
        return min(self.n_eff, self.intervals["p99"].n_eff) >= P99_9_NEEDS


class BatchMeans(NamedTuple):
    """Sampling error of a total of residuals, a value per row."""

    error: Floats  # standard error of the total
    skewness: Floats  # of the batch sums
    batches: float
    freedom: float  # degrees of freedom of the error


def confidence(blocks: Blocks) -> Confidence:
    """n_eff and intervals of mean, p50, p90, p95, p99 and p99.9, in the unit of the histogram.

    About 2 ms for 512 blocks. Source: the methods named at the top of the file.
    """
    totals = blocks.totals
    n = int(totals.sum())
    if n < COUNT_MIN or blocks.size < BLOCKS_MIN:
        return Confidence(n, None, {})
    cells = blocks.sums_of_cells()
    reached = np.cumsum(cells)
    edges = {name: _edge(reached, q) for name, q in _THRESHOLDS.items()}
    seen = [name for name, edge in edges.items() if edge >= 0 and n - reached[edge] >= _SEEN_BEYOND]
    mean, deviations, variance = _deviations(blocks, totals, cells)
    thresholds = np.array([edges[name] for name in seen], np.int64)
    residuals = blocks.upto(thresholds) - (reached[thresholds] / n)[:, None] * totals
    spread = batch_means(np.vstack((deviations, residuals)))
    known: dict[str, tuple[float, float]] = {}  # n_eff and skewness of the exceedances
    for row, name in enumerate(seen, 1):
        share = float(reached[edges[name]]) / n
        known[name] = (_n_eff(share * (1 - share), float(spread.error[row]) / n, n), -float(spread.skewness[row]))
    least = min((each for each, _ in known.values()), default=float(n))
    centre = min(known["p50"][0] if "p50" in known else least, float(n))
    intervals = {"mean": _mean(mean, variance, spread, centre, n)}
    for name, q in QUANTILES.items():
        # With no values beyond to estimate from, the most correlated of the quantiles below stands in.
        n_eff, skewness = known.get(name, (least, 0.0))
        support = n_eff * (1 - q) / _needed(q, n_eff, n)
        if name in _DECIDING:
            decides, factor = _DECIDING[name]
            expected = _in_tail(known.get(decides, (least, 0.0))[0], factor, n)
            support = min(support / OWN_LEAST, expected * (1 - q) / _needed(q, expected, n))
        if support < 1:
            n_eff, skewness = min(n_eff, least), 0.0
        intervals[name] = _quantile(q, n_eff, skewness, reached, spread, support)
    return Confidence(n, centre, intervals)


def assumed(blocks: Blocks) -> Mapping[str, Interval]:
    """Intervals where there are too few blocks to know the correlation: every fifth value counts as independent, and
    the ranks are those of the exact binomial (Clopper & Pearson 1934).

    For objectives only, which a run of 3 s must still fail when it misses them by far. Empty below COUNT_MIN values.
    """
    n = int(blocks.count.sum())
    if n < COUNT_MIN:
        return {}
    cells, independent = blocks.sums_of_cells(), n // ASSUMED_SHARE
    reached = np.cumsum(cells)
    mean, _, variance = _deviations(blocks, blocks.totals, cells)
    error = student(0.975, max(4, independent - 1)) * math.sqrt(variance / independent)
    intervals = {"mean": Interval(mean, mean - error, mean + error, independent)}
    for name, q in QUANTILES.items():
        k = np.arange(independent + 1)
        chance = np.exp(_log_choose(independent) + k * math.log(q) + (independent - k) * math.log(1 - q))
        few = np.flatnonzero(np.cumsum(chance) <= 0.025)  # so few values at or below the quantile
        many = np.flatnonzero(np.cumsum(chance[::-1])[::-1] <= 0.025)
        value = highest_equivalent(_cell(reached, int(q * n + 0.5)))
        low = lowest_equivalent(_cell(reached, int(few[-1]) * n // independent + 1)) if len(few) else None
        high = highest_equivalent(_cell(reached, -(-int(many[0]) * n // independent))) if len(many) else None
        support = min(1.0, math.log(q) * independent / math.log(0.025))  # of a bound above: all values lie below it
        intervals[name] = Interval(float(value), low, high, independent, support)
    return intervals


def _log_choose(n: int) -> Floats:
    """log C(n, k) for k = 0..n."""
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    chosen: Floats = logs[n] - logs - logs[::-1]
    return chosen


def proportion(blocks: Blocks, cell: int) -> Interval:
    """The share of the values in cells above `cell`, with Wilson's interval (1927) at n_eff: error rate, goodput.

    For counts of outcomes, a ladder whose cells are the outcomes. With none or all above, n_eff is unknown and n stands
    in for it: failures that come in bursts need a longer run than this bound says.
    """
    totals = blocks.totals
    above = totals - blocks.upto(np.array([cell]))[0]
    n, hits = int(totals.sum()), int(above.sum())
    if not n:
        return Interval(math.nan, None, None, 0.0)
    share, n_eff, t = hits / n, float(n), NormalDist().inv_cdf(0.975)
    if 0 < hits < n and blocks.size >= BLOCKS_MIN:
        spread = batch_means((above - share * totals)[None, :])
        n_eff = min(_n_eff(share * (1 - share), float(spread.error[0]) / n, n), float(n))
        t = student(0.975, spread.freedom)
    centre = (share + t * t / (2 * n_eff)) / (1 + t * t / n_eff)
    half = t / (1 + t * t / n_eff) * math.sqrt(share * (1 - share) / n_eff + (t / (2 * n_eff)) ** 2)
    return Interval(share, centre - half if hits else 0.0, centre + half if hits < n else 1.0, n_eff)


def scaled(interval: Interval, scale: float) -> Interval:
    """From histogram units to the metric's unit."""
    low, high = (None if each is None else each / scale for each in (interval.low, interval.high))
    return interval._replace(value=interval.value / scale, low=low, high=high)


def point(value: float, count: int) -> Interval | None:
    """The interval of a sample whose values are all equal: that value, from as many values as an interval needs."""
    return Interval(value, value, value, float(count)) if count >= COUNT_MIN else None


def ratio(part: Ints, total: Ints) -> Interval:
    """The sum of `part` over that of `total`, both of each block: a mean per tick, say, from sums and numbers of ticks."""
    n = int(total.sum())
    value = float(part.sum()) / n
    if len(part) < BATCHES:
        return Interval(value, None, None, 0.0)
    spread = batch_means((part - value * total)[None, :])
    half = student(0.975, spread.freedom) * float(spread.error[0]) / n
    return Interval(value, value - half, value + half, 0.0)


def student(probability: float, freedom: float) -> float:
    """Quantile of Student's t: Cornish-Fisher, within 0.3 % from 4 degrees of freedom at 0.975 (Abramowitz & Stegun
    26.7.5). numpy has none, and scipy is too much for one number."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def batch_means(residuals: Floats, count: int = BATCHES) -> BatchMeans:
    """Overlapping batch means of residuals (rows x blocks) in about `count` batches; each row sums to 0."""
    size = residuals.shape[1]
    length = max(1, size // count)
    batches = size / length
    reached = np.cumsum(np.pad(residuals, ((0, 0), (1, 0))), axis=1)
    sums = reached[:, length:] - reached[:, :-length]
    squares = (sums * sums).mean(axis=1)
    error = np.sqrt(squares * batches * batches / (batches - 1))
    cubes = (sums**3).mean(axis=1)
    skewness = np.divide(cubes, squares**1.5, out=np.zeros_like(cubes), where=squares > 0)
    # Overlap is worth half as many degrees of freedom again, but single blocks do not overlap.
    freedom = (batches - 1) * (1.5 if length > 2 else 1.0)
    return BatchMeans(error, skewness, batches, freedom)


def _n_eff(variance: float, error: float, n: int) -> float:
    """Up to twice n: in a closed loop a slow request is followed by fewer others, which makes the mean surer."""
    return min(max(variance / error**2, 1.0), 2.0 * n) if error > 0 else float(n)


def _edge(reached: Ints, q: float) -> int:
    """The cell at whose upper edge the share of values is nearest to q and neither none nor all; -1 without one."""
    n = int(reached[-1])
    cell = int(np.searchsorted(reached, max(1, math.ceil(q * n))))
    lower = int(np.searchsorted(reached, reached[cell - 1])) if cell and reached[cell - 1] else -1
    if reached[cell] == n:
        return lower
    if lower >= 0 and q * n - reached[lower] < reached[cell] - q * n:
        return lower
    return cell


def _deviations(blocks: Blocks, totals: Ints, cells: Ints) -> tuple[float, Floats, float]:
    """Mean, each block's sum less its share of it, and the variance of a value. `cells` are the counts of all blocks."""
    n = int(totals.sum())
    sums = blocks.sums(MIDDLES)
    mean = float(sums.sum()) / n
    # Over the cells, as the blocks may have 130,000 filled ones; and no dot product, as BLAS starts threads for it, which
    # cost ten times the work where the CPUs are busy.
    variance = float((cells * (MIDDLES - mean) ** 2).sum()) / n
    return mean, sums - mean * totals, variance


def _mean(mean: float, variance: float, spread: BatchMeans, centre: float, n: int) -> Interval:
    error = float(spread.error[0]) / n
    n_eff = _n_eff(variance, error, n)
    support = min(n_eff / 2 / BEYOND_CENTRE, centre / 2 / (BEYOND_MEAN * (1 + max(1 - centre / n, 0.0))))
    if support < 1:
        return Interval(mean, None, None, n_eff, support)
    below, over = _reach(n_eff, n_eff / 2, float(spread.skewness[0]), spread, n)
    error = math.sqrt(variance / n_eff)
    return Interval(mean, mean - below * error, mean + over * error, n_eff, support)


def _quantile(q: float, n_eff: float, skewness: float, reached: Ints, spread: BatchMeans, support: float) -> Interval:
    n = int(reached[-1])
    value = float(highest_equivalent(int(np.searchsorted(reached, max(1, int(q * n + 0.5))))))
    error, above, under = math.sqrt(q * (1 - q) / n_eff), n_eff * (1 - q), n_eff * q
    below, over = _reach(n_eff, min(above, under), skewness, spread, n)
    low, high = q - below * error, q + over * error
    return Interval(
        value,
        float(lowest_equivalent(_cell(reached, math.floor(low * n)))) if low > 0 and under >= BEYOND_CENTRE else None,
        float(highest_equivalent(_cell(reached, math.ceil(high * n)))) if high < 1 and support >= 1 else None,
        n_eff,
        support,
    )


def _in_tail(n_eff: float, factor: float, n: int) -> float:
    """The n_eff that a tail has at least, in usual processes, by that of a quantile nearer to the median."""
    return n / (1 + factor * max(n / n_eff - CHANCE, 0.0))


def _needed(q: float, n_eff: float, n: int) -> float:
    return BEYOND_CENTRE if q <= 0.5 else BEYOND * (1 + max(1 - n_eff / n, 0.0))


def _cell(reached: Ints, rank: int) -> int:
    return int(np.searchsorted(reached, min(max(rank, 1), int(reached[-1]))))


def _reach(n_eff: float, beyond: float, skewness: float, spread: BatchMeans, n: int) -> tuple[float, float]:
    """How many standard errors the interval reaches below and above the estimate."""
    # n_eff of independent values is within a third of n by chance; that must not widen their intervals.
    correlated = max(1 - 1.5 * n_eff / n, 0.0)
    inflation = 1 + INFLATION * correlated / max(beyond, BEYOND_LEAST)
    t = student(0.975, spread.freedom)
    beta = skewness / (6 * math.sqrt(spread.batches))
    return _adjusted(t, beta) * inflation, -_adjusted(-t, beta) * inflation


def _adjusted(t: float, beta: float) -> float:
    """Hall's inverse of the skewed t statistic; for positive skewness nearer above 0, farther below."""
    if abs(beta) < 1e-3:
        return t
    return (float(np.cbrt(1 + 6 * beta * (t - beta))) - 1) / (2 * beta)

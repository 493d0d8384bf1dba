"""Chance without state: every number is a pure function of (seed, slot), so any worker can compute any slot's alone.

`mix` is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection on 64 bits: different inputs never collide.
Nothing here reads files, clocks or the plan.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate
from math import exp, gcd, lcm, log, sqrt
from statistics import NormalDist
from typing import Final

from ..errors import PlanError
from ..plan.plan import TOKENS_MAX, Length

M64: Final = (1 << 64) - 1
PERIOD_MAX: Final = 4096  # slots after which shares are exact
# The two irrational steps of the plane's R2 sequence (Roberts 2018), 1/g and 1/g^2 with g the plastic number, as odd
# 64-bit fractions. Targets of odd weights walk by the first, weighted rows by the second: with one step for both,
# a row would always meet the same target.
STEP_TARGET: Final = 0xC13FA9A902A6328F
STEP_ROW: Final = 0x91E10DA5C79E7B1D
STEP_PERIOD: Final = 0x6A09E667F3BCC909  # sqrt(2) - 1; the golden ratio walks in step with 8 and 13 workers


def mix(value: int) -> int:
    """64 well mixed bits of `value`."""
    value = (value + 0x9E3779B97F4A7C15) & M64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & M64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & M64
    return value ^ value >> 31


def key_of(*parts: int | str) -> int:
    """One 64-bit key out of a seed and the names and numbers of what it is for."""
    key = 0
    for part in parts:
        number = int.from_bytes(part.encode(), "little") if isinstance(part, str) else part
        while True:
            key = mix(key ^ number & M64)
            number >>= 64
            if number in (0, -1):
                break
    return key


def unit(bits: int) -> float:
    """A number in (0, 1) out of 64 bits, never an end of it: quantiles of both are infinite."""
    return ((bits >> 12) + 0.5) * 2.0**-52


class Permutation:
    """A pseudo-random order of 0..count-1 in constant memory: `order(i)` is the i-th, `order` a bijection.

    Multiply, add and xor-shift are each one-to-one on the next power of two; results outside are walked on from.
    """

    __slots__ = ("_adds", "_count", "_mask", "_shift")

    def __init__(self, count: int, key: int) -> None:
        bits = max((count - 1).bit_length(), 1)
        self._count = count
        self._mask = (1 << bits) - 1
        self._shift = (bits + 1) // 2
        self._adds = [mix(key ^ turn) for turn in range(4)]

    def __call__(self, i: int) -> int:
        mask, shift = self._mask, self._shift
        while True:
            for add in self._adds:
                i = ((i + add) * (add | 1)) & mask
                i ^= i >> shift
            if i < self._count:
                return i


class Weighted:
    """A choice among 0..n-1 in proportion to weights: `pick(u)` for u in [0, 1)."""

    __slots__ = ("_ends", "_last")

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        self._ends = [end / total for end in accumulate(weights)]
        self._last = max(i for i, weight in enumerate(weights) if weight > 0)

    def pick(self, u: float) -> int:
        return min(bisect_right(self._ends, u), self._last)


class Shares:
    """A choice among 0..n-1 by slot, with exact shares: `shares(slot)`.

    Weights are brought to integers, whose sum is the period. One period is nginx's smooth weighted round robin:
    each choice exactly as often as its weight says, spread as evenly as can be. Each period is rotated by an irrational
    step more than the one before. Without that, worker k of N would meet the same choices for ever where N and the
    period have a common factor: 8 targets and 8 workers, one target each. A worker's own counts stay close to
    exact (31 in 1,000 slots, tests/test_workload_draw.py); the union's are exact in every period.

    Weights without a period of at most PERIOD_MAX follow an additive recurrence, whose counts stay within O(log n) of
    n * share.
    """

    __slots__ = ("_key", "_sequence", "_weighted")

    def __init__(self, weights: Sequence[float], key: int) -> None:
        self._key = key
        self._weighted = Weighted(weights)
        self._sequence = smooth(integers(weights))

    def __call__(self, slot: int) -> int:
        sequence = self._sequence
        if not sequence:
            return self._weighted.pick(unit(slot * STEP_TARGET + self._key & M64))
        size = len(sequence)
        period, i = divmod(slot, size)
        return sequence[(i + ((period * STEP_PERIOD + self._key & M64) * size >> 64)) % size]


def integers(weights: Sequence[float]) -> list[int]:
    """The smallest integers in proportion to the weights; empty where they add up to more than PERIOD_MAX."""
    fractions = [Fraction(weight).limit_denominator(PERIOD_MAX) for weight in weights]
    if any(float(each) != weight for each, weight in zip(fractions, weights, strict=True)):
        return []
    scale = lcm(*(each.denominator for each in fractions))
    numbers = [int(each * scale) for each in fractions]
    common = gcd(*numbers)
    numbers = [number // common for number in numbers]
    return numbers if sum(numbers) <= PERIOD_MAX else []


def smooth(weights: Sequence[int]) -> list[int]:
    """One period of smooth weighted round robin: who is furthest behind is next (nginx, ngx_http_upstream_round_robin)."""
    total = sum(weights)
    behind = [0] * len(weights)
    sequence = []
    for _ in range(total):
        behind = [have + weight for have, weight in zip(behind, weights, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= total
        sequence.append(chosen)
    return sequence


Draw = Callable[[int], int]


def lengths(length: Length, where: str) -> Draw:
    """Token lengths of a distribution that the plan file has checked: a function of 64 bits.

    normal and lognormal are *truncated* to [low, high] by their quantile function, not clamped: no heap of lengths at
    an end. The mean and stddev of lognormal are those of the lengths, not of their logarithm. Raises PlanError naming
    `where` in the plan for lengths above TOKENS_MAX, and where nothing lies between low and high.
    """
    longest = max(length.mean, length.low, length.high or 0, *length.values)
    if longest > TOKENS_MAX:
        raise PlanError(f"at most {TOKENS_MAX:,} tokens, got {longest:,.0f} ({where})")
    return _KINDS[length.kind](length, where)


def _fixed(length: Length, where: str) -> Draw:
    value = max(round(length.mean), 1)
    return lambda bits: value


def _uniform(length: Length, where: str) -> Draw:
    low, width = length.low, (length.high or length.low) - length.low + 1
    return lambda bits: low + (bits * width >> 64)


def _normal(length: Length, where: str) -> Draw:
    if length.stddev == 0:
        return _fixed(length, where)
    return _truncated(NormalDist(length.mean, length.stddev), length, where, float, float)


def _lognormal(length: Length, where: str) -> Draw:
    if length.stddev == 0:
        return _fixed(length, where)
    variance = log(1 + (length.stddev / length.mean) ** 2)
    return _truncated(NormalDist(log(length.mean) - variance / 2, sqrt(variance)), length, where, log, exp)


def _truncated(
    normal: NormalDist, length: Length, where: str, to: Callable[[float], float], back: Callable[[float], float]
) -> Draw:
    low, high = length.low, length.high
    start = normal.cdf(to(low - 0.5)) if low > 0.5 else 0.0
    width = (1.0 if high is None else normal.cdf(to(high + 0.5))) - start
    if width < 1e-9:
        raise PlanError(f"no length of this distribution lies between low and high ({where})")
    quantile = normal.inv_cdf
    top = high if high is not None else TOKENS_MAX

    def draw(bits: int) -> int:
        u = start + width * unit(bits)
        return min(max(round(back(quantile(u))) if 0 < u < 1 else low, low), top)

    return draw


def _empirical(length: Length, where: str) -> Draw:
    values = length.values
    weights = length.weights or (1.0,) * len(values)
    top = max(values) if length.high is None else length.high
    kept = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0 and length.low <= v <= top]
    if not kept:
        raise PlanError(f"no value with a weight lies between low and high ({where})")
    values, weighted = tuple(v for v, _ in kept), Weighted([w for _, w in kept])
    return lambda bits: values[weighted.pick(unit(bits))]


_KINDS: Final[dict[str, Callable[[Length, str], Draw]]] = {
    "fixed": _fixed,
    "normal": _normal,
    "lognormal": _lognormal,
    "uniform": _uniform,
    "empirical": _empirical,
}

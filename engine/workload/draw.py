"""Chance without state: every number is a pure function of (seed, slot), so any worker can compute any slot's alone.

`mix` is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection on 64 bits: different inputs never collide.
Nothing here reads files, clocks or the plan.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import exp, isfinite, log, sqrt
from statistics import NormalDist
from typing import Final

from ..errors import PlanError
from ..plan.plan import Length

M64: Final = (1 << 64) - 1
# The two irrational steps of the plane's R2 sequence (Roberts 2018), 1/g and 1/g^2 with g the plastic number, as odd
# 64-bit fractions. Targets walk by the first, weighted rows by the second, so that the two are not tied to each other.
STEP_TARGET: Final = 0xC13FA9A902A6328F
STEP_ROW: Final = 0x91E10DA5C79E7B1D


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


def usable_weights(weights: Sequence[float], where: str) -> None:
    """Raises PlanError unless all are finite and >= 0 and one is > 0."""
    for weight in weights:
        if not isfinite(weight) or weight < 0:
            raise PlanError(f"a weight must be a number >= 0, got {weight!r} ({where})")
    if not sum(weights) > 0:
        raise PlanError(f"at least one weight must be > 0 ({where})")


Draw = Callable[[int], int]


def lengths(length: Length, where: str) -> Draw:
    """Token lengths of a distribution: a function of 64 bits. Raises PlanError naming `where` in the plan.

    normal and lognormal are *truncated* to [low, high] by their quantile function, not clamped: no heap of lengths at
    an end. The mean and stddev of lognormal are those of the lengths, not of their logarithm.
    """
    if length.high is not None and length.high < length.low:
        raise PlanError(f"high must be >= low, got {length.high} < {length.low} ({where})")
    if length.low < 0:
        raise PlanError(f"low must be >= 0, got {length.low} ({where})")
    return _KINDS[length.kind](length, where)


def _fixed(length: Length, where: str) -> Draw:
    value = _positive_mean(length, where)
    return lambda bits: value


def _uniform(length: Length, where: str) -> Draw:
    if length.high is None:
        raise PlanError(f"a uniform length needs high ({where})")
    low, width = length.low, length.high - length.low + 1
    return lambda bits: low + (bits * width >> 64)


def _normal(length: Length, where: str) -> Draw:
    mean = _positive_mean(length, where)
    if length.stddev == 0:
        return lambda bits: mean
    return _truncated(NormalDist(length.mean, length.stddev), length, where, float, float)


def _lognormal(length: Length, where: str) -> Draw:
    mean = _positive_mean(length, where)
    if length.stddev == 0:
        return lambda bits: mean
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
    top = high if high is not None else 1 << 40

    def draw(bits: int) -> int:
        u = start + width * unit(bits)
        return min(max(round(back(quantile(u))) if 0 < u < 1 else low, low), top)

    return draw


def _empirical(length: Length, where: str) -> Draw:
    values = length.values
    if not values:
        raise PlanError(f"an empirical length needs values ({where})")
    weights = length.weights or (1.0,) * len(values)
    if len(weights) != len(values):
        raise PlanError(f"values and weights must be as many, got {len(values)} and {len(weights)} ({where})")
    usable_weights(weights, where)
    top = max(values) if length.high is None else length.high
    kept = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0 and length.low <= v <= top]
    if not kept:
        raise PlanError(f"no value with a weight lies between low and high ({where})")
    values, weighted = tuple(v for v, _ in kept), Weighted([w for _, w in kept])
    return lambda bits: values[weighted.pick(unit(bits))]


def _positive_mean(length: Length, where: str) -> int:
    if not isfinite(length.mean) or length.mean <= 0:
        raise PlanError(f"mean must be > 0, got {length.mean!r} ({where})")
    if not isfinite(length.stddev) or length.stddev < 0:
        raise PlanError(f"stddev must be >= 0, got {length.stddev!r} ({where})")
    return max(round(length.mean), 1)


_KINDS: Final[dict[str, Callable[[Length, str], Draw]]] = {
    "fixed": _fixed,
    "normal": _normal,
    "lognormal": _lognormal,
    "uniform": _uniform,
    "empirical": _empirical,
}

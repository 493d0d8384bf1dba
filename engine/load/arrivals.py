"""Random arrivals on the operational time scale, where one arrival per unit is expected. No rates, no clock, no plan.

The gaps are independent Gamma(shape)/shape, so shape 1 is a Poisson process. Arrival i is a pure function of (key, i),
without walking there from 0: the sum of n such gaps is Gamma(n * shape), and the parts of a sum of gamma variables,
divided by that sum, are independent of it (Lukacs 1955). So sums are drawn first and then divided exactly:

    root   ROOT arrivals; the n-th begins where root n - 1 ended
    node   FAN nodes of the level below share its span like independent Gamma(size * shape)
    leaf   LEAF arrivals share its span like independent Gamma(shape)

Each draws from its own random.Random(f"{key}/{level}/{number}").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from math import log, sqrt
from random import Random
from typing import Final

LEAF: Final = 256
FAN: Final = 64
LEVELS: Final = 4  # above the leaves
ROOT: Final = LEAF * FAN**LEVELS  # 4.3e9 arrivals
NORMAL_ABOVE: Final = 1e12  # of a gamma's shape: its skew, 2e-6, is beyond measure, and gammavariate loses its digits
SHAPE_MAX: Final = 1e12  # gaps vary by 1e-6 of themselves; more is constant


class Arrivals:
    """The arrivals of one key. Not shared between threads; keeps the last node of each level."""

    def __init__(self, key: str, shape: float) -> None:
        self._key = key
        self._shape = min(shape, SHAPE_MAX)
        self._roots: list[float] = []  # where each root ends
        self._kept: list[tuple[int, float, list[float]]] = [(-1, 0.0, [])] * (LEVELS + 1)

    def leaf(self, number: int) -> list[float]:
        """When arrivals number * LEAF, ... of one leaf come, in order. The last one is the end of the leaf."""
        return self._parts(0, number)[1]

    def before(self, bound: float) -> int:
        """How many arrivals come before `bound`. Goes down the tree: as quick for 1e12 of them as for ten."""
        root = 0
        while self._root_end(root) < bound:
            root += 1
        number = root
        for level in range(LEVELS, 0, -1):
            number = number * FAN + bisect_left(self._parts(level, number)[1], bound)
        return number * LEAF + bisect_left(self.leaf(number), bound)

    def _parts(self, level: int, number: int) -> tuple[float, list[float]]:
        """Where this node begins and where each of its parts ends."""
        kept, begin, ends = self._kept[level]
        if kept == number:
            return begin, ends
        begin, end = self._span(level, number)
        ends = divided(begin, end, self._weights(level, number))
        self._kept[level] = number, begin, ends
        return begin, ends

    def _span(self, level: int, number: int) -> tuple[float, float]:
        if level == LEVELS:
            end = self._root_end(number)
            return (self._roots[number - 1] if number else 0.0), end
        begin, ends = self._parts(level + 1, number // FAN)
        part = number % FAN
        return (ends[part - 1] if part else begin), ends[part]

    def _root_end(self, number: int) -> float:
        while len(self._roots) <= number:
            chance = Random(f"{self._key}/root/{len(self._roots)}")
            span = gamma(chance, ROOT * self._shape) / self._shape
            self._roots.append((self._roots[-1] if self._roots else 0.0) + span)
        return self._roots[number]

    def _weights(self, level: int, number: int) -> Iterator[float]:
        chance = Random(f"{self._key}/{level}/{number}")
        if level:
            shape = LEAF * FAN ** (level - 1) * self._shape
            return (gamma(chance, shape) for _ in range(FAN))
        if self._shape == 1:
            draw = chance.random  # in place of expovariate(): 3x (benches/bench_schedule.py)
            return (-log(1.0 - draw()) for _ in range(LEAF))
        return (gamma(chance, self._shape) for _ in range(LEAF))


def divided(begin: float, end: float, weights: Iterator[float]) -> list[float]:
    """Where the parts of begin..end end that have these weights. Never decreasing, the last one exactly at `end`."""
    sums = list(accumulate(weights))
    total = sums[-1]
    if not total:  # all underflowed: of gaps that small one is everything
        return [end] * len(sums)
    scale = (end - begin) / total
    ends = [min(begin + at * scale, end) for at in sums]
    ends[-1] = end
    return ends


def gamma(chance: Random, shape: float) -> float:
    """One Gamma(shape, 1) variable."""
    if shape > NORMAL_ABOVE:
        return shape + sqrt(shape) * chance.gauss(0.0, 1.0)
    return chance.gammavariate(shape, 1.0)

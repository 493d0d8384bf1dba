"""A rate that changes over time, and when its integral reaches a value. Closed forms; no loops over time, no floats
where integers do: nothing drifts in weeks.

Operational time is the integral of the rate, in arrivals, here in units of 2**-FRACTION: arrival i of a constant load
is at i << FRACTION. The stretches of a load follow each other; after the last one its end value holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import expm1, isqrt, lcm, log, log1p
from typing import Final, NamedTuple

from ..plan.plan import SECOND, Shape

FRACTION: Final = 48
ONE: Final = 1 << FRACTION
ROOT_BITS: Final = 64  # of a square root behind the point: the ns is exact up to stretches of 10**9 s
NEVER: Final = 1 << 62


class Stretch(NamedTuple):
    """One shape at its place: from `begin_ns` to `end_ns`, and the integral of the whole rate at its beginning."""

    begin_ns: int
    end_ns: int
    begin: Fraction
    shape: Shape


class Rate:
    """The rate of a phase, whose `duration_ns` cuts it off."""

    def __init__(self, shapes: Sequence[Shape], duration_ns: int | None) -> None:
        last = shapes[-1].end
        holds = Shape(duration_ns=NEVER, start=last, end=last)
        at, integral = 0, Fraction(0)
        stretches: list[Stretch] = []
        for shape in (*(each for each in shapes if each.duration_ns), holds):
            if duration_ns is not None and at >= duration_ns:
                break
            end = at + shape.duration_ns
            if duration_ns is not None:
                end = min(end, duration_ns)
            stretches.append(Stretch(at, end, integral, shape))
            integral += integral_of(shape, end - at)
            at = end
        self._inverses = [inverse_of(stretch) for stretch in stretches]
        self._begins = [fixed(stretch.begin) for stretch in stretches]
        self._limits = [(stretch.begin_ns, stretch.end_ns - 1) for stretch in stretches]
        # Where arrivals end: at the end of the phase, or where the rate stays 0.
        self.total: int | None = fixed(integral) if duration_ns is not None or not last else None

    def reached_ns(self, value: int) -> int:
        """The offset at which the integral reaches `value` (in 2**-FRACTION, below `total`), rounded down to the ns."""
        place = bisect_right(self._begins, value) - 1
        low, high = self._limits[place]
        return min(max(self._inverses[place](value), low), high)


def fixed(value: Fraction) -> int:
    """In units of 2**-FRACTION, rounded up: x < value exactly where fixed x < fixed(value)."""
    return -(-(value.numerator << FRACTION) // value.denominator)


def exact(value: float) -> Fraction:
    """The simplest fraction that is this float: 0.1 is 1/10, 5/m is 1/12."""
    simple = Fraction(value).limit_denominator(1_000_000)
    return simple if float(simple) == value else Fraction(value)


def integral_of(shape: Shape, elapsed_ns: int) -> Fraction:
    """Arrivals expected in the first `elapsed_ns` of a shape."""
    start, end = exact(shape.start), exact(shape.end)
    seconds = Fraction(elapsed_ns, SECOND)
    if start == end:
        return start * seconds
    if shape.curve == "exponential":
        growth = log(shape.end / shape.start)
        whole_s = shape.duration_ns / SECOND
        return Fraction(shape.start * whole_s * expm1(growth * elapsed_ns / shape.duration_ns) / growth)
    return start * seconds + (end - start) * seconds * elapsed_ns / (2 * shape.duration_ns)


def inverse_of(stretch: Stretch) -> Callable[[int], int]:
    """From a value of the integral inside the stretch to the offset; never decreasing."""
    shape = stretch.shape
    if shape.start == shape.end:
        return _flat(stretch) if shape.start else lambda _: stretch.begin_ns
    return _exponential(stretch) if shape.curve == "exponential" else _linear(stretch)


def _affine(slope: Fraction, constant: Fraction) -> tuple[int, int, int]:
    """slope * value / ONE + constant as (value * a + b) // c, all integers."""
    slope /= ONE
    c = lcm(slope.denominator, constant.denominator)
    return int(slope * c), int(constant * c), c


def _flat(stretch: Stretch) -> Callable[[int], int]:
    gap_ns = SECOND / exact(stretch.shape.start)
    a, b, c = _affine(gap_ns, stretch.begin_ns - stretch.begin * gap_ns)
    return lambda value: (value * a + b) // c


def _linear(stretch: Stretch) -> Callable[[int], int]:
    """t solves x = r0 t + (r1 - r0) t**2 / 2T: t = T (sqrt(r0**2 + 2 (r1 - r0) x / T) - r0) / (r1 - r0).

    In integers, with the rates over one denominator: a float would cancel where the slope is small.
    """
    shape = stretch.shape
    start, end, length = exact(shape.start), exact(shape.end), shape.duration_ns
    d = lcm(start.denominator, end.denominator)
    first, change = int(start * d), int((end - start) * d)
    slope = Fraction(2 * change * d * SECOND, length)
    a, b, c = _affine(slope, first * first - slope * stretch.begin)
    a, b = a << 2 * ROOT_BITS, b << 2 * ROOT_BITS
    first, change = first << ROOT_BITS, change << ROOT_BITS
    begin_ns = stretch.begin_ns
    return lambda value: begin_ns + length * (isqrt(max((value * a + b) // c, 0)) - first) // change


def _exponential(stretch: Stretch) -> Callable[[int], int]:
    """t solves x = r0 T (exp(g t / T) - 1) / g."""
    shape = stretch.shape
    growth = log(shape.end / shape.start)
    scale = growth / (shape.start * shape.duration_ns / SECOND) / ONE
    length_ns = shape.duration_ns / growth
    begin, begin_ns = fixed(stretch.begin), stretch.begin_ns
    floor = 2.0**-53 - 1.0
    return lambda value: begin_ns + int(length_ns * log1p(max((value - begin) * scale, floor)))

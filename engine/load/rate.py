"""A rate that changes over time, and when its integral reaches a value. Closed forms and no loops over time: nothing
drifts in weeks. Integrals are exact fractions, as the number of slots depends on them.

Operational time is the integral of the rate, in arrivals, here in units of 2**-FRACTION: arrival i of a constant load
is at i << FRACTION. The segments of a load follow each other; after the last one its end value holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import expm1, lcm, log, log1p, sqrt
from typing import Final, NamedTuple

from ..plan.plan import SECOND, Shape

FRACTION: Final = 48
ONE: Final = 1 << FRACTION
NEVER: Final = 1 << 62


class Segment(NamedTuple):
    """One shape with its position: from `begin_ns` to `end_ns`, and the integral of the complete rate at its beginning."""

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
        segments: list[Segment] = []
        for shape in (*(each for each in shapes if each.duration_ns), holds):
            # Shapes behind the end of the phase would add arrivals that can never be sent to `planned`.
            if duration_ns is not None and at >= duration_ns:
                break
            end = at + shape.duration_ns
            if duration_ns is not None:
                end = min(end, duration_ns)
            segments.append(Segment(at, end, integral, shape))
            integral += integral_of(shape, end - at)
            at = end
        self._inverses = [inverse_of(segment) for segment in segments]
        self._begins = [fixed(segment.begin) for segment in segments]
        self._limits = [(segment.begin_ns, segment.end_ns - 1) for segment in segments]
        # Where arrivals end: at the end of the phase, or where the rate stays 0.
        self.total: int | None = fixed(integral) if duration_ns is not None or not last else None

    def reached_ns(self, value: int) -> int:
        """The offset at which the integral reaches `value` (in 2**-FRACTION, below `total`), rounded down to the ns."""
        # bisect_right: a value that is exactly a border belongs to the later segment, where it is reached at once.
        number = bisect_right(self._begins, value) - 1
        low, high = self._limits[number]
        # Rounding of the float inverses must not move a slot into the next segment: offsets would decrease at the border.
        return min(max(self._inverses[number](value), low), high)


def fixed(value: Fraction) -> int:
    """In units of 2**-FRACTION, rounded up: x < value exactly where fixed x < fixed(value)."""
    return -(-(value.numerator << FRACTION) // value.denominator)


def exact(value: float) -> Fraction:
    """The simplest fraction that is this float: 0.1 is 1/10, 5/m is 1/12."""
    # Fraction(0.1) is 3602879701896397/2**55: exact for the float, and a rate that nobody wrote.
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
        # expm1: exp(x) - 1 loses all digits where the growth is small.
        return Fraction(shape.start * whole_s * expm1(growth * elapsed_ns / shape.duration_ns) / growth)
    return start * seconds + (end - start) * seconds * elapsed_ns / (2 * shape.duration_ns)


def inverse_of(segment: Segment) -> Callable[[int], int]:
    """From a value of the integral inside the segment to the offset; never decreasing."""
    shape = segment.shape
    if shape.start == shape.end:
        return _flat(segment) if shape.start else lambda _: segment.begin_ns
    return _exponential(segment) if shape.curve == "exponential" else _linear(segment)


def _flat(segment: Segment) -> Callable[[int], int]:
    """In integers: (value * a + b) // c. A float's 53 bits are 104 days in ns, and a rate of 1/3 would drift before."""
    gap_ns = SECOND / exact(segment.shape.start)
    slope, constant = gap_ns / ONE, segment.begin_ns - segment.begin * gap_ns
    c = lcm(slope.denominator, constant.denominator)
    a, b = int(slope * c), int(constant * c)
    return lambda value: (value * a + b) // c


def _linear(segment: Segment) -> Callable[[int], int]:
    """t solves x = r0 t + (r1 - r0) t**2 / 2T, here t = 2x / (r0 + sqrt(r0**2 + 2 (r1 - r0) x / T)).

    The other form of the root, (sqrt(...) - r0) / slope, cancels where the slope is small. This one is within 1 ns of
    the exact root in segments of up to a week (6e14 ns of the 9e15 that a float holds exactly). Only the last arrivals
    of a fall to 0 are less sure, by up to T * 1.5e-8: there a tiny change of x is a large one of t.
    """
    shape = segment.shape
    start = shape.start
    twice_slope = 2 * (shape.end - start) / (shape.duration_ns / SECOND)
    begin, begin_ns, square = fixed(segment.begin), segment.begin_ns, start * start

    def reached(value: int) -> int:
        x = (value - begin) / ONE
        # max: at the very end of a fall to 0 rounding can make the square negative.
        divisor = start + sqrt(max(square + twice_slope * x, 0.0))
        return begin_ns + (int(2 * x / divisor * SECOND) if divisor else 0)

    return reached


def _exponential(segment: Segment) -> Callable[[int], int]:
    """t solves x = r0 T (exp(g t / T) - 1) / g."""
    shape = segment.shape
    growth = log(shape.end / shape.start)
    scale = growth / (shape.start * shape.duration_ns / SECOND) / ONE
    length_ns = shape.duration_ns / growth
    begin, begin_ns = fixed(segment.begin), segment.begin_ns
    # log1p(-1) raises; the last arrival of a steep fall may round to it.
    floor = 2.0**-53 - 1.0
    return lambda value: begin_ns + int(length_ns * log1p(max((value - begin) * scale, floor)))

"""Which load a server bears: the next load to measure, and the answer so far. No clock, no file.

Both are functions of the points measured until now, so that a sweep that was killed goes on from its finished points.

    1. From the lowest load on, each next one is twice the last, until one does not pass.
    2. Bisection (of logarithms) between the highest load that passes and the lowest that does not, until the bracket is
       as narrow as the precision. A point that stays UNDECIDED is kept out of both: its two sides are bisected. But one
       that is only UNDECIDED because it has too few requests, clear of its objective, is taken for one that passes until
       it is the end of the bracket (4): a low rate takes minutes to prove a 99th percentile.
    3. Where undecided points keep the bracket too wide, the one nearest the middle is measured again, for longer.
    4. Both ends of the bracket are measured a second time. One wrong verdict would otherwise move the bracket for good:
       bisection never looks back. A load with one PASS and one FAIL gets a third look, and the majority counts.

The value of the answer is where a line through the points around the bracket meets the objective (weighted least squares
of the logarithms of load and of measured/objective), kept inside the bracket; the interval is the bracket and the line's
own: points that are judged at every doubling of their requests are judged wrongly more often than one by itself. A load at which
the client is the limit never counts as one that the server fails; and one such look may be a moment's disturbance, so
that it takes two to end the range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np

from .ladder import Floats

State = Literal["PASS", "FAIL", "UNDECIDED", "CLIENT_LIMITED"]
Found = Literal["FOUND", "ABOVE_RANGE", "BELOW_RANGE", "CLIENT_LIMITED", "UNDECIDED"]

FACTOR: Final = 2.0  # between loads while there is no upper end
LOOKS_MAX: Final = 3  # at one load
NEAR: Final = 1.25  # loads up to so far outside the bracket are part of the fit
CLEAR: Final = 0.7  # measured over objective below which an undecided load is searched above, as if it passed
KNEE_POINTS: Final = 4  # fewer have no knee
_DRAWS: Final = 400
_Z: Final = NormalDist().inv_cdf(0.975)


class Point(NamedTuple):
    """What was measured at one load.

    `against`: measured over objective of the SLO that is nearest to failing, above 1 it fails, with its 95 % interval;
    `limited_by` is that SLO. `latency` with its interval is what the knee is looked for in.
    """

    value: float
    state: State
    against: float | None = None
    low: float | None = None
    high: float | None = None
    limited_by: str = ""
    goodput_per_s: float | None = None
    latency: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None


class Range(NamedTuple):
    """The loads of a sweep. `precision` is the half width of the answer's interval that is aimed at, as a share."""

    low: float
    high: float
    precision: float = 0.05
    integers: bool = False  # concurrency

    def rounded(self, value: float) -> float:
        return float(round(value)) if self.integers else float(f"{value:.6g}")


class Next(NamedTuple):
    """Measure this load; `look` counts from 1: later looks at an undecided load should last longer."""

    value: float
    look: int


class Answer(msgspec.Struct, kw_only=True):
    """`answer` of sweep.json. With ABOVE_RANGE and CLIENT_LIMITED the value is the highest load that passed."""

    value: float | None
    ci95: tuple[float | None, float | None]
    state: Found
    limited_by: str | None = None


class Knee(msgspec.Struct, kw_only=True):
    value: float
    ci95: tuple[float, float]


class Peak(msgspec.Struct, kw_only=True):
    value: float
    goodput_per_s: float


class _Bracket(NamedTuple):
    """Highest load that passes, lowest above it that does not, and the undecided ones between; None at an open end."""

    low: float | None
    high: float | None
    limited: bool  # the upper end is the client's
    undecided: list[float]


def next_load(points: Sequence[Point], range_: Range) -> Next | None:
    """The next load to measure; None when the answer is as good as it gets."""
    if not points:
        return Next(range_.low, 1)
    looks = _looks(points)
    bracket = _bracket(looks, presumed=True)
    for value in _open_questions(bracket, looks, range_):
        return Next(value, len(looks.get(value, ())) + 1)
    return None


def _open_questions(bracket: _Bracket, looks: dict[float, list[Point]], range_: Range) -> Iterator[float]:
    """What is worth a measurement, the most useful first; the ends' second looks come last."""
    low, high = bracket.low, bracket.high
    yield from (value for value, points in looks.items() if _disturbed(points))
    if high is None:
        top = max(looks)
        if top < range_.high:
            yield range_.rounded(min(top * FACTOR, range_.high))
        # The highest load passes, or nobody knows: undecided ones get their further looks.
        yield from (value for value in bracket.undecided if len(looks[value]) < LOOKS_MAX)
    elif low is None:
        if min(looks) > range_.low:
            yield range_.low
        yield from (value for value in bracket.undecided if len(looks[value]) < LOOKS_MAX)
    else:
        yield from _inside(low, high, bracket.undecided, looks, range_)
    yield from (end for end in (low, high) if end is not None and _unsure(looks[end]))


def _inside(
    low: float, high: float, undecided: Sequence[float], looks: dict[float, list[Point]], range_: Range
) -> Iterator[float]:
    wide = high / low > (1 + range_.precision) ** 2
    if not wide:
        return
    step = 1 + range_.precision / (2 if undecided else 1)
    edges = [low, *undecided, high]
    for one, other in ((edges[0], edges[1]), (edges[-2], edges[-1])):
        middle = range_.rounded(math.sqrt(one * other))
        if other / one > step and middle not in looks:
            yield middle
    middle = math.sqrt(low * high)
    yield from sorted(
        (value for value in undecided if len(looks[value]) < LOOKS_MAX), key=lambda each: abs(math.log(each / middle))
    )


def _disturbed(points: Sequence[Point]) -> bool:
    """A load at which the client was the limit once: that says nothing yet."""
    decided = [point.state for point in points if point.state != "UNDECIDED"]
    return decided == ["CLIENT_LIMITED"] and len(points) < LOOKS_MAX


def _unsure(points: Sequence[Point]) -> bool:
    """An end of the bracket that was looked at once only; or whose looks disagree, and there may be more."""
    decided = [point.state for point in points if point.state != "UNDECIDED"]
    return len(points) < LOOKS_MAX and (len(decided) < 2 or decided.count(decided[0]) * 2 == len(decided))


def _looks(points: Sequence[Point]) -> dict[float, list[Point]]:
    found: dict[float, list[Point]] = {}
    for point in points:
        found.setdefault(point.value, []).append(point)
    return found


def _state(points: Sequence[Point]) -> State:
    """What the decided looks at one load agree on, or their majority; UNDECIDED where there is none."""
    decided = [point.state for point in points if point.state != "UNDECIDED"]
    if decided == ["CLIENT_LIMITED"]:
        return "UNDECIDED"
    return next((state for state in decided if 2 * decided.count(state) > len(decided)), "UNDECIDED")


def _clear(points: Sequence[Point]) -> bool:
    """Whether all looks at a load were far from what the objective allows."""
    return all(point.against is not None and point.against < CLEAR for point in points)


def _bracket(looks: dict[float, list[Point]], *, presumed: bool = False) -> _Bracket:
    """`presumed`: undecided loads that are clear of their objective count as passed."""
    states = {value: _state(looks[value]) for value in sorted(looks)}
    if presumed:
        states = {
            value: "PASS" if state == "UNDECIDED" and _clear(looks[value]) else state for value, state in states.items()
        }
    failed = [value for value, state in states.items() if state in ("FAIL", "CLIENT_LIMITED")]
    passed = [value for value, state in states.items() if state == "PASS"]
    # Where a load fails below one that passes, the end is the careful one on either side.
    low = max((value for value in passed if not failed or value < failed[0]), default=None)
    high = min((value for value in failed if not passed or value > passed[-1]), default=None)
    between = [value for value in states if (low is None or value > low) and (high is None or value < high)]
    return _Bracket(low, high, high is not None and states[high] == "CLIENT_LIMITED", between)


def answer_of(points: Sequence[Point], range_: Range) -> Answer:
    """The highest load that meets the objectives, with its interval."""
    looks = _looks(points)
    low, high, limited, undecided = _bracket(looks)
    limited_by = _limit(looks, high, undecided)
    if high is None and (low is None or low < range_.high):
        return Answer(value=low, ci95=(low, None), state="UNDECIDED", limited_by=limited_by)
    if high is None:
        return Answer(value=low, ci95=(low, None), state="ABOVE_RANGE")
    if limited:
        return Answer(value=low, ci95=(low, None), state="CLIENT_LIMITED")
    if low is None:
        below = not undecided and high <= range_.low
        return Answer(
            value=None, ci95=(None, high), state="BELOW_RANGE" if below else "UNDECIDED", limited_by=limited_by
        )
    adjacent = range_.integers and high - low <= 1
    narrow = adjacent or high / low <= (1 + range_.precision) ** 2 * (1 + 1e-9)
    if adjacent:
        return Answer(value=low, ci95=(low, high), state="FOUND", limited_by=limited_by)
    fit = _crossing(points, low, high)
    return Answer(
        value=min(max(fit.value, low), high),
        ci95=(min(low, fit.low), max(high, fit.high)),
        state="FOUND" if narrow else "UNDECIDED",
        limited_by=limited_by,
    )


def _limit(looks: dict[float, list[Point]], high: float | None, undecided: Sequence[float]) -> str | None:
    for value in ([] if high is None else [high]) + list(undecided):
        for point in looks[value]:
            if point.limited_by:
                return point.limited_by
    return None


class _Crossing(NamedTuple):
    value: float
    low: float
    high: float


def _crossing(points: Sequence[Point], low: float, high: float) -> _Crossing:
    """Where measured/objective is 1 on a line through the points around the bracket, with its 95 % interval; the
    bracket and its middle without such a line."""
    middle = _Crossing(math.sqrt(low * high), low, high)
    rows = [
        (math.log(point.value), math.log(point.against), (2 * _Z / max(math.log(point.high / point.low), 1e-3)) ** 2)
        for point in points
        if low / NEAR <= point.value <= high * NEAR
        and point.against is not None
        and point.low is not None
        and point.high is not None
        and 0 < point.low < point.high
        and point.against > 0
    ]
    if len({x for x, _, _ in rows}) < 2:
        return middle
    x, y, weight = np.array(rows).T
    centre, level = float(np.average(x, weights=weight)), float(np.average(y, weights=weight))
    across = float(np.sum(weight * (x - centre) ** 2))
    slope = float(np.sum(weight * (x - centre) * (y - level))) / across
    if slope <= 0:
        return middle
    at = centre - level / slope
    reach = _Z * math.sqrt(1 / float(weight.sum()) + (at - centre) ** 2 / across) / slope
    if reach > math.log(NEAR):  # the line is too flat to say where it meets the objective
        return middle
    return _Crossing(math.exp(at), math.exp(at - reach), math.exp(at + reach))


def peak_of(points: Sequence[Point]) -> Peak | None:
    """The load with the highest goodput; None where none was measured."""
    known = [(point.goodput_per_s, point.value) for point in points if point.goodput_per_s is not None]
    return Peak(value=max(known)[1], goodput_per_s=max(known)[0]) if known else None


def knee_of(points: Sequence[Point], *, seed: int = 0) -> Knee | None:
    """The load from which latency grows faster than load: Kneedle (Satopaa et al., ICDCSW 2011), the point of a convex
    curve that lies farthest below the line from its first to its last point.

    The interval is of the knees that the curve has when its latencies vary within their own intervals. None with fewer
    than 4 loads, and where the curve does not bend. Points at which the client is the limit are left out.
    """
    known = {point.value: point for point in points if point.latency is not None and point.state != "CLIENT_LIMITED"}
    loads = np.array(sorted(known))
    if len(loads) < KNEE_POINTS:
        return None
    curve = [known[value] for value in loads.tolist()]
    latency = np.array([point.latency or 0.0 for point in curve])
    spread = np.array([_spread(point) for point in curve])
    found = _kneedle(loads, latency)
    if found is None:
        return None
    random = np.random.default_rng(seed)
    varied = [_kneedle(loads, latency * np.exp(spread * random.standard_normal(len(loads)))) for _ in range(_DRAWS)]
    knees = [each for each in varied if each is not None] or [found]
    low, high = np.quantile(knees, (0.025, 0.975), method="nearest")
    return Knee(value=found, ci95=(min(float(low), found), max(float(high), found)))


def _spread(point: Point) -> float:
    """Standard error of the logarithm of the latency."""
    if not point.latency_low or not point.latency_high or point.latency_low <= 0:
        return 0.0
    return math.log(point.latency_high / point.latency_low) / 2 / _Z


def _kneedle(x: Floats, y: Floats) -> float | None:
    rise = float(y[-1] - y[0])
    if rise <= 0:
        return None
    below = (x - x[0]) / (x[-1] - x[0]) - (y - y[0]) / rise
    best = int(np.argmax(below))
    return float(x[best]) if below[best] > 0 else None

"""What is known, and how much more it takes: stopping a run, and judging an objective, by interval. No clock, no file.

Stopping at the first look whose interval is narrow enough stops on the narrowest of many estimates: too early, with an
interval that covers too rarely. So a goal is reached only when the width, averaged over the looks of the last tenth of
the data, at least five, and scaled to today's number of requests, is narrow enough too. benches/coverage.py --only until
prints what that costs in requests, and the coverage at the moment of stopping.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal, NamedTuple

from .confidence import Interval

Verdict = Literal["PASS", "FAIL", "UNDECIDED"]

BACK: Final = 0.1  # share of the requests over whose looks the width is averaged
LOOKS_MIN: Final = 5
N_EFF_MIN: Final = 100.0  # independent observations below which a width is itself too uncertain to stop on
NEEDS_MAX: Final = 1e4  # times the requests so far; beyond, the value is the objective as far as anyone can tell


class Needs(NamedTuple):
    """What is still missing for a decision; None where no number of requests is in sight."""

    requests: int | None = 0
    seconds: float | None = 0.0


class Judgement(NamedTuple):
    """An objective's state, and for UNDECIDED what it needs."""

    state: Verdict
    needs: Needs = Needs()


def judge(interval: Interval | None, operator: str, bound: float, *, requests: int, duration_s: float) -> Judgement:
    """PASS if all of the interval meets `value OPERATOR bound`, FAIL if none of it does, else UNDECIDED.

    `operator` is one of <, <=, >, >=. `requests` were needed so far, over `duration_s`. A half width shrinks with the
    root of their number; where the side that faces the bound has none, it appears at a `support` of 1.
    """
    if interval is None:
        return Judgement("UNDECIDED", Needs(None, None))
    if operator in (">", ">="):  # mirrored, so that below is always met
        mirrored = [None if each is None else -each for each in (interval.high, interval.low)]
        interval = interval._replace(value=-interval.value, low=mirrored[0], high=mirrored[1])
        bound = -bound
    low, high = interval.low, interval.high
    if high is not None and (high < bound or (high == bound and operator.endswith("="))):
        return Judgement("PASS")
    if low is not None and (low > bound or (low == bound and not operator.endswith("="))):
        return Judgement("FAIL")
    facing = high if interval.value <= bound else low
    return Judgement("UNDECIDED", _needs(interval, facing, bound, requests, duration_s))


def _needs(interval: Interval, facing: float | None, bound: float, requests: int, duration_s: float) -> Needs:
    distance = abs(interval.value - bound)
    if facing is not None:
        factor = (abs(facing - interval.value) / distance) ** 2 if distance else math.inf
    elif interval.support and math.isfinite(interval.support):
        factor = max(1 / interval.support, 1.0) * 1.5  # a bound that has just appeared is wide
    else:
        factor = math.inf
    if not factor < NEEDS_MAX:
        return Needs(None, None)
    more = max(factor - 1, 0.0)
    return Needs(max(1, math.ceil(requests * more)), duration_s * more)


class Goal:
    """One `--until`: the half width of a statistic's interval within `share` of its value, under repeated looking.

    `look` at every tick; True from the look on at which the run may end.
    """

    __slots__ = ("_looks", "reached", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self.reached = False
        self._looks: deque[tuple[int, float]] = deque()  # requests, relative half width x root of the requests

    def look(self, interval: Interval | None, requests: int) -> bool:
        """Takes in the interval over the `requests` so far."""
        if self.reached or interval is None or interval.half_width is None or not interval.value:
            return self.reached
        width = interval.half_width / abs(interval.value)
        self._looks.append((requests, width * math.sqrt(requests)))
        # At least LOOKS_MIN: a look a second makes a tenth of the data hold so many only after a minute.
        while self._looks[0][0] < requests * (1 - BACK) and len(self._looks) > LOOKS_MIN:
            self._looks.popleft()
        if interval.n_eff < N_EFF_MIN or len(self._looks) < LOOKS_MIN or width > self.share:
            return False
        mean = sum(each for _, each in self._looks) / len(self._looks)
        self.reached = mean <= self.share * math.sqrt(requests)
        return self.reached

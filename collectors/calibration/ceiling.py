"""Which rate to try next, and the ceiling so far: bisection around a first guess. Pure.

The first trial is below the guess, the next above it or further below, until one rate holds and a higher one does not;
then the bracket is halved (of logarithms) until it is as narrow as the precision. A trial that something else disturbed
says nothing and is made again, at most DISTURBED_MAX times in all.
"""

from __future__ import annotations

import math
from typing import Final, Literal

Outcome = Literal["holds", "broken", "disturbed", "server_limited"]

DISTURBED_MAX: Final = 2
STEP: Final = 1.5  # between rates while only one side is known, after the first two trials


class CeilingSearch:
    """`next_rate()` until it is None; `add()` what came of it. `precision`: half width of the answer, as a share."""

    def __init__(self, guess: float, *, precision: float) -> None:
        self._guess = guess
        self._precision = precision
        self._holds: float | None = None  # the highest rate that held below all that did not
        self._broken: float | None = None  # the lowest that did not
        self._disturbed = 0
        self.limited_by_server = False

    def next_rate(self) -> float | None:
        """The rate to try; None when the answer is as good as it gets."""
        low, high = self._holds, self._broken
        if self.limited_by_server or self._disturbed >= DISTURBED_MAX:
            return None
        if low is None and high is None:
            return self._guess / (1 + self._precision)
        if high is None and low is not None:
            above = self._guess * (1 + self._precision)
            return above if above > low * (1 + self._precision / 2) else low * STEP
        if low is None and high is not None:
            below = self._guess / (1 + self._precision) ** 3
            return below if below < high * (1 - self._precision / 2) else high / STEP
        assert low is not None
        assert high is not None
        if high / low <= (1 + self._precision) ** 2 * (1 + 1e-9):
            return None
        return math.sqrt(low * high)

    def add(self, rate: float, outcome: Outcome) -> None:
        if outcome == "holds":
            self._holds = max(rate, self._holds or 0.0)
            if self._broken is not None and self._broken <= self._holds:  # it broke lower before: once is no law
                self._broken = None
        elif outcome == "broken":
            self._broken = min(rate, self._broken or math.inf)
            if self._holds is not None and self._holds >= self._broken:
                self._holds = None
        elif outcome == "server_limited":
            self.limited_by_server = True
        else:
            self._disturbed += 1

    @property
    def value(self) -> float | None:
        """The ceiling: the middle of the bracket, or the highest rate that held while none broke. None if none held."""
        if self._holds is None:
            return None
        return self._holds if self._broken is None else math.sqrt(self._holds * self._broken)

    @property
    def bounded(self) -> bool:
        """Was a rate seen that did not hold? Else the value is a lower bound."""
        return self._holds is not None and self._broken is not None

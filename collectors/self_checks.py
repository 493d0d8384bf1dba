"""Checks that our own numbers fit together. Pure; each returns a note for the verdict, or None where it holds.

Little's law: the mean number of requests in flight, as the rings had it at the end of each tick, is the rate of requests
times their mean residence, as the records have it. It holds whatever the server does; where it fails, requests were lost
or counted twice, or their times are wrong.

Arrivals: an open loop claims that its requests were sent at constant intervals or as a Poisson process. The first
SLOTS_KEPT slots of a phase are looked at. Their send times are not in the checkpoint: after a restart of the collector
there is no check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..engine.plan.plan import SECOND, Phase, Plan
from ..engine.records.record import Outcome
from .confidence import ratio
from .measures import Records
from .run_ladders import COUNTS, RunLadders, count_of
from .series import Series, Tally
from .snapshot import Reason

SLOTS_KEPT: Final = 4096
SLOTS_MIN: Final = 100
TOLERANCE: Final = 0.05  # of Little's law: requests that begin or end between two looks
UNTIMED_MAX: Final = (
    0.01  # share of the sent without a residence (cancelled, left behind), above which it cannot be checked
)
ANDERSON_DARLING_MAX: Final = 6.0  # 0.1 % of true Poisson processes exceed it (Marsaglia & Marsaglia 2004)
LATE_MIN_S: Final = 0.001
LATE_SHARE: Final = 0.05  # of the interval
LATE_SLOTS_MAX: Final = 0.01  # share of the slots that may deviate further


def littles_law(ladders: RunLadders, phase: int, series: Series, duration_ns: int, tick_ns: int) -> Reason | None:
    """Compares in-flight with rate x residence in one phase, `series` being its totals."""
    blocks = ladders.blocks(lambda key: key[0] == phase, COUNTS)
    tally = series.tally
    untimed = series.sent - int(tally[Outcome.OK]) - series.failed + int(tally[Tally.STEPPED] + tally[Tally.DROPPED])
    if blocks is None or duration_ns <= 0 or untimed > UNTIMED_MAX * series.sent or tally[Tally.ATTEMPTS] > series.sent:
        return None
    in_flight, ticks = count_of(blocks, (Tally.IN_FLIGHT_SUM,)), count_of(blocks, (Tally.IN_FLIGHT_TICKS,))
    if not ticks.any():
        return None
    seen = ratio(in_flight, ticks)
    if seen.low is None or seen.high is None:
        return None
    times = [series.metrics.get("e2e_ms"), *series.failures.values()]
    expected = sum(each.sum for each in times if each is not None) / duration_ns
    # The interval is of 95 %: twice its width, and requests shorter than a tick come and go between two looks.
    room = (seen.high - seen.low) + TOLERANCE * expected + tick_ns / duration_ns * expected + 1
    if abs(seen.value - expected) <= room:
        return None
    return Reason(
        "littles_law",
        f"{seen.value:.2f} requests were in flight on average, their rate times their mean duration is {expected:.2f}",
    )


class Arrivals:
    """When the first slots of each measured open-loop phase of constant rate were sent."""

    def __init__(self, plan: Plan) -> None:
        self._phases: dict[int, Phase] = {i: phase for i, phase in enumerate(plan.phases) if _rate(phase)}
        self._sent = {i: np.zeros(SLOTS_KEPT, np.int64) for i in self._phases}

    def add(self, records: Records) -> None:
        """Takes in the send times of a batch."""
        for phase, sent in self._sent.items():
            mine = records[(records["phase"] == phase) & (records["request"] < SLOTS_KEPT)]
            if len(mine):
                sent[mine["request"].astype(np.int64)] = mine["send_ns"]

    def check(self) -> list[Reason]:
        """The phases whose requests were not sent as the plan says."""
        found = (_deviation(phase, self._sent[i]) for i, phase in self._phases.items())
        return [Reason("arrivals", text) for text in found if text]


def _rate(phase: Phase) -> float:
    """Requests per second of a phase whose arrivals can be checked, else 0."""
    load = phase.load
    flat = len(load.shapes) == 1 and load.shapes[0].start == load.shapes[0].end
    known = (
        phase.measure
        and load.model == "open"
        and load.arrivals in ("constant", "poisson")
        and load.max_in_flight is None
    )
    return load.shapes[0].start if known and flat else 0.0


def _deviation(phase: Phase, sent: npt.NDArray[np.int64]) -> str:
    known = int(np.argmin(sent > 0)) if not (sent > 0).all() else len(sent)  # the slots before the first one missing
    if known < SLOTS_MIN:
        return ""
    rate, times = _rate(phase), np.sort(sent[:known]) / SECOND
    if phase.load.arrivals == "poisson":
        statistic = anderson_darling(np.diff(times), rate)
        if statistic <= ANDERSON_DARLING_MAX:
            return ""
        return (
            f"{phase.name}: the gaps between sent requests are not those of a Poisson process of {rate:g}/s "
            f"(Anderson-Darling {statistic:.1f} > {ANDERSON_DARLING_MAX:g})"
        )
    off = np.abs(times - times[0] - np.arange(known) / rate)
    off = np.abs(off - np.median(off))
    share = float((off > max(LATE_MIN_S, LATE_SHARE / rate)).mean())
    if share <= LATE_SLOTS_MAX:
        return ""
    return f"{phase.name}: {share:.1%} of the requests were sent off their constant interval, by up to {off.max() * 1e3:.1f} ms"


def anderson_darling(gaps: npt.NDArray[np.float64], rate: float) -> float:
    """A^2 of the gaps, in s, against the exponential distribution of this rate (Anderson & Darling, JASA 1954)."""
    n = len(gaps)
    reached = np.clip(-np.expm1(-rate * np.sort(gaps)), 1e-12, 1 - 1e-12)
    weights = 2 * np.arange(1, n + 1) - 1
    return float(-n - np.dot(weights, np.log(reached) + np.log1p(-reached[::-1])) / n)


def failed_checks(
    ladders: RunLadders,
    arrivals: Sequence[Reason],
    phases: Mapping[int, tuple[Series, int]],
    tick_ns: int,
) -> tuple[Reason, ...]:
    """The notes of a finished run: those of its `arrivals` and of Little's law; `phases` has the totals of the measured ones and their time in ns, from the start to the last end."""
    laws = (
        littles_law(ladders, phase, series, duration_ns, tick_ns) for phase, (series, duration_ns) in phases.items()
    )
    return (*(note for note in laws if note is not None), *arrivals)

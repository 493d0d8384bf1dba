"""Alert rules over a moving window: what `lens probe` notifies people of. Sans-IO: numbers in, changes out.

A rule fires when its expression holds over the last `over_ns` with enough requests in it, and is resolved when it no
longer holds. With too few requests nothing changes: silence proves neither.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec

from ..engine.metrics import PERCENTILES, SCALES
from ..engine.plan.plan import SECOND, Alert
from ..engine.plan.slo import Objective, objective_of
from .rollup import FAILURES, Slice
from .snapshot import Snapshot

# Of the names in Interval.counts, those that the rules on totals are made of.
_COUNTED: Final = frozenset(
    {"ok", "output", "by_provider", "by_tokenizer", "by_events", "priced", "pico_usd", *FAILURES}
)

Filled = Sequence[tuple[float, int]]  # values in histogram units, and how often each came


class Counted(NamedTuple):
    """What happened to one target in one tick and phase."""

    end_ns: int  # Unix epoch
    target: str
    counts: Slice


class Values(msgspec.Struct):
    """One metric's values of one target in one tick."""

    end_ns: int
    target: str
    metric: str
    filled: Filled


class Change(msgspec.Struct, frozen=True):
    """An alert that began to fire, or was resolved."""

    alert: Alert
    firing: bool
    value: float
    samples: int


class Window:
    """The ticks of the last `keep_ns`, in order of time."""

    def __init__(self, keep_ns: int) -> None:
        self._keep_ns = keep_ns
        self._counts: deque[Counted] = deque()
        self._values: deque[Values] = deque()

    def tick(self, snapshot: Snapshot) -> None:
        """Takes the counts of one tick; of those only the ones that a rule can ask for, as windows may be long."""
        for part in snapshot.intervals:
            counts = {name: n for name, n in part.counts.items() if name in _COUNTED}
            if part.measured and counts:
                self._counts.append(Counted(snapshot.wall_time_ns, part.target, Slice(counts=counts)))

    def values(self, values: Values) -> None:
        """Takes the values of one metric in one tick."""
        self._values.append(values)

    def forget(self, now_ns: int) -> None:
        """Removes what is older than the window."""
        for kept in (self._counts, self._values):
            while kept and kept[0].end_ns <= now_ns - self._keep_ns:
                kept.popleft()

    def value(self, objective: Objective, target: str | None, since_ns: int) -> tuple[float | None, int]:
        """The objective's metric since `since_ns`, of one target or of all, and how many requests it is of."""
        counts = [each for each in self._counts if each.end_ns > since_ns and target in (None, each.target)]
        if objective.statistic is None:
            return _total(objective.metric, counts, since_ns)
        parts = (
            each.filled
            for each in self._values
            if each.metric == objective.metric and each.end_ns > since_ns and target in (None, each.target)
        )
        found = statistic(sorted(chain.from_iterable(parts)), objective.statistic)
        return (None if found is None else found / SCALES[objective.metric]), sum(
            each.counts.count("ok") for each in counts
        )


def _total(name: str, counted: Sequence[Counted], since_ns: int) -> tuple[float | None, int]:
    total = Slice()
    for each in counted:
        total.merge(each.counts)
    ok, failed = total.count("ok"), total.failed
    if not ok + failed:
        return None, 0
    seconds = max(1.0, (counted[-1].end_ns - since_ns) / SECOND)
    value = {
        "error_rate": failed / (ok + failed),
        "requests_per_s": ok / seconds,
        "output_tokens_per_s": (total.tokens("output") or 0) / seconds,
        "cost_total_usd": total.usd or 0.0,
    }[name]
    return value, ok + failed


def statistic(filled: Filled, name: str) -> float | None:
    """p50 .. p99_9 (nearest rank), mean, stddev, min or max of counted values in rising order; None without any."""
    total = sum(count for _, count in filled)
    if not total:
        return None
    if name in PERCENTILES:
        rank, seen = math.ceil(PERCENTILES[name] / 100 * total), 0
        for value, count in filled:
            seen += count
            if seen >= rank:
                return value
    mean = math.fsum(value * count for value, count in filled) / total
    spread = math.fsum((value - mean) ** 2 * count for value, count in filled) / total
    return {"mean": mean, "stddev": math.sqrt(spread), "min": filled[0][0], "max": filled[-1][0]}[name]


class AlertBook:
    """Which alerts fire. `firing` (name -> Unix epoch ns since when) is what has to survive a restart."""

    def __init__(self, alerts: Iterable[Alert], firing: dict[str, int] | None = None) -> None:
        self.alerts = [(alert, objective_of(alert.when)) for alert in alerts]
        names = {alert.name for alert, _ in self.alerts}
        self.firing = {name: since for name, since in (firing or {}).items() if name in names}

    @property
    def keep_ns(self) -> int:
        """How much of the past the rules look at."""
        return max((alert.over_ns for alert, _ in self.alerts), default=0)

    def judge(
        self, value: Callable[[Objective, str | None, int], tuple[float | None, int]], now_ns: int
    ) -> list[Change]:
        """Evaluates every rule once; returns what changed."""
        changes: list[Change] = []
        for alert, objective in self.alerts:
            found, samples = value(objective, alert.target, now_ns - alert.over_ns)
            if found is None or samples < alert.samples:
                continue
            firing = objective.holds(found)
            if firing == (alert.name in self.firing):
                continue
            if firing:
                self.firing[alert.name] = now_ns
            else:
                del self.firing[alert.name]
            changes.append(Change(alert, firing, found, samples))
        return changes


def notification(change: Change, now: str, plan: str) -> dict[str, Any]:
    """The body of a change's webhook call."""
    alert = change.alert
    return {
        "alert": alert.name,
        "state": "firing" if change.firing else "resolved",
        "when": alert.when,
        "value": change.value,
        "target": alert.target,
        "over_s": alert.over_ns / SECOND,
        "samples": change.samples,
        "plan": plan,
        "at": now,
    }

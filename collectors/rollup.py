"""Ticks added up: the one place that knows how the numbers of a tick combine with those of the next.

Counts and bucket counts add up. In-flight is the highest. Count, sum, spread and extremes of a distribution combine
exactly. Percentiles do not combine: charts show the count-weighted mean of the ticks' p50 and their highest p99, reports
take them from the sum of the ticks' histograms (exporters.hdr).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from ..engine.metrics import BUCKETS, OUTCOMES, UNSENT
from .snapshot import Moments

PICO_PER_USD: Final = 1e12
FAILURES: Final = tuple(
    name for group in OUTCOMES.values() for name in group if name not in ("ok", "cancelled", "in_flight")
)
UNRECORDED: Final = "unrecorded"  # unsent, but a full ring lost the reason


class Levels(Protocol):
    """What of a distribution charts show; snapshot.Distribution, or a struct that decodes no more than this."""

    @property
    def count(self) -> int: ...
    @property
    def p50(self) -> float | None: ...
    @property
    def p99(self) -> float | None: ...


class Part(Protocol):
    """What of an interval adds up; snapshot.Interval, or a struct that decodes no more than this."""

    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def buckets(self) -> Mapping[str, Sequence[int]]: ...
    @property
    def moments(self) -> Mapping[str, Moments]: ...
    @property
    def metrics(self) -> Mapping[str, Levels]: ...


class Slice:
    """One target, phase or both over some ticks: `add` takes a tick's interval, `merge` another Slice.

    `shown` names the metrics whose p50 and p99 are kept for charts.
    """

    __slots__ = ("buckets", "counts", "highest", "in_flight", "moments", "shown", "weighted")

    def __init__(self, shown: Sequence[str] = (), counts: dict[str, int] | None = None) -> None:
        self.shown = shown
        self.counts: dict[str, int] = counts or {}  # by the names of Tally and Outcome, as in Interval.counts
        self.in_flight = 0
        self.buckets: dict[str, list[int]] = {}
        self.moments: dict[str, Moments] = {}
        self.weighted: dict[str, tuple[int, float]] = {}  # count, sum of count * p50
        self.highest: dict[str, float] = {}  # p99

    def add(self, part: Part) -> None:
        self._add(part.counts, part.in_flight, part.buckets, part.moments)
        for metric in self.shown:
            levels = part.metrics.get(metric)
            if levels is not None and levels.count and levels.p50 is not None and levels.p99 is not None:
                self._show(metric, levels.count, levels.count * levels.p50, levels.p99)

    def merge(self, other: Slice) -> None:
        self._add(other.counts, other.in_flight, other.buckets, other.moments)
        for metric, (count, weighted) in other.weighted.items():
            self._show(metric, count, weighted, other.highest[metric])

    def _add(
        self,
        counts: Mapping[str, int],
        in_flight: int,
        buckets: Mapping[str, Sequence[int]],
        moments: Mapping[str, Moments],
    ) -> None:
        mine = self.counts
        for name, n in counts.items():
            mine[name] = mine.get(name, 0) + n
        self.in_flight = max(self.in_flight, in_flight)
        for metric, each in buckets.items():
            if len(each) != len(BUCKETS.get(metric, ())) + 1:
                continue  # of a run of a version with other bounds
            known = self.buckets.get(metric)
            self.buckets[metric] = [*each] if known is None else [a + b for a, b in zip(known, each, strict=True)]
        for metric, more in moments.items():
            before = self.moments.get(metric)
            self.moments[metric] = more if before is None else joined(before, more)

    def _show(self, metric: str, count: int, weighted: float, p99: float) -> None:
        before, total = self.weighted.get(metric, (0, 0.0))
        self.weighted[metric] = (before + count, total + weighted)
        self.highest[metric] = max(p99, self.highest.get(metric, p99))

    def count(self, name: str) -> int:
        return self.counts.get(name, 0)

    def p50(self, metric: str) -> float | None:
        """Of a metric in `shown`: the count-weighted mean of the ticks' p50, in its unit."""
        count, total = self.weighted.get(metric, (0, 0.0))
        return total / count if count else None

    def p99(self, metric: str) -> float | None:
        """Of a metric in `shown`: the highest of the ticks' p99, in its unit."""
        return self.highest.get(metric)

    @property
    def sent(self) -> int:
        return max(self.count("live_sent"), self._ended)

    @property
    def _ended(self) -> int:
        return self.count("ok") + self.failed + self.count("cancelled") + self.count("in_flight")

    @property
    def failed(self) -> int:
        return sum(self.count(name) for name in FAILURES)

    @property
    def outcomes(self) -> dict[str, int]:
        """Ended requests by outcome: `ok` and `cancelled` always, failures that happened."""
        failures = {name: n for name in FAILURES if (n := self.count(name))}
        return {"ok": self.count("ok"), "cancelled": self.count("cancelled"), **failures}

    @property
    def unsent(self) -> dict[str, int]:
        """Slots that were not sent, by reason."""
        return {name: n for name in (UNRECORDED, *UNSENT) if (n := self.count(f"unsent_{name}"))}

    def tokens(self, kind: str) -> int | None:
        """Tokens, output when it arrived: requests that still run are included. None where no reply said."""
        return self.count("live_tokens") or self.tokens_ended(kind) if kind == "output" else self.tokens_ended(kind)

    def tokens_ended(self, kind: str) -> int | None:
        """Tokens of ok requests, None where no reply said. Output falls back to the token events that were counted."""
        sources = ("by_provider", "by_tokenizer", "by_events") if kind == "output" else (f"{kind}_known",)
        return self.count(kind) if any(self.count(name) for name in sources) else None

    @property
    def usd(self) -> float | None:
        """Cost of the requests whose price is known; None without any."""
        return self.count("pico_usd") / PICO_PER_USD if self.count("priced") else None


def joined(one: Moments, other: Moments) -> Moments:
    """The moments of both samples together: Chan, Golub and LeVeque's pairwise update (1979)."""
    count = one.count + other.count
    delta = other.sum / other.count - one.sum / one.count
    return Moments(
        count=count,
        sum=one.sum + other.sum,
        m2=one.m2 + other.m2 + delta * delta * one.count * other.count / count,
        min=min(one.min, other.min),
        max=max(one.max, other.max),
    )

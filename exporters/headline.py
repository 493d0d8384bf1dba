"""The numbers that people look for first, and which numbers of a run say something at all. Pure, no layout.

Times scale with their size: a row of a table is in ms, in s from one second at the median on, or in us below a tenth of
a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ..collectors.snapshot import Distribution, Report, Requests, Slo
from ..engine.metrics import METRICS
from . import figures

LEVELS: Final = ("p50", "p90", "p95", "p99")
SECONDS_FROM_MS: Final = 1000.0
MICROSECONDS_BELOW_MS: Final = 0.1
SAME_SHARE: Final = 1e-3  # two distributions that differ by less than the histogram resolves are the same
# A metric that repeats another: where both have the same values, it is left out.
_REPEATS: Final = {
    "ttfo_ms": "ttft_ms",
    "ttft_scheduled_ms": "ttft_ms",
    "e2e_scheduled_ms": "e2e_ms",
    "client_lateness_ms": "lateness_ms",
}
_OF_SCHEDULES: Final = ("ttft_scheduled_ms", "e2e_scheduled_ms", "lateness_ms", "client_lateness_ms")
_CONNECTING: Final = ("dns_ms", "tcp_ms", "tls_ms")


class Scale(NamedTuple):
    """The unit that a row is shown in, and its factor from the metric's own."""

    unit: str
    factor: float = 1.0

    def value(self, number: float | None, metric: str = "x_ms") -> str:
        return figures.value(None if number is None else number * self.factor, metric)

    def interval(self, distribution: Distribution, level: str, metric: str) -> str:
        found = getattr(distribution.ci95, level) if distribution.ci95 else None
        low, high = found or (None, None)
        scaled = [None if each is None else each * self.factor for each in (low, high)]
        return figures.bounds((scaled[0], scaled[1]), metric)


def scale_of(metric: str, distributions: Sequence[Distribution]) -> Scale:
    """The unit in which the largest median of these is easy to read."""
    unit = METRICS[metric].unit if metric in METRICS else "ms"
    if unit != "ms":
        return Scale(unit)
    middle = max((d.p50 for d in distributions if d.p50 is not None), default=None)
    high = max((d.p99 for d in distributions if d.p99 is not None), default=None)
    if middle is not None and middle >= SECONDS_FROM_MS:
        return Scale("s", 1e-3)
    if high is not None and 0 < high < MICROSECONDS_BELOW_MS:
        return Scale("us", 1e3)
    return Scale("ms")


def label(metric: str, scale: Scale) -> str:
    """`TTFT ms`, `E2E s`."""
    return f"{METRICS[metric].label} {scale.unit}"


def informative(metrics: dict[str, Distribution], load: str) -> list[tuple[str, Distribution]]:
    """The metrics that say something, in the catalogue's order: with values, not those of another, not of a schedule
    that a closed loop does not have."""
    found = []
    for name in METRICS:
        d = metrics.get(name)
        if d is None or not d.count or (load == "closed" and name in _OF_SCHEDULES):
            continue
        if name in _CONNECTING and (d.max or 0) <= 0:
            continue
        if name == "tokens_per_event" and d.max == 1:
            continue
        other = metrics.get(_REPEATS.get(name, ""))
        if other is None or not _same(d, other):
            found.append((name, d))
    return found


def _same(one: Distribution, other: Distribution) -> bool:
    pairs = [(getattr(one, level), getattr(other, level)) for level in (*LEVELS, "mean", "max")]
    return one.count == other.count and all(
        a is not None and b is not None and abs(a - b) <= SAME_SHARE * abs(b) for a, b in pairs
    )


def far_note(shown: Sequence[tuple[str, Distribution]]) -> str:
    """Why p99.9 is not there, for all metrics or for those that have none; empty where all have it."""
    missing = [d for _, d in shown if d.p99_9 is None]
    others = " of the others" if len(missing) < len(shown) else ""
    return f"p99.9{others}: {figures.TOO_SMALL}" if missing else ""


def paced_by(metrics: dict[str, Distribution]) -> str:
    """The metric of the pace between tokens: ITL, or TPOT where no gap was measured."""
    itl = metrics.get("itl_ms")
    return "itl_ms" if itl is not None and itl.count else "tpot_ms"


def headline_metrics(metrics: dict[str, Distribution]) -> list[tuple[str, Distribution]]:
    names = ("ttft_ms", paced_by(metrics), "e2e_ms")
    return [(name, d) for name in names if (d := metrics.get(name)) and d.count]


def error_rate(requests: Requests) -> str:
    """The share of the sent requests that failed, `2.1 %`; `–` if none was sent."""
    return figures.share(figures.failed(requests) / requests.sent) if requests.sent else figures.MISSING


def objectives(slos: Sequence[Slo]) -> str:
    """`3 of 3 PASS`, `1 FAIL, 1 UNDECIDED of 3`; empty without any."""
    states = [slo.state for slo in slos]
    if states and all(state == "PASS" for state in states):
        return f"{len(states)} of {len(states)} PASS"
    counted = [f"{n} {state}" for state in ("FAIL", "UNDECIDED") if (n := states.count(state))]
    return f"{', '.join(counted)} of {len(states)}" if counted else ""


def slo_state(slos: Sequence[Slo]) -> str:
    """The worst of the objectives' states; empty without any."""
    return next((state for state in ("FAIL", "UNDECIDED", "PASS") if any(s.state == state for s in slos)), "")


def totals(report: Report) -> list[tuple[str, str]]:
    """(number, what it is) of the run as one: rates, failures, cost, objectives."""
    found = [
        (figures.rate(report.throughput.output_tokens_per_s), "output tokens/s"),
        (figures.rate(report.throughput.requests_per_s), "requests/s"),
        (error_rate(report.requests), f"failed of {report.requests.sent:,} sent"),
    ]
    if report.cost.usd is not None:
        found.append((figures.money(report.cost.usd), "cost"))
        found.append((figures.money(report.cost.usd_per_1k_requests), "per 1k requests"))
        if report.cost.usd_per_day is not None:
            found.append((figures.money(report.cost.usd_per_day), "per day at this rate"))
    if report.throughput.goodput_share is not None:
        found.append((figures.share(report.throughput.goodput_share), "met every request SLO"))
    if report.slo:
        found.append((objectives(report.slo), f"objective{'s' * (len(report.slo) != 1)}"))
    return [(number, what) for number, what in found if number != figures.MISSING]

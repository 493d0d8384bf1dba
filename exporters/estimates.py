"""The end-of-run statistics of a report with their 95 % intervals, part by part, as CSV and the databases get them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, Literal, NamedTuple

from ..collectors.snapshot import Ci95, Distribution, Report
from ..engine.metrics import Metric
from ..engine.plan.plan import SECOND

Scope = Literal["run", "steady", "phase", "target"]
Bound = Literal["value", "low", "high"]

STATISTICS: Final = Ci95.__struct_fields__  # those that have an interval
_BASE_UNITS: Final = {
    "ms": ("seconds", "s"),
    "tok/s": ("tokens_per_second", "{token}/s"),
    "USD": ("usd", "USD"),
    "tokens": ("tokens", "{token}"),
}


class Part(NamedTuple):
    """What a distribution is of: the run, its stationary part, a phase or a target. `name` is of the phase or target."""

    scope: Scope
    name: str
    metrics: dict[str, Distribution]

    @property
    def target(self) -> str:
        return self.name if self.scope == "target" else ""

    @property
    def phase(self) -> str:
        return self.name if self.scope == "phase" else ""


class Estimate(NamedTuple):
    """A statistic, or an end of its interval, in the metric's unit."""

    statistic: str
    bound: Bound
    value: float


class BaseUnit(NamedTuple):
    """A metric in the unit that databases want."""

    name: str  # `ttft`: the metric without its unit
    suffix: str  # of a Prometheus name
    ucum: str  # OpenTelemetry's spelling (The Unified Code for Units of Measure)
    factor: float  # from the metric's unit

    @classmethod
    def of(cls, metric: Metric) -> BaseUnit:
        name = (
            metric.name if metric.unit == "tokens" else metric.name.rpartition("_")[0]
        )  # tokens_per_event has no unit
        return cls(name, *_BASE_UNITS[metric.unit], metric.base_factor)


def parts(report: Report) -> Iterator[Part]:
    """The parts of a report."""
    yield Part("run", "", report.metrics)
    if report.steady is not None:
        yield Part("steady", "", report.steady.metrics)
    yield from (Part("phase", phase.name, phase.metrics) for phase in report.run.phases)
    yield from (Part("target", target.name, target.metrics) for target in report.targets)


def estimates(distribution: Distribution) -> Iterator[Estimate]:
    """Each statistic that is known, then the ends of its interval that are: one that the sample cannot give is left out."""
    for statistic in STATISTICS:
        low, high = getattr(distribution.ci95 or Ci95(), statistic)
        ends: tuple[tuple[Bound, float | None], ...] = (
            ("value", getattr(distribution, statistic)),
            ("low", low),
            ("high", high),
        )
        yield from (Estimate(statistic, bound, value) for bound, value in ends if value is not None)


def span_ns(report: Report) -> tuple[int, int]:
    """Start and end of the run, Unix epoch: the same however often it is exported."""
    start_ns = round(datetime.fromisoformat(report.run.started_at).timestamp() * 1000) * (SECOND // 1000)
    return start_ns, start_ns + round(report.run.duration_s * SECOND)

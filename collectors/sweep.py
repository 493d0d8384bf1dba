"""sweep.json: what the runs of a sweep say together. No clock, no file.

Everything follows from the finished runs, their loads and what was asked for, so that a sweep that was killed is
continued from its run directories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from ..engine.plan.plan import Gpus
from .capacity import Answer, Knee, Next, Peak, Point, Range, State, answer_of, knee_of, next_load, peak_of
from .gpus import gpus_of
from .point import point_of
from .snapshot import SCHEMA, Distribution, GpuReport, Report, Requests, Throughput

Over = Literal["rate", "concurrency"]

ENCODER: Final = msgspec.json.Encoder()


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep was asked for. `grid` are the loads of a fixed staircase, in their order; empty to search."""

    over: Over
    low: float
    high: float
    precision: float = 0.05
    grid: tuple[float, ...] = ()
    require: float | None = None

    @property
    def range(self) -> Range:
        """Of a grid, the answer lies between two of its loads: no precision is missed."""
        precision = self.high / self.low if self.grid else self.precision
        return Range(self.low, self.high, precision, integers=self.over == "concurrency")


class Measured(NamedTuple):
    """A finished run of a sweep. `watts`: mean power of its GPUs together, where their page says."""

    value: float
    run: str
    report: Report
    watts: float | None = None


class SweepPoint(msgspec.Struct, kw_only=True):
    """One load. `run` is the name of its run directory."""

    value: float
    run: str
    state: State
    throughput: Throughput
    metrics: dict[str, Distribution]
    requests: Requests
    duration_s: float


class Spent(msgspec.Struct, kw_only=True):
    """Of all runs, their warm-ups included. `usd` is None where no price is known."""

    requests: int = 0
    seconds: float = 0.0
    usd: float | None = None


class SweepGpus(msgspec.Struct, kw_only=True):
    """The plan's `gpus`, and the figures of each point in the order of `points`."""

    count: int
    usd_per_hour: float | None
    watts: float | None
    points: list[GpuReport | None]


class SweepReport(msgspec.Struct, kw_only=True):
    """sweep.json. `gpus` is only there where the plan has them."""

    schema: int = SCHEMA
    over: Over
    slo: list[str]
    answer: Answer
    knee: Knee | None
    peak_goodput: Peak | None
    points: list[SweepPoint]
    spent: Spent
    gpus: SweepGpus | msgspec.UnsetType = msgspec.UNSET


DECODER: Final = msgspec.json.Decoder(SweepReport)


def points_of(measured: Sequence[Measured]) -> list[Point]:
    return [point_of(each.value, each.report) for each in measured]


def next_of(wanted: Wanted, measured: Sequence[Measured]) -> Next | None:
    """The next load to measure; None when there is nothing more to find out."""
    if not wanted.grid:
        return next_load(points_of(measured), wanted.range)
    done = {each.value for each in measured}
    return next((Next(value, 1) for value in wanted.grid if value not in done), None)


def bracket_of(wanted: Wanted, measured: Sequence[Measured]) -> tuple[float | None, float | None]:
    """The loads between which the answer lies; None at an end that is not known yet."""
    return answer_of(points_of(measured), wanted.range).ci95 if measured else (None, None)


def sweep_report(
    wanted: Wanted, slos: Sequence[str], measured: Sequence[Measured], gpus: Gpus | None = None, *, spent: Spent
) -> SweepReport:
    """sweep.json of the finished runs, in the order in which they were made; `spent` by these and by all others."""
    points = points_of(measured)
    answer = answer_of(points, wanted.range) if points else Answer(value=None, ci95=(None, None), state="UNDECIDED")
    report = SweepReport(
        over=wanted.over,
        slo=list(slos),
        answer=answer,
        knee=knee_of(points),
        peak_goodput=peak_of(points),
        points=[_point(each, point.state) for each, point in zip(measured, points, strict=True)],
        spent=spent,
    )
    if gpus is not None:
        figures = [gpus_of(gpus, each.report.throughput, measured_watts=each.watts) for each in measured]
        report.gpus = SweepGpus(count=gpus.count, usd_per_hour=gpus.usd_per_hour, watts=gpus.watts, points=figures)
    return report


def _point(each: Measured, state: State) -> SweepPoint:
    report = each.report
    return SweepPoint(
        value=each.value,
        run=each.run,
        state=state,
        throughput=report.throughput,
        metrics=report.metrics,
        requests=report.requests,
        duration_s=report.run.duration_s,
    )


def spent_of(reports: Sequence[Report]) -> Spent:
    phases = [phase for report in reports for phase in report.run.phases]
    costs = [phase.cost.usd for phase in phases if phase.cost.usd is not None]
    return Spent(
        requests=sum(phase.requests.sent for phase in phases),
        seconds=sum(report.run.duration_s for report in reports),
        usd=math.fsum(costs) if costs else None,
    )


def below(answer: Answer, required: float) -> bool:
    """Whether the answer is known to be below a load that is required."""
    high = answer.ci95[1]
    found = answer.state == "FOUND" and answer.value is not None and answer.value < required
    return found or (answer.state != "CLIENT_LIMITED" and high is not None and high < required)

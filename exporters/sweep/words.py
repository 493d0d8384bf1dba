"""A sweep in words: the sentence that comes first, the line of a point, the cells of its table. Pure, no layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...collectors.point import FAILING, SATURATED, latency_metric
from ...collectors.snapshot import Distribution, GpuReport
from ...collectors.sweep import SweepPoint, SweepReport
from ...engine.metrics import METRICS
from ...engine.plan.slo import RequestObjective, parse_slo
from .. import figures

UNITS: Final = {"rate": "requests/s", "concurrency": "requests in flight"}
SATURATED_BELOW: Final = 0.95  # of the rate that was asked for
_METRICS_SHOWN: Final = 2  # as many as 120 columns hold


def sentence(report: SweepReport) -> str:
    """`FOUND: 42.3 requests/s [40.1, 44.2] meet all objectives; above, ttft_ms.p99 <= 500 is missed.`"""
    answer, unit = report.answer, UNITS[report.over]
    limit = answer.limited_by or "an objective"
    low, high = answer.ci95
    if answer.state == "FOUND" and answer.value is not None:
        text = f"{load(answer.value)} {unit} {interval(low, high)} meet all objectives; above, {missed(limit)}."
    elif answer.state == "ABOVE_RANGE":
        text = f"{load(answer.value)} {unit}, the highest load asked for, meet all objectives: the server bears more."
    elif answer.state == "BELOW_RANGE":
        text = f"not even {load(high)} {unit}, the lowest load asked for, meet all objectives: {missed(limit)}."
    elif answer.state == "CLIENT_LIMITED":
        known = "" if answer.value is None else f"{load(answer.value)} {unit} meet all objectives; above, "
        text = f"{known}this client is the limit, so what the server bears is not known: give it a quieter machine or more cores."
    elif low is None and high is None:
        text = "no load was decided: points need more time (--duration, --max-time) or more requests."
    else:
        text = f"the answer lies in {interval(low, high)} {unit}; more time or requests are needed to tell."
    return f"{answer.state}: {text}"


def missed(limit: str) -> str:
    """What ends the range: an objective, or a reason in words of its own (collectors.point)."""
    return limit if limit in (SATURATED, FAILING) else f"{limit} is missed"


def load(value: float | None) -> str:
    return figures.MISSING if value is None else f"{value:.4g}" if value < 1e4 else f"{value:,.0f}"


def interval(low: float | None, high: float | None) -> str:
    return f"[{'0' if low is None else load(low)}, {'inf)' if high is None else load(high) + ']'}"


def point_line(report: SweepReport) -> str:
    """What the last point said and what is known now: a line for the terminal or a log."""
    last, unit = report.points[-1], UNITS[report.over]
    metric = latency_metric(report.slo)
    d = last.metrics.get(metric, Distribution())
    words = [
        f"point {len(report.points)}: {load(last.value)} {unit}: {last.state}",
        f"{figures.label(metric)} p50 {figures.value(d.p50)} p99 {figures.value(d.p99)} {figures.interval(d, 'p99', metric)}".rstrip(),
        f"{last.requests.ok:,} ok in {figures.clock(last.duration_s)}",
        f"answer in {interval(*report.answer.ci95)}",
    ]
    return ", ".join(words)


def metrics_shown(slos: Sequence[str]) -> list[str]:
    """The metrics that the objectives speak of, the one of the curve first."""
    found = [latency_metric(slos)]
    for expression in slos:
        parsed = parse_slo(expression)
        if isinstance(parsed, RequestObjective):
            found += [condition[0] for condition in parsed.conditions]
        elif parsed.metric in METRICS:
            found.append(parsed.metric)
    return list(dict.fromkeys(found))[:_METRICS_SHOWN]


def saturated(points: Sequence[SweepPoint], over: str) -> set[str]:
    """The runs whose load was not borne: throughput stays behind the rate, or no longer grows with the concurrency."""
    found: set[str] = set()
    for point in points:
        reached = point.throughput.requests_per_s or 0.0
        if point.state != "FAIL":
            continue
        lower = [each.throughput.requests_per_s or 0.0 for each in points if each.value < point.value]
        behind = reached < SATURATED_BELOW * point.value if over == "rate" else bool(lower) and reached <= max(lower)
        if behind:
            found.add(point.run)
    return found


def heads(report: SweepReport) -> list[str]:
    names = [report.over, "state", "req/s", "tok/s"]
    for metric in metrics_shown(report.slo):
        names += [f"{figures.label(metric)} p50", "p99", "95 % CI"]
    return [*names, "time"]


GPU_HEADS: Final = ("tok/s per GPU", "USD per 1M tok", "J per tok")


def gpu_cells(each: GpuReport | None) -> list[str]:
    """A row under `GPU_HEADS`: of output tokens."""
    return [
        figures.rate(each.output_tokens_per_s if each else None),
        figures.money(each.usd_per_million_output_tokens if each else None),
        figures.value(each.joules_per_output_token if each else None),
    ]


def gpu_points(report: SweepReport) -> dict[str, GpuReport | None]:
    """The GPU figures by run; empty where the plan has none."""
    gpus = report.gpus
    return {} if not gpus else {p.run: each for p, each in zip(report.points, gpus.points, strict=True)}


def cells(report: SweepReport, point: SweepPoint) -> list[str]:
    """A row under `heads`."""
    row = [
        load(point.value),
        point.state,
        figures.rate(point.throughput.requests_per_s),
        figures.rate(point.throughput.output_tokens_per_s),
    ]
    for metric in metrics_shown(report.slo):
        d = point.metrics.get(metric, Distribution())
        row += [
            figures.value(d.p50, metric),
            figures.value(d.p99, metric),
            figures.interval(d, "p99", metric) or figures.MISSING,
        ]
    row.append(figures.clock(point.duration_s))
    return row


def facts(report: SweepReport) -> list[str]:
    """Knee, peak and what it took, a line each."""
    unit, lines = UNITS[report.over], []
    if report.knee is not None:
        low, high = report.knee.ci95
        lines.append(
            f"knee: latency grows faster than load from {load(report.knee.value)} {unit} {interval(low, high)} on"
        )
    if report.peak_goodput is not None:
        peak = report.peak_goodput
        lines.append(f"peak goodput: {figures.rate(peak.goodput_per_s)} good requests/s at {load(peak.value)} {unit}")
    spent = report.spent
    money = "" if spent.usd is None else f", {figures.money(spent.usd)}"
    lines.append(
        f"spent: {spent.requests:,} requests, {figures.clock(spent.seconds)}{money}, {len(report.points)} points"
    )
    return lines

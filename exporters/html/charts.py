"""What report.js draws, as one JSON document. Times in seconds since the start of the run, values in their units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from ...collectors.rollup import Slice
from ...engine.metrics import BUCKETS, METRICS
from .curves import Curve
from .marks import Bound, Mark, asked, bounds, phase_marks
from .run import Run
from .timeline import HEATED, LATENCIES, SERVER_LOAD, Span, Timeline

# Distribution charts: the metric and, dashed in the same chart, the same from the scheduled start.
DISTRIBUTIONS: Final[dict[str, str | None]] = {"ttft_ms": "ttft_scheduled_ms", "itl_ms": None, "e2e_ms": None}
PERCENT: Final = {"kv_cache_usage", "gpu_utilisation"}  # of SERVER_LOAD: shares, drawn in %

Values = list[float | None]  # one per span, None where nothing is known


class Latency(msgspec.Struct):
    """A metric shown over time: its lines are `<name>_p50` and `<name>_p99` of each Series."""

    name: str
    label: str
    unit: str
    help: str


class Series(msgspec.Struct):
    """One target of one run. `lines` by name: ok, failed and tokens per second, in_flight, latencies, server load."""

    name: str
    run: int
    lines: dict[str, Values]


class Health(msgspec.Struct):
    lag_us: Values
    cpu_percent: Values
    steal_percent: Values


class TargetCurve(msgspec.Struct):
    target: int  # position in Charts.series
    curve: Curve
    scheduled: bool


class DistributionChart(msgspec.Struct):
    label: str
    unit: str
    curves: list[TargetCurve]


class HeatMap(msgspec.Struct):
    """Counts per column of time and row of values, over all targets of a run."""

    title: str
    metric: str
    run: int
    first: int  # bucket of the lowest row
    times: Values  # edges of the columns
    rows: list[tuple[float, float | None]]  # bounds of each row from the lowest on; the last may have none above
    cells: list[list[int]]


class Point(msgspec.Struct):
    """The last span of a run that goes on: what one more tick changed in its Charts. `index` is the span's."""

    index: int
    time: float | None
    series: list[dict[str, float | None]]  # as Charts.series: the value of each line
    lag_us: float | None
    cpu_percent: float | None
    steal_percent: float | None
    limited: tuple[float | None, float | None] | None
    asked_rate: float | None
    asked_in_flight: float | None
    marks: list[Mark]  # all of them, as there are few
    bounds: list[Bound]


class Charts(msgspec.Struct):
    runs: list[str]
    times: list[Values]  # of each run: the ends of its spans
    latencies: list[Latency]
    series: list[Series]
    health: list[Health]
    limited: list[tuple[float | None, float | None]]
    distributions: list[DistributionChart]
    heat: list[HeatMap]
    asked_rate: list[Values]  # of each run: requests per second that the plan asks for at each of its times
    asked_in_flight: list[Values]
    marks: list[list[Mark]]
    bounds: list[list[Bound]]


def charts_of(runs: Sequence[Run]) -> Charts:
    spans = [span for run in runs for span in run.timeline.spans]
    return Charts(
        runs=[run.report.run.id for run in runs],
        times=[[rounded(span.end_s) for span in run.timeline.spans] for run in runs],
        latencies=[Latency(m.name, m.label, m.unit, m.help) for m in map(METRICS.__getitem__, LATENCIES)],
        series=[
            Series(" ".join(filter(None, (_title(runs, run), target))), index, _lines(run.timeline, target))
            for index, run in enumerate(runs)
            for target in run.targets
        ],
        health=[_health(run.timeline.spans) for run in runs],
        limited=[(rounded(span.start_s), rounded(span.end_s)) for span in spans if span.limited],
        distributions=list(_distributions(runs)),
        heat=[
            heat
            for index, run in enumerate(runs)
            for metric in HEATED
            if (heat := _heat_map(run.timeline, index, metric, _title(runs, run)))
        ],
        asked_rate=[_known(_asked(run, run.timeline.spans, "rate")) for run in runs],
        asked_in_flight=[_known(_asked(run, run.timeline.spans, "concurrency")) for run in runs],
        marks=[_marks(run) for run in runs],
        bounds=[list(bounds(run.report)) for run in runs],
    )


def last_point(run: Run) -> Point:
    """The last span, of which there is one."""
    span, health = run.timeline.spans[-1], _health(run.timeline.spans[-1:])
    points = [_point(span, target) for target in run.targets]
    return Point(
        index=len(run.timeline.spans) - 1,
        time=rounded(span.end_s),
        series=[{name: rounded(value) for name, value in point.items()} for point in points],
        lag_us=health.lag_us[0],
        cpu_percent=health.cpu_percent[0],
        steal_percent=health.steal_percent[0],
        limited=(rounded(span.start_s), rounded(span.end_s)) if span.limited else None,
        asked_rate=_asked(run, [span], "rate")[0],
        asked_in_flight=_asked(run, [span], "concurrency")[0],
        marks=_marks(run),
        bounds=list(bounds(run.report)),
    )


def _title(runs: Sequence[Run], run: Run) -> str:
    """Distinguishes a run from the others on the page; empty if it is the only one."""
    return f"{run.report.run.name} {run.report.run.id[-4:]}" if len(runs) > 1 else ""


def _lines(timeline: Timeline, target: str) -> dict[str, Values]:
    points = [_point(span, target) for span in timeline.spans]
    names = dict.fromkeys(name for point in points for name in point)
    return {name: [rounded(point.get(name)) for point in points] for name in names}


def _point(span: Span, target: str) -> dict[str, float | None]:
    """The values of one target's lines in one span; without those of which nothing is known."""
    total = span.targets.get(target)
    point = _rates(total, span.seconds) if total else {}
    for field in SERVER_LOAD:
        value = span.servers.get((target, field))
        if value is not None:
            point[field] = value * 100 if field in PERCENT else value
    return point


def _rates(total: Slice, seconds: float) -> dict[str, float | None]:
    point: dict[str, float | None] = {
        "sent": total.sent / seconds,
        "ok": total.count("ok") / seconds,
        "failed": total.failed / seconds,
        "tokens": (total.tokens("output") or 0) / seconds,
        "in_flight": total.in_flight,
    }
    for metric in LATENCIES:
        point[f"{metric}_p50"], point[f"{metric}_p99"] = total.p50(metric), total.p99(metric)
    return point


def _health(spans: Sequence[Span]) -> Health:
    return Health(
        lag_us=[rounded(span.lag_us) for span in spans],
        cpu_percent=[rounded(span.cpu, 100) for span in spans],
        steal_percent=[rounded(span.steal, 100) for span in spans],
    )


def _asked(run: Run, spans: Sequence[Span], key: str) -> Values:
    """At the middle of each span."""
    middles = [(span.start_s + span.end_s) / 2 for span in spans]
    return [rounded(value) for value in asked(run.report, run.setting.plan, middles, key)]


def _known(values: Values) -> Values:
    """Empty where no phase has such a load."""
    return values if any(value is not None for value in values) else []


def _marks(run: Run) -> list[Mark]:
    return [*phase_marks(run.report), *run.timeline.incidents.marks]


def _distributions(runs: Sequence[Run]) -> Iterator[DistributionChart]:
    """A chart per metric with the curves of every target of every run, where there are any."""
    targets = [(run, target) for run in runs for target in run.targets]  # as Charts.series
    for metric, scheduled in DISTRIBUTIONS.items():
        curves = []
        for position, (run, target) in enumerate(targets):
            if curve := run.curves.get((target, metric)):
                curves.append(TargetCurve(position, curve, scheduled=False))
            if scheduled and (curve := run.curves.get((target, scheduled))):
                curves.append(TargetCurve(position, curve, scheduled=True))
        if curves:
            yield DistributionChart(METRICS[metric].label, METRICS[metric].unit, curves)


def _heat_map(timeline: Timeline, run: int, metric: str, title: str) -> HeatMap | None:
    """Without most of the empty rows above and below; None if there is nothing to show."""
    groups = timeline.columns()
    cells = np.array([_bucket_sum(group, metric) for group in groups])
    filled = np.flatnonzero(cells.sum(axis=0)) if len(cells) else np.empty(0, int)
    if not len(filled):
        return None
    bounds = [0, *BUCKETS[metric], None]
    low, high = max(0, int(filled[0]) - 1), min(len(bounds) - 1, int(filled[-1]) + 2)  # one empty row on each side
    label = METRICS[metric].label
    return HeatMap(
        title=f"{label} heat map of {title}" if title else f"{label} heat map",
        metric=metric,
        run=run,
        first=low,
        times=[rounded(edge) for edge in timeline.edges()],
        rows=[(bounds[k] or 0, bounds[k + 1]) for k in range(low, high)],
        cells=cells[:, low:high].tolist(),
    )


def _bucket_sum(spans: Sequence[Span], metric: str) -> list[int]:
    counts = [total.buckets[metric] for span in spans for total in span.targets.values() if metric in total.buckets]
    return [sum(bucket) for bucket in zip(*counts, strict=True)] or [0] * (len(BUCKETS[metric]) + 1)


def rounded(value: float | None, factor: float = 1) -> float | None:
    """`value` times `factor` with four significant digits, as an int if it is one; None if it is unknown or not finite."""
    if value is None or not math.isfinite(value):
        return None
    value *= factor
    short = float(f"{value:.4g}") if abs(value) < 1e4 else round(value, 1)
    return int(short) if short == int(short) else short

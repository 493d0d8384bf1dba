"""The report of one or several runs as one HTML file that opens offline; charts drawn by uPlot, inlined.

Memory and file size do not grow with the run: ticks are merged, two by two, whenever there are more than POINTS. A
merged point keeps what people look for: rates are means, p50 is the count-weighted mean of the ticks' p50, p99 is the
highest p99 of its ticks. Distributions come exact from totals.hlog, or from the sums of intervals.hlog where a run has
not ended; without one, roughly from the ticks' buckets.
"""

from __future__ import annotations

import html
import json
import math
import operator
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from ...collectors.histogram import Histogram
from ...collectors.snapshot import BUCKETS, METRICS, SCALES, Distribution, Report, TargetReport
from ...engine.errors import OutputError
from ...engine.files import UNDECODABLE
from .. import figures
from ..hdr import read as hdrread
from ..hdr.write import INTERVALS, TOTALS, tag
from ..rundir import read_report
from ..spool.parts import lines_of

POINTS: Final = 1200  # a point per pixel of the widest chart
HEAT_POINTS: Final = 240
CURVES: Final = (("ttft_ms", "TTFT", "ttft_scheduled_ms"), ("itl_ms", "ITL", None), ("e2e_ms", "E2E", None))
HEAT: Final = (("ttft_ms", "TTFT"), ("itl_ms", "ITL"))
HEATED: Final = tuple(metric for metric, _ in HEAT)
SERIES: Final = (("ttft", "ttft_ms"), ("scheduled", "ttft_scheduled_ms"), ("itl", "itl_ms"), ("e2e", "e2e_ms"))
SERVER: Final = ("requests_running", "requests_waiting", "kv_cache_usage", "gpu_utilisation")  # of snapshot.Server
SHARES: Final = ("kv_cache_usage", "gpu_utilisation")
HEADLINE: Final = ("ttft_ms", "itl_ms", "e2e_ms")

Curve = tuple[list[float], list[float]]  # percentiles and their values


class _Percentiles(msgspec.Struct, frozen=True):
    count: int = 0
    p50: float | None = None
    p99: float | None = None


class _Metrics(msgspec.Struct, frozen=True):
    """The few metrics the charts show: a day of ticks is decoded without the others."""

    ttft_ms: _Percentiles = _Percentiles()
    ttft_scheduled_ms: _Percentiles = _Percentiles()
    itl_ms: _Percentiles = _Percentiles()
    e2e_ms: _Percentiles = _Percentiles()


class _Buckets(msgspec.Struct, frozen=True):
    ttft_ms: list[int] = []
    ttft_scheduled_ms: list[int] = []
    itl_ms: list[int] = []
    e2e_ms: list[int] = []


class _Requests(msgspec.Struct, frozen=True):
    ok: int = 0
    failed: dict[str, int] = {}


class _Tokens(msgspec.Struct, frozen=True):
    output: int | None = None


class _Interval(msgspec.Struct, frozen=True):
    target: str
    phase: str
    measured: bool = True
    in_flight: int = 0
    requests: _Requests = _Requests()
    tokens: _Tokens = _Tokens()
    metrics: _Metrics = _Metrics()
    buckets: _Buckets = _Buckets()


class _Lag(msgspec.Struct, frozen=True):
    p99: float | None = None


class _Client(msgspec.Struct, frozen=True):
    loop_lag_us: _Lag = _Lag()
    cpu_utilisation: float | None = None
    steal_share: float | None = None
    ring_drops: int = 0
    clock_steps: int = 0
    restarts: int = 0


class _Server(msgspec.Struct, frozen=True):
    requests_running: float | None = None
    requests_waiting: float | None = None
    kv_cache_usage: float | None = None
    gpu_utilisation: float | None = None


class _Tick(msgspec.Struct, frozen=True):
    tick: int
    elapsed_s: float
    seconds: float
    intervals: list[_Interval] = []
    client: _Client = _Client()
    servers: dict[str, _Server] = {}


_TICKS: Final = msgspec.json.Decoder(_Tick)


class _Point:
    """Some neighbouring ticks of one target, merged."""

    __slots__ = ("buckets", "failed", "in_flight", "low", "ok", "tokens", "top", "weight")

    def __init__(self) -> None:
        self.ok = self.failed = self.tokens = self.in_flight = 0
        self.weight = [0] * len(SERIES)
        self.low = [0.0] * len(SERIES)  # sum of count * p50
        self.top: list[float | None] = [None] * len(SERIES)
        self.buckets: dict[str, list[int]] = {}

    def take(self, interval: _Interval, heat: Sequence[str]) -> None:
        self.ok += interval.requests.ok
        if interval.requests.failed:
            self.failed += sum(interval.requests.failed.values())
        self.tokens += interval.tokens.output or 0
        self.in_flight = max(self.in_flight, interval.in_flight)
        m = interval.metrics
        for k, d in enumerate((m.ttft_ms, m.ttft_scheduled_ms, m.itl_ms, m.e2e_ms)):  # as SERIES
            if d.count and d.p50 is not None:
                self.weight[k] += d.count
                self.low[k] += d.count * d.p50
                self.top[k] = _larger(self.top[k], d.p99)
        for metric in heat:
            counts = getattr(interval.buckets, metric)
            if counts:
                self.buckets[metric] = _added(self.buckets.get(metric), counts)

    def merge(self, other: _Point) -> None:
        self.ok += other.ok
        self.failed += other.failed
        self.tokens += other.tokens
        self.in_flight = max(self.in_flight, other.in_flight)
        for k in range(len(SERIES)):
            self.weight[k] += other.weight[k]
            self.low[k] += other.low[k]
            self.top[k] = _larger(self.top[k], other.top[k])
        for metric, counts in other.buckets.items():
            self.buckets[metric] = _added(self.buckets.get(metric), counts)


class _Span:
    """Some neighbouring ticks of a run: their time, their targets' points, the client's health, the servers' load."""

    __slots__ = ("cpu", "end", "lag", "points", "seconds", "servers", "start", "steal", "unhealthy")

    def __init__(self, start: float) -> None:
        self.start = self.end = start
        self.seconds = 0.0
        self.lag: float | None = None
        self.cpu: float | None = None
        self.steal: float | None = None
        self.unhealthy = False
        self.points: dict[str, _Point] = {}
        self.servers: dict[tuple[str, str], float] = {}  # (target, one of SERVER): its highest

    def take(self, tick: _Tick, heat: Sequence[str]) -> None:
        client = tick.client
        self.end = tick.elapsed_s
        self.seconds += tick.seconds
        self.lag, self.cpu = _larger(self.lag, client.loop_lag_us.p99), _larger(self.cpu, client.cpu_utilisation)
        self.steal = _larger(self.steal, client.steal_share)
        self.unhealthy |= (client.steal_share or 0) > 0.05 or (client.cpu_utilisation or 0) > 0.9
        for interval in tick.intervals:
            point = self.points.get(interval.target)
            if point is None:
                point = self.points[interval.target] = _Point()
            point.take(interval, heat)
        for name, server in tick.servers.items():
            for field in SERVER:
                self._serve((name, field), getattr(server, field))

    def _serve(self, key: tuple[str, str], value: float | None) -> None:
        if value is not None:
            self.servers[key] = max(value, self.servers.get(key, value))

    def merge(self, other: _Span) -> None:
        self.end, self.seconds = other.end, self.seconds + other.seconds
        self.lag, self.cpu = _larger(self.lag, other.lag), _larger(self.cpu, other.cpu)
        self.steal = _larger(self.steal, other.steal)
        self.unhealthy |= other.unhealthy
        for name, point in other.points.items():
            self.points.setdefault(name, _Point()).merge(point)
        for key, value in other.servers.items():
            self._serve(key, value)


class Course:
    """A run's ticks, at most POINTS spans of them; constant memory for any run. Of `heat` it keeps bucket counts."""

    def __init__(self, heat: Sequence[str] = HEATED) -> None:
        self._heat = heat
        self.spans: list[_Span] = []
        self.ticks = 0
        self.width = 1  # ticks in a span
        self._before: tuple[int, int, int] = (0, 0, 0)

    def take(self, tick: _Tick) -> None:
        if not self.ticks % self.width:
            self.spans.append(_Span(tick.elapsed_s - tick.seconds))
        span = self.spans[-1]
        span.take(tick, self._heat)
        counts = (tick.client.ring_drops, tick.client.clock_steps, tick.client.restarts)
        span.unhealthy |= any(now > before for now, before in zip(counts, self._before, strict=True))
        self._before = counts
        self.ticks += 1
        if len(self.spans) > POINTS:
            self._halve()

    def _halve(self) -> None:
        for first, second in zip(self.spans[::2], self.spans[1::2], strict=False):
            first.merge(second)
        self.spans = self.spans[::2]
        self.width *= 2


class Run:
    """All that a report needs of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.report: Report = read_report(run_dir)
        self.plan = _plan_text(run_dir / "plan.json")
        self.targets = [target.name for target in self.report.targets]
        self.curves = _exact_curves(run_dir, self.targets)
        self.exact = bool(self.curves)
        course = Course() if self.exact else Course([metric for _, metric in SERIES])
        self.course = _course(run_dir / "intervals.jsonl", course)
        if not self.exact:
            self.curves = _rough_curves(self.course, self.targets)


def write_html(run_dirs: Sequence[Path], path: Path) -> None:
    """Writes the report of the runs, side by side if there are several, replacing `path` atomically."""
    text = report_html(run_dirs)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def report_html(run_dirs: Sequence[Path]) -> str:
    """The page as text. Raises OutputError for a directory that holds no finished run."""
    runs = [Run(run_dir) for run_dir in run_dirs]
    parts = {
        "title": _text(f"{runs[0].report.run.name}: {runs[0].report.verdict.state} - LLM Latency Lens"),
        "body": "".join(_head(run, alone=len(runs) == 1) for run in runs),
        "tail": "".join(_end(run, alone=len(runs) == 1) for run in runs),
        "downsampled": _downsampled(runs),
        "distribution_source": _distribution_source(runs),
        "data": json.dumps(_payload(runs), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    for name in ("uplot/uPlot.min.css", "report.css", "uplot/uPlot.iife.min.js", "report.js"):
        parts[{"uplot/uPlot.min.css": "uplot.css", "uplot/uPlot.iife.min.js": "uplot.js"}.get(name, name)] = _asset(
            name
        )
    page = _asset("report.html")
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[p.split("}}", 1)[0]] + p.split("}}", 1)[1] for p in pieces[1:])


def _asset(name: str) -> str:
    return resources.files("llm_latency_lens.exporters").joinpath("assets", name).read_text("utf-8")


def _plan_text(path: Path) -> str:
    try:
        return json.dumps(json.loads(path.read_bytes()), indent=2, ensure_ascii=False)
    except (OSError, ValueError):
        return ""


def _course(path: Path, course: Course) -> Course:
    try:
        for line in lines_of(path):
            try:
                course.take(_TICKS.decode(line))
            except UNDECODABLE:  # damaged: the page tells what is left
                continue
    except FileNotFoundError:
        pass
    return course


def _exact_curves(run_dir: Path, targets: Sequence[str]) -> dict[tuple[str, str], Curve]:
    """(target, metric) -> its curve, from the run's histograms; nothing if it has none."""
    tags = {tag(metric, name): (name, metric) for name in targets for _, metric in SERIES}
    log = next((run_dir / each for each in (TOTALS, INTERVALS) if (run_dir / each).exists()), None)
    if log is None:
        return {}
    return {tags[each]: _exact(tags[each][1], total) for each, total in hdrread.sums(log, tags).items() if total.count}


def _rough_curves(course: Course, targets: Sequence[str]) -> dict[tuple[str, str], Curve]:
    curves = {}
    for name in targets:
        for _, metric in SERIES:
            counts = _bucket_total(course, name, metric)
            if counts is not None and counts.sum():
                curves[name, metric] = _spectrum(*_spread(metric, counts))
    return curves


def _exact(metric: str, total: Histogram) -> Curve:
    values, counts = hdrread.values_and_counts(total)
    return _spectrum(values / SCALES[metric], counts)


def _bucket_total(course: Course, name: str, metric: str) -> np.ndarray | None:
    rows = [
        span.points[name].buckets[metric]
        for span in course.spans
        if name in span.points and metric in span.points[name].buckets
    ]
    return np.sum(rows, axis=0) if rows else None


def _spread(metric: str, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bucket counts as values spread evenly inside their buckets: only for drawing."""
    bounds = [0.0, *BUCKETS[metric], BUCKETS[metric][-1] * 1.5]
    values, spread = [], []
    for low, high, n in zip(bounds[:-1], bounds[1:], counts, strict=True):
        steps = min(16, int(n))
        if steps:
            values += [low + (high - low) * (k + 0.5) / steps for k in range(steps)]
            spread += [n / steps] * steps
    return np.array(values), np.array(spread)


def _spectrum(values: np.ndarray, counts: np.ndarray) -> Curve:
    """The percentile spectrum: 1/(1-p) in even steps of its logarithm as far as the sample reaches, finer below."""
    running = np.cumsum(counts)
    total = running[-1]
    decades = math.log10(max(total, 2))
    tail = 1 - 10.0 ** -np.linspace(0, decades, max(16, int(decades * 40)))
    p = np.unique(np.concatenate((np.linspace(0, 0.02, 21), np.linspace(0.02, 0.9, 89), tail)))
    rank = np.maximum(1, np.floor(p * total + 0.5))  # as HdrHistogram counts percentiles
    at = np.searchsorted(running, rank - 1e-9).clip(0, len(values) - 1)
    return [float(f"{x:.9g}") for x in p], [float(f"{x:.4g}") for x in values[at]]


def _payload(runs: Sequence[Run]) -> dict[str, Any]:
    several = len(runs) > 1
    series: list[dict[str, Any]] = []
    clients: list[dict[str, Any]] = []
    unhealthy: list[list[float | None]] = []
    index: dict[tuple[int, str], int] = {}
    for r, run in enumerate(runs):
        for name in run.targets:
            index[r, name] = len(series)
            shown = f"{run.report.run.name} {run.report.run.id[-4:]} {name}" if several else name
            series.append({"name": shown, "run": r, **_series(run.course, name)})
        clients.append(_health(run.course))
        unhealthy += [[_round(s.start), _round(s.end)] for s in run.course.spans if s.unhealthy]
    distributions = []
    for metric, title, scheduled in CURVES:
        curves = []
        for r, run in enumerate(runs):
            for name in run.targets:
                for which, what, dash in ((metric, "", False), (scheduled, "from schedule", True)):
                    if which and (curve := run.curves.get((name, which))):
                        curves.append(
                            {"target": index[r, name], "p": curve[0], "v": curve[1], "what": what, "dash": dash}
                        )
        if curves:
            distributions.append({"title": title, "unit": "ms", "curves": curves})
    return {
        "runs": [run.report.run.id for run in runs],
        "x": [[_round(span.end) for span in run.course.spans] for run in runs],
        "series": series,
        "clients": clients,
        "unhealthy": unhealthy,
        "distributions": distributions,
        "heat": [h for run in runs for metric, title in HEAT if (h := _heat(run, metric, title, several))],
    }


def _series(course: Course, name: str) -> dict[str, list[float | None]]:
    points = [(span, span.points.get(name)) for span in course.spans]
    told: dict[str, list[float | None]] = {
        "ok": [_round(p.ok / s.seconds) if p else None for s, p in points],
        "failed": [_round(p.failed / s.seconds) if p else None for s, p in points],
        "tokens": [_round(p.tokens / s.seconds) if p else None for s, p in points],
        "in_flight": [p.in_flight if p else None for _, p in points],
    }
    for k, (field, _) in enumerate(SERIES):
        told[f"{field}_p50"] = [_round(p.low[k] / p.weight[k]) if p and p.weight[k] else None for _, p in points]
        told[f"{field}_p99"] = [_round(p.top[k]) if p else None for _, p in points]
    for field in SERVER:
        values = [span.servers.get((name, field)) for span, _ in points]
        if any(value is not None for value in values):
            scale = 100 if field in SHARES else 1
            told[field] = [_round(None if value is None else value * scale) for value in values]
    return told


def _health(course: Course) -> dict[str, list[float | None]]:
    return {
        "lag": [_round(span.lag) for span in course.spans],
        "cpu": [_round(None if span.cpu is None else span.cpu * 100) for span in course.spans],
        "steal": [_round(None if span.steal is None else span.steal * 100) for span in course.spans],
    }


def _heat(run: Run, metric: str, title: str, several: bool) -> dict[str, Any] | None:
    """Counts per stretch of time and bucket, over all targets, without most of the empty rows above and below."""
    spans = run.course.spans
    group = max(1, math.ceil(len(spans) / HEAT_POINTS))
    cells, times = [], []
    for start in range(0, len(spans), group):
        part = spans[start : start + group]
        column = np.zeros(len(BUCKETS[metric]) + 1, np.int64)
        for span in part:
            for point in span.points.values():
                if metric in point.buckets:
                    column += np.array(point.buckets[metric])
        times.append(_round(part[0].start))
        cells.append(column)
    filled = np.nonzero(np.sum(cells, axis=0))[0] if cells else np.empty(0, int)
    if not len(filled):
        return None
    low, high = max(0, int(filled[0]) - 1), min(len(BUCKETS[metric]) + 1, int(filled[-1]) + 2)  # an empty row around
    bounds: list[float | None] = [0, *BUCKETS[metric], None]
    where = f" of {run.report.run.name} {run.report.run.id[-4:]}" if several else ""
    return {
        "title": f"{title} heat map{where}",
        "times": [*times, _round(spans[-1].end)],
        "rows": [[bounds[k], bounds[k + 1]] for k in range(low, high)],
        "cells": [column[low:high].tolist() for column in cells],
    }


def _downsampled(runs: Sequence[Run]) -> str:
    widest = max((run.course.width for run in runs), default=1)
    if widest == 1:
        return "Every tick is a point."
    ticks = max(run.course.ticks for run in runs)
    return (
        f"{ticks:,} ticks, each point stands for {widest}: rates are means, p50 the weighted mean of the ticks' p50, "
        "p99, in-flight and health the highest of its ticks."
    )


def _distribution_source(runs: Sequence[Run]) -> str:
    if all(run.exact for run in runs):
        return "Of successful requests, from the HDR histograms of the run (3 significant digits)."
    return "Of successful requests. There is no intervals.hlog: roughly, from bucket counts. The tables are exact."


def _head(run: Run, *, alone: bool) -> str:
    r = run.report
    v = r.verdict
    reasons = "".join(
        f"<p>{_text(x.detail or x.code)} <span class='soft small'>{_text(x.code)}</span></p>" for x in v.reasons
    )
    budget = "".join(f"<tr><td>{_text(k)}</td><td>{_text(_plain(x))}</td></tr>" for k, x in v.error_budget.items())
    facts = [figures.moment(r.run.started_at), figures.clock(r.run.duration_s), f"{r.run.load.replace('_', ' ')} loop"]
    facts += [f"seed {r.run.seed}", r.run.id, f"LLM Latency Lens {r.run.version}"]
    more = f"<details><summary class='small'>Error budget</summary><table>{budget}</table></details>" if budget else ""
    return f"""
<section class="run">
<h1>{_text(r.run.name)}</h1>
<p class="soft small">{_text(" · ".join(facts))}</p>
<div class="card run">
<div class="verdict"><span class="badge {_text(v.state)}">{_text(v.state)}</span>
<span>{_text(figures.plain_state(v))}</span></div>
{reasons}
{more}
{_facts(r)}
</div>
{_slos(r)}
<h2>Latency and speed</h2>
<div class="card scroll">{_metrics_table(r.metrics)}</div>
{_targets(r.targets) if len(r.targets) > 1 else ""}
</section>
"""


def _facts(r: Report) -> str:
    t = r.throughput
    facts = [
        (figures.count(r.requests.ok), "requests ok"),
        (figures.count(figures.failed(r.requests)), "failed"),
        (figures.rate(t.requests_per_s), "requests/s"),
        (figures.rate(t.output_tokens_per_s), "output tokens/s"),
        (figures.share(t.goodput_share), "goodput"),
        (figures.money(r.cost.usd), "cost"),
    ]
    if r.cost.usd is not None:
        facts.append((figures.money(r.cost.usd_per_1k_requests), "per 1k requests"))
        facts.append((figures.money(r.cost.usd_per_day), "a day at this rate"))
    return (
        '<div class="facts">'
        + "".join(f'<div class="fact"><b>{_text(n)}</b><span>{w}</span></div>' for n, w in facts)
        + "</div>"
    )


def _slos(r: Report) -> str:
    if not r.slo:
        return ""
    rows = "".join(
        f'<tr><td class="wrap">{_text(s.expression)}</td><td>{figures.objective(s)}</td>'
        f'<td class="{_text(s.state)}"><b>{_text(s.state)}</b></td></tr>'
        for s in r.slo
    )
    head = "<tr><th>objective</th><th>measured</th><th></th></tr>"
    return f'<h2>Objectives</h2><div class="card scroll"><table>{head}{rows}</table></div>'


def _metrics_table(metrics: dict[str, Distribution]) -> str:
    rows = []
    shown = [(name, d) for name in METRICS if (d := metrics.get(name)) and d.count]
    sure = any((d.ci95 or {}).get("p99") for _, d in shown)
    for name, d in shown:
        cells = [figures.count(d.count), figures.value(d.mean, name)]
        cells += [figures.value(getattr(d, level), name) for level in ("p50", "p90", "p95", "p99")]
        cells += [figures.p99_9(d, name), figures.value(d.max, name), *([_ci(d, name)] if sure else [])]
        key = ' class="key"' if name in HEADLINE else ""
        rows.append(
            f"<tr{key}><td>{_text(figures.label(name))}</td>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
        )
    if not rows:
        return "<p>No request succeeded: there are no latencies to show.</p>"
    heads = ("", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", *(["p99, 95 % CI"] if sure else []))
    return f"<table><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr>{''.join(rows)}</table>"


def _ci(d: Distribution, name: str) -> str:
    bounds = (d.ci95 or {}).get("p99")
    return f"{figures.value(bounds[0], name)} to {figures.value(bounds[1], name)}" if bounds else figures.MISSING


def _targets(targets: Sequence[TargetReport]) -> str:
    heads = ["target", "model", "ok", "failed", "req/s", "tok/s"]
    heads += [f"{figures.LABELS[m]} {level}" for m in HEADLINE for level in ("p50", "p99")] + ["cost"]
    rows = []
    for t in targets:
        cells = [_text(t.model), figures.count(t.requests.ok), figures.count(figures.failed(t.requests))]
        cells += [figures.rate(t.throughput.requests_per_s), figures.rate(t.throughput.output_tokens_per_s)]
        for metric in HEADLINE:
            d = t.metrics.get(metric, Distribution())
            cells += [figures.value(d.p50), figures.value(d.p99)]
        cells.append(figures.money(t.cost.usd))
        rows.append(f"<tr><td><b>{_text(t.name)}</b></td>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th>{h}</th>" for h in heads)
    note = '<p class="small soft">Latencies in ms.</p>'
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f'<h2>Targets</h2><div class="card scroll">{table}{note}</div>'


def _end(run: Run, *, alone: bool) -> str:
    from ..console.live import account_lines

    r = run.report
    title = "" if alone else f"<h2>{_text(r.run.name)} {_text(r.run.id)}</h2>"
    books = "".join(f'<tr><td>{_text(k)}</td><td class="wrap">{_text(v)}</td></tr>' for k, v in account_lines(r))
    host = "".join(
        f'<tr><td>{_text(str(k))}</td><td class="wrap">{_text(_plain(v))}</td></tr>' for k, v in r.run.host.items()
    )
    plan = f"<details><summary>Plan</summary><pre>{_text(run.plan)}</pre></details>" if run.plan else ""
    return f"""{title}
<h2>Failures</h2><div class="card">{_failures(r)}</div>
<h2>Books</h2><div class="card scroll"><table>{books}</table></div>
<h2>Plan and host</h2>
<div class="grid"><div class="card">{plan}<p class="small soft">Plan sha256 {_text(r.run.plan_sha256)}</p></div>
<div class="card scroll"><table>{host}</table></div></div>"""


def _failures(r: Report) -> str:
    counts = {**r.requests.failed, **{f"not sent: {k}": n for k, n in r.requests.unsent.items()}}
    ordered = sorted(((n, k) for k, n in counts.items() if n), reverse=True)
    if not ordered:
        return "<p>None.</p>"
    bars = "".join(_bar(k, n, ordered[0][0]) for n, k in ordered)
    rows = "".join(
        f'<tr><td>{_text(e.target)}</td><td class="wrap">{_text(e.outcome)}</td><td>{e.http_status or ""}</td>'
        f'<td class="wrap">{_text(" ".join(e.message.split()))}</td></tr>'
        for e in sorted(r.errors, key=lambda e: -e.count)
    )
    heads = "".join(f"<th>{h}</th>" for h in ("target", "outcome", "status", "latest message"))
    return bars + (f'<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div>' if rows else "")


def _bar(name: str, n: int, top: int) -> str:
    width = max(0.5, 100 * n / top)
    return f'<div class="bar"><span>{_text(name)}</span><div style="width:{width:.1f}%"></div><span>{n:,}</span></div>'


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return figures.MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _round(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.4g}") if abs(value) < 1e4 else round(value, 1)
    return int(short) if short == int(short) else short


def _larger(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)


def _added(sums: list[int] | None, counts: Iterable[int]) -> list[int]:
    return list(counts) if sums is None else list(map(operator.add, sums, counts))

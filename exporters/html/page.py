"""The report of one or several runs as one HTML file that opens offline; charts drawn by uPlot, inlined.

Tables are in the page itself and need no script. The charts' data is JSON in the page (`charts`), drawn by report.js.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Final

import msgspec

from ...collectors.snapshot import Distribution, Report, Slo, TargetReport, Verdict
from ...engine import files
from ...engine.errors import OutputError
from ...engine.metrics import METRICS
from .. import figures
from ..account import account_lines
from .charts import charts_of
from .health import health_strip
from .markup import NOTHING, Markup, card, element, escaped, joined, row, table, text_cell
from .run import Run, read_run
from .timeline import POINTS

# Of report.html's placeholders those that hold a file, as it is.
FILES: Final = {
    "uplot_css": "uplot/uPlot.min.css",
    "report_css": "report.css",
    "uplot_js": "uplot/uPlot.iife.min.js",
    "report_js": "report.js",
}


def write_html(run_dirs: Sequence[Path], path: Path) -> None:
    """Writes the report of the runs, side by side if there are several, replacing `path` atomically."""
    page = page_of([read_run(run_dir) for run_dir in run_dirs])
    try:
        files.replace(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def report_html(run_dirs: Sequence[Path], *, points: int = POINTS) -> str:
    """The page as text. Raises OutputError for a directory that holds no finished run."""
    return page_of([read_run(run_dir, points=points) for run_dir in run_dirs])


def page_of(runs: Sequence[Run]) -> str:
    first = runs[0].report
    data = msgspec.json.encode(charts_of(runs)).decode()
    parts = {
        "title": escaped(f"{first.run.name}: {first.verdict.state} - LLM Latency Lens"),
        "body": joined(_head(run.report) for run in runs),
        "tail": joined(part for run in runs for part in _tail(run, alone=len(runs) == 1)),
        "health": joined(health_strip(run, alone=len(runs) == 1) for run in runs),
        "downsampled": escaped(_downsampled(runs)),
        "distribution_source": escaped(_distribution_source(runs)),
        "data": data.replace("<", "\\u003c"),  # no "</script>" from a server's or a plan's text
        **{name: _asset(file) for name, file in FILES.items()},
    }
    return Template(_asset("report.html")).substitute(parts)


def _asset(name: str) -> str:
    return resources.files("llm_latency_lens.exporters").joinpath("assets", name).read_text("utf-8")


def _downsampled(runs: Sequence[Run]) -> str:
    ticks_per_point = max(run.timeline.ticks_per_span for run in runs)
    if ticks_per_point == 1:
        return "Every tick is a point."
    ticks = max(run.timeline.ticks for run in runs)
    return (
        f"{ticks:,} ticks, {ticks_per_point} in each point: rates are means, p50 the weighted mean of the ticks' p50, "
        "p99, in-flight and health the highest of its ticks."
    )


def _distribution_source(runs: Sequence[Run]) -> str:
    if all(run.exact for run in runs):
        return "Of successful requests, from the HDR histograms of the run (3 significant digits)."
    return "Of successful requests. Approximate, from bucket counts: there is no intervals.hlog. The tables are exact."


def _head(r: Report) -> Markup:
    return element(
        "section",
        element("h1", r.run.name),
        element("p", " · ".join(_facts(r)), classes="soft small"),
        card(_verdict(r.verdict), _numbers(r), classes="run"),
        _slos(r.slo),
        element("h2", "Latency and speed"),
        card(_metrics(r.metrics)),
        _targets(r.targets) if len(r.targets) > 1 else NOTHING,
        classes="run",
    )


def _facts(r: Report) -> Iterator[str]:
    yield figures.moment(r.run.started_at)
    yield figures.clock(r.run.duration_s)
    yield f"{r.run.load.replace('_', ' ')} loop"
    yield f"seed {r.run.seed}"
    yield r.run.id
    yield f"LLM Latency Lens {r.run.version}"


def _verdict(v: Verdict) -> Markup:
    badge = element("span", v.state, classes=f"badge {v.state}")
    state = element("div", badge, element("span", figures.plain_state(v)), classes="verdict")
    reasons = [
        element(
            "p",
            "note: " * reason.note,
            reason.detail or reason.code,
            " ",
            element("span", reason.code, classes="soft small"),
        )
        for reason in v.reasons
    ]
    budget = [(name, _plain(value)) for name, value in v.error_budget.items()]
    details = _details("Error budget", table((), budget)) if budget else NOTHING
    return joined((state, *reasons, details))


def _details(summary: str, content: Markup) -> Markup:
    return element("details", element("summary", summary, classes="small"), content)


def _numbers(r: Report) -> Markup:
    """The few numbers that people look for first."""
    numbers = [
        (figures.count(r.requests.ok), "requests ok"),
        (figures.count(figures.failed(r.requests)), "failed"),
        (figures.rate(r.throughput.requests_per_s), "requests/s"),
        (figures.rate(r.throughput.output_tokens_per_s), "output tokens/s"),
        (figures.share(r.throughput.goodput_share), "goodput"),
        (figures.money(r.cost.usd), "cost"),
    ]
    if r.cost.usd is not None:
        numbers.append((figures.money(r.cost.usd_per_1k_requests), "per 1k requests"))
        numbers.append((figures.money(r.cost.usd_per_day), "per day at this rate"))
    facts = (element("div", element("b", n), element("span", what), classes="fact") for n, what in numbers)
    return element("div", *facts, classes="facts")


def _slos(slos: Sequence[Slo]) -> Markup:
    if not slos:
        return NOTHING
    intervals = any(figures.objective_interval(s) for s in slos)
    rows = [
        (
            text_cell(s.expression),
            figures.objective(s),
            *([figures.objective_interval(s) or figures.MISSING] if intervals else []),
            element("td", element("b", s.state), f" {figures.needs(s)}", classes=s.state),
        )
        for s in slos
    ]
    head = ("objective", "measured", *(["95 % CI"] if intervals else []), "")
    return joined((element("h2", "Objectives"), card(table(head, rows))))


def _metrics(metrics: dict[str, Distribution]) -> Markup:
    shown = [(name, d) for name in METRICS if (d := metrics.get(name)) and d.count]
    if not shown:
        return element("p", "No request succeeded: there are no latencies to show.")
    intervals = any(figures.interval(d, "p99", name) for name, d in shown)
    head = ["", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", *(["p99, 95 % CI"] if intervals else [])]
    rows = []
    for name, d in shown:
        cells = [figures.label(name), figures.count(d.count)]
        cells += [figures.value(each, name) for each in (d.mean, d.p50, d.p90, d.p95, d.p99)]
        cells += [figures.p99_9(d, name), figures.value(d.max, name)]
        if intervals:
            cells.append(figures.interval(d, "p99", name) or figures.MISSING)
        rows.append(row(cells, classes="key" if name in figures.HEADLINE else ""))
    return table(head, rows)


def _targets(targets: Sequence[TargetReport]) -> Markup:
    head = ["target", "model", "ok", "failed", "req/s", "tok/s"]
    head += [f"{METRICS[metric].label} {level}" for metric in figures.HEADLINE for level in ("p50", "p99")]
    rows = []
    for t in targets:
        latencies = [t.metrics.get(metric, Distribution()) for metric in figures.HEADLINE]
        rows.append(
            [
                element("td", element("b", t.name)),
                t.model,
                figures.count(t.requests.ok),
                figures.count(figures.failed(t.requests)),
                figures.rate(t.throughput.requests_per_s),
                figures.rate(t.throughput.output_tokens_per_s),
                *(figures.value(each) for d in latencies for each in (d.p50, d.p99)),
                figures.money(t.cost.usd),
            ]
        )
    note = element("p", "Latencies in ms.", classes="small soft")
    return joined((element("h2", "Targets"), card(table([*head, "cost"], rows), note)))


def _tail(run: Run, *, alone: bool) -> Iterator[Markup]:
    r = run.report
    if not alone:
        yield element("h2", f"{r.run.name} {r.run.id}")
    yield element("h2", "Failures")
    yield card(*_failures(r), classes="")
    yield element("h2", "Totals")
    yield card(table((), ((name, text_cell(line)) for name, line in account_lines(r))))
    yield element("h2", "Plan and host")
    plan = _details("Plan", element("pre", run.plan)) if run.plan else NOTHING
    digest = element("p", f"Plan sha256 {r.run.plan_sha256}", classes="small soft")
    host = table((), ((name, text_cell(_plain(value))) for name, value in r.run.host.items()))
    yield element("div", card(plan, digest, classes=""), card(host), classes="grid")


def _failures(r: Report) -> Iterator[Markup]:
    counts = {**r.requests.failed, **{f"not sent: {reason}": n for reason, n in r.requests.unsent.items()}}
    ordered = sorted(((n, name) for name, n in counts.items() if n), reverse=True)
    if not ordered:
        yield element("p", "None.")
        return
    for n, name in ordered:
        width = max(0.5, 100 * n / ordered[0][0])
        bar = element("div", style=f"width:{width:.1f}%")
        yield element("div", element("span", name), bar, element("span", f"{n:,}"), classes="bar")
    errors = sorted(r.errors, key=lambda error: -error.count)
    if errors:
        rows = (
            (e.target, text_cell(e.outcome), e.http_status or "", text_cell(" ".join(e.message.split())))
            for e in errors
        )
        yield element("div", table(("target", "outcome", "status", "latest message"), rows), classes="scroll")


def _plain(value: Any) -> str:
    """A value of the error budget or of the host, which may be any JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return figures.MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""The report of one or several runs as one HTML file that opens offline; charts drawn by uPlot, inlined.

Tables are in the page itself and need no script. The charts' data is JSON in the page (`charts`), drawn by report.js.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final, NamedTuple

import msgspec

from ...collectors.snapshot import HostReport, Report, TargetReport
from ...engine import files
from ...engine.errors import OutputError
from .. import figures
from ..account import account_lines
from ..time_rows import TimeRow, server_line, time_rows
from .charts import charts_of
from .health import health_strip
from .markup import NOTHING, Markup, card, details, element, escaped, joined, plain, table, text_cell
from .opening import all_metrics, opening
from .run import Run, read_run
from .timeline import POINTS

# Of report.html's placeholders those that hold a file, as it is.
FILES: Final = {
    "uplot_css": "uplot/uPlot.min.css",
    "report_css": "report.css",
    "uplot_js": "uplot/uPlot.iife.min.js",
    "report_js": "report.js",
    "requests_js": "requests.js",
}


class LiveParts(NamedTuple):
    """What the page of a run that goes on has beside a report's: markup above it, and the script that updates it."""

    top: Markup
    script: str


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


def page_of(runs: Sequence[Run], live: LiveParts | None = None) -> str:
    first = runs[0].report
    parts = {
        "title": escaped(f"{first.run.name}: {first.verdict.state} - LLM Latency Lens"),
        **sections_of(runs),
        "requests": _embedded([run.pictures for run in runs]),
        "data": _embedded(charts_of(runs)),
        "policy": "; connect-src 'self'" if live else "",
        "live": live.top if live else "",
        "live_js": live.script if live else "",
        **{name: asset(file) for name, file in FILES.items()},
    }
    return Template(asset("report.html")).substitute(parts)


def sections_of(runs: Sequence[Run]) -> dict[str, Markup]:
    """What of the page is made of words and tables, by the placeholder in report.html that it replaces."""
    return {
        "body": joined(_head(run) for run in runs),
        "tail": joined(part for run in runs for part in _tail(run, alone=len(runs) == 1)),
        "health": joined(health_strip(run, alone=len(runs) == 1) for run in runs),
        "downsampled": escaped(_downsampled(runs)),
        "marks": escaped(" ".join(_marks(run) for run in runs)),
        "token_times": escaped(_token_times(runs)),
        "distribution_source": escaped(_distribution_source(runs)),
    }


def _embedded(content: object) -> str:
    """JSON for a script element: no "</script>" from a server's or a plan's text."""
    return msgspec.json.encode(content).decode().replace("<", "\\u003c")


def asset(name: str) -> str:
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


def _marks(run: Run) -> str:
    """What the marks on the time axes mean, and each incident."""
    words = ["Red at the bottom: requests failed."] if run.report.requests.failed else []
    incidents = run.timeline.incidents.marks
    if incidents:
        words.append("Triangles: " + ", ".join(f"{m.label} at {figures.clock(m.at_s)}" for m in incidents) + ".")
    return " ".join(words)


def _token_times(runs: Sequence[Run]) -> str:
    if not any(run.pictures for run in runs):
        return "Single requests are shown once the run has ended."
    if any(run.pictures and run.pictures.timed for run in runs):
        return "The slowest requests and one of median duration: a mark is a token event. Red: after a stall. Hollow: it shared a read with the one before, so its own time is not known."
    return (
        "The arrival of each token was not kept; output.token_times: slowest:20 in the plan keeps that of the slowest."
    )


def _head(run: Run) -> Markup:
    r = run.report
    metrics = () if len(r.targets) > 1 else (element("h2", "Latency and speed"), card(all_metrics(r)))
    where = (_time(target, alone=len(r.targets) == 1) for target in r.targets)
    hosts = (_hosts(r.run.hosts),) if r.run.hosts else ()
    return element("section", *opening(r, run.setting), *metrics, *hosts, *where, classes="run")


def _hosts(hosts: Sequence[HostReport]) -> Markup:
    rows = [[element("td", element("b", host.name)), *figures.host_cells(host)] for host in hosts]
    note = element(
        "p",
        "Latencies in ms. Clock: how far the host's ticks may be from the driver's. Start: how late it saw the start.",
        classes="small soft",
    )
    return joined((element("h2", "Load hosts"), card(table(["host", *figures.HOST_COLUMNS], rows), note)))


def _time(target: TargetReport, *, alone: bool) -> Markup:
    """A waterfall of where the time of a target's mean request went; what nobody measured says so."""
    rows = time_rows(target)
    if not rows:
        return NOTHING
    end_ms = max(row.start_ms + (row.ms or 0.0) for row in rows) or 1.0
    bars = [
        element(
            "div",
            element("span", row.name, " ", element("span", row.note, classes="soft small")),
            element("div", style=_bar_style(row, end_ms))
            if row.ms is not None
            else element("p", "", classes="unknown"),
            element("span", row.value if row.ms is None else f"{row.value} ms"),
            classes="bar time",
        )
        for row in rows
    ]
    line = server_line(target)
    said = element("p", f"The server says: {line}", classes="small soft") if line else NOTHING
    title = "Where the time went" if alone else f"Where the time went: {target.name}"
    note = element(
        "p", "Means, which add up. Through a proxy the network is the way to the proxy.", classes="small soft"
    )
    return joined((element("h2", title), card(*bars, said, note)))


def _bar_style(row: TimeRow, end_ms: float) -> str:
    start, width = 100 * row.start_ms / end_ms, 100 * max(0.0, row.ms or 0.0) / end_ms
    return f"margin-left:{min(start, 99.5):.1f}%;width:{max(0.5, min(width, 100 - start)):.1f}%"


def _tail(run: Run, *, alone: bool) -> Iterator[Markup]:
    r = run.report
    if not alone:
        yield element("h2", f"{r.run.name} {r.run.id}")
    if len(r.targets) > 1:
        yield element("h2", "All targets together")
        yield card(all_metrics(r))
    yield element("h2", "Failures")
    yield card(*_failures(r), classes="")
    yield element("h2", "Totals")
    yield card(table((), ((name, text_cell(line)) for name, line in account_lines(r))))
    yield element("h2", "Plan and host")
    plan = details("Plan", element("pre", run.plan, tabindex="0")) if run.plan else NOTHING
    digest = element("p", f"Plan sha256 {r.run.plan_sha256}", classes="small soft")
    host = table((), ((name, text_cell(plain(value))) for name, value in r.run.host.items()))
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

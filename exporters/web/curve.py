"""Throughput against latency over all runs of one plan family: where a server begins to queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from .. import figures
from ..html.markup import NOTHING, Markup, card, element, joined, table
from ..sweep.plot import Curve, Mark, chart
from .library import Entry, SummaryLine
from .listing import framed, link

CHARTS = (("ttft_ms", "TTFT"), ("itl_ms", "ITL"), ("e2e_ms", "E2E"))
COLOURS = 8


def curve_page(entry: Entry, entries: Iterable[Entry]) -> str:
    """The page of an entry's family; runs without a successful request are left out."""
    runs = [
        each for each in entries if each.family == entry.family and each.state == "done" and _rate(each) is not None
    ]
    runs.sort(key=lambda each: (each.addresses, _rate(each) or 0))
    places = [place for place, _ in groupby(runs, lambda each: each.addresses)]
    drawn = [part for metric, label in CHARTS for part in _chart(runs, metric, label)]
    known = (
        element("span", element("i", style=f"background:var(--c{k % COLOURS})"), place or "address unknown")
        for k, place in enumerate(places)
    )
    rows = [
        (
            link(each.path, "report", run=each.path),
            each.summary.run.load,
            figures.rate(_rate(each)),
            *_latencies(each.summary),
        )
        for each in runs
        if each.summary
    ]
    head = ("run", "load", "tok/s", *(f"{label} {level}" for _, label in CHARTS for level in ("p50", "p99")))
    return framed(
        f"{entry.name}: throughput and latency",
        element("p", link("All runs", "./"), classes="small"),
        element("h1", f"{entry.name}: throughput and latency"),
        element(
            "p",
            f"{len(runs)} runs with the targets and the workload of {entry.path}. Solid: p50; dashed: p99.",
            classes="small soft",
        ),
        element("p", *known, classes="legend small"),
        element("div", *drawn, classes="grid") if drawn else NOTHING,
        element("h2", "Runs"),
        card(table(head, rows) if rows else element("p", "No run of this family has a successful request.")),
    )


def _chart(runs: list[Entry], metric: str, label: str) -> Iterator[Markup]:
    curves = []
    for k, (_, group) in enumerate(groupby(runs, lambda each: each.addresses)):
        members = list(group)
        for level, dash in (("p50", ""), ("p99", "4 3")):
            marks = [mark for each in members if (mark := _mark(each, metric, level)) is not None]
            curves.append(Curve(level, marks, f"var(--c{k % COLOURS})", dash))
    made = chart(curves, (), x_label="output tokens/s", y_label=f"{label}, ms", log_y=True)
    if made:
        yield card(element("h3", f"{label} by throughput"), joined([made]))


def _mark(entry: Entry, metric: str, level: str) -> Mark | None:
    found = entry.summary.metrics.get(metric) if entry.summary else None
    speed, latency = _rate(entry), getattr(found, level, None)
    if found is None or speed is None or latency is None:
        return None
    low, high = getattr(found.ci95, level) if found.ci95 else (None, None)
    text = f"{entry.path}: {figures.rate(speed)} tok/s, {metric} {level} {figures.value(latency)} ms"
    return Mark(speed, latency, low, high, "full" if level == "p50" else "hollow", text)


def _rate(entry: Entry) -> float | None:
    s = entry.summary
    return s.throughput.output_tokens_per_s or None if s is not None and s.requests.ok else None


def _latencies(summary: SummaryLine) -> Iterator[str]:
    for metric, _ in CHARTS:
        found = summary.metrics.get(metric)
        yield figures.value(found.p50 if found else None)
        yield figures.value(found.p99 if found else None)

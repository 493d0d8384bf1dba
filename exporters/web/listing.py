"""The list of a directory's runs as a page, and the frame of every page of `lens view`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote, urlencode

from ...collectors.snapshot import Distribution
from .. import figures
from ..html.markup import NOTHING, Markup, card, element, escaped, joined, row, table
from ..html.page import asset
from .library import Entry

POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; form-action 'self'"
)
HEAD: Final = (
    "", "run", "kind", "started", "load", "verdict", "ok", "failed", "req/s", "tok/s", "TTFT p50", "p99", "E2E p50", "p99", ""
)  # fmt: skip


def framed(title: str, *body: object, script: str = "") -> str:
    """A page with the report's styles."""
    head = joined(
        (
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'),
            element("title", f"{title} - LLM Latency Lens"),
            element("style", Markup(asset("report.css") + asset("view.css"))),
        )
    )
    code = Markup(f"<script>{asset(script)}</script>") if script else NOTHING
    main = element("main", *body)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>{main}{code}</body>\n</html>\n'


def link(text: object, path: str, **query: str | Sequence[str]) -> Markup:
    """A link to another page of the same server."""
    asked = f"?{urlencode(query, doseq=True, quote_via=quote)}" if query else ""
    return Markup(f'<a href="{escaped(path + asked)}">{escaped(text)}</a>')


def message_page(title: str, text: str, *more: object) -> str:
    """A page that says one thing, such as what is wrong."""
    return framed(
        title,
        element("p", link("All runs", "./"), classes="small"),
        element("h1", title),
        card(element("p", text), *more),
    )


def listing_page(folder: str, entries: Iterable[Entry]) -> str:
    """All entries, newest first."""
    found = list(entries)
    rows = [_row(each) for each in found]
    form = (
        Markup(
            '<div class="tools"><input type="search" id="filter" placeholder="Filter: name, kind, load, verdict" '
            'aria-label="Filter the list"><button class="chip" id="compare">Compare the two ticked</button>'
            '<span class="small soft" id="shown" role="status"></span></div>'
        ),
        card(table(HEAD, rows) if rows else element("p", "No runs here yet: lens run --simulate makes one.")),
    )
    return framed(
        folder,
        element("h1", folder),
        element(
            "p", f"{len(found):,} directories, newest first. Times are UTC, latencies in ms.", classes="small soft"
        ),
        Markup(f'<form action="compare" class="runs">{joined(form)}</form>'),
        script="view.js",
    )


def _row(entry: Entry) -> Markup:
    s = entry.summary
    comparable = entry.kind == "run" and entry.state == "done"
    mark = escaped(entry.path)
    tick = (
        Markup(f'<input type="checkbox" name="run" value="{mark}" aria-label="compare {mark}">')
        if comparable
        else NOTHING
    )
    name = element(
        "td",
        link(entry.name, "report", run=entry.path),
        element("div", entry.path, classes="small soft"),
        classes="wrap",
    )
    state = entry.kind if entry.state == "done" else f"{entry.kind}, {entry.state}"
    cells: list[object] = [
        element("td", tick),
        name,
        state,
        figures.moment(entry.started_at).removesuffix(" UTC") or figures.MISSING,
    ]
    if s is None:
        note = escaped(entry.problem or entry.detail)
        wide = Markup(f'<td class="wrap" colspan="{len(HEAD) - len(cells)}">{note}</td>')
        return row([*cells, wide], classes=_style(entry))
    ttft, e2e = (s.metrics.get(metric, Distribution()) for metric in ("ttft_ms", "e2e_ms"))
    cells += [
        s.run.load.replace("_", " "),
        element("td", s.verdict.state, classes=s.verdict.state if s.verdict.state.isalpha() else ""),
        figures.count(s.requests.ok),
        figures.count(figures.failed(s.requests)),
        figures.rate(s.throughput.requests_per_s),
        figures.rate(s.throughput.output_tokens_per_s),
        *(figures.value(each) for d in (ttft, e2e) for each in (d.p50, d.p99)),
        element("td", link("curve", "curve", run=entry.path) if entry.family else NOTHING, " ", entry.problem),
    ]
    return row(cells, classes=_style(entry))


def _style(entry: Entry) -> str:
    return "damaged" if entry.state in ("damaged", "unfinished") else ""
